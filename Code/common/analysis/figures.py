"""Figures of the tables that ``python -m common.analysis`` leaves in a folder.

``python -m common.analysis.figures DIR --axis AXIS [--metric METRIC] [--block BLOCK]`` draws another measure or block
of them than those that are drawn by default: agreement of kept patches, of groups and of CLS tokens, each after the
last block; over capacities and seeds after every block.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from common.analysis.pairs import AXES, Axis
from common.errors import UsageError, command
from common.options import check
from common.plots import agreement_by_block, agreement_dendrogram, depth_maps, save
from common.plots.frames import backbone_name, method_names, split_panels
from common.plots.patterns import is_complete
from common.plots.style import METHODS

METRICS = ("iou", "nmi", "cka")  # of what methods keep, group and compute
# Over rates IoU is bounded by the rates themselves; over datasets depth maps say more than their few numbers.
OF_AXIS = {"rates": ("iou_excess", "nmi", "cka"), "datasets": ()}
# Few runs are compared along these, in pairs: a matrix of them would say less than how they agree block by block.
BY_BLOCK = ("capacity", "seeds")
OF_AXIS |= dict.fromkeys(BY_BLOCK, ("iou_excess", "ami", "cka"))
OWN = {
    "rates": ["rate"],
    "capacity": ["backbone", "weights"],
    "methods": ["method"],
    "datasets": ["dataset"],
    "seeds": ["seeded"],
}
WORDS = ["dataset", "backbone", "weights", "method", "rate", "blocks", "seeded"]  # what tells runs apart, for readers
RUNS = 48  # in all panels of one figure, at most, if it has more than one
ROWS = 12  # of maps in one figure
COLUMNS = 8
PLAIN = METHODS["none"]


def table_file(folder: Path, name: str, axis: Axis) -> Path:
    """Where the table ``name`` ("runs", "comparisons", "correlations", "depths") lies."""
    return folder / f"{name}_{axis}.csv"


def draw(folder: str | Path, axis: Axis, metric: str | None = None, block: int | None = None) -> list[Path]:
    """Draw what the tables in ``folder`` hold along ``axis``.

    Args:
        metric: of the comparisons; None = the usual ones, and the depth maps.
        block: after which; None = the last one that has the metric.

    Returns:
        The files, beside the tables.

    Raises:
        UsageError: no such table, or no such metric after such a block in it.
    """
    folder = Path(folder).absolute()
    runs, comparisons = read_tables(folder, check("axis", axis, Axis))
    runs = in_words(runs)
    usual = [name for name in OF_AXIS.get(axis, METRICS) if (comparisons["metric"] == name).any()]
    written = []
    for name in usual if metric is None else [metric]:
        if axis in BY_BLOCK:
            rows = in_pairs(_of(_telling(comparisons), name, block, every=True), runs, axis)
            written.append(save(agreement_by_block(rows, name), folder / f"{name}_{axis}.png"))
        else:
            written += _draw_agreement(folder, labelled(_of(comparisons, name, block), runs, axis), axis)
    if metric is None and table_file(folder, "depths", axis).is_file():
        written += _draw_depths(folder, runs, axis)
    return written


def labelled(comparisons: pd.DataFrame, runs: pd.DataFrame, axis: Axis) -> pd.DataFrame:
    """``comparisons`` with what :func:`common.plots.agreement_dendrogram` asks for: label_a, label_b and panel.

    A panel has the runs that agree in everything but what the axis is about; an unreduced model is in all of them.

    Args:
        runs: :func:`in_words`.
    """
    rows, label = comparisons.reset_index(drop=True), "keep_rate" if axis == "rates" else OWN[axis][0]
    first, second = (runs.loc[rows[side]].reset_index(drop=True) for side in "ab")
    shared = first.where(first["method"] != PLAIN, second, axis=0)[[word for word in WORDS if word not in OWN[axis]]]
    rows = rows.assign(label_a=first[label], label_b=second[label]).join(shared)
    panels = split_panels(rows, list(shared), ["rate" if axis == "methods" else "method"])
    return pd.concat([found.assign(panel=title) for title, found in panels], ignore_index=True)


def in_pairs(comparisons: pd.DataFrame, runs: pd.DataFrame, axis: Axis) -> pd.DataFrame:
    """``comparisons`` with what :func:`common.plots.agreement_by_block` asks for: method, options, keep_rate and pair.

    Args:
        runs: :func:`in_words`.
    """
    rows, own = comparisons.reset_index(drop=True), OWN[axis]
    first, second = (runs.loc[rows[side]].reset_index(drop=True) for side in "ab")
    told = [word for word in WORDS if word not in (*own, "method", "rate") and first[word].nunique() > 1]
    words = first[told].agg(", ".join, axis=1) + ", " if told else ""
    method = first["written"].str.partition(":")
    pair = words + first[own[0]] + " and " + second[own[0]]
    return rows.assign(method=method[0], options=method[2], keep_rate=first["keep_rate"], pair=pair)


def _of(comparisons: pd.DataFrame, metric: str, block: int | None, *, every: bool = False) -> pd.DataFrame:
    """The rows of one metric after one block, of None the last, or ``every`` one."""
    rows = comparisons[comparisons["metric"] == metric]
    if block is None and every:
        found = rows
    elif block is None:
        found = rows if rows["block"].isna().all() else rows[rows["block"] == rows["block"].max()]
    else:
        found = rows[rows["block"] == block]
    if found.empty:
        known = comparisons[["metric", "block"]].drop_duplicates().groupby("metric")["block"].apply(list)
        allowed = "; ".join(f"{name} after {', '.join(f'{at:g}' for at in blocks)}" for name, blocks in known.items())
        raise UsageError(f"no metric {metric!r}{'' if block is None else f' after block {block}'}; allowed: {allowed}")
    return found


def _draw_agreement(folder: Path, rows: pd.DataFrame, axis: Axis) -> Iterator[Path]:
    """A few panels a file; those that lack a number of any pair are left out."""
    metric, block = rows["metric"].iloc[0], rows["block"].iloc[0]
    block = None if pd.isna(block) else int(block)
    name = f"{metric}_{'' if block is None else f'block-{block}_'}{axis}"
    for number, some in enumerate(_pages(rows), start=1):
        figure = agreement_dendrogram(some, metric, block)
        yield save(figure, folder / f"{name}{f'_{number}' if number > 1 else ''}.png")


def _telling(comparisons: pd.DataFrame) -> pd.DataFrame:
    """``comparisons`` but for the AMI of groups that any two methods would share, as where all patches are in one."""
    of_pair = pd.MultiIndex.from_frame(comparisons[["a", "b", "block"]])
    trivial = of_pair[(comparisons["metric"] == "nmi") & (comparisons["chance"] > 1 - 1e-9)]
    return comparisons[~(of_pair.isin(trivial) & (comparisons["metric"] == "ami"))]


def _pages(rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    page, count = [], 0
    for _, panel in rows.groupby("panel", sort=False):
        runs = len({*panel["a"], *panel["b"]})
        if page and count + runs > RUNS:
            yield pd.concat(page)
            page, count = [], 0
        if is_complete(panel):
            page.append(panel)
            count += runs
    if page:
        yield pd.concat(page)


def _draw_depths(folder: Path, runs: pd.DataFrame, axis: Axis) -> Iterator[Path]:
    """A row of maps per method, and per whatever else tells runs apart but the columns: the axis, or the rate."""
    depths = _read(folder, "depths", axis)
    shown = runs.loc[depths["run"].unique()]
    shown = shown[shown["method"] != PLAIN].sort_values("order", kind="stable")
    if shown.empty:
        return
    across = _columns(shown, axis)
    shown = shown.assign(column=shown[across].agg("\n".join, axis=1))
    others = [word for word in WORDS if word not in (*across, *OWN[axis]) and shown[word].nunique() > 1]
    titles = shown[list(dict.fromkeys(["method", *others]))].agg(lambda words: "\n".join(filter(None, words)), axis=1)
    columns = shown.sort_values(across[::-1], kind="stable")["column"].unique()
    rows = []
    for title, keys in titles.groupby(titles, sort=False).groups.items():
        places = dict(zip(shown.loc[keys, "column"], keys, strict=True))
        rows.append((title, {column: _map(depths, places.get(column)) for column in columns}))
    for number, start in enumerate(range(0, len(rows), ROWS), start=1):
        figure = depth_maps(dict(rows[start : start + ROWS]), int(shown["depth"].max()))
        yield save(figure, folder / f"depth_{axis}{f'_{number}' if number > 1 else ''}.png")


def _columns(shown: pd.DataFrame, axis: Axis) -> list[str]:
    """What the columns of maps are: what the axis is about, at each rate where they fit side by side."""
    if axis in ("methods", "rates"):
        return ["rate"]
    both = [OWN[axis][0], "rate"]
    return both if 1 < len(shown[both].drop_duplicates()) <= COLUMNS and shown["rate"].nunique() > 1 else both[:1]


def _map(depths: pd.DataFrame, run: str | None) -> np.ndarray | None:
    """The map (h, w) of a run; None of none."""
    rows = depths[depths["run"] == run]
    return rows.pivot(index="row", columns="column", values="mean").to_numpy() if len(rows) else None


def read_tables(folder: str | Path, axis: Axis) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs and the comparisons that lie in ``folder``.

    Raises:
        UsageError: there are none along this ``axis``.
    """
    folder = Path(folder)
    return _read(folder, "runs", axis, dtype=str, keep_default_na=False), _read(folder, "comparisons", axis)


