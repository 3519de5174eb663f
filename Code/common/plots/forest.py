"""Numbers with their intervals, one below the other."""

from __future__ import annotations

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from common.plots.frames import legend_below, require_table, spread
from common.plots.style import RC, new_figure

_LOOKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))
_CERTAIN = 0.05


@rc_context(RC)
def correlation_forest(df: pd.DataFrame) -> Figure:
    """Draw rank correlations with their intervals, a line for each measure, the strongest on top.

    ``df`` has columns ``pairs`` (of what, a colour each), ``label`` (of the measure), ``correlation``,
    ``correlation_low`` and ``correlation_high`` (NaN = no interval), and ``p``; points with p below 0.05 are filled.
    Rows without a correlation are left out.
    """
    needed = ("pairs", "label", "correlation", "correlation_low", "correlation_high", "p")
    df = require_table(df.dropna(subset=["correlation"]), needed, ("pairs", "label"), "correlation_forest")
    labels = df["correlation"].abs().groupby(df["label"]).max().sort_values().index
    kinds = df["pairs"].unique()
    fig = new_figure(1.0 + (0.1 + 0.1 * len(kinds)) * len(labels))
    ax = fig.subplots()
    for kind, (color, marker), offset in zip(kinds, _LOOKS, spread(len(kinds), -0.25), strict=False):
        rows = df[df["pairs"] == kind]
        places = labels.get_indexer(rows["label"]) + offset
        ax.hlines(places, rows["correlation_low"], rows["correlation_high"], color=color, linewidth=1.3)
        for certain, face in ((True, color), (False, "white")):
            some = (rows["p"] < _CERTAIN) == certain
            look = {"color": color, "linestyle": "none", "marker": marker, "markerfacecolor": face, "markersize": 5}
            label = f"pairs {kind}" if certain or not (rows["p"] < _CERTAIN).any() else None
            ax.plot(rows["correlation"][some], places[some], label=label, **look)
    ax.axvline(0, color="#555555", linewidth=1)
    ax.set(xlim=(-1.05, 1.05), ylim=(-0.7, len(labels) - 0.3), xlabel="Rank correlation (filled: p < 0.05)")
    ax.set_yticks(range(len(labels)), labels, fontsize=8.5)
    legend_below(fig, [ax])
    return fig
