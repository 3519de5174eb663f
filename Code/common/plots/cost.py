"""Figures of what token reduction saves: time measured and arithmetic counted."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from common.errors import UsageError, require_choice
from common.plots import frames
from common.plots.frames import Series
from common.plots.style import RC, baseline_point, method_style, new_figure

_CONDITIONS = ("profile", "img_size", "dtype", "runtime", "batch", "device", "threads")
_PARTS = {
    "qkv": ("queries, keys, values", "#88CCEE"),
    "attention": ("attention", "#CC6677"),
    "proj": ("output projection", "#44AA99"),
    "mlp": ("MLP", "#DDCC77"),
    "score": ("score of the tokens", "#332288"),
}
_SPEED_COLUMNS = ("method", "backbone", "dtype", "batch", "keep_rate", "speedup", "speedup_q1", "speedup_q3", "gmac")
ROOM = 8  # percent of keep rate that the points of one rate may lie apart
_AGREEMENT = 0.05
_CEILING = {"marker": "_", "markersize": 13, "markeredgewidth": 1.6, "linestyle": "none"}


@rc_context(RC)
def speedup_vs_keep_rate(df: pd.DataFrame) -> Figure:
    """Draw the measured speed-up against keep rate, a column per backbone and a row per dtype and batch size.

    ``df`` holds throughput rows. Bars span the quartiles; the dotted line of a method is the speed-up that its
    arithmetic alone would give (GMAC of "none" / GMAC of the method, attention included), and a horizontal stroke its
    ``ceiling``, where that column has one: as many tokens, none chosen. Where all methods were run at one keep rate
    they stand side by side. Every panel needs one row of method "none". Keep rates that are no ratio, such as "r=13",
    have no place here and are left out.
    """
    keys = ("backbone", *_CONDITIONS, "method", "options", "keep_rate")
    df = frames.require_table(df, _SPEED_COLUMNS, keys, "speedup_vs_keep_rate").dropna(subset=["keep_rate"])
    panels = _speed_panels(df)
    columns = min(df["backbone"].nunique(), 3)
    fig = new_figure(0.9 + 2.5 * -(-len(panels) // columns))
    axes = frames.panel_axes(fig, len(panels), columns, sharey="row")
    for ax, (title, rows) in zip(axes, panels, strict=True):
        _speed_panel(ax, rows, title)
    frames.outer_labels(axes, columns)
    frames.legend_below(fig, axes)
    return fig


@rc_context(RC)
def macs_per_layer(df: pd.DataFrame) -> Figure:
    """Draw the MACs of every block as stacked bars, and the tokens entering it as steps; one panel per method.

    ``df`` has one row per method, layer (0-based block) and part ("qkv", "attention", "proj", "mlp", "score") with
    ``macs`` (per image) and ``tokens`` (entering the block); ``keep_rate`` is shown where given.
    """
    df = frames.require_columns(df, ("method", "layer", "part", "macs", "tokens"), "macs_per_layer")
    for part in df["part"].unique():
        require_choice(part, _PARTS, "part")
    panels = [(series, rate, rows) for series in frames.split_series(df) for rate, rows in _by_keep_rate(series.rows)]
    fig = new_figure(0.9 + 2.7 * -(-len(panels) // 3))
    axes = frames.panel_axes(fig, len(panels), 3, sharey=True)
    twins = []
    for ax, (series, rate, rows) in zip(axes, panels, strict=True):
        _bars(ax, rows)
        twins.append(_token_steps(ax, rows, df["tokens"].max()))
        ax.set_title(series.label if rate is None or series.method == "none" else f"{series.label} {100 * rate:g} %")
    _name_scales(axes, twins)
    frames.legend_below(fig, [*axes, twins[0]])
    return fig


@rc_context(RC)
def published_vs_counted(df: pd.DataFrame) -> Figure:
    """Draw the counted thop-compatible GMAC against the published "GFlops", and the relative error in percent.

    ``df`` holds sizing rows; those without a published number are left out. The band of the right panel is the
    0.05 % within which a deterministic method counts as reproduced; the axis is linear inside it, logarithmic
    outside.
    """
    columns = ("method", "source", "model", "published_gflops", "gmac_thop_compat")
    df = frames.require_columns(df, columns, "published_vs_counted").dropna(subset=["published_gflops"])
    if df.empty:
        raise UsageError("published_vs_counted needs numbers in column 'published_gflops'; given: only empty cells")
    fig = new_figure(4.2)
    left, right = frames.panel_axes(fig, 2)
    span = np.array([df["published_gflops"].min() / 1.4, df["published_gflops"].max() * 1.4])
    left.plot(span, span, color="#777777", linestyle="--", linewidth=1, label="equal", zorder=1)
    right.axhspan(-_AGREEMENT, _AGREEMENT, color="#777777", alpha=0.2, linewidth=0, label=f"within {_AGREEMENT} %")
    for series in frames.split_series(df):
        published, counted = series.rows["published_gflops"], series.rows["gmac_thop_compat"]
        look = {**series.look(), "linestyle": "none", "alpha": 0.75}
        left.plot(published, counted, **look)
        right.plot(published, 100 * (counted / published - 1), **look)
    _compare_axes(left, right, span)
    frames.legend_below(fig, [left, right])
    return fig


def _speed_panels(df: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Order the panels so that, at three backbones a block, columns are backbones and rows are conditions."""
    backbones = frames.split_panels(df, ("backbone",), ("backbone",))
    found = [(name, list(frames.split_panels(rows, _CONDITIONS, ("dtype", "batch")))) for name, rows in backbones]
    panels = []
    for start in range(0, len(found), 3):
        block = found[start : start + 3]
        for place in range(max(len(parts) for _, parts in block)):
            panels += [(f"{name}\n{parts[place][0]}", parts[place][1]) for name, parts in block if place < len(parts)]
    return panels


