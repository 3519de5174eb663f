"""Figure of what methods lose at a given cost."""

from __future__ import annotations

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.plots import frames
from common.plots.style import METHODS, RC, baseline_point, new_figure

NULLS = ("random", "downsample")  # drawn behind the methods, which have to beat them
_KEYS = ("backbone", "dataset", "img_size", "method", "options", "mac_cut", "seed")


@rc_context(RC)
def accuracy_at_budget(df: pd.DataFrame, value: str = "accuracy_full") -> Figure:
    """Draw accuracy (percent) against the share of multiply-accumulates saved, one panel per dataset and backbone.

    ``df`` holds rows of the leaderboard study. Lines are means over seeds; the methods that every other has to beat are
    dotted, with the range of their seeds shaded. The unreduced model is the mark at 0 %.
    """
    df = frames.require_table(df, [*_KEYS, "saved", value], _KEYS, "accuracy_at_budget")
    panels = list(frames.split_panels(df, ("dataset", "backbone", "img_size"), ("dataset", "backbone")))
    columns = min(len(panels), 2)
    fig = new_figure(1.2 + 3.6 * -(-len(panels) // columns))
    axes = frames.panel_axes(fig, len(panels), columns)
    for ax, (title, rows) in zip(axes, panels, strict=True):
        ax.plot(0, rows.loc[rows["method"] == "none", value].mean(), **baseline_point(), label=METHODS["none"])
        for series in frames.split_series(rows[rows["method"] != "none"]):
            _line(ax, series, value)
        ax.set(title=title, xlabel="Multiply-accumulates saved (%)", ylabel="Accuracy (%)")
    frames.outer_labels(axes, columns)
    frames.legend_below(fig, axes)
    return fig


def _line(ax: Axes, series: frames.Series, value: str) -> None:
    budgets = series.rows.groupby("mac_cut")
    share, points = 100 * budgets["saved"].mean(), budgets[value].agg(["mean", "min", "max"])
    look = series.look() | ({"linestyle": ":", "linewidth": 2.2} if series.method in NULLS else {})
    ax.plot(share, points["mean"], **look)
    if (points["max"] > points["min"]).any():
        ax.fill_between(share, points["min"], points["max"], color=series.style.color, alpha=0.15, linewidth=0)
