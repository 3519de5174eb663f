"""Figure of models under load: how long requests wait, and how many are answered."""

from __future__ import annotations

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from common.plots import frames
from common.plots.style import RC, new_figure

_MEASURED = ("gmac", "p95_ms", "speedup", "speedup_q1", "speedup_q3")
_COLUMNS = ("backbone", "max_batch", "clients", "method", "keep_rate", *_MEASURED)
_PANELS = ("profile", "backbone", "img_size", "runtime", "device", "threads")
_MOST = 4  # panels beside each other


@rc_context(RC)
def serving_load(df: pd.DataFrame) -> Figure:
    """Draw how long requests wait, and the speed-up, over the number of clients; a column per network and way to serve.

    ``df`` holds rows of the study ``serving``. Above: the 95th percentile of the latency; below: images per second over
    those of the unreduced model, bars span the quartiles, and the dotted line is the ratio of the MAC. Models that keep
    less are drawn paler.
    """
    df = frames.require_table(
        df, _COLUMNS, (*_PANELS, "max_batch", "clients", "method", "options", "keep_rate"), "serving_load"
    )
    panels = [
        (f"{title} · {_way(most)}".replace(" · ", "\n"), part)
        for title, rows in frames.split_panels(df, _PANELS, ("backbone",))
        for most, part in rows.groupby("max_batch")
    ]
    columns = min(len(panels), _MOST)
    blocks = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    fig = new_figure(1.0 + 4.6 * len(blocks))
    axes = fig.subplots(2 * len(blocks), columns, squeeze=False)
    for number, block in enumerate(blocks):
        above, below = axes[2 * number], axes[2 * number + 1]
        for (title, rows), wait, speed in zip(block, above, below, strict=False):
            _waiting(wait, rows, title)
            _speed(speed, rows)
        for empty in [*above[len(block) :], *below[len(block) :]]:
            empty.remove()
        above[0].set_ylabel("95 % answered within (ms)")
        below[0].set_ylabel("Images/s over no reduction (\N{MULTIPLICATION SIGN})")
    frames.legend_below(fig, [ax for ax in axes.ravel() if ax.figure is not None])
    return fig


def _way(most: int) -> str:
    return "one at a time" if most == 1 else f"batches of up to {most}"


def _waiting(ax: Axes, rows: pd.DataFrame, title: str) -> None:
    for series in frames.split_series(rows):
        for rate, points in series.rows.sort_values("clients").groupby("keep_rate"):
            ax.plot(points["clients"], points["p95_ms"], alpha=_alpha(rate), **_named(series, rate))
    ax.set_title(title)
    ax.set_ylim(0)
    _clients(ax, rows)


def _speed(ax: Axes, rows: pd.DataFrame) -> None:
    whole = rows.loc[rows["method"] == "none", "gmac"]
    ax.axhline(1, color="#000000", linestyle="--", linewidth=1.3, zorder=1.5)
    for series in frames.split_series(rows):
        if series.method == "none":
            continue
        for rate, points in series.rows.sort_values("clients").groupby("keep_rate"):
            bars = [points["speedup"] - points["speedup_q1"], points["speedup_q3"] - points["speedup"]]
            ax.errorbar(points["clients"], points["speedup"], yerr=bars, alpha=_alpha(rate), **_named(series, rate))
            if len(whole):
                promise = whole.iloc[0] / points["gmac"].iloc[0]
                ax.axhline(promise, color=series.style.color, linestyle=":", linewidth=1.2, zorder=1.8)
    ax.plot([], [], color="#777777", linestyle=":", linewidth=1.2, label="promise (MAC ratio)")
    ax.set_xlabel("Clients at once")
    _clients(ax, rows)


def _named(series: frames.Series, rate: float) -> dict:
    label = series.label if series.method == "none" else f"{series.label}, keep {100 * rate:g} %"
    return {**series.look(), "label": label}


def _alpha(rate: float) -> float:
    return 1.0 if rate >= 0.5 else 0.6


def _clients(ax: Axes, rows: pd.DataFrame) -> None:
    counts = sorted(rows["clients"].unique())
    ax.set_xscale("log", base=2)
    ax.set_xticks(counts, [str(count) for count in counts])
    ax.xaxis.set_minor_locator(NullLocator())
