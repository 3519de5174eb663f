"""One image under many explainers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from common.errors import UsageError
from common.plots.heat import HEAT, SIGNED, finite, fitted_picture, of_one_palette, overlay
from common.plots.patches import as_numpy, fitting_size, shorten, show_picture
from common.plots.style import RC, WIDTH, explainer_label, new_figure

_LINE = 12  # characters of a line above a column, and of the names left of the rows


@rc_context(RC)
def explainer_gallery(
    images: Sequence[ArrayLike], heat: Mapping[str, ArrayLike], *, titles: Sequence[str] | None = None
) -> Figure:
    """Draw a row per image: the image, then the heat of every explainer over it.

    ``images`` are (H, W, 3) in [0, 1]; ``heat`` maps explainers, written ``name`` or ``name:key=value``, to heatmaps
    (images, h, w). Every panel has its own scale. An explainer with any negative heat is signed: its panels are
    centred on 0 and show both signs, the others run from their lowest to their highest heat. ``titles`` stand left of
    the images. Raises :class:`UsageError` without an image or explainer, or where shapes do not fit.
    """
    if not len(images) or not heat:
        raise UsageError(f"explainer_gallery needs images and explainers; given: {len(images)} and {len(heat)}")
    if titles is not None and len(titles) != len(images):
        raise UsageError(f"{len(titles)} titles for {len(images)} images; give one for each")
    maps = {text: _maps(values, text, len(images)) for text, values in heat.items()}
    signed = [bool((values < 0).any()) for values in maps.values()]
    page = _Grid(len(images), 1 + len(maps))
    fig = new_figure(page.height, width=page.width, layout=None)
    names = ["image", *(_lines(explainer_label(*text.partition(":")[::2])) for text in maps)]
    pictures = [fitted_picture(image, len(images) * page.columns, page.side) for image in images]
    for row, (picture, shown) in enumerate(zip(pictures, of_one_palette(pictures), strict=True)):
        heats = [overlay(picture, values[row], signed=sign) for values, sign in zip(maps.values(), signed, strict=True)]
        axes = [fig.add_axes(page.place(row, column)) for column in range(page.columns)]
        for ax, panel, name in zip(axes, [shown, *heats], names, strict=True):
            show_picture(ax, panel, interpolation="nearest")
            if row == 0:
                ax.set_title(name, fontsize=_size(name, page.side), pad=4)
        if titles is not None:
            title = _lines(shorten(titles[row]))
            axes[0].set_ylabel(title, fontsize=_size(title, page.side), labelpad=4)
    _legend(fig, any(signed), not all(signed))
    return fig


def _lines(text: str) -> str:
    """Break ``text`` into short lines, options in brackets apart."""
    name, bracket, options = text.partition(" (")
    return textwrap.fill(name, _LINE, break_long_words=False) + (f"\n({options}" if bracket else "")


def _size(lines: str, inches: float) -> float:
    """Font size at which ``lines`` fit, the same for all that are short."""
    return fitting_size("x" * max(_LINE, *map(len, lines.split("\n"))), inches)


def _legend(fig: Figure, signed: bool, unsigned: bool) -> None:
    """Say below the panels what the colours mean; signed heat has colours of its own."""
    bars = [(HEAT, ("lowest", "highest"), "Heat\n(each panel on its own scale)")] if unsigned else []
    if signed:
        ticks = ("against", "0", "for the class")
        bars.append((SIGNED, ticks, "Signed heat\n(each panel on its own scale around 0)"))
    width, height = fig.get_size_inches()
    for place, (cmap, ticks, label) in enumerate(bars):
        left = width * (place + 0.5) / len(bars) - 1
        cax = fig.add_axes([left / width, 0.62 / height, 2 / width, 0.09 / height])
        bar = fig.colorbar(ScalarMappable(Normalize(0, 1), cmap), cax=cax, orientation="horizontal")
        bar.set_ticks(np.linspace(0, 1, len(ticks)), labels=ticks, fontsize=8)
        bar.set_label(label, fontsize=8.5, labelpad=2)


def _maps(heatmaps: ArrayLike, explainer: str, count: int) -> np.ndarray:
    """Return the heatmaps (count, h, w) of an explainer as floats."""
    values = np.asarray(as_numpy(heatmaps), float)
    if values.ndim != 3 or len(values) != count:
        raise UsageError(
            f"heatmaps of {explainer!r} have shape {values.shape}; allowed: ({count}, h, w), one per image"
        )
    return finite(values, f"heat of {explainer!r}")


@dataclass(frozen=True)
class _Grid:
    """Where the panels of :func:`explainer_gallery` lie: sizes in inches, places as fractions of the page."""

    rows: int
    columns: int

    left, top, gap, bottom, narrowest = 0.35, 0.5, 0.06, 0.8, 5.6

    @property
    def side(self) -> float:
        return min((WIDTH - self.left - self.gap) / self.columns - self.gap, 1.7)

    @property
    def width(self) -> float:
        return max(self.left + self.columns * (self.side + self.gap) + self.gap, self.narrowest)

    @property
    def height(self) -> float:
        return self.top + self.rows * (self.side + self.gap) + self.bottom

    def place(self, row: int, column: int) -> tuple[float, float, float, float]:
        used = self.columns * (self.side + self.gap)
        x = self.left + (self.width - self.left - used) / 2 + column * (self.side + self.gap)
        y = self.height - self.top - row * (self.side + self.gap) - self.side
        return (x / self.width, y / self.height, self.side / self.width, self.side / self.height)
