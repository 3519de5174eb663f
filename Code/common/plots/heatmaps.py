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
from common.plots.heat import TITLE, fitted_picture, heat_scale, heat_values, of_one_palette, overlay
from common.plots.patches import RIGHT, WRONG, as_numpy, fitting_size, shorten, show_picture
from common.plots.style import RC, WIDTH, new_figure

INSERTION, DELETION = "#0072B2", "#D55E00"


@dataclass(frozen=True)
class HeatmapRow:
    """One explained image, and how the model's answer follows the heat.

    Attributes:
        image: (H, W, 3) in [0, 1].
        class_name: what it shows.
        predicted, probability: what the model says; a fraction.
        heatmap: (h, w), one value per patch.
        shares: (K,) share of the image that is inserted or deleted, from 0 to 1.
        insertion, deletion: (K,) probability of the explained class.
        insertion_auc, deletion_auc: the areas under them.
        explained: the class that was explained; None is the predicted one.
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
    explained: str | None = None
    label: str = ""


@rc_context(RC)
def heatmaps(rows: Sequence[HeatmapRow], *, title: str = "") -> Figure:
    """Draw a row per explained image: image, heat over it, heat of every patch, insertion and deletion curve.

    The heat over the image is interpolated between the centres of the patches; below the heat of the patches stands its
    scale, which is each image's own. Heat with negative values has a scale around 0. The prediction is red where it is
    wrong. Raises :class:`UsageError` without a row, or where a shape does not fit or a value leaves its range.
    """
    if not rows:
        raise UsageError("heatmaps needs at least one row; given: none")
    page = _Rows(len(rows), top=0.55 if title else 0.28)
    maps = [heat_values(row.heatmap) for row in rows]
    images = [fitted_picture(row.image, 2 * len(rows), page.side) for row in rows]
    shown = of_one_palette(images)
    fig = new_figure(page.height, layout=None)
    for number, (row, values, image) in enumerate(zip(rows, maps, images, strict=True)):
        cells = [fig.add_axes(place) for place in page.places(number)]
        show_picture(cells[0], shown[number], interpolation="nearest")
        show_picture(cells[1], overlay(image, values), interpolation="nearest")
        _patch_heat(cells[2], values)
        _name(cells[0], row, page.side)
        _curve(cells[3], row.shares, row.insertion, row.insertion_auc, INSERTION, "Insertion")
        _curve(cells[4], row.shares, row.deletion, row.deletion_auc, DELETION, "Deletion")
        cells[3].set_ylabel(f"Probability of\n{shorten(row.explained or row.predicted)}", fontsize=TITLE)
        cells[4].tick_params(labelleft=False)
        if number == 0:
            cells[1].set_title("Heat", fontsize=TITLE, pad=4)
            cells[2].set_title("Heat per patch", fontsize=TITLE, pad=4)
    cells[3].set_xlabel("% of the image shown", fontsize=TITLE)
    cells[4].set_xlabel("% of the image removed", fontsize=TITLE)
    if title:
        fig.text(0.5, 1 - 0.08 / page.height, title, ha="center", va="top", fontsize=10.5, fontweight="bold")
    return fig


def _name(ax: Axes, row: HeatmapRow, inches: float) -> None:
    """Write true and predicted class around an image."""
    name, share = shorten(row.predicted), f"predicted ({100 * row.probability:.1f} %):"
    color = RIGHT if row.predicted == row.class_name else WRONG
    ax.set_title(shorten(row.class_name), fontsize=fitting_size(shorten(row.class_name), inches), pad=4)
    size = min(fitting_size(text, inches) for text in (name, share))
    ax.set_xlabel(f"{share}\n{name}", fontsize=size, color=color, labelpad=4)
    ax.set_ylabel(row.label, fontsize=fitting_size(row.label, inches), labelpad=4)


def _patch_heat(ax: Axes, values: np.ndarray) -> None:
    """Draw a square per patch, and the scale below."""
    norm, cmap = heat_scale(values, bool((values < 0).any()))
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
    ax.set_title(f"{name}, AUC {auc:.3f}", fontsize=TITLE, pad=4)


@dataclass(frozen=True)
class _Rows:
    """Where the panels of :func:`heatmaps` lie: sizes in inches, places as fractions of the page."""

    count: int
    top: float

    left, right, gap, ticks, side, wide, below = 0.32, 0.16, 0.12, 0.82, 1.37, 1.56, 0.66

    @property
    def height(self) -> float:
        return self.top + self.count * (self.side + self.below) - 0.1

    def places(self, row: int) -> list[tuple[float, float, float, float]]:
        y = self.height - self.top - row * (self.side + self.below) - self.side
        widths = [self.side] * 3 + [self.wide] * 2
        gaps = [0, self.gap, self.gap, self.ticks, 1.7 * self.gap]
        x, found = self.left, []
        for width, gap in zip(widths, gaps, strict=True):
            x += gap
            found.append((x / WIDTH, y / self.height, width / WIDTH, self.side / self.height))
            x += width
        return found
