"""Figures of what MUTEX's parameters and masks are worth."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.errors import require_choice
from common.plots.explanations import NAMED, SETTING, of_studies
from common.plots.frames import panel_axes, require_table, split_panels
from common.plots.heatmaps import DELETION, INSERTION
from common.plots.style import RC, new_figure

_MEASURES = {"insertion_auc": (INSERTION, "o"), "deletion_auc": (DELETION, "s")}
_BETTER = {"insertion_auc": "Insertion AUC (higher is better)", "deletion_auc": "Deletion AUC (lower is better)"}
# Default of each parameter of MUTEX that is studied, and what its axis says.
PARAMETERS = {
    "min_cut": (0.01, "min_cut (share of the strongest arc)"),
    "token_ratio": (0.5, "token_ratio (share hidden by a mask)"),
    "starting_layer": (0, "starting_layer (first block used)"),
}
# Kinds of masks: how many of the 54 are of each kind of the group, and their names. "min" is one of two groups.
MASK_PARTS = {
    "aggregation": (18, {"min": "minimum", "max": "maximum", "sum": "sum"}),
    "degree": (27, {"in": "in-degree", "out": "out-degree"}),
    "statistic": (
        6,
        {
            "coherence": "coherence",
            "max": "maximum",
            "min": "minimum",
            "sum": "sum",
            "std": "standard deviation",
            "sum_over_std": "sum / standard deviation",
            "median": "median",
            "skewness": "skewness",
            "kurtosis": "kurtosis",
        },
    ),
}
_GROUPS = {"aggregation": "Heads aggregated by", "degree": "Centrality", "statistic": "Layers aggregated by"}
_GROUP_COLORS = {"aggregation": "#0072B2", "degree": "#D55E00", "statistic": "#009E73"}
_BAR = {"linestyle": "none", "elinewidth": 1.4, "markersize": 5.5}


@rc_context(RC)
def parameter_study(df: pd.DataFrame) -> Figure:
    """Draw insertion and deletion AUC of MUTEX against each of its parameters, bars of one standard error.

    ``df`` holds explain_benchmark rows, of which those of the studies "min_cut", "token_ratio" and "starting_layer" are
    shown: a column per study, two rows per setting. The value of a row is read from its ``options``; a row that does
    not set it has the default. Values stand in order, at equal distances. Raises :class:`UsageError` on a
    missing column, no such row, or two rows for one point.
    """
    df = of_studies(df, tuple(PARAMETERS), ("options",), "parameter_study")
    df = df.assign(value=[parameter_value(*pair) for pair in zip(df["part"], df["options"], strict=True)])
    df = require_table(df, (), (*SETTING, "part", "method", "value"), "parameter_study")
    studies = [study for study in PARAMETERS if (df["part"] == study).any()]
    panels = list(split_panels(df, SETTING, NAMED))
    fig = new_figure(4.2 * len(panels))
    axes = np.array(panel_axes(fig, 2 * len(panels) * len(studies), len(studies), sharey="row"))
    for (title, rows), pair in zip(panels, axes.reshape(len(panels), 2, -1), strict=True):
        for name, cells in zip(_MEASURES, pair, strict=True):
            for study, ax in zip(studies, cells, strict=True):
                _line(ax, rows[rows["part"] == study], study, name)
            cells[0].set_ylabel(_BETTER[name].replace(" (", "\n("))
        for study, above, below in zip(studies, *pair, strict=True):
            above.tick_params(labelbottom=False)
            below.set_xlabel(PARAMETERS[study][1])
        pair[0, 0].set_title(title, loc="left")
    return fig


@rc_context(RC)
def mask_ablation(df: pd.DataFrame) -> Figure:
    """Draw insertion and deletion AUC of MUTEX with some of its masks only, bars of one standard error.

    ``df`` holds explain_benchmark rows, of which those of study "masks" are shown, two panels per setting. Their
    ``part`` is "all" or names the masks used: "aggregation=min", "degree=in", "statistic=coherence" (see
    ``MASK_PARTS``). The band is the standard error with all masks. Raises :class:`UsageError` on a missing column, no
    such row, an unknown part or two rows for one.
    """
    df = of_studies(df, ("masks",), ("masks",), "mask_ablation")
    df = require_table(df, (), (*SETTING, "method", "options", "masks"), "mask_ablation")
    places = _mask_places(df["masks"].unique())
    panels = list(split_panels(df, SETTING, NAMED))
    fig = new_figure((0.75 + 0.205 * max(places["y"])) * len(panels))
    axes = np.array(panel_axes(fig, 2 * len(panels), 2, sharey=True)).reshape(-1, 2)
    for (title, rows), cells in zip(panels, axes, strict=True):
        for ax, name in zip(cells, _MEASURES, strict=True):
            _dots(ax, rows.set_index("masks"), name, places)
            ax.set(title=title, xlabel=_BETTER[name])
    return fig


def parameter_value(study: str, options: str) -> float:
    """Return the value of MUTEX's parameter ``study`` in the text ``options``, or its default."""
    given = dict(option.split("=", 1) for option in options.split(",") if option)
    return float(given.get(study, PARAMETERS[study][0]))


