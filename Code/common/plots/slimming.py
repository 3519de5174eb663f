"""Figures of patch slimming: tokens per block, masks on the grid, accuracy when a single block drops patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.plots.frames import backbone_name, legend_below, panel_axes, require_columns
from common.plots.style import RC, new_figure

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#777777", "#56B4E9", "#000000")
_SCORES = {"attention": "norm of the attention map", "single_block": "score of one block"}
_TRAINED = (("blocks", "^", "blocks tuned"), ("network", "*", "distilled"), ("labels", "P", "fine-tuned on labels"))
_SWEPT = {"none": "nothing trained", "blocks": "blocks tuned", "labels": "fine-tuned on labels"}
_OTHERS = {"idle": "pass the block unchanged", "zero": "are zero after the block", "dropped": "are dropped for good"}


def _unreduced(ax: Axes, height: float) -> None:
    ax.axhline(height, color="#000000", linestyle="--", linewidth=1, label="unreduced")


@rc_context(RC)
def slimming_lengths(lengths: Mapping[str, Sequence[int]], num_tokens: int) -> Figure:
    """Draw the tokens that each block computes, a line for each of the plans ``lengths``; dashed is all of them."""
    fig = new_figure(3.4)
    ax = fig.subplots()
    for (label, values), color in zip(lengths.items(), _COLORS, strict=False):
        ax.step(range(len(values)), values, where="mid", color=color, label=label, marker="o", markersize=4)
    _unreduced(ax, num_tokens)
    ax.set(xlabel="Block", ylabel="Tokens computed", ylim=(0, 1.08 * num_tokens), xticks=range(len(values)))
    legend_below(fig, [ax])
    return fig


@rc_context(RC)
def slimming_masks(kept: Sequence[Sequence[int]], grid_size: tuple[int, int]) -> Figure:
    """Draw which patches of the grid each block computes (dark), block 0 first."""
    columns = min(6, len(kept))
    fig = new_figure(1.75 * -(-len(kept) // columns))
    for layer, (ax, patches) in enumerate(zip(panel_axes(fig, len(kept), columns), kept, strict=True)):
        mask = np.zeros(grid_size)
        mask.flat[list(patches)] = 1
        ax.imshow(mask, cmap="Blues", vmin=0, vmax=1.25)
        ax.set(title=f"block {layer}: {len(patches)}", xticks=[], yticks=[])
        ax.grid(visible=False)
    return fig


@rc_context(RC)
def slimming_tradeoff(df: pd.DataFrame) -> Figure:
    """Draw accuracy against multiplications: untuned plans of several budgets as lines, what training gives as points.

    ``df`` holds the rows "budgets" and "stages" of the study "slimming"; accuracy is that among all classes of the
    head, bars are one standard error over images.
    """
    needed = ("part", "method", "lengths", "score", "keys", "training", "gmac", "accuracy_full", "accuracy_full_sem")
    df = require_columns(df, needed, "slimming_tradeoff")
    unreduced, plans = df[df["method"] == "none"], df[df["method"] != "none"]
    plans = plans.assign(name=[_plan_name(*names) for names in plans[["lengths", "score", "keys"]].to_numpy()])
    fig = new_figure(3.8)
    ax = fig.subplots()
    for (name, cells), color in zip(plans.groupby("name", sort=False), _COLORS, strict=False):
        lines, stages = cells[cells["part"] == "budgets"].sort_values("gmac"), cells[cells["part"] == "stages"]
        if len(lines):
            look = {"color": color, "marker": "o", "markersize": 4, "label": f"{name}, untuned"}
            ax.errorbar(lines["gmac"], lines["accuracy_full"], yerr=lines["accuracy_full_sem"], **look)
        for training, marker, label in _TRAINED:
            trained = stages[stages["training"] == training]
            if len(trained):
                look = {"color": color, "markersize": 10, "markeredgecolor": "white", "zorder": 3}
                ax.plot(trained["gmac"], trained["accuracy_full"], marker, label=f"{name}, {label}", **look)
    _unreduced(ax, unreduced["accuracy_full"].iloc[0])
    ax.set(xlabel="GMAC", ylabel="Accuracy (%), all classes")
    legend_below(fig, [ax])
    return fig


def _plan_name(lengths: str, score: str, keys: object) -> str:
    chosen = "" if score == "significance" else f", {_SCORES.get(score, score)}"
    return f"{lengths}{chosen}{', square attention' if keys == 'selected' else ''}"


@rc_context(RC)
def slimming_tolerances(df: pd.DataFrame, published: pd.DataFrame | None = None) -> Figure:
    """Draw the accuracy that searches lose against what they save, each point with its tolerance.

    ``df`` holds the rows "tolerances" of the study "slimming": bars are one standard error of the difference to the
    unreduced network on the same images. ``published`` has columns ``cut`` and ``drop`` in percent, ``tolerance``, and
    ``model``: another network, other data and tolerances of another error.
    """
    df = require_columns(df, ("training", "tolerance", "mac_cut_paper", "gain", "gain_sem"), "slimming_tolerances")
    df = df.sort_values("tolerance")
    trained = _SWEPT[df["training"].iloc[0]]
    panels = [(f"This run, {trained}", 100 * df["mac_cut_paper"], df["gain"], df["gain_sem"], df["tolerance"])]
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


_LIMITS = ("taper", "floor", "score", "order", "scored_on", "divergence", "divergence_change", "divergence_change_sem")
_NETWORK = ("dataset", "backbone", "img_size", "mac_budget")


@rc_context(RC)
def slimming_limits(df: pd.DataFrame) -> Figure:
    """Draw by how much plans of equal cost diverge less or more from the unreduced network than uniform lengths.

    ``df`` holds the rows "equal_cost" of the study "slimming", of each run that of uniform lengths first: a panel for
    each network, a point for each of its seeds. Bars are 95 % intervals of the difference on the same images. Left of 0
    is nearer to the unreduced network.
    """
    df = require_columns(df, _LIMITS, "slimming_limits")
    networks = [rows for _, rows in df.groupby(found)] if (found := [n for n in _NETWORK if n in df]) else [df]
    plans = [len(_draws(rows)[0]) for rows in networks]
    fig = new_figure(sum(1.3 + 0.24 * count for count in plans))
    panels = fig.subplots(len(networks), 1, squeeze=False, height_ratios=plans)[:, 0]
    for ax, rows in zip(panels, networks, strict=True):
        _limits(ax, _draws(rows))
        if len(networks) > 1:
            ax.set_title(f"{backbone_name(rows['backbone'].iloc[0])}, {rows['dataset'].iloc[0]}")
    return fig


def _draws(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The plans of every seed."""
    return [draw for _, draw in rows.groupby("seed")] if "seed" in rows else [rows]


