"""Figures of patch slimming: tokens per block, masks on the grid, accuracy when a single block drops patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from common.plots.frames import legend_below, panel_axes, require_columns
from common.plots.style import RC, new_figure

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#777777", "#56B4E9", "#000000")
_SCORES = {
    "significance": "significance",
    "attention": "norm of the attention map",
    "single_block": "score of one block",
}
_SCHEDULES = {
    "uniform, single_block": "uniform, score of one block",
    "uniform, single_block, square": "the same, square attention",
}
_PRUNED = {"idle": "pass the block unchanged", "zero": "are zero after the block", "dropped": "are dropped for good"}


@rc_context(RC)
def slimming_schedule(lengths: Mapping[str, Sequence[int]], num_tokens: int) -> Figure:
    """Draw the tokens that each block computes, a line for each of the schedules ``lengths``; dashed is all of them."""
    fig = new_figure(3.4)
    ax = fig.subplots()
    for (label, values), color in zip(lengths.items(), _COLORS, strict=False):
        blocks = np.arange(1, len(values) + 1)
        ax.step(blocks, values, where="mid", color=color, label=label)
        ax.plot(blocks, values, "o", color=color, markersize=4)
    ax.axhline(num_tokens, color="#000000", linestyle="--", linewidth=1, label="unreduced")
    ax.set(xlabel="Block", ylabel="Tokens computed", ylim=(0, 1.08 * num_tokens))
    ax.set_xticks(blocks)
    legend_below(fig, [ax])
    return fig


@rc_context(RC)
def slimming_masks(kept: Sequence[Sequence[int]], grid_size: tuple[int, int]) -> Figure:
    """Draw which patches of the grid each block computes (dark), the first block first."""
    columns = min(6, len(kept))
    rows = -(-len(kept) // columns)
    fig = new_figure(1.75 * rows)
    for layer, (ax, patches) in enumerate(zip(panel_axes(fig, len(kept), columns), kept, strict=True)):
        mask = np.zeros(grid_size[0] * grid_size[1])
        mask[list(patches)] = 1
        ax.imshow(mask.reshape(grid_size), cmap="Blues", vmin=0, vmax=1.25)
        ax.set_title(f"block {layer + 1}: {len(patches)}")
        ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
    return fig


@rc_context(RC)
def slimming_tradeoff(df: pd.DataFrame) -> Figure:
    """Draw accuracy against multiplications: untuned plans of several budgets as lines, what training gives as points.

    ``df`` holds the rows "budgets" and "stages" of the table "slimming"; accuracy is that among all classes of the
    head, bars are one standard error over images.
    """
    needed = ("part", "schedule", "stage", "gmac", "accuracy", "accuracy_full", "accuracy_sem")
    df = require_columns(df, needed, "slimming_tradeoff")
    df = df.assign(accuracy=df["accuracy_full"].astype(float).fillna(df["accuracy"]))
    fig = new_figure(3.8)
    ax = fig.subplots()
    lines, stages = df[df["part"] == "budgets"], df[df["part"] == "stages"]
    names = [*stages["schedule"].dropna().unique(), *lines["schedule"].unique()]
    colors = dict(zip((name for name in dict.fromkeys(names) if name), _COLORS, strict=False))
    for name, color in colors.items():
        rows = lines[lines["schedule"] == name].sort_values("gmac")
        if len(rows):
            look = {"color": color, "marker": "o", "markersize": 4, "label": f"{_SCHEDULES.get(name, name)}, untuned"}
            ax.errorbar(rows["gmac"], rows["accuracy"], yerr=rows["accuracy_sem"], **look)
    for stage, marker in (("tuned", "^"), ("distilled", "*")):
        for name, color in colors.items():
            rows = stages[(stages["schedule"] == name) & (stages["stage"] == stage)]
            if len(rows):
                look = {"color": color, "marker": marker, "markersize": 10, "linestyle": "none"}
                ax.plot(
                    rows["gmac"],
                    rows["accuracy"],
                    **look,
                    markeredgecolor="white",
                    label=f"{_SCHEDULES.get(name, name)}, {stage}",
                )
    whole = stages.loc[stages["stage"] == "unreduced", "accuracy"]
    ax.axhline(whole.iloc[0], color="#000000", linestyle="--", linewidth=1, label="unreduced")
    ax.set(xlabel="GMAC", ylabel="Accuracy (%), all classes")
    legend_below(fig, [ax])
    return fig


@rc_context(RC)
def slimming_tolerances(df: pd.DataFrame, published: pd.DataFrame | None = None) -> Figure:
    """Draw the accuracy that searches lose against what they save, each point with its tolerance.

    ``df`` holds the rows "tolerances" of the table "slimming": bars are one standard error of the difference to the
    unreduced network on the same images. ``published`` has columns ``cut`` and ``drop`` in percent, ``tolerance``, and
    ``model``: another network, other data and tolerances of another error.
    """
    df = require_columns(df, ("stage", "tolerance", "cut_paper", "gain", "gain_sem"), "slimming_tolerances")
    df = df.sort_values("tolerance")
    trained = "nothing trained" if (df["stage"] == "searched").all() else "blocks tuned"
    panels = [(f"This run, {trained}", 100 * df["cut_paper"], df["gain"], df["gain_sem"], df["tolerance"])]
    if published is not None:
        name = f"Published: {published['model'].iloc[0]}, ImageNet-1k, trained again"
        panels.append((name, published["cut"], published["drop"], None, published["tolerance"]))
    fig = new_figure(3.2)
    for ax, color, panel in zip(fig.subplots(1, len(panels), squeeze=False)[0], _COLORS, panels, strict=False):
        title, cut, gain, error, tolerances = panel
        ax.errorbar(cut, gain, yerr=error, color=color, marker="o")
        for *point, tolerance in zip(cut, gain, tolerances, strict=True):
            ax.annotate(f"{tolerance:g}", point, (5, 3), textcoords="offset points", fontsize=7.5, color=color)
        ax.axhline(0, color="#000000", linewidth=1)
        ax.set(title=title, xlabel="Multiplications saved (%), authors' count")
        ax.margins(x=0.12, y=0.12)
    fig.axes[0].set_ylabel("Against unreduced (points)")
    return fig


@rc_context(RC)
def block_sensitivity(df: pd.DataFrame) -> Figure:
    """Draw accuracy against the one block that computes fewer patches, a line per share that it computes.

    ``df`` holds the rows "sensitivity" of the table "slimming"; bars are one standard error over images. In the last
    block no patch matters: its points are the accuracy of the unreduced network.
    """
    df = require_columns(df, ("layer", "share", "accuracy", "accuracy_sem"), "block_sensitivity")
    fig = new_figure(3.4)
    ax = fig.subplots()
    for share, color in zip(sorted(df["share"].unique(), reverse=True), _COLORS, strict=False):
        rows = df[df["share"] == share].sort_values("layer")
        look = {"color": color, "marker": "o", "markersize": 4, "label": f"{100 * (1 - share):g} % pruned"}
        ax.errorbar(rows["layer"] + 1, rows["accuracy"], yerr=rows["accuracy_sem"], **look)
    ax.axhline(rows["accuracy"].iloc[-1], color="#000000", linestyle="--", linewidth=1, label="unreduced")
    ax.set(xlabel="Block that computes fewer patches", ylabel="Accuracy (%), all classes")
    ax.set_xticks(sorted(df["layer"].unique() + 1))
    legend_below(fig, [ax])
    return fig


@rc_context(RC)
def one_block_gain(df: pd.DataFrame) -> Figure:
    """Draw what each score gains over random masks, by the block that computes fewer patches.

    A panel for each share and for what becomes of the others. ``df`` holds the rows "single_block" of the table
    "slimming"; bars are one standard error of the difference on the same images.
    """
    needed = ("schedule", "layer", "share", "pruned", "gain", "gain_sem")
    df = require_columns(df, needed, "one_block_gain")
    panels = list(df.groupby(["pruned", "share"], sort=False))
    fig = new_figure(3.2 * -(-len(panels) // 2))
    axes = panel_axes(fig, len(panels), min(2, len(panels)))
    names = [name for name in df["schedule"].unique() if name != "random"]
    layers = sorted(df["layer"].unique())
    for ax, ((pruned, share), cells) in zip(axes, panels, strict=True):
        for place, (name, color) in enumerate(zip(names, _COLORS, strict=False)):
            rows = cells[cells["schedule"] == name].sort_values("layer")
            at = np.arange(len(layers)) + 0.8 * ((place + 0.5) / len(names) - 0.5)
            label = _SCORES.get(name, name)
            ax.bar(at, rows["gain"], 0.8 / len(names), yerr=rows["gain_sem"], color=color, label=label)
        ax.axhline(0, color="#000000", linewidth=1)
        ax.set(title=f"{100 * (1 - share):g} % {_PRUNED[pruned]}", xlabel="Block")
        ax.set_xticks(range(len(layers)), [layer + 1 for layer in layers])
    for ax in axes[::2]:
        ax.set_ylabel("Gain over random (points)")
    legend_below(fig, axes)
    return fig
