"""One explanation and whether the model agrees: heat over an image, insertion and deletion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from common.errors import UsageError
from common.plots import heat
from common.plots.patches import RIGHT, WRONG, as_numpy, fitting_size, shorten, show_picture
from common.plots.style import RC

INSERTION, DELETION = "#0072B2", "#D55E00"
_SIDE = 1.37  # inches of a picture
_WIDTHS, _GAPS = [_SIDE] * 3 + [1.56] * 2, [0.32, 0.12, 0.12, 0.82, 0.204]


@dataclass(frozen=True)
class HeatmapRow:
    """One explained image, and how the model's answer follows the heat.

    Attributes:
        image: (H, W, 3) in [0, 1].
        class_name: what it shows.
        predicted, probability: what the model says; a fraction.
        heatmap: (h, w), one value per patch.
        shares: (K,) share of the image that is inserted or deleted, from 0 to 1.
        insertion, deletion: (K,) probability of the predicted class, which is explained.
        insertion_auc, deletion_auc: the areas under them.
        label: stands left of the row, such as the name of the model.
    """

    image: ArrayLike
    class_name: str
    predicted: str
    probability: float
    heatmap: ArrayLike
    shares: ArrayLike
    insertion: ArrayLike
    deletion: ArrayLike
    insertion_auc: float
    deletion_auc: float
    label: str = ""


@rc_context(RC)
def heatmaps(rows: Sequence[HeatmapRow]) -> Figure:
    """Draw a row per explained image: image, heat over it, heat of every patch, insertion and deletion curve.

    The heat over the image is interpolated between the centres of the patches; below the heat of the patches stands its
    scale, which is each image's own. Heat with negative values has a scale around 0. The prediction is red where it is
    wrong.
    """
    if not rows:
        raise UsageError("heatmaps needs at least one row; given: none")
    maps = [heat.heat_values(row.heatmap) for row in rows]
    images = [heat.fitted_picture(row.image, 2 * len(rows), _SIDE) for row in rows]
    shown = heat.of_one_palette(images)
    fig, axes = heat.picture_page(len(rows), _SIDE, _WIDTHS, _GAPS, top=0.28, below=0.66, bottom=-0.1)
    for cells, row, values, image, picture in zip(axes, rows, maps, images, shown, strict=True):
        show_picture(cells[0], picture, interpolation="nearest")
        show_picture(cells[1], heat.overlay(image, values), interpolation="nearest")
        _patch_heat(cells[2], values)
        _name(cells[0], row)
        _curve(cells[3], row.shares, row.insertion, row.insertion_auc, INSERTION, "Insertion")
        _curve(cells[4], row.shares, row.deletion, row.deletion_auc, DELETION, "Deletion")
        cells[3].set_ylabel(f"Probability of\n{shorten(row.predicted)}", fontsize=heat.TITLE)
        cells[4].tick_params(labelleft=False)
    for ax, title in zip(axes[0][1:3], ("Heat", "Heat per patch"), strict=True):
        ax.set_title(title, fontsize=heat.TITLE, pad=4)
    for ax, what in zip(axes[-1][3:], ("shown", "removed"), strict=True):
        ax.set_xlabel(f"% of the image {what}", fontsize=heat.TITLE)
    return fig


def _name(ax: Axes, row: HeatmapRow) -> None:
    """Write true and predicted class around an image."""
    name, share = shorten(row.predicted), f"predicted ({100 * row.probability:.1f} %):"
    color = RIGHT if row.predicted == row.class_name else WRONG
    ax.set_title(shorten(row.class_name), fontsize=fitting_size(shorten(row.class_name), _SIDE), pad=4)
    size = min(fitting_size(text, _SIDE) for text in (name, share))
    ax.set_xlabel(f"{share}\n{name}", fontsize=size, color=color, labelpad=4)
    ax.set_ylabel(row.label, fontsize=fitting_size(row.label, _SIDE), labelpad=4)


def _patch_heat(ax: Axes, values: np.ndarray) -> None:
    """Draw a square per patch, and the scale below."""
    norm, cmap = heat.heat_scale(values, bool((values < 0).any()))
    show_picture(ax, values, norm=norm, cmap=cmap, interpolation="nearest")
    bar = ax.inset_axes([0, -0.11, 1, 0.05])
    bar.imshow(np.linspace(0, 1, cmap.N)[None], cmap=cmap, aspect="auto")
    bar.set_axis_off()
    for x, side, value in ((0, "left", norm.vmin), (1, "right", norm.vmax)):
        bar.text(x, -0.4, f"{value:.2g}", transform=bar.transAxes, ha=side, va="top", fontsize=7.5)


def _curve(ax: Axes, shares: ArrayLike, values: ArrayLike, auc: float, color: str, name: str) -> None:
    x, y = (np.asarray(as_numpy(found), float) for found in (shares, values))
    if x.ndim != 1 or x.shape != y.shape:
        raise UsageError(f"{name.lower()} has shape {y.shape} for shares of shape {x.shape}; allowed: (K,) for both")
    if min(x.min(), y.min()) < -1e-6 or max(x.max(), y.max()) > 1 + 1e-6:
        raise UsageError(f"{name.lower()} has shares or probabilities outside 0 to 1; give fractions")
    ax.fill_between(100 * x, y, color=color, alpha=0.2, linewidth=0)
    ax.plot(100 * x, y, color=color, marker="o", markersize=3, linewidth=1.5, clip_on=False)
    ax.set(xlim=(0, 100), ylim=(0, 1.02), xticks=[0, 25, 50, 75, 100], yticks=[0, 0.25, 0.5, 0.75, 1])
    ax.tick_params(labelsize=7.5)
    ax.set_title(f"{name}, AUC {auc:.3f}", fontsize=heat.TITLE, pad=4)
