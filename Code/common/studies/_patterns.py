"""What the studies of reduction patterns share: rows of one run and of two, and their cells in tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from common.analysis.runs import RunData
from common.evaluation import Setting
from common.evaluation.record import TRAINING
from common.reducers import Method
from common.report import sections as show
from common.schedule import keep_rate_text
from common.schema import Column, intervals, number, text

# Agreement that chance and the numbers of tokens leave open: 0 = as by chance, 1 = all that there could be.
ADJUSTED = {"iou_excess": "patches kept", "ami": "patches merged"}
_PLAIN = {"iou_excess": "iou", "ami": "nmi"}  # what of them is not adjusted
METRICS = ("iou", "iou_excess", "ioa", "homogeneity", "completeness", "nmi", "ami")
_WITH_CHANCE = ("iou", "ioa", "nmi")
DEPTH_NOTE = (
    "Depth: blocks that a patch comes through as a token, or the centre of one; mean over patches and images. Range: "
    "of the means of the places. Left: share of the tokens after each reduction."
)
Row = dict[str, object]


def depth_columns(part: str) -> dict[str, Column]:
    """What :func:`depth_row` fills in."""
    return {
        "depth": number("blocks that a patch comes through, mean over patches and images").only(part),
        "depth_map": text("the same of each place, row by row").only(part),
        "kept": text("share of the patch tokens left after each reduction, mean over images").only(part),
    }


def agreement_columns(*parts: str) -> dict[str, Column]:
    """What :func:`agreement_row` fills in."""
    unit_of = {"iou_excess": "", "ami": "correlation"}
    meaning = {
        "iou": "intersection over union of the patches kept",
        "iou_excess": "of it over chance, as a share of what is left to its bound",
        "ioa": "share of the patches of the other that are kept",
        "homogeneity": "of the other's groups, given these",
        "completeness": "of these groups, given the other's",
        "nmi": "normalised mutual information of the groups",
        "ami": "adjusted mutual information of the groups",
    }
    measures = {name: number(meaning[name], unit_of.get(name, "share"), optional=True).only(*parts) for name in METRICS}
    chances = {
        f"{name}_chance": number(f"mean of {name} by chance", "share", optional=True).only(*parts)
        for name in _WITH_CHANCE
    }
    return {**intervals(**measures), **chances}


def setting_row(setting: Setting) -> Row:
    """The conditions of a row that follow from what was evaluated."""
    method = Method.parse(setting.method)
    return {
        "method": method.name,
        "options": method.options_text,
        "keep_rate": keep_rate_text(setting.keep_rate),
        "seed": setting.seed,
        **dict.fromkeys(TRAINING),
        **setting.training,
    }


def depth_row(run: RunData) -> Row:
    """How deep the patches of one run come."""
    told = {"part": "depth", "n_images": run.images, **setting_row(run.setting), "depth": float(run.depth.mean())}
    told["depth_map"] = " ".join(f"{value:.3f}" for value in run.depth)
    return told | {"kept": ", ".join(f"{100 * (count / run.setting.num_patches):.0f} %" for count in run.left)}


def depth_values(written: str) -> np.ndarray:
    """The ``depth_map`` (P,) of a row."""
    return np.array(str(written).split(), float)


def agreement_row(cells: pd.DataFrame) -> Row:
    """The measures of two runs in one block, rows of :func:`common.analysis.compare`, side by side."""
    found: Row = {"n_images": int(cells["n"].iloc[0])}
    for cell in cells[cells["metric"].isin(METRICS)].itertuples():
        found |= {cell.metric: cell.mean, f"{cell.metric}_low": cell.low, f"{cell.metric}_high": cell.high}
        if cell.metric in _WITH_CHANCE:
            found[f"{cell.metric}_chance"] = cell.chance
    return found


def with_measure(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The rows that have ``measure``; not those whose groups say nothing, as all patches are in one."""
    trivial = (rows["nmi_chance"] > 1 - 1e-9) & (measure == "ami")
    return rows[rows[measure].notna() & ~trivial]


def with_interval(row: pd.Series, measure: str) -> str:
    """``0.50 (95 % interval 0.40 to 0.60)``."""
    low, high = (show.number(row[f"{measure}_{end}"]) for end in ("low", "high"))
    return f"{show.number(row[measure])} (95 % interval {low} to {high})"


def agreement_cell(row: pd.Series, measure: str) -> str:
    """Agreement beyond chance, in brackets the plain one."""
    return f"{show.number(row[measure])} ({show.number(row[_PLAIN[measure]])})"


def by_block(names: pd.DataFrame, blocks: Sequence[int], cells: Sequence[str]) -> pd.DataFrame:
    """Long to wide: a row for each of ``names`` (columns of words), a column for each block with its cell."""
    table: dict[tuple[str, ...], Row] = {}
    for name, block, cell in zip(names.itertuples(index=False), blocks, cells, strict=True):
        table.setdefault(tuple(name), {})[f"Block {block}"] = cell
    found = [dict(zip(names.columns, name, strict=True)) | cells for name, cells in table.items()]
    return pd.DataFrame(found).fillna(show.NONE)
