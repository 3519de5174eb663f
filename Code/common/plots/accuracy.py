"""Figures of what token reduction costs in accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from common.errors import UsageError, require_choice
from common.plots.frames import (
    Series,
    keep_rate_axis,
    legend_below,
    outer_labels,
    panel_axes,
    refuse_repeats,
    require_columns,
    split_panels,
    split_series,
    spread,
)
from common.plots.labels import place_labels
from common.plots.style import RC, baseline_point, new_figure

_CONDITIONS = ("method", "backbone", "dataset", "keep_rate", "seed")
_PANEL = ("table", "profile", "backbone", "dataset", "img_size", "epochs", "dtype")
_VALUES = {
    "val_accuracy": "Validation accuracy (%)",
    "accuracy": "Accuracy, dataset's classes (%)",
    "accuracy_full": "Accuracy, all head classes (%)",
}
_COSTS = {
    "gmac": "Cost per image (GMAC, attention included)",
    "speedup": "Speed-up over no reduction (\N{MULTIPLICATION SIGN})",
}
_KEEP_LINES = ("-", "--", "-.", ":")


@rc_context(RC)
def accuracy_vs_keep_rate(df: pd.DataFrame, value: str | Sequence[str] = "val_accuracy") -> Figure:
    """Draw accuracy (percent) against keep rate, one panel per dataset, backbone and ``value``.

    ``df`` holds rows of the finetune, scratch or off_the_shelf runs; of a run with epochs the last one counts. Points
    are means over seeds with bars of one standard deviation; method "none" is the dashed line. For off-the-shelf
    runs give ``value=("accuracy", "accuracy_full")``; a value that a dataset does not have gets no panel.
    Raises :class:`UsageError` on a missing column or an unknown method.
    """
    values = [value] if isinstance(value, str) else list(value)
    panels = _panels(df, values, (), "accuracy_vs_keep_rate")
    columns = _columns(df, panels)
    fig = new_figure(0.8 + 2.8 * -(-len(panels) // columns))
    axes = panel_axes(fig, len(panels), columns)
    for ax, (title, rows, name) in zip(axes, panels, strict=True):
        _baseline(ax, rows, name)
        ax.plot(100, rows.loc[rows["method"] == "none", name].mean(), **baseline_point())
        reduced = [series for series in split_series(rows) if series.method != "none"]
        for series, offset in zip(reduced, spread(len(reduced), 0.9), strict=True):
            points = series.rows.groupby("keep_rate")[name].agg(["mean", "std", "count"]).sort_index(ascending=False)
            look = series.look()
            bars = points["std"] if (points["count"] > 1).any() else None
            ax.errorbar(100 * points.index + offset, points["mean"], yerr=bars, **look)
        keep_rate_axis(ax, rows["keep_rate"].unique())
        ax.set(title=title, ylabel=_VALUES.get(name, f"{name} (%)"))
    outer_labels(axes, columns)
    legend_below(fig, axes, title=_seeds(panels, "mean ± standard deviation over {} seeds"))
    return fig


@rc_context(RC)
def accuracy_vs_speed(df: pd.DataFrame, value: str = "val_accuracy", cost: str = "gmac") -> Figure:
    """Draw accuracy (percent) against ``cost`` ("gmac" per image, or "speedup"), one line per method.

    Takes the rows of :func:`accuracy_vs_keep_rate` with a column ``cost``; every point carries its keep rate in
    percent. Up and to the cheap side is better. Raises :class:`UsageError` on a missing column or an unknown cost.
    """
    require_choice(cost, _COSTS, "cost")
    panels = _panels(df, [value], (cost,), "accuracy_vs_speed")
    columns = min(_columns(df, panels), 2)
    fig = new_figure(0.8 + 3.6 * -(-len(panels) // columns))
    axes = panel_axes(fig, len(panels), columns)
    texts = []
    for ax, (title, rows, _) in zip(axes, panels, strict=True):
        _baseline(ax, rows, value)
        for series in split_series(rows):
            points = series.rows.groupby("keep_rate")[[cost, value]].mean().sort_index(ascending=False)
            if series.method == "none":
                ax.plot(points[cost], points[value], series.style.marker, color=series.style.color, markersize=8)
                continue
            ax.plot(points[cost], points[value], **series.look())
            for keep_rate, point in points.iterrows():
                texts.append((ax, point[cost], point[value], f"{100 * keep_rate:g} %", series.style.color))
        ax.set(title=title, xlabel=_COSTS[cost], ylabel=_VALUES.get(value, f"{value} (%)"))
        ax.margins(0.09, 0.12)
    outer_labels(axes, columns)
    legend_below(fig, axes, title="labels: keep rate per stage" + _seeds(panels, "; mean over {} seeds"))
    place_labels(fig, texts)
    return fig


@rc_context(RC)
def learning_curves(df: pd.DataFrame) -> Figure:
    """Draw loss (nats) and validation accuracy (percent) over the epochs of one or more finetune or scratch runs.

    Colour is the method, line style the keep rate; the thin line without markers is the training loss. Runs that
    differ only by seed are one line, their mean. Each dataset and backbone has its own row of two panels.
    Raises :class:`UsageError` on a missing column or an unknown method.
    """
    metrics = ("epoch", "train_loss", "val_loss", "val_accuracy")
    df = require_columns(df, [*_CONDITIONS, *metrics], "learning_curves")
    run = [key for key in (*_PANEL, "method", "options", "keep_rate", "seed", "epoch") if key in df.columns]
    refuse_repeats(df, run, "learning_curves")
    panels = list(split_panels(df, _PANEL, ("dataset", "backbone")))
    fig = new_figure(0.9 + 2.9 * len(panels))
    axes = panel_axes(fig, 2 * len(panels), 2)
    for place, (title, rows) in enumerate(panels):
        loss, accuracy = axes[2 * place : 2 * place + 2]
        rates = sorted(rows.loc[rows["method"] != "none", "keep_rate"].unique(), reverse=True)
        for series in split_series(rows):
            for keep_rate, runs in series.rows.groupby("keep_rate", sort=False):
                line = "-" if series.method == "none" else _KEEP_LINES[rates.index(keep_rate) % len(_KEEP_LINES)]
                _curve(loss, accuracy, series, runs.groupby("epoch")[list(metrics[1:])].mean(), keep_rate, line)
        loss.set(title=title, ylabel="Loss (nats)", xlabel="Epoch")
        accuracy.set(title=title, ylabel=_VALUES["val_accuracy"], xlabel="Epoch (0 = before training)")
        for ax in (loss, accuracy):
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].add_line(Line2D([], [], color="#777777", linewidth=0.9, label="training loss (thin)"))
    legend_below(fig, axes)
    return fig


def _curve(loss: Axes, accuracy: Axes, series: Series, epochs: pd.DataFrame, keep_rate: float, line: str) -> None:
    look = {**series.look(), "linestyle": line, "markersize": 4.5}
    if series.method != "none":
        look["label"] = f"{series.label} {100 * keep_rate:g} %"
    loss.plot(epochs.index, epochs["val_loss"], **look)
    loss.plot(epochs.index, epochs["train_loss"], color=series.style.color, linestyle=line, linewidth=0.9, alpha=0.75)
    accuracy.plot(epochs.index, epochs["val_accuracy"], **look)


def _panels(
    df: pd.DataFrame, values: Sequence[str], extra: Sequence[str], what: str
) -> list[tuple[str, pd.DataFrame, str]]:
    """Return (title, rows, value) per panel, with the last epoch of every run only."""
    df = require_columns(df, [*_CONDITIONS, *extra, *values], what)
    run = [key for key in (*_PANEL, "method", "options", "keep_rate", "seed") if key in df.columns]
    if "epoch" in df.columns:
        df = df[df["epoch"] == df.groupby(run, dropna=False)["epoch"].transform("max")]
    refuse_repeats(df, run, what)
    panels = []
    for title, rows in split_panels(df, _PANEL, ("dataset", "backbone")):
        panels += [(title, rows.dropna(subset=[name]), name) for name in values if rows[name].notna().any()]
    if not panels:
        raise UsageError(f"{what} needs numbers in column {', '.join(map(repr, values))}; given: only empty cells")
    return panels


def _baseline(ax: Axes, rows: pd.DataFrame, value: str) -> None:
    """Draw the unreduced model as a dashed line, with a band of one standard deviation when it has several seeds."""
    for series in (series for series in split_series(rows) if series.method == "none"):
        mean, sd = series.rows[value].mean(), series.rows[value].std()
        ax.axhline(mean, color=series.style.color, linestyle="--", linewidth=1.3, label=series.label, zorder=1.5)
        if len(series.rows) > 1:
            ax.axhspan(mean - sd, mean + sd, color=series.style.color, alpha=0.08, linewidth=0)


def _columns(df: pd.DataFrame, panels: Sequence[tuple[str, pd.DataFrame, str]]) -> int:
    """Choose the columns of a grid so that a column is a value, or else a dataset, or else a backbone."""
    counts = (len({name for *_, name in panels}), df["dataset"].nunique(), df["backbone"].nunique(), len(panels))
    return min(next((count for count in counts if count > 1), 1), 3)


def _seeds(panels: Sequence[tuple[str, pd.DataFrame, str]], text: str) -> str:
    count = max(rows["seed"].nunique() for _, rows, _ in panels)
    return text.format(count) if count > 1 else ""
