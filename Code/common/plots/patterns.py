"""Figures of what runs decide: how far they agree, and how deep patches come."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from common.errors import UsageError, require_choice
from common.options import Count, check
from common.plots.frames import panel_axes, require_columns
from common.plots.heat import heat_values, picture_page
from common.plots.patches import bare, fitting_size
from common.plots.style import RC, WIDTH, new_figure

SIMILARITIES = {
    "iou": "IoU of kept patches",
    "iou_excess": "IoU of kept patches above chance, 1 = all that is possible",
    "nmi": "NMI of groups",
    "ami": "AMI of groups",
    "mean_cca": "mean canonical correlation",
    "mean_sq_cca": "mean squared canonical correlation",
    "PCC": "correlation of depth maps",
    "SCC": "rank correlation of depth maps",
    "SIM": "intersection of depth maps",
}
DISTANCES = {
    "cka": "CKA distance",
    "procrustes": "Procrustes distance",
    "JSD": "JSD of depth maps",
    "EMD": "earth mover's distance of depth maps",
}
METRICS = SIMILARITIES | DISTANCES  # that are the same in both orders of a pair
_COLUMNS = ("a", "b", "label_a", "label_b", "block", "metric", "mean", "chance")
_MAPS = 7  # in a row
_TREE = 0.3  # width of a tree as a share of its matrix
_CELL = 0.2  # inches of a cell, at least, before panels stand below each other
_LEGIBLE = 5.5  # points
_SHORT = 6  # letters that fit below a column
_GAP, _BAR = 0.09, 0.8  # inches between maps, and of their scale


@rc_context(RC)
def agreement_dendrogram(table: pd.DataFrame, metric: str, block: int | None = None) -> Figure:
    """Draw how far runs agree: a cell per pair, runs ordered by what agrees most, and the tree of that beside it.

    Above the diagonal stands what was measured and below it what chance would give; where chance is one number for all
    pairs, or not known, a line of text says so and both sides show what was measured. The tree is that of average
    linkage (UPGMA) of the distances, for similarities 1 - x; a branch ends at the mean distance of the two groups that
    it joins. Leaves are in the order that puts the most similar ones side by side.

    >>> pairs = [("topk", "evit", 0.9), ("topk", "ats", 0.6), ("evit", "ats", 0.7)]
    >>> table = pd.DataFrame(pairs, columns=["a", "b", "mean"]).assign(metric="iou", block=9, chance=0.4)
    >>> figure = agreement_dendrogram(table.assign(label_a=table["a"], label_b=table["b"]), "iou", 9)
    >>> [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    ['ats', 'evit', 'topk']

    Args:
        table: rows of :func:`common.analysis.compare_all`, of which ``a``, ``b``, ``block``, ``metric``, ``mean`` and
            ``chance`` are read, with the names of the runs in ``label_a`` and ``label_b``; a column ``panel`` splits
            them into panels, whose titles it holds. Within a panel all runs are compared with each other.
        metric: one that is the same in both orders: iou, iou_excess, nmi, ami, cka, procrustes, mean_cca ...
        block: after which; None = rows without one, as of depth maps.

    Raises:
        UsageError: a missing column, another metric, no row; a panel in which a pair is missing, twice, or NaN.
    """
    require_choice(metric, METRICS, "metric that is the same in both orders")
    table = require_columns(table, _COLUMNS, "agreement_dendrogram")
    at_block = table["block"].isna() if block is None else table["block"] == block
    rows = table[(table["metric"] == metric) & at_block]
    if rows.empty:
        raise UsageError(f"agreement_dendrogram has no row of {metric!r} after block {block}")
    rows = rows if "panel" in rows else rows.assign(panel="")
    panels = [_Panel(title, found, metric) for title, found in rows.groupby("panel", sort=False)]
    chance = _one_number(rows["chance"])
    values = rows["mean"] if chance is not None else pd.concat([rows["mean"], rows["chance"]])
    low = max(values.min(), -1)  # below it, what exceeds chance says only that nearly all patches are kept
    scale = Normalize(low, max(values.max(), low + 1e-9))
    return _agreement_figure(panels, metric, block, chance, scale)


@rc_context(RC)
def depth_maps(maps: Mapping[str, ArrayLike] | Mapping[str, Mapping[str, ArrayLike]], depth: int) -> Figure:
    """Draw how many of ``depth`` blocks each patch comes through, on average: small maps on one scale from 0 to depth.

    >>> depths = {"Top-K": np.full((14, 14), 6.0), "l2 pattern": np.full((14, 14), 7.5)}
    >>> len(depth_maps(depths, 12).axes) - 1  # the scale
    2

    Args:
        maps: title -> (h, w), drawn in rows of up to seven; or name of a row -> title -> (h, w), a row each, in which
            maps of one title stand below each other, as those of one keep rate.
        depth: number of blocks.

    Raises:
        UsageError: no map, another shape, NaN, or values outside [0, depth].
    """
    lines, scale = _lines_of_maps(maps), Normalize(0, check("depth", depth, Count))
    columns, names = max(len(cells) for _, cells in lines), [name for name, _ in lines]
    left = 0.1 + 0.16 * max(name.count("\n") + bool(name) for name in names)
    top = 0.1 + 0.16 * max(title.count("\n") + 1 for _, cells in lines for title, _ in cells)
    side, below = min((WIDTH - left - _BAR) / columns - _GAP, 1.5), _GAP if any(names) else top
    gaps, width = [left, *[_GAP] * (columns - 1)], left + columns * (side + _GAP) + _BAR
    fig, axes = picture_page(
        len(lines), side, [side] * columns, gaps, top=top, below=below, bottom=0.08 - below, width=max(width, 3.0)
    )
    for number, (row, (name, cells)) in enumerate(zip(axes, lines, strict=True)):
        for ax in row:
            bare(ax)
        row[0].set_ylabel(name, fontsize=9, labelpad=4)
        for ax, (title, values) in zip(row, cells, strict=False):
            if number == 0 or not any(names):
                ax.set_title(title, fontsize=fitting_size(max(title.split("\n"), key=len), side), pad=3)
            if values is not None:
                ax.imshow(_depths(values, depth, title), norm=scale, cmap="viridis", interpolation="nearest")
    _depth_scale(fig, axes, scale)
    return fig


def is_complete(rows: pd.DataFrame) -> bool:
    """Whether ``rows`` have a number for every pair of their runs."""
    runs = len({*rows["a"], *rows["b"]})
    return bool(rows["mean"].notna().all()) and len(rows) == runs * (runs - 1) // 2


class _Panel:
    """Runs that are all compared with each other, in the order of their tree."""

    def __init__(self, title: str, rows: pd.DataFrame, metric: str) -> None:
        self.title, self.metric = title, metric
        names = {
            **dict(zip(rows["b"], rows["label_b"], strict=True)),
            **dict(zip(rows["a"], rows["label_a"], strict=True)),
        }
        measured = _symmetric(rows, "mean", list(names), title)
        distances = (measured if metric in DISTANCES else 1 - measured).clip(min=0).round(6)
        np.fill_diagonal(distances, 0)
        self.tree = linkage(squareform(distances), "average", optimal_ordering=True)
        order = dendrogram(self.tree, no_plot=True)["leaves"]
        self.labels = [list(names.values())[place] for place in order]
        self.measured = measured[np.ix_(order, order)]  # (runs, runs), NaN on the diagonal
        self.chance = _symmetric(rows, "chance", list(names), title)[np.ix_(order, order)]

    def values(self, chance: bool) -> np.ndarray:
        """What the cells show; NaN on the diagonal."""
        return np.where(np.tri(len(self.labels), dtype=bool), self.chance, self.measured) if chance else self.measured


def _symmetric(rows: pd.DataFrame, column: str, runs: list[str], title: str) -> np.ndarray:
    """The numbers of all pairs (runs, runs), NaN on the diagonal."""
    if not is_complete(rows) or rows[["a", "b"]].apply(frozenset, axis=1).duplicated().any():
        where = f" of panel {title!r}" if title else ""
        raise UsageError(f"agreement_dendrogram needs one number for each pair of the {len(runs)} runs{where}")
    values, places = np.full((len(runs), len(runs)), np.nan), pd.Index(runs)
    first, second = (places.get_indexer(rows[side]) for side in "ab")
    values[first, second] = values[second, first] = rows[column]
    return values


def _agreement_figure(
    panels: list[_Panel], metric: str, block: int | None, chance: float | None, scale: Normalize
) -> Figure:
    """Panels in rows.

    Args:
        chance: one number for all pairs, NaN = it is not known; None = each pair has its own.
    """
    most = max(len(panel.labels) for panel in panels)
    lines = [line for panel in panels for label in panel.labels for line in label.splitlines()]
    margin = 0.35 + 0.068 * max(map(len, lines))  # inches, of labels
    sides = {count: most * min(0.5, ((WIDTH - 0.9) / count - margin - 0.3) / most / (1 + _TREE)) for count in (3, 2, 1)}
    fits = [count for count, side in sides.items() if side / most >= _CELL and count <= len(panels)]
    columns = fits[0] if fits else 1
    rows, side = -(-len(panels) // columns), sides[columns]
    width = max(4.5, min(WIDTH, 0.9 + columns * (margin + 0.3 + side * (1 + _TREE))))
    fig = new_figure(rows * (side + 0.75) + 0.5, width=width)
    cmap = colormaps["Blues_r" if metric in DISTANCES else "Blues"]
    axes = panel_axes(fig, len(panels), columns)
    for ax, panel in zip(axes, panels, strict=True):
        _draw_cells(ax, panel, panel.values(chance is None), scale, cmap, side / len(panel.labels))
        _draw_tree(ax.inset_axes([1.01, 0, _TREE, 1]), panel)
    fig.colorbar(ScalarMappable(scale, cmap), ax=axes, shrink=min(1.0, 2.5 / (rows * side)), aspect=20)
    fig.supxlabel(textwrap.fill(_in_words(metric, block, chance), int(14 * width)), fontsize=9)
    return fig


def _draw_cells(ax: Axes, panel: _Panel, values: np.ndarray, scale: Normalize, cmap: Colormap, cell: float) -> None:
    ax.imshow(np.ma.masked_invalid(values), norm=scale, cmap=cmap, aspect="auto")
    ax.set_facecolor("#eeeeee")
    points = min(8.5, 72 * cell / 2.6)  # at which "0.00" fits
    for (row, column), value in np.ndenumerate(values):
        if points >= _LEGIBLE and np.isfinite(value):
            dark = np.dot(cmap(scale(value))[:3], (0.299, 0.587, 0.114)) < 0.5
            text = f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")
            ax.text(column, row, text, ha="center", va="center", fontsize=points, color="white" if dark else "#222222")
    labels, places = panel.labels, range(len(panel.labels))
    if any(len(label) > _SHORT for label in labels):  # they would not fit below the columns
        ax.set_yticks(places, [f"{label}  {place + 1}" for place, label in enumerate(labels)], fontsize=8.5)
        ax.set_xticks(places, [place + 1 for place in places], fontsize=8.5)
    else:
        ax.set_yticks(places, labels, fontsize=8.5)
        ax.set_xticks(places, labels, fontsize=8.5)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.set_title(panel.title, fontsize=9.5, loc="left")


def _draw_tree(ax: Axes, panel: _Panel) -> None:
    """The tree, its leaves at the rows of the matrix, which stands left of it."""
    drawn = dendrogram(panel.tree, no_plot=True)
    for heights, places in zip(drawn["dcoord"], drawn["icoord"], strict=True):
        ax.plot(heights, [(place - 5) / 10 for place in places], color="#444444", linewidth=1.1, clip_on=False)
    ax.set(xlim=(0, 1.05 * panel.tree[-1, 2] or 1), ylim=(len(panel.labels) - 0.5, -0.5), yticks=[])
    ax.xaxis.set_major_locator(MaxNLocator(2))
    ax.xaxis.set_major_formatter("{x:.2g}")
    ax.tick_params(labelsize=7)
    name = METRICS[panel.metric].split(" of ")[0]
    ax.set_xlabel("distance" if panel.metric in DISTANCES else f"1 \N{MINUS SIGN} {name}", fontsize=7.5, labelpad=1)
    ax.grid(visible=False)
    ax.spines["left"].set_visible(False)


def _in_words(metric: str, block: int | None, chance: float | None) -> str:
    name = METRICS[metric][0].upper() + METRICS[metric][1:] + ("" if block is None else f", after block {block:g}")
    if chance is None:
        return f"{name}. Above the diagonal what was measured, below it what chance would give."
    return f"{name}. " + (
        "What chance would give is not known." if np.isnan(chance) else f"Chance would give {chance:g}."
    )


def _one_number(values: pd.Series) -> float | None:
    """The number that all ``values`` are, which may be NaN; None where they differ."""
    found = values.astype(float).round(9).unique()
    return float(found[0]) if len(found) == 1 else None


def _depth_scale(fig: Figure, axes: list[list[Axes]], scale: Normalize) -> None:
    """The scale of all maps, right of them, from the top down."""
    corner, floor = axes[0][-1].get_position(), axes[-1][-1].get_position().y0
    width, height = fig.get_size_inches()
    tall = min(corner.y1 - floor, 2.6 / height)
    place = fig.add_axes((corner.x1 + 0.15 / width, corner.y1 - tall, 0.12 / width, tall))
    bar = fig.colorbar(ScalarMappable(scale, "viridis"), cax=place)
    bar.set_label(f"Blocks passed, mean (of {scale.vmax:g})", fontsize=min(9, 72 * tall * height / 16))
    bar.ax.tick_params(labelsize=8)


def _lines_of_maps(
    maps: Mapping[str, ArrayLike] | Mapping[str, Mapping[str, ArrayLike]],
) -> list[tuple[str, list[tuple[str, ArrayLike | None]]]]:
    """Name of each row and its cells: title and map."""
    if all(isinstance(values, Mapping) for values in maps.values()):
        titles = dict.fromkeys(title for row in maps.values() for title in row)
        lines = [(name, [(title, row.get(title)) for title in titles]) for name, row in maps.items()]
    else:
        cells = list(maps.items())
        lines = [("", cells[start : start + _MAPS]) for start in range(0, len(cells), _MAPS)]
    if not any(cells for _, cells in lines):
        raise UsageError("depth_maps needs at least one map; given: none")
    return lines


def _depths(values: ArrayLike, depth: int, title: str) -> np.ndarray:
    found = heat_values(values, f"map {title!r}")
    if found.min() < 0 or found.max() > depth + 1e-6:
        raise UsageError(f"map {title!r} goes from {found.min():g} to {found.max():g}; allowed: 0 to {depth} blocks")
    return found