def _line(ax: Axes, rows: pd.DataFrame, study: str, name: str) -> None:
    rows = rows.sort_values("value")
    places, (color, marker) = np.arange(len(rows)), _MEASURES[name]
    ax.errorbar(places, rows[name], yerr=rows[f"{name}_sem"], color=color, marker=marker, markersize=5)
    usual = PARAMETERS[study][0]
    # two lines for all, or they would not stand on one
    ax.set_xticks(places, [f"{value:g}\n{'default' if value == usual else ' '}" for value in rows["value"]])
    ax.margins(x=0.08)
    ax.grid(axis="x", visible=False)


def _dots(ax: Axes, rows: pd.DataFrame, name: str, places: pd.DataFrame) -> None:
    if "all" in rows.index:
        mean, sem = rows.loc["all", name], rows.loc["all", f"{name}_sem"]
        ax.axvspan(mean - sem, mean + sem, color="#000000", alpha=0.1, linewidth=0, zorder=0)
        ax.axvline(mean, color="#000000", linewidth=1, linestyle="--", zorder=1)
    for part, place in places[places["masks"].isin(rows.index)].set_index("masks").iterrows():
        look = {**_BAR, "color": place["color"], "marker": "o"}
        ax.errorbar(rows.loc[part, name], place["y"], xerr=rows.loc[part, f"{name}_sem"], **look)
    ax.set_ylim(max(places["y"]) + 0.7, -0.7)
    ax.set_yticks(places["y"], places["label"], fontsize=8.5)
    for tick, part in zip(ax.yaxis.get_major_ticks(), places["masks"], strict=True):
        tick.label1.set_fontweight("normal" if part else "bold")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)


def _mask_places(parts: Iterable[str]) -> pd.DataFrame:
    """Lines of the figure, from above: ``part`` ("" is a heading), label, colour and place ``y``."""
    known = {f"{group}={kind}" for group, (_, kinds) in MASK_PARTS.items() for kind in kinds}
    parts = {require_choice(part, {"all", *known}, "part of the masks") for part in parts}
    lines = [("all", "all 54 masks", "#000000", 0.0)] if "all" in parts else []
    y = 0.0
    for group, (count, kinds) in MASK_PARTS.items():
        found = [kind for kind in kinds if f"{group}={kind}" in parts]
        if found:
            y += 1.4
            lines.append(("", f"{_GROUPS[group]} ({count} masks each)", "", y))
        for kind in found:
            y += 1
            lines.append((f"{group}={kind}", kinds[kind], _GROUP_COLORS[group], y))
    return pd.DataFrame(lines, columns=["masks", "label", "color", "y"])
