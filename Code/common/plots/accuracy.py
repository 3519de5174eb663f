"""Figures of what token reduction costs in accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from common.errors import UsageError
from common.plots import frames
from common.plots.frames import Series
from common.plots.labels import Label, place_labels
from common.plots.style import RC, baseline_point, new_figure
from common.schema import accuracy_name

_CONDITIONS = ("method", "backbone", "dataset", "keep_rate", "seed")
_PANEL = ("study", "profile", "backbone", "dataset", "img_size", "epochs", "n_train", "start", "dtype")
_EPOCH = (*_PANEL, "method", "options", "keep_rate", "seed", "epoch")
_VALUES = {
    "val_accuracy": "Validation accuracy (%)",
    "accuracy": "Accuracy, dataset's classes (%)",
    "accuracy_full": "Accuracy, all head classes (%)",
}
_OF_SEVERAL_LABELS = {**dict.fromkeys(_VALUES, "mAP (%)"), "val_accuracy": "Validation mAP (%)"}
_COSTS = {
    "gmac": "Cost per image (GMAC, attention included)",
    "speedup": "Speed-up over no reduction (\N{MULTIPLICATION SIGN})",
}
_RING = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 11,
    "markerfacecolor": "none",
    "markeredgecolor": "#222222",
    "markeredgewidth": 1.1,
    "label": "Pareto-optimal",
}
_MOST_LABELS = 16
_KEEP_LINES = ("-", "--", "-.", ":")


@rc_context(RC)
def accuracy_vs_keep_rate(df: pd.DataFrame, value: str | Sequence[str] = "val_accuracy") -> Figure:
    """Draw accuracy (percent) against keep rate, one panel per dataset, backbone and ``value``.

    ``df`` holds rows of the finetune, scratch or off_the_shelf runs; of a run with epochs the last one counts. Points
    are means over seeds with bars of one standard deviation; method "none" is the dashed line. For off-the-shelf
    runs give ``value=("accuracy", "accuracy_full")``; a value that a dataset does not have gets no panel. A keep rate
    that is no ratio (counts, a rule, a budget) has no place on the axis.
    """
    values = [value] if isinstance(value, str) else list(value)
    panels = _panels(df, values, "accuracy_vs_keep_rate")
    columns = _columns(df, panels)
    fig = new_figure(0.8 + 2.8 * -(-len(panels) // columns))
    axes = frames.panel_axes(fig, len(panels), columns)
    for ax, (title, rows, name) in zip(axes, panels, strict=True):
        _baseline(ax, rows, name)
        ax.plot(100, rows.loc[rows["method"] == "none", name].mean(), **baseline_point())
        reduced = [series for series in frames.split_series(rows) if series.method != "none"]
        for series, offset in zip(
            reduced, frames.spread(len(reduced), min(0.9, 6 / max(1, len(reduced)))), strict=True
        ):
            points = series.rows.groupby("keep_rate")[name].agg(["mean", "std", "count"]).sort_index(ascending=False)
            look = series.look()
            bars = points["std"] if (points["count"] > 1).any() else None
            ax.errorbar(100 * points.index + offset, points["mean"], yerr=bars, **look)
        frames.keep_rate_axis(ax, rows["keep_rate"].unique())
        ax.set(title=title, ylabel=_value_name(name, rows))
    frames.outer_labels(axes, columns)
    frames.legend_below(fig, axes, title=_seeds(panels, "mean ± standard deviation over {} seeds"))
    return fig


@rc_context(RC)
def accuracy_mac_pareto(df: pd.DataFrame, value: str = "accuracy") -> Figure:
    """Draw accuracy (percent) against cost, one line per method through its keep rates, Pareto-optimal points ringed.

    Takes the rows of :func:`accuracy_vs_keep_rate` with a column ``gmac`` (per image, attention included), ``speedup``
    (over the unreduced model) or both; each gets a panel where it has numbers, per dataset, backbone and epochs. A
    point is ringed if no other, the unreduced model among them, is as good in both and better in one. Labels are keep
    rates; with many points only the best of the ringed ones of each rate has one.
    """
    what = "accuracy_mac_pareto"
    panels = _panels(df, [value], what, ("dataset", "backbone", "epochs"))
    costs = [cost for cost in _COSTS if cost in df.columns]
    cells = [(title, rows, cost) for title, rows, _ in panels for cost in costs if rows[cost].notna().any()]
    if not cells:
        raise UsageError(f"{what} needs numbers in column {' or '.join(map(repr, _COSTS))}; given: none")
    columns = min(len(cells), 2)
    fig = new_figure(0.8 + 3.8 * -(-len(cells) // columns))
    axes = frames.panel_axes(fig, len(cells), columns)
    texts = []
    for ax, (title, rows, cost) in zip(axes, cells, strict=True):
        texts += _trade_off(ax, rows.dropna(subset=[cost]), value, cost)
        ax.set(title=_two_lines(title), xlabel=_COSTS[cost])
        ax.margins(0.09, 0.12)
        ax.set_ylabel(_value_name(value, rows))
    frames.outer_values(axes, columns)
    frames.legend_below(fig, axes, title="labels: keep rate per stage" + _seeds(panels, "; mean over {} seeds"))
    place_labels(fig, texts)
    return fig


def _value_name(value: str, rows: pd.DataFrame) -> str:
    """Name of the accuracy ``value`` of one data set, as an axis has it."""
    names = _OF_SEVERAL_LABELS if accuracy_name(rows["dataset"].iloc[0]) == "mAP" else _VALUES
    return names.get(value, f"{value} (%)")


def pareto_optimal(cost: ArrayLike, value: ArrayLike) -> np.ndarray:
    """Return bool (n,): points for which no other has at most the cost and at least the value, one of them better."""
    cost, value = np.asarray(cost, float), np.asarray(value, float)
    as_good = (cost[:, None] <= cost) & (value[:, None] >= value)
    better = (cost[:, None] < cost) | (value[:, None] > value)
    return ~(as_good & better).any(axis=0)


@rc_context(RC)
def learning_curves(df: pd.DataFrame) -> Figure:
    """Draw loss (nats) and validation accuracy (percent) over the epochs of one or more finetune or scratch runs.

    Colour is the method, line style the keep rate; the thin line without markers is the training loss. Runs that
    differ only by seed are one line, their mean. Each dataset and backbone has its own row of two panels.
    """
    metrics = ("epoch", "train_loss", "val_loss", "val_accuracy")
    df = frames.require_table(df, [*_CONDITIONS, *metrics], _EPOCH, "learning_curves")
    panels = list(frames.split_panels(df, _PANEL, ("dataset", "backbone")))
    fig = new_figure(0.9 + 2.9 * len(panels))
    axes = frames.panel_axes(fig, 2 * len(panels), 2)
    for place, (title, rows) in enumerate(panels):
        loss, accuracy = axes[2 * place : 2 * place + 2]
        rates = sorted(rows.loc[rows["method"] != "none", "keep_rate"].unique(), reverse=True)
        for series in frames.split_series(rows):
            for keep_rate, runs in series.rows.groupby("keep_rate", sort=False):
                line = "-" if series.method == "none" else _KEEP_LINES[rates.index(keep_rate) % len(_KEEP_LINES)]
                _curve(loss, accuracy, series, runs.groupby("epoch")[list(metrics[1:])].mean(), keep_rate, line)
        loss.set(title=title, ylabel="Loss (nats)", xlabel="Epoch")
        accuracy.set(title=title, ylabel=_value_name("val_accuracy", rows), xlabel="Epoch (0 = before training)")
        for ax in (loss, accuracy):
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].add_line(Line2D([], [], color="#777777", linewidth=0.9, label="training loss (thin)"))
    frames.legend_below(fig, axes)
    return fig


def _curve(loss: Axes, accuracy: Axes, series: Series, epochs: pd.DataFrame, keep_rate: float, line: str) -> None:
    look = {**series.look(), "linestyle": line, "markersize": 4.5}
    if series.method != "none":
        look["label"] = f"{series.label} {100 * keep_rate:g} %"
    loss.plot(epochs.index, epochs["val_loss"], **look)
    loss.plot(epochs.index, epochs["train_loss"], color=series.style.color, linestyle=line, linewidth=0.9, alpha=0.75)
    accuracy.plot(epochs.index, epochs["val_accuracy"], **look)


def _trade_off(ax: Axes, rows: pd.DataFrame, value: str, cost: str) -> list[Label]:
    """Draw the lines and rings of one panel; return the labels that its points should get."""
    _baseline(ax, rows, value)
    found = []
    for series in frames.split_series(rows):
        points = series.rows.groupby("keep_rate")[[cost, value]].mean().sort_index(ascending=False)
        look = baseline_point() if series.method == "none" else {**series.look(), "linewidth": 1.2, "markersize": 5}
        ax.plot(points[cost], points[value], **look)
        found.append(points.reset_index().assign(method=series.method, color=series.style.color))
    # A method that keeps everything is the unreduced model once more.
    points = pd.concat(found).drop_duplicates([cost, value])
    points = points.assign(best=pareto_optimal(-points[cost] if cost == "speedup" else points[cost], points[value]))
    ax.plot(cost, value, data=points[points["best"]], **_RING)
    labelled = points[points["method"] != "none"]
    if len(labelled) > _MOST_LABELS:
        labelled = labelled[labelled["best"]].sort_values(value, ascending=False).drop_duplicates("keep_rate")
    return [
        (ax, point[cost], point[value], f"{100 * point['keep_rate']:g} %", point["color"])
        for _, point in labelled.iterrows()
    ]


def _two_lines(title: str) -> str:
    """Break a title of more than two parts after the second."""
    parts = title.split(" · ")
    return "\n".join(filter(None, (" · ".join(parts[:2]), " · ".join(parts[2:]))))


def _panels(
    df: pd.DataFrame, values: Sequence[str], what: str, named: Sequence[str] = ("dataset", "backbone")
) -> list[tuple[str, pd.DataFrame, str]]:
    """Return (title, rows, value) per panel, with the last epoch of every run only."""
    df = frames.require_table(df, [*_CONDITIONS, *values], _EPOCH, what)
    if "epoch" in df.columns:
        run = [key for key in _EPOCH[:-1] if key in df.columns]
        df = df[df["epoch"] == df.groupby(run, dropna=False)["epoch"].transform("max")]
    panels = []
    for title, rows in frames.split_panels(df, _PANEL, named):
        panels += [(title, rows.dropna(subset=[name]), name) for name in values if rows[name].notna().any()]
    if not panels:
        raise UsageError(f"{what} needs numbers in column {', '.join(map(repr, values))}; given: only empty cells")
    return panels


def _baseline(ax: Axes, rows: pd.DataFrame, value: str) -> None:
    """Draw the unreduced model as a dashed line, with a band of one standard deviation when it has several seeds."""
    for series in (series for series in frames.split_series(rows) if series.method == "none"):
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
