"""Idle patches: how similar patches are, which ones skip each block, and what that costs in accuracy."""

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
from common.plots.heat import LUMA
from common.plots.patches import mask_patches, pixels_of, show_picture
from common.plots.style import RC, WIDTH, new_figure

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_COLUMNS = 6  # blocks beside each other
# Label, color and marker of a method, or of what became of the backbone of the others.
_TRADE = {
    "none": ("unreduced", "#000000", "X"),
    "idle_oracle": ("oracle (labels as decisions)", "#E69F00", "^"),
    "tuned": ("predictor, backbone tuned", "#009E73", "D"),
    "frozen": ("predictor, backbone frozen", "#0072B2", "o"),
    "idle_random": ("random", "#777777", "v"),
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
    heat.set_yticks(range(len(across)))
    heat.set(title="The same patch before and after a block", xlabel="patch, row by row", ylabel="block")
    drawn = bars.bar(["input", *map(str, range(len(across)))], within, color=_COLORS[0], width=0.7)
    bars.bar_label(drawn, fmt="%.2f", padding=2, fontsize=8)
    bars.grid(False, axis="x")
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
    lines = ceil(len(computed[0]) / _COLUMNS)
    fig = new_figure(len(images) * (lines * (WIDTH / (_COLUMNS + 1) + 0.22) + 0.1), width=WIDTH)
    parts = np.atleast_1d(fig.subfigures(len(images)))
    for part, image, masks, name in zip(parts, images, computed, names, strict=True):
        axes, pixels = part.subplots(lines, _COLUMNS + 1, squeeze=False), pixels_of(image, patch_grid)  # (H, W, 3)
        show_picture(axes[0, 0], pixels)
        axes[0, 0].set_title(name)
        blocks = axes[:, 1:].ravel()
        for unused in [*axes[1:, 0], *blocks[len(masks) :]]:
            unused.axis("off")
        warm = colormaps["inferno"](0.15 + 0.85 * (pixels @ LUMA))[..., :3]
        for block, (ax, mask) in enumerate(zip(blocks, np.asarray(masks).astype(bool), strict=False)):
            show_picture(ax, mask_patches(warm.transpose(2, 0, 1), mask, patch_grid))
            ax.set_title(f"block {block}", fontweight="normal")
            ax.set_xlabel(f"{(~mask).sum()} idle", fontsize=8.5)
    return fig


@rc_context(RC)
def idle_profile(profiles: Mapping[str, ArrayLike]) -> Figure:
    """Draw the share of patches that idle in each block: label -> means over images (blocks,)."""
    if not profiles:
        raise UsageError("idle_profile needs at least one profile; given: none")
    fig = new_figure(3.4)
    ax = fig.subplots()
    looks = ((color, line) for line in ("-", "--", ":") for color in _COLORS)
    for (label, shares), (color, line) in zip(profiles.items(), looks, strict=False):
        ax.plot(100 * np.asarray(shares), marker="o", color=color, linestyle=line, label=label)
    ax.set_xticks(range(len(shares)))
    ax.set(xlabel="block", ylabel="patches that idle (%)", title="Idle patches in each block", ylim=(0, None))
    legend_below(fig, [ax])
    return fig


@rc_context(RC)
def idle_tradeoff(df: pd.DataFrame) -> Figure:
    """Draw top-1 accuracy against the MAC saved, of rows of the study ``idling``.

    Accuracy is that of the full head where it was measured. Standard attention is drawn hollow.
    """
    rows = require_columns(df, ["method", "attention", "stage", "mac_cut", "accuracy"], "the trade-off of idling")
    value = "accuracy_full" if "accuracy_full" in rows and rows["accuracy_full"].notna().any() else "accuracy"
    kinds = rows["method"].where(rows["method"].isin(_TRADE), rows["stage"])
    fig = new_figure(4.2)
    ax = fig.subplots()
    for kind, (label, color, marker) in _TRADE.items():
        for attention, part in rows[kinds == kind].sort_values("mac_cut").groupby("attention"):
            hollow = attention == "standard" and kind != "none"
            line = {"color": color, "linestyle": ":" if hollow else "-", "linewidth": 1}
            name = label if kind == "none" else f"{label}, {attention} attention"
            face = "white" if hollow else color
            ax.plot(100 * part["mac_cut"], part[value], marker=marker, markerfacecolor=face, label=name, **line)
    classes = "all classes of the head" if value == "accuracy_full" else "classes of the dataset"
    ax.set(xlabel="MAC saved (%)", ylabel=f"top-1 (%), {classes}", title="What idling saves, and what it costs")
    legend_below(fig, [ax])
    return fig
