"""One image under many methods: which patches each of them keeps, and which it merges into one token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.spatial import KDTree

from common.errors import UsageError
from common.options import Count, check
from common.plots.frames import panel_axes
from common.plots.heat import of_one_palette
from common.plots.patches import RIGHT, WRONG, fitting_size, mask_patches, on_grid, pixels_of, prediction, show_picture
from common.plots.style import RC, WIDTH, new_figure

# Okabe and Ito's colours, which the colour-blind can tell apart, and a mint; the bright ones first.
_PALETTE = ("#E69F00", "#56B4E9", "#D55E00", "#F0E442", "#009E73", "#CC79A7", "#0072B2", "#AAFFCC")
_ALONE = "#B0B0B0"
_GAP = 0.18  # inches between panels
_INSET = 0.07  # outlines run inside their patches, so that both sides of a border are seen; share of a patch
# A figure's file has no room for more: pixels of all pictures together, and colours of each picture (the palette of
# the file must also hold those of the outlines).
_MAX_PIXELS, _MAX_COLORS = 300_000, 24


@dataclass(frozen=True)
class GalleryPanel:
    """One image under one method.

    Attributes:
        title: the method, and how many tokens it left.
        image: (3, H, W) in [0, 1].
        kept: bool (P,), row-major over the grid; the other patches are faded.
        predicted, probability: what the model says; a fraction.
        correct: whether that is the right class.
        groups: (P,) whole numbers, equal for patches that are in the same token, negative for those in none; or None.
        selected: bool (P,), the patches that a group has as its centre; or None.
    """

    title: str
    image: ArrayLike
    kept: ArrayLike
    predicted: str
    probability: float
    correct: bool
    groups: ArrayLike | None = None
    selected: ArrayLike | None = None


@rc_context(RC)
def methods_gallery(panels: Sequence[GalleryPanel], *, patch_grid: tuple[int, int], columns: int = 4) -> Figure:
    """Draw ``panels`` row by row, ``columns`` of them side by side.

    Patches of one group are outlined together, in the same colour also where the group has several pieces; groups that
    touch each other, be it at a corner, differ in colour. A patch that is alone has a thin grey outline, where any are
    grouped; a dot marks the centres. Below each panel stands the prediction, in red where it is wrong. For several
    images give those of one image after those of another, with as many ``columns`` as there are methods.
    """
    if not panels:
        raise UsageError("methods_gallery needs at least one panel; given: none")
    columns = min(check("columns", columns, Count), len(panels))
    side = min(WIDTH / columns, WIDTH / 3)
    rows = -(-len(panels) // columns)
    fig = new_figure(rows * (side + 0.3), width=max(columns * side, WIDTH / 2))
    axes = panel_axes(fig, len(panels), columns)
    captions = [prediction(panel.predicted, panel.probability) for panel in panels]
    title_size = fitting_size(max((panel.title for panel in panels), key=len), side - _GAP)
    caption_size = fitting_size(max(captions, key=len), side - _GAP)
    for ax, panel, caption in zip(axes, panels, captions, strict=True):
        image = _for_small_file(panel.image, patch_grid, len(panels))
        _draw(ax, panel, patch_grid, mask_patches(image, panel.kept, patch_grid, "dim"), side)
        ax.set_title(panel.title, fontsize=title_size, pad=3)
        ax.set_xlabel(caption, fontsize=caption_size, color=RIGHT if panel.correct else WRONG, labelpad=3)
    return fig


def outlines(groups: ArrayLike, patch_grid: tuple[int, int], *, inset: float = 0.0) -> dict[int, np.ndarray]:
    """Return the border of every group as line segments (S, 2, 2): per segment its two ends (x, y).

    One segment per side of a patch with another group, or the edge of the image, beyond it. Lengths are in patches: x
    to the right, y down, (0, 0) the upper left corner of the image. With an ``inset`` the lines run so far inside the
    group; they still meet in its corners. ``groups`` is (P,) as in :class:`GalleryPanel`.
    """
    padded = np.pad(on_grid(groups, patch_grid, "groups"), 1, constant_values=-1)
    found: dict[int, list] = {}
    for row, column in np.argwhere(padded >= 0):
        group = int(padded[row, column])
        for normal in ((0, -1), (1, 0), (0, 1), (-1, 0)):
            beyond = np.array(normal)
            if padded[row + beyond[1], column + beyond[0]] == group:
                continue
            along = np.array([-beyond[1], beyond[0]])
            middle = np.array([column - 0.5, row - 0.5]) + (0.5 - inset) * beyond
            ends = []
            for way in (-along, along):
                beside = padded[row + way[1], column + way[0]] == group
                across = padded[row + way[1] + beyond[1], column + way[0] + beyond[0]] == group
                # A convex corner ends the line earlier, a concave one later, by as much as the lines run inside.
                ends.append(middle + way * (0.5 - inset * (1 if not beside else -1 if across else 0)))
            found.setdefault(group, []).append(ends)
    return {group: np.array(found[group]) for group in sorted(found)}


def group_colors(groups: ArrayLike, patch_grid: tuple[int, int]) -> dict[int, int]:
    """Return a colour number, from 0, for every group of several patches; groups that touch each other differ.

    Greedy: the group with the most colours around it comes next, and takes the colour least used so far among those
    not around it. Patches touch at sides and corners; ``groups`` is (P,) as in :class:`GalleryPanel`.
    """
    grid = on_grid(groups, patch_grid, "groups")
    names, counts = np.unique(grid[grid >= 0], return_counts=True)
    touching: dict[int, set[int]] = {int(name): set() for name in names[counts > 1]}
    neighbours = KDTree(np.argwhere(np.ones_like(grid))).query_pairs(1.5, output_type="ndarray")  # (pairs, 2)
    for one, other in grid.ravel()[neighbours].tolist():
        if one != other and one in touching and other in touching:
            touching[one].add(other)
            touching[other].add(one)
    colors: dict[int, int] = {}
    used = dict.fromkeys(range(len(_PALETTE)), 0)
    while len(colors) < len(touching):
        around = {name: {colors[other] for other in touching[name] & colors.keys()} for name in touching}
        name = max((name for name in touching if name not in colors), key=lambda n: (len(around[n]), len(touching[n])))
        free = [color for color in used if color not in around[name]] or [len(used)]
        colors[name] = min(free, key=lambda color: used.get(color, 0))
        used[colors[name]] = used.get(colors[name], 0) + 1
    return colors


def _draw(ax: Axes, panel: GalleryPanel, patch_grid: tuple[int, int], picture: np.ndarray, side: float) -> None:
    extent = (0, patch_grid[1], patch_grid[0], 0)
    show_picture(ax, picture, extent=extent, interpolation="nearest")  # smoothing would add colours
    if panel.groups is not None:
        colors = group_colors(panel.groups, patch_grid)
        borders = outlines(panel.groups, patch_grid, inset=_INSET)
        for group in sorted(borders, key=lambda group: group in colors) if colors else ():  # the grey ones first
            look = _line(colors[group], 0.58 * side) if group in colors else {"color": _ALONE, "linewidth": 0.4}
            ax.add_collection(LineCollection(list(borders[group]), capstyle="projecting", **look), autolim=False)
    if panel.selected is not None:
        row, column = np.nonzero(on_grid(panel.selected, patch_grid, "selected").astype(bool))
        look = {"color": "white", "markeredgecolor": "black", "markersize": 1.15 * side, "markeredgewidth": 0.25 * side}
        ax.plot(column + 0.5, row + 0.5, "o", **look)


def _line(color: int, width: float) -> dict:
    """Look of colour number ``color``: when the palette is used up it starts again, with dashes."""
    turn, place = divmod(color, len(_PALETTE))
    return {"color": _PALETTE[place], "linewidth": width, "linestyle": "-" if turn == 0 else (0, (1.0 + turn, 1.6))}


def _for_small_file(image: ArrayLike, patch_grid: tuple[int, int], count: int) -> np.ndarray:
    """Return ``image`` with fewer pixels, averages within patches, and colours: ``count`` of them fit into a file.

    The compression of the whole figure would do the same, but to the outlines as well.
    """
    pixels = pixels_of(image, patch_grid)
    height, width, _ = pixels.shape
    patch = np.array([height // patch_grid[0], width // patch_grid[1]])
    factors = [n for n in range(1, patch.min() + 1) if not (patch % n).any()]
    factor = next((n for n in factors if count * height * width <= n**2 * _MAX_PIXELS), factors[-1])
    blocks = pixels.reshape(height // factor, factor, width // factor, factor, 3).mean(axis=(1, 3))
    return of_one_palette([blocks], _MAX_COLORS)[0].transpose(2, 0, 1)
