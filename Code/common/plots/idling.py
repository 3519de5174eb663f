"""Idle patches: how alike patches are, which ones skip each block, and what that costs in accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
import pandas as pd
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from common.errors import UsageError
from common.plots.frames import legend_below, require_columns
from common.plots.patches import on_grid, pixels_of, show_picture
from common.plots.style import RC, WIDTH, new_figure

_GREY = np.array([0.299, 0.587, 0.114])
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_TRADE = {
    "dense": ("unreduced", "#000000", "X"),
    "oracle": ("oracle (labels as decisions)", "#E69F00", "^"),
    "tuned": ("predictor, backbone tuned", "#009E73", "D"),
    "frozen": ("predictor, backbone frozen", "#0072B2", "o"),
    "random": ("random", "#777777", "v"),
}


@rc_context(RC)
def patch_similarity(across: ArrayLike, within: ArrayLike) -> Figure:
    """Draw the cosine of every patch before and after each block, and that among the patches of each hidden state.

    ``across`` is (blocks, P), ``within`` (blocks + 1,), both means over images.
    """
    across, within = np.asarray(across), np.asarray(within)
    if across.ndim != 2 or within.shape != (len(across) + 1,):
        raise UsageError(f"similarities of shapes {across.shape} and {within.shape}; give (blocks, P), (blocks + 1,)")
    fig = new_figure(5.4)
    heat, bars = fig.subplots(2, 1, height_ratios=(1.15, 1))
    image = heat.imshow(across, aspect="auto", cmap="viridis", interpolation="nearest")
    fig.colorbar(image, ax=heat, pad=0.01, label="cosine")
    heat.grid(False)
    heat.set_yticks(range(len(across)), range(1, len(across) + 1))
    heat.set(title="The same patch before and after a block", xlabel="patch, row by row", ylabel="block")
    places = np.arange(len(within))
    bars.bar(places, within, color=_COLORS[0], width=0.7)
    for place, value in zip(places, within, strict=True):
        bars.annotate(f"{value:.2f}", (place, value), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    bars.grid(False, axis="x")
    bars.set_xticks(places, ["input", *map(str, range(1, len(within)))])
    bars.set(title="Different patches of one hidden state, mean over all pairs", ylabel="cosine", xlabel="after block")
    bars.margins(y=0.15)
    return fig


@rc_context(RC)
def idle_patches(
    images: Sequence[ArrayLike], computed: Sequence[ArrayLike], names: Sequence[str], *, patch_grid: tuple[int, int]
) -> Figure:
    """Draw which patches each block computes, for one or more images; idle patches are black.

    ``images`` are (3, H, W) in [0, 1], ``computed`` bool (blocks, P), ``names`` their titles.
    """
    columns = 6
    lines = ceil(len(computed[0]) / columns)
    fig = new_figure(len(images) * (lines * (WIDTH / (columns + 1) + 0.22) + 0.1), width=WIDTH)
    for part, image, masks, name in zip(
        np.atleast_1d(fig.subfigures(len(images))), images, computed, names, strict=True
    ):
        axes = part.subplots(lines, columns + 1).ravel()
        grey = colormaps["inferno"](0.15 + 0.85 * (pixels_of(image, patch_grid) @ _GREY))[..., :3]
        show_picture(axes[0], pixels_of(image, patch_grid))
        axes[0].set_title(name)
        blocks = [ax for place, ax in enumerate(axes) if place % (columns + 1)]
        for place in range(1, lines):
            axes[place * (columns + 1)].axis("off")
        for layer, ax in enumerate(blocks):
            if layer >= len(masks):
                ax.axis("off")
                continue
            mask = np.asarray(masks[layer]).astype(bool)
            height, width = (grey.shape[side] // patch_grid[side] for side in (0, 1))
            shown = on_grid(mask, patch_grid, "computed").repeat(height, axis=0).repeat(width, axis=1)
            show_picture(ax, np.where(shown[..., None], grey, 0.0))
            ax.set_title(f"block {layer + 1}", fontweight="normal")
            ax.set_xlabel(f"{int((~mask).sum())} idle", fontsize=8.5)
    return fig


@rc_context(RC)
def idle_profile(profiles: Mapping[str, ArrayLike], num_patches: int) -> Figure:
    """Draw how many of ``num_patches`` idle in each block: label -> means over images (blocks,)."""
    if not profiles:
        raise UsageError("idle_profile needs at least one profile; given: none")
    fig = new_figure(3.4)
    ax = fig.subplots()
    looks = ((color, line) for line in ("-", "--", ":") for color in _COLORS)
    for (label, values), (color, line) in zip(profiles.items(), looks, strict=False):
        blocks = np.arange(1, len(values) + 1)
        share = 100 * np.asarray(values) / num_patches
        ax.plot(blocks, share, marker="o", color=color, linestyle=line, label=label)
    ax.set_xticks(blocks)
    ax.set(xlabel="block", ylabel="patches that idle (%)", title="Who skips which block", ylim=(0, None))
    legend_below(fig, [ax])
    return fig


@rc_context(RC)
def idle_tradeoff(df: pd.DataFrame) -> Figure:
    """Draw top-1 accuracy against the MAC saved; rows of the table ``idling`` with ``macs_cut`` (percent).

    Accuracy is that of the full head where it was measured. Standard attention is drawn hollow.
    """
    rows = require_columns(df, ["method", "attention", "stage", "macs_cut", "accuracy"], "the trade-off of idling")
    value = "accuracy_full" if "accuracy_full" in rows and rows["accuracy_full"].notna().any() else "accuracy"
    kinds = [_kind(*pair) for pair in zip(rows["method"], rows["stage"], strict=True)]
    fig = new_figure(4.2)
    ax = fig.subplots()
    for kind, (label, color, marker) in _TRADE.items():
        own = rows[[found == kind for found in kinds]]
        for hollow, part in own.groupby((own["attention"] == "standard") & (kind != "dense")):
            part = part.sort_values("macs_cut")
            face = "white" if hollow else color
            line = {"color": color, "linestyle": ":" if hollow else "-", "linewidth": 1}
            name = label if kind == "dense" else f"{label}, {'standard' if hollow else 'modified'} attention"
            ax.plot(part["macs_cut"], part[value], marker=marker, markerfacecolor=face, label=name, **line)
    classes = "all classes of the head" if value == "accuracy_full" else "classes of the dataset"
    ax.set(xlabel="MAC saved (%)", ylabel=f"top-1 (%), {classes}", title="What idling saves, and what it costs")
    legend_below(fig, [ax])
    return fig


def _kind(method: str, stage: str) -> str:
    special = {"none": "dense", "idle_oracle": "oracle", "idle_random": "random"}
    return special.get(method, stage)