def _limits(ax: Axes, draws: Sequence[pd.DataFrame]) -> None:
    base, plans = draws[0].iloc[0], draws[0].iloc[:0:-1]
    change = np.array([draw["divergence_change"].iloc[:0:-1] for draw in draws])  # (seeds, plans)
    half = 1.96 * np.array([draw["divergence_change_sem"].iloc[:0:-1] for draw in draws])
    scored = (plans["score"] != "random").to_numpy()
    most = max([*(change + half)[:, scored].flat, 0])
    far = ~scored & ((change - half).min(axis=0) > most)  # random patches, beside which the others would be one point
    ends = [*(change - half)[:, ~far].flat, *(change + half)[:, ~far].flat, 0]
    room = 0.08 * (max(ends) - min(ends))
    for place in range(len(plans)):
        if far[place]:
            text = f"{change[:, place].mean():+.2f} ± {half[:, place].mean():.2f} $\\rightarrow$"
            ax.text(max(ends) + room, place, text, ha="right", va="center", fontsize=8.5, color=_COLORS[0])
            continue
        for value, width, lower in zip(change[:, place], half[:, place], _offsets(len(draws)), strict=True):
            ax.errorbar(value, place - lower, xerr=width, color=_COLORS[0], marker="o", markersize=4, linewidth=1.2)
    ax.set_xlim(min(ends) - room, max(ends) + room)
    ax.axvline(0, color="#000000", linewidth=1)
    ax.set_yticks(range(len(plans)), [what_differs(row, base) for _, row in plans.iterrows()], fontsize=8.5)
    uniform = np.mean([draw["divergence"].iloc[0] for draw in draws])
    ax.set(xlabel=f"Divergence less that of uniform lengths, {uniform:.3f} nats (95 % interval)")