def in_words(runs: pd.DataFrame) -> pd.DataFrame:
    """Rows of :func:`common.analysis.tables.runs_table` by key, what they are in words of readers."""
    runs = runs.astype(object).where(runs.notna(), "").astype(str)
    models = [text.partition(":")[::2] for text in runs["method"]]
    seeds = pd.to_numeric(runs["seed"]).map("seed {:g}".format, na_action="ignore")
    return runs.assign(
        written=runs["method"],
        order=[(*METHODS, name).index(name) for name, _ in models],
        method=method_names(models, between="\n"),
        backbone=runs["backbone"].map(backbone_name),
        rate="keep rate " + runs["keep_rate"],
        blocks="blocks " + runs["reduction_loc"],
        seeded=seeds.fillna(""),
        depth=pd.to_numeric(runs["depth"]),
    ).set_index("key")


def _read(folder: Path, name: str, axis: Axis, **how: object) -> pd.DataFrame:
    path = table_file(folder, name, axis)
    if not path.is_file():
        raise UsageError(
            f"there is no {path.name} in {str(folder)!r}; python -m common.analysis RUNS --axis {axis} makes it"
        )
    return pd.read_csv(path, **how)


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; exit code 2 on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m common.analysis.figures", description="Draw what python -m common.analysis left in a folder."
    )
    parser.add_argument("folder", metavar="DIR", help="folder with the tables; figures go there too")
    parser.add_argument("--axis", required=True, metavar="AXIS", help=f"of: {', '.join(AXES)}")
    parser.add_argument("--metric", help="iou, iou_excess, nmi, ami, cka, procrustes ...; default: the usual ones")
    parser.add_argument("--block", type=int, help="after which block, from 0; default: the last")
    for file in draw(**vars(parser.parse_args(arguments))):
        print(file)


if __name__ == "__main__":
    sys.exit(main())
