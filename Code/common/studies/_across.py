"""Rows of the patterns of methods on several data sets and in several backbones, and what figures show of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from common.analysis import compare_all, compare_halves, compare_mean_maps, pairs
from common.analysis.runs import RunData, shelf_runs, trained_runs
from common.errors import UsageError
from common.evaluation import Setting
from common.plots.elsewhere import MAP_MEASURES
from common.plots.frames import backbone_name, method_names
from common.report import sections as show
from common.report.rows import VARIANT, in_order
from common.results import resolve
from common.setup import Setup
from common.studies._patterns import Row, agreement_row, depth_row, depth_values, setting_row, with_measure

SETTING = ["dataset", "backbone", "weights", "recipe", "img_size", "epochs", "n_train"]
OF_DATA = [*SETTING, "other_dataset"]  # what rows of two data sets share
OF_WIDTHS = [*SETTING, "other_backbone", "other_weights"]  # what rows of two backbones share
HALVES = "two halves"
_FIXED = 1e-9  # of JSD: both maps are one
_ALIKE = ("PCC", "SCC", "SIM")  # measures that are high where maps are alike


def runs_across(
    folder: str, setups: Sequence[Setup], methods: Sequence[str], keep_rates: Sequence[float], *, trained: str = ""
) -> list[RunData]:
    """The records of every setup in ``folder``, made where they are missing; without accuracy where the head has other
    classes than the data set. Or those of trained models in the folder ``trained``."""
    if trained:
        return [run for setup in setups for run in trained_runs(resolve(trained), setup, methods, keep_rates)]
    return [run for setup in setups for run in shelf_runs(folder, setup, methods, keep_rates, decisions_only=None)]


def across_rows(runs: Sequence[RunData], resamples: int = 100) -> Iterator[Row]:
    """Rows of the study from ``runs`` on several data sets, of one backbone or several.

    Args:
        resamples: of the bootstrap intervals of maps.

    Raises:
        UsageError: runs of one data set.
    """
    datasets = list(dict.fromkeys(run.setting.dataset for run in runs))
    if len(datasets) < 2:
        raise UsageError(f"runs on {', '.join(datasets) or 'nothing'} cannot be compared; give two data sets or more")
    deep = [run for run in runs if run.setting.reduces and run.depth is not None]
    for run in deep:
        yield {**depth_row(run), **_where(run.setting)}
        halves = compare_halves(run.depth_maps())
        yield {"part": "halves", **_where(run.setting), **halves, "n_images": run.images}
    for first, second in pairs([run.setting for run in deep], "datasets"):
        yield _two_data_sets(deep[first], deep[second], resamples)
    settings = {run.setting.key: run.setting for run in runs}
    table = compare_all([run.decisions for run in runs], "capacity")
    for (a, b, block), cells in table.groupby(["a", "b", "block"], sort=False):
        if settings[a].reduces:
            other = {"other_backbone": settings[b].backbone, "other_weights": settings[b].weights}
            yield {"part": "capacity", **_where(settings[a]), **other, "block": block, **agreement_row(cells)}


def _two_data_sets(a: RunData, b: RunData, resamples: int) -> Row:
    told = {"part": "datasets", **_where(a.setting), "other_dataset": b.setting.dataset}
    for name, found in compare_mean_maps(a.depth_maps(), b.depth_maps(), resamples=resamples).items():
        told |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return told | {"n_images": a.images, "other_n_images": b.images}


def _where(setting: Setting) -> Row:
    same = {name: getattr(setting, name) for name in ("dataset", "backbone", "weights")}
    return {**setting_row(setting), **same}


def depth_maps(rows: Sequence[Row], backbone: str, grid: tuple[int, int]) -> dict[str, dict[str, np.ndarray]]:
    """Maps of depth (h, w) in one backbone, method by method: the data sets side by side at each keep rate."""
    found: dict[str, dict[str, np.ndarray]] = {}
    some = pd.DataFrame([row for row in rows if row["part"] == "depth" and row["backbone"] == backbone])
    some = in_order(some.assign(label=_short_labels(some)), [])
    for rate in show.falling(some["keep_rate"]):
        for row in some[some["keep_rate"] == rate].itertuples():
            title = f"{row.dataset}\n{show.percent(rate)}"
            found.setdefault(row.label, {})[title] = depth_values(row.depth_map).reshape(grid)
    return found


def similarity_table(rows: pd.DataFrame) -> pd.DataFrame:
    """How alike the maps of two data sets are, for :func:`common.plots.map_similarity`, with two halves of one as last.

    A panel for each pair of data sets, backbone and keep rate.
    """
    halves, panels = rows[rows["part"] == "halves"], []
    looked = in_order(looking(rows[rows["part"] == "datasets"]), OF_DATA)
    for _, cells in looked.groupby([*OF_DATA, "keep_rate"], sort=False, dropna=False):
        row = cells.iloc[0]
        panel = f"{backbone_name(row['backbone'])}, {show.percent(row['keep_rate'])}"
        same = {name: np.mean([same_of(each, halves, name) for _, each in cells.iterrows()]) for name in MAP_MEASURES}
        found = pd.DataFrame([*cells.assign(label=_short_labels(cells)).to_dict("records"), {"label": HALVES, **same}])
        panels.append(found.assign(panel=panel, pair=both(cells, "dataset")))
    return pd.concat(panels)[["label", "panel", "pair", *MAP_MEASURES]] if panels else pd.DataFrame()


def capacity_table(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Agreement of two backbones, for :func:`common.plots.agreement_by_block`."""
    compared = rows[rows["part"] == "capacity"]
    known = compared if compared.empty else with_measure(compared, measure)
    if known.empty:
        return known
    words = known["dataset"] + ", " + known["backbone"].map(backbone_name) + " and "
    ends = {"mean": known[measure], "low": known[f"{measure}_low"], "high": known[f"{measure}_high"]}
    return known.assign(pair=words + known["other_backbone"].map(backbone_name), chance=0.0, **ends)


def _short_labels(rows: pd.DataFrame) -> list[str]:
    return method_names(list(zip(rows["method"], rows["options"], strict=True)))


def of_part(data: pd.DataFrame, part: str, keys: list[str]) -> Iterator[tuple[object, pd.DataFrame]]:
    yield from data[data["part"] == part].groupby(keys, sort=False, dropna=False)


def both(rows: pd.DataFrame, what: str) -> str:
    """Both data sets, or both backbones, of ``rows``, which share them."""
    return " and ".join(backbone_name(rows[name].iloc[0]) for name in (what, f"other_{what}"))


def looking(rows: pd.DataFrame) -> pd.DataFrame:
    """Those of methods that look at the image; the maps of the others are one."""
    return rows[rows["JSD"] > _FIXED]


def same_of(row: pd.Series, halves: pd.DataFrame, name: str) -> float:
    """The measure ``name`` of two halves of a data set, of the one of both where they are less alike."""
    same = halves[(halves[["backbone", "weights", *VARIANT]] == row[["backbone", "weights", *VARIANT]]).all(axis=1)]
    values = same.loc[same["dataset"].isin([row["dataset"], row["other_dataset"]]), name]
    return values.min() if name in _ALIKE else values.max()
