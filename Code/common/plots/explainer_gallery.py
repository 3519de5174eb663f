"""One image under many explainers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from common.errors import UsageError
from common.plots.heat import HEAT, SIGNED, fitted_picture, heat_values, of_one_palette, overlay, picture_page
from common.plots.patches import fitting_size, show_picture
from common.plots.style import RC, WIDTH, explainer_label

_LINE = 12  # characters of a line above a column
_LEFT, _GAP, _NARROWEST = 0.35, 0.06, 5.6  # inches: left margin, between panels, width of the page


@rc_context(RC)
def explainer_gallery(images: Sequence[ArrayLike], heat: Mapping[str, ArrayLike]) -> Figure:
    """Draw a row per image: the image, then the heat of every explainer over it.

    ``images`` are (H, W, 3) in [0, 1]; ``heat`` maps explainers, written ``name`` or ``name:key=value``, to heatmaps
    (images, h, w). Every panel has its own scale. An explainer with any negative heat is signed: its panels are
    centred on 0 and show both signs, the others run from their lowest to their highest heat.
    """
    if not len(images) or not heat:
        raise UsageError(f"explainer_gallery needs images and explainers; given: {len(images)} and {len(heat)}")
    maps = [heat_values(values, f"heat of {text!r}", len(images)) for text, values in heat.items()]
    signed = [bool((values < 0).any()) for values in maps]
    columns = 1 + len(maps)
    side = panel_side(columns)
    used = columns * (side + _GAP)
    width = max(_LEFT + used + _GAP, _NARROWEST)
    gaps = [_LEFT + (width - _LEFT - used) / 2, *[_GAP] * len(maps)]
    page = {"top": 0.5, "below": _GAP, "bottom": 0.8, "width": width}
    fig, axes = picture_page(len(images), side, [side] * columns, gaps, **page)
    names = ["image", *(_lines(explainer_label(*text.partition(":")[::2])) for text in heat)]
    pictures = [fitted_picture(image, len(images) * columns, side) for image in images]
    for row, (picture, shown) in enumerate(zip(pictures, of_one_palette(pictures), strict=True)):
        heats = [overlay(picture, values[row], signed=sign) for values, sign in zip(maps, signed, strict=True)]
        for ax, panel in zip(axes[row], [shown, *heats], strict=True):
            show_picture(ax, panel, interpolation="nearest")
    for ax, name in zip(axes[0], names, strict=True):
        # the same size for all names that are short
        ax.set_title(name, fontsize=fitting_size("x" * max(_LINE, *map(len, name.split("\n"))), side), pad=4)
    _legend(fig, any(signed), not all(signed))
    return fig


def panel_side(columns: int) -> float:
    """Inches of a panel of :func:`explainer_gallery`."""
    return min((WIDTH - _LEFT - _GAP) / columns - _GAP, 1.7)


def _lines(text: str) -> str:
    """Break ``text`` into short lines, options in brackets apart."""
    name, bracket, options = text.partition(" (")
    return textwrap.fill(name, _LINE, break_long_words=False) + (f"\n({options}" if bracket else "")


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
