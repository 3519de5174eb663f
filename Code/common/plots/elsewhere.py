"""Figures of whether what a method decides is the same elsewhere: in another backbone, on other data."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.errors import require_choice
from common.plots.frames import (
    legend_below,
    outer_labels,
    panel_axes,
    require_columns,
    require_table,
    split_series,
    spread,
)
from common.plots.patterns import METRICS
from common.plots.style import RC, WIDTH, new_figure

# Measures of two maps, and with how many decimals they are told; of the latter small ones are alike.
_ALIKE = {"PCC": 2, "SCC": 2, "SIM": 2}
_APART = {"JSD": 4, "KLD12": 3, "KLD21": 3, "EMD": 2}
MAP_MEASURES = _ALIKE | _APART
_CURVE = ("method", "keep_rate", "block", "pair", "mean", "low", "high", "chance")


@rc_context(RC)
def agreement_by_block(df: pd.DataFrame, metric: str) -> Figure:
    """Draw how far pairs of runs agree after each block: a line per method, with intervals.

    A column of panels for each keep rate, the highest first, and a row for each ``pair``; the dotted line is chance,
    where that is one number.

    Args:
        df: a row for each pair of runs and block: ``method``, ``options``, ``keep_rate``, ``block``, ``pair`` (in
            words: which runs, and on what), ``mean``, ``low`` and ``high``, ``chance``. Rows without a mean are left
            out.
        metric: what ``mean`` is: iou_excess, ami, cka ..., see :func:`agreement_dendrogram`.

    Raises:
        UsageError: a missing column, no row, two rows of one method and block in a panel; another metric.
    """
    require_choice(metric, METRICS, "metric that is the same in both orders")
    df = require_columns(df, ("mean",), "agreement_by_block").dropna(subset=["mean"])
    df = require_table(df, _CURVE, ("method", "options", "keep_rate", "block", "pair"), "agreement_by_block")
    rates, pairs = sorted(df["keep_rate"].unique(), reverse=True), list(df["pair"].unique())
    fig = new_figure(0.9 + 2.3 * len(pairs), width=min(WIDTH, 2.6 + 2.4 * len(rates)))
    axes = panel_axes(fig, len(rates) * len(pairs), len(rates), sharex=True, sharey=True)
    for place, ax in enumerate(axes):
        pair, rate = pairs[place // len(rates)], rates[place % len(rates)]
        _curves(ax, df[(df["pair"] == pair) & (df["keep_rate"] == rate)], df["chance"])
        first = f"{pair}\n" if rate == rates[0] else ""
        ax.set_title(f"{first}keep rate {100 * rate:g} %", loc="left", fontsize=9)
        ax.set(xlabel="After block", xticks=sorted(df["block"].unique()))
    low, high = df["low"].fillna(df["mean"]).min(), df["high"].fillna(df["mean"]).max()
    low = max(low, -1)  # below it, what exceeds chance says only that nearly all patches are kept
    axes[0].set_ylim(min(low, 0) - 0.04, max(high, 1) + 0.04)
    outer_labels(axes, len(rates))
    fig.supylabel(METRICS[metric].split(",")[0], fontsize=9)
    legend_below(fig, axes)
    return fig


@rc_context(RC)
def map_similarity(df: pd.DataFrame) -> Figure:
    """Draw how alike two maps are: a row for each measure, a column for each method, a panel for each ``panel``.

    Dark is alike. Each measure has its own scale over all panels: from the least alike to the most.

    Args:
        df: a row for each method in a panel: ``label``, ``panel``, ``pair`` (what is compared, in words) and a column
            for each of ``MAP_MEASURES``. Labels stand in the order of the rows.

    Raises:
        UsageError: a missing column, no row, two rows of one label in a panel.
    """
    df = require_table(df, ("label", "panel", "pair", *MAP_MEASURES), ("label", "panel", "pair"), "map_similarity")
    panels, several = list(df.groupby(["pair", "panel"], sort=False)), df["pair"].nunique() > 1
    most = max(len(rows) for _, rows in panels)
    columns = min(len(panels), 3 if most <= 7 and len(panels) % 3 == 0 else 2)
    fig = new_figure(0.5 + 2.15 * -(-len(panels) // columns), width=WIDTH if columns > 1 else max(4.5, 1 + 0.5 * most))
    axes = panel_axes(fig, len(panels), columns)
    for place, (ax, ((pair, panel), rows)) in enumerate(zip(axes, panels, strict=True)):
        _measures(ax, rows, df)
        ax.set_title(f"{pair}\n{panel}" if several else panel, fontsize=9)
        ax.tick_params(labelleft=place % columns == 0)
    words = "Dark: alike. Each measure has its own scale, that of all panels."
    fig.supxlabel(words if several else f"{df['pair'].iloc[0]}. {words}", fontsize=9)
    return fig


def _curves(ax: Axes, rows: pd.DataFrame, chance: pd.Series) -> None:
    found = chance.astype(float).round(9).unique()
    if len(found) == 1 and np.isfinite(found[0]):
        ax.axhline(found[0], color="#555555", linestyle=":", linewidth=1)
    lines = split_series(rows)
    for series, offset in zip(lines, spread(len(lines), 0.06), strict=True):
        points, look = series.rows.sort_values("block"), series.look()
        ax.vlines(points["block"] + offset, points["low"], points["high"], color=look["color"], linewidth=1)
        ax.plot(points["block"] + offset, points["mean"], **{**look, "linewidth": 1.3, "markersize": 4.5})


def _measures(ax: Axes, rows: pd.DataFrame, all_rows: pd.DataFrame) -> None:
    shades = np.full((len(MAP_MEASURES), len(rows)), np.nan)
    for place, name in enumerate(MAP_MEASURES):
        sign = 1 if name in _ALIKE else -1
        known, values = sign * all_rows[name].astype(float), sign * rows[name].to_numpy(float)
        shades[place] = (values - known.min()) / max(known.max() - known.min(), 1e-9)
    ax.imshow(np.ma.masked_invalid(shades), vmin=0, vmax=1.25, cmap="Blues", aspect="auto")
    for (place, column), shade in np.ndenumerate(shades):
        name = list(MAP_MEASURES)[place]
        value = f"{rows[name].iloc[column]:.{MAP_MEASURES[name]}f}".replace("-", "\N{MINUS SIGN}")
        color = "white" if shade > 0.75 else "#222222"
        ax.text(column, place, "" if np.isnan(shade) else value, ha="center", va="center", fontsize=6.5, color=color)
    turned = {"rotation": 30, "rotation_mode": "anchor", "ha": "right", "va": "top"}
    ax.set_xticks(range(len(rows)), rows["label"], fontsize=8, **turned)
    ax.set_yticks(range(len(MAP_MEASURES)), MAP_MEASURES, fontsize=8)
    ax.axhline(len(_ALIKE) - 0.5, color="white", linewidth=2)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
