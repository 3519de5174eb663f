"""Figures of patch slimming: tokens per block, masks on the grid, accuracy when a single block drops patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from common.plots.frames import legend_below, panel_axes, require_columns
from common.plots.style import RC, new_figure

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#777777")
_SCORES = {
    "significance": "significance",
    "attention": "norm of the attention map",
    "single_block": "score of one block",
    "random": "random",
}


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
def single_block_accuracy(df: pd.DataFrame) -> Figure:
    """Draw accuracy against the block that drops patches: a panel per share that stays, a line per score.

    ``df`` holds the rows "single_block" of the table "slimming"; bars are one standard error over images.
    """
    needed = ("schedule", "layer", "share", "accuracy", "accuracy_sem")
    df = require_columns(df, needed, "single_block_accuracy")
    shares = sorted(df["share"].unique())
    fig = new_figure(3.4)
    axes = panel_axes(fig, len(shares), len(shares), sharey=True)
    names = [name for name in _SCORES if (df["schedule"] == name).any()]
    for ax, share in zip(axes, shares, strict=True):
        for name, color in zip(names, _COLORS, strict=False):
            rows = df[(df["share"] == share) & (df["schedule"] == name)].sort_values("layer")
            look = {"color": "#000000" if name == "random" else color, "marker": "o", "markersize": 4}
            ax.errorbar(rows["layer"] + 1, rows["accuracy"], yerr=rows["accuracy_sem"], label=_SCORES[name], **look)
        ax.set_xticks(sorted(df["layer"].unique() + 1))
        ax.set(title=f"{100 * share:g} % of the patches stay", xlabel="Block that drops the others")
    axes[0].set_ylabel("Accuracy (%), all classes")
    legend_below(fig, axes)
    return fig