def _offsets(count: int) -> np.ndarray:
    """Where the points of so many draws stand around the line of their plan."""
    return 0.24 * (np.arange(count) - (count - 1) / 2)


def what_differs(row: pd.Series, base: pd.Series) -> str:
    """In what the plan of a row "equal_cost" differs from that of ``base``, in words; "" where in nothing."""
    lengths = f"first blocks +{100 * row['taper']:.0f} %" if row["taper"] else ""
    last = f"last block {100 * row['floor']:.0f} %" if row["floor"] < 1 else ""
    name = "random patches" if row["score"] == "random" else f"by {_SCORES.get(row['score'], row['score'])}"
    score = name if row["score"] != base["score"] else ""
    scored = f"scored on {row['scored_on']:g} images" if row["scored_on"] != base["scored_on"] else ""
    order = row["order"] if row["order"] != base["order"] else ""
    return ", ".join(filter(None, (lengths, last, score, scored, order)))


@rc_context(RC)
def block_sensitivity(df: pd.DataFrame) -> Figure:
    """Draw accuracy against the one block that computes fewer patches, a line per share that it computes.

    ``df`` holds the rows "sensitivity" of the study "slimming"; bars are one standard error over images. In the last
    block no patch matters: its points are the accuracy of the unreduced network.
    """
    df = require_columns(df, ("block", "kept_share", "accuracy_full", "accuracy_full_sem"), "block_sensitivity")
    fig = new_figure(3.4)
    ax = fig.subplots()
    for (share, cells), color in zip(sorted(df.groupby("kept_share"), reverse=True), _COLORS, strict=False):
        rows = cells.sort_values("block")
        look = {"color": color, "marker": "o", "markersize": 4, "label": f"{100 * (1 - share):g} % pruned"}
        ax.errorbar(rows["block"], rows["accuracy_full"], yerr=rows["accuracy_full_sem"], **look)
    _unreduced(ax, rows["accuracy_full"].iloc[-1])
    ax.set(xlabel="Block that computes fewer patches", ylabel="Accuracy (%), all classes", xticks=rows["block"])
    legend_below(fig, [ax])
    return fig


@rc_context(RC)
def one_block_gain(df: pd.DataFrame) -> Figure:
    """Draw what each score gains over random masks, by the block that computes fewer patches.

    A panel for each share and for what becomes of the others. ``df`` holds the rows "single_block" of the study
    "slimming"; bars are one standard error of the difference on the same images.
    """
    df = require_columns(df, ("score", "block", "kept_share", "pruning", "gain", "gain_sem"), "one_block_gain")
    panels = list(df.groupby(["pruning", "kept_share"], sort=False))
    fig = new_figure(3.2 * -(-len(panels) // 2))
    axes = panel_axes(fig, len(panels), min(2, len(panels)))
    names = [name for name in df["score"].unique() if name != "random"]
    blocks = sorted(df["block"].unique())
    for ax, ((pruning, share), cells) in zip(axes, panels, strict=True):
        for place, (name, color) in enumerate(zip(names, _COLORS, strict=False)):
            rows = cells[cells["score"] == name].sort_values("block")
            at = np.arange(len(blocks)) + 0.8 * ((place + 0.5) / len(names) - 0.5)
            look = {"color": color, "label": _SCORES.get(name, name)}
            ax.bar(at, rows["gain"], 0.8 / len(names), yerr=rows["gain_sem"], **look)
        ax.axhline(0, color="#000000", linewidth=1)
        ax.set(title=f"{100 * (1 - share):g} % {_OTHERS[pruning]}", xlabel="Block")
        ax.set_xticks(range(len(blocks)), blocks)
    for ax in axes[::2]:
        ax.set_ylabel("Gain over random (points)")
    legend_below(fig, axes)
    return fig