def _speed_panel(ax: Axes, rows: pd.DataFrame, title: str) -> None:
    baseline = rows[rows["method"] == "none"]
    if len(baseline) != 1:
        shown = title.replace("\n", " · ")
        raise UsageError(f"speed-up needs one row of method 'none' per panel; {shown!r} has {len(baseline)}")
    none = method_style("none")
    ax.axhline(1, color=none.color, linestyle="--", linewidth=1.3, label=none.label, zorder=1.5)
    reduced = [series for series in frames.split_series(rows) if series.method != "none"]
    rates = {rate for series in reduced for rate in series.rows["keep_rate"]}
    places = _at_keep_rates(ax, reduced, rates) if len(rates) != 1 else _side_by_side(ax, reduced)
    known = "ceiling" in rows and rows["ceiling"].notna().any()
    for series, x in zip(reduced, places, strict=True):
        points = series.rows.sort_values("keep_rate", ascending=False)
        y, ideal = points["speedup"], baseline["gmac"].item() / points["gmac"]
        ax.errorbar(x, y, yerr=[y - points["speedup_q1"], points["speedup_q3"] - y], **series.look())
        dotted = {"color": series.style.color, "linestyle": ":", "linewidth": 1.2, "zorder": 1.8}
        if len(rates) == 1:
            ax.hlines(ideal, x - 0.4, x + 0.4, **dotted)
        else:
            ax.plot(x, ideal, **dotted)
        if known:
            ax.plot(x, points["ceiling"].astype(float), color=series.style.color, **_CEILING)
    if known:
        ax.plot([], [], color="#777777", label="ceiling (as many tokens, none chosen)", **_CEILING)
    ax.plot([], [], color="#777777", linestyle=":", linewidth=1.2, label="ideal (GMAC ratio)")
    ax.set_title(title if len(rates) != 1 else f"{title}\nkeep {100 * rates.pop():g} %")
    ax.set(ylabel="Speed-up (\N{MULTIPLICATION SIGN})")


