"""Figures of what MUTEX's parameters and masks are worth."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.errors import require_choice
from common.plots.explanations import NAMED, SETTING, of_part
from common.plots.frames import panel_axes, split_panels
from common.plots.heatmaps import DELETION, INSERTION
from common.plots.style import RC, new_figure

_MEASURES = {
    "insertion_auc": ("Insertion AUC (higher is better)", INSERTION, "o"),
    "deletion_auc": ("Deletion AUC (lower is better)", DELETION, "s"),
}
# Default of each parameter of MUTEX that is studied, and what its axis says.
PARAMETERS = {
    "min_cut": (0.01, "min_cut (share of the strongest arc)"),
    "token_ratio": (0.5, "token_ratio (share hidden by a mask)"),
    "starting_layer": (0, "starting_layer (first block used)"),
}
# Kinds of masks by what they differ in, in the order of MUTEX's; what readers call those that are not words.
MASK_KINDS = {
    "aggregation": ("min", "max", "sum"),
    "degree": ("in", "out"),
    "statistic": ("coherence", "max", "min", "sum", "std", "sum_over_std", "median", "skewness", "kurtosis"),
}
MASK_NAMES = {"min": "minimum", "max": "maximum", "in": "in-degree", "out": "out-degree"}
MASK_NAMES |= {"std": "standard deviation", "sum_over_std": "sum / standard deviation"}
_GROUPS = {
    "aggregation": ("Heads aggregated by", "#0072B2"),
    "degree": ("Centrality", "#D55E00"),
    "statistic": ("Layers aggregated by", "#009E73"),
}


@rc_context(RC)
def parameter_study(df: pd.DataFrame) -> Figure:
    """Draw insertion and deletion AUC of MUTEX against each of its parameters, bars of one standard error.

    ``df`` holds explain_benchmark rows, of which those of part "parameters" are shown: a column per ``parameter``, two
    rows per setting. Values stand in order, at equal distances.
    """
    df = of_part(df, "parameters", ("parameter", "value"), ("parameter", "method", "value"), "parameter_study")
    parameters = [name for name in PARAMETERS if (df["parameter"] == name).any()]
    panels = list(split_panels(df, SETTING, NAMED))
    fig = new_figure(4.2 * len(panels))
    axes = np.array(panel_axes(fig, 2 * len(panels) * len(parameters), len(parameters), sharey="row"))
    for (title, rows), pair in zip(panels, axes.reshape(len(panels), 2, -1), strict=True):
        for name, cells in zip(_MEASURES, pair, strict=True):
            for parameter, ax in zip(parameters, cells, strict=True):
                _line(ax, rows[rows["parameter"] == parameter], parameter, name)
            cells[0].set_ylabel(_MEASURES[name][0].replace(" (", "\n("))
        for parameter, above, below in zip(parameters, *pair, strict=True):
            above.tick_params(labelbottom=False)
            below.set_xlabel(PARAMETERS[parameter][1])
        pair[0, 0].set_title(title, loc="left")
    return fig


@rc_context(RC)
def mask_ablation(df: pd.DataFrame) -> Figure:
    """Draw insertion and deletion AUC of MUTEX with some of its masks only, bars of one standard error.

    ``df`` holds explain_benchmark rows, of which those of part "masks" are shown, two panels per setting. Their
    ``masks`` is "all" or names those used: "aggregation=min", "degree=in", "statistic=coherence" (see ``MASK_KINDS``).
    The band is the standard error with all masks.
    """
    df = of_part(df, "masks", ("masks",), ("method", "options", "masks"), "mask_ablation")
    places = _mask_places(df["masks"].unique())
    panels = list(split_panels(df, SETTING, NAMED))
    fig = new_figure((0.75 + 0.205 * max(places["y"])) * len(panels))
    axes = np.array(panel_axes(fig, 2 * len(panels), 2, sharey=True)).reshape(-1, 2)
    for (title, rows), cells in zip(panels, axes, strict=True):
        for ax, name in zip(cells, _MEASURES, strict=True):
            _dots(ax, rows.set_index("masks"), name, places)
            ax.set(title=title, xlabel=_MEASURES[name][0])
    return fig


def masks_of_kind(group: str) -> int:
    """How many of MUTEX's masks are of each kind of ``group``."""
    return prod(len(kinds) for other, kinds in MASK_KINDS.items() if other != group)


def _line(ax: Axes, rows: pd.DataFrame, parameter: str, name: str) -> None:
    rows, (_, color, marker) = rows.sort_values("value"), _MEASURES[name]
    places, usual = np.arange(len(rows)), PARAMETERS[parameter][0]
    ax.errorbar(places, rows[name], yerr=rows[f"{name}_sem"], color=color, marker=marker, markersize=5)
    # two lines for all, or they would not stand on one
    ax.set_xticks(places, [f"{value:g}\n{'default' if value == usual else ' '}" for value in rows["value"]])
    ax.margins(x=0.08)
    ax.grid(axis="x", visible=False)


def _dots(ax: Axes, rows: pd.DataFrame, name: str, places: pd.DataFrame) -> None:
    if "all" in rows.index:
        mean, sem = rows.loc["all", name], rows.loc["all", f"{name}_sem"]
        ax.axvspan(mean - sem, mean + sem, color="#000000", alpha=0.1, linewidth=0, zorder=0)
        ax.axvline(mean, color="#000000", linewidth=1, linestyle="--", zorder=1)
    look = {"linestyle": "none", "elinewidth": 1.4, "markersize": 5.5, "marker": "o"}
    for masks, place in places[places["masks"].isin(rows.index)].set_index("masks").iterrows():
        row = rows.loc[masks]
        ax.errorbar(row[name], place["y"], xerr=row[f"{name}_sem"], color=place["color"], **look)
    ax.set_ylim(max(places["y"]) + 0.7, -0.7)
    ax.set_yticks(places["y"], places["label"], fontsize=8.5)
    for tick, masks in zip(ax.yaxis.get_major_ticks(), places["masks"], strict=True):
        tick.label1.set_fontweight("normal" if masks else "bold")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)


def _mask_places(given: Iterable[str]) -> pd.DataFrame:
    """Lines of the figure, from above: ``masks`` ("" is a heading), label, colour and place ``y``."""
    known = {f"{group}={kind}" for group, kinds in MASK_KINDS.items() for kind in kinds}
    given = {require_choice(masks, {"all", *known}, "part of the masks") for masks in given}
    lines = [("all", "all 54 masks", "#000000", 0.0)] if "all" in given else []
    y = 0.0
    for group, kinds in MASK_KINDS.items():
        found = [kind for kind in kinds if f"{group}={kind}" in given]
        heading, color = _GROUPS[group]
        if found:
            y += 1.4
            lines.append(("", f"{heading} ({masks_of_kind(group)} masks each)", "", y))
        for kind in found:
            y += 1
            lines.append((f"{group}={kind}", MASK_NAMES.get(kind, kind), color, y))
    return pd.DataFrame(lines, columns=["masks", "label", "color", "y"])