def _at_keep_rates(ax: Axes, reduced: list[Series], rates: set[float]) -> list[np.ndarray]:
    """Make x the keep rate; the places of every method's points, a little beside each other."""
    frames.keep_rate_axis(ax, rates)
    ax.plot(100, 1, **baseline_point())
    offsets = frames.spread(len(reduced), min(0.9, ROOM / len(reduced)))
    return [100 * np.sort(series.rows["keep_rate"])[::-1] + by for series, by in zip(reduced, offsets, strict=True)]


def _side_by_side(ax: Axes, reduced: list[Series]) -> list[np.ndarray]:
    """Make x the methods, where all were run at one keep rate; the place of each."""
    size = "x-small" if len(reduced) > 6 else "small"
    ax.set_xticks(range(len(reduced)), [series.label for series in reduced], rotation=90, fontsize=size)
    ax.set_xlim(-0.7, len(reduced) - 0.3)
    return [np.array([float(place)]) for place in range(len(reduced))]


def _by_keep_rate(rows: pd.DataFrame) -> list[tuple[float | None, pd.DataFrame]]:
    if "keep_rate" not in rows.columns:
        return [(None, rows)]
    return sorted(rows.groupby("keep_rate"), key=lambda pair: -pair[0])


def _bars(ax: Axes, rows: pd.DataFrame) -> None:
    layers = sorted(rows["layer"].unique())
    floor = np.zeros(len(layers))
    for part, (label, color) in _PARTS.items():
        macs = rows[rows["part"] == part].groupby("layer")["macs"].sum().reindex(layers, fill_value=0) / 1e6
        if macs.any():
            ax.bar(layers, macs, 0.8, bottom=floor, color=color, label=label)
            floor = floor + macs.to_numpy()
    ax.set_xlabel("Block")
    ax.grid(axis="x", visible=False)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))


def _token_steps(ax: Axes, rows: pd.DataFrame, most: float) -> Axes:
    tokens = rows.groupby("layer")["tokens"].first()
    twin = ax.twinx()
    twin.step(tokens.index, tokens, where="mid", color="#000000", linewidth=1.4, label="tokens (right axis)")
    twin.set_ylim(0, 1.12 * most)
    twin.grid(visible=False)
    twin.spines["right"].set_visible(True)
    return twin


def _name_scales(axes: list[Axes], twins: list[Axes]) -> None:
    """Name the shared scales once per row: MACs on the far left, tokens on the far right."""
    columns = min(len(axes), 3)
    for place, (ax, twin) in enumerate(zip(axes, twins, strict=True)):
        last = place % columns == columns - 1
        ax.set_ylabel("MMAC per block and image" if place % columns == 0 else "")
        twin.set_ylabel("Tokens entering the block" if last else "")
        twin.tick_params(labelright=last)


def _compare_axes(left: Axes, right: Axes, span: np.ndarray) -> None:
    for ax in (left, right):
        ax.set(xscale="log", xlim=span, xlabel='Published "GFlops" (thop MAC, 10⁹)')
        _plain_log(ax.xaxis)
    left.set(yscale="log", ylim=span, ylabel="Counted (thop-compatible GMAC)", title="Counted against published")
    _plain_log(left.yaxis)
    right.set_yscale("symlog", linthresh=_AGREEMENT)
    bound = max(20, *(1.5 * abs(line.get_ydata()).max() for line in right.lines))
    right.set(ylabel="Relative error (%)", title="Difference", ylim=(-bound, bound))
    ticks = (-10, -1, -0.1, 0, 0.1, 1, 10)
    right.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    right.yaxis.set_minor_locator(NullLocator())


def _plain_log(axis: Axis) -> None:
    """Number a logarithmic axis 1, 2, 5, 10 ... instead of in powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
