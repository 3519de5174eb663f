"""Heat over an image, and pictures that fit into a small file beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from common.errors import UsageError
from common.plots.patches import as_numpy, pixels_of
from common.plots.style import WIDTH, new_figure

# A figure's file has 256 colours and 150 kB at most. So heat has few levels, the odd number with one for 0; so does the
# grey below it; and all images together have few colours and pixels.
HEAT, SIGNED, _GREYS = colormaps["inferno"].resampled(12), colormaps["RdBu_r"].resampled(13), 9
_MAX_COLORS, _MAX_PIXELS, _MAX_DPI = 64, 220_000, 150
LUMA = np.array([0.299, 0.587, 0.114])  # grey of a colour, ITU-R BT.601
_OPACITY = (0.15, 0.75)  # of the coldest and of the hottest patch
TITLE = 8.5  # size of the words above a panel


def overlay(image: np.ndarray, heatmap: ArrayLike, *, signed: bool | None = None) -> np.ndarray:
    """Return ``image`` (H, W, 3) in grey under the colours of ``heatmap`` (h, w), interpolated linearly, as (H, W, 3).

    The hotter, the more opaque; signed heat is centred on 0, and the more opaque the farther from it. Heat is
    ``signed`` by default if it has negative values. Raises :class:`UsageError` on another shape, or NaN.
    """
    values = heat_values(heatmap)
    norm, cmap = heat_scale(values, bool((values < 0).any()) if signed is None else signed)
    smooth = Image.fromarray(values.astype(np.float32)).resize(image.shape[1::-1], Image.Resampling.BILINEAR)
    share = (np.asarray(norm(np.asarray(smooth))) * cmap.N).astype(int).clip(0, cmap.N - 1)
    low, high = _OPACITY
    strength = np.abs(2 * share / (cmap.N - 1) - 1) if cmap is SIGNED else share / (cmap.N - 1)
    opacity = (low + (high - low) * strength)[..., None]
    grey = (image @ LUMA * (_GREYS - 1)).round()[..., None] / (_GREYS - 1)
    return ((1 - opacity) * grey + opacity * cmap(share)[..., :3]).clip(0, 1)


def heat_scale(values: np.ndarray, signed: bool) -> tuple[Normalize, Colormap]:
    """Return the scale of the heat ``values`` and its colours."""
    low, high = float(values.min()), float(values.max())
    if signed:
        limit = max(-low, high)
        return Normalize(-limit, limit), SIGNED
    return Normalize(low, high if high > low else low + 1), HEAT  # heat that is the same everywhere is lowest


def heat_values(heatmap: ArrayLike, what: str = "heatmap", count: int | None = None) -> np.ndarray:
    """Return one heatmap (h, w), or ``count`` of them (count, h, w), as floats."""
    values = np.asarray(as_numpy(heatmap), float)
    if values.ndim != (2 if count is None else 3) or count not in (None, len(values)):
        allowed = "(h, w), a value per patch" if count is None else f"({count}, h, w), one per image"
        raise UsageError(f"{what} has shape {values.shape}; allowed: {allowed}")
    if not np.isfinite(values).all():
        raise UsageError(f"{what} has NaN or infinite values; give finite ones")
    return values


def fitted_picture(image: ArrayLike, count: int, inches: float) -> np.ndarray:
    """Return ``image`` (H, W, 3) at a size of which ``count`` fit into a figure's file, each ``inches`` wide."""
    pixels = np.asarray(as_numpy(image), float)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UsageError(f"image has shape {pixels.shape}; allowed: (height, width, 3)")
    pixels = pixels_of(pixels.transpose(2, 0, 1))
    height, width, _ = pixels.shape
    factor = min((_MAX_PIXELS / count) ** 0.5, _MAX_DPI * inches) / max(height, width)
    whole = Image.fromarray((255 * pixels).round().astype(np.uint8))
    if factor >= 2:  # small images keep their pixels as squares
        whole = whole.resize((width * int(factor), height * int(factor)), Image.Resampling.NEAREST)
    elif factor < 1:
        whole = whole.resize((round(width * factor), round(height * factor)), Image.Resampling.LANCZOS)
    return np.asarray(whole) / 255


def of_one_palette(pictures: Sequence[np.ndarray], colors: int = _MAX_COLORS) -> list[np.ndarray]:
    """Return ``pictures`` (H, W, 3) with few ``colors``, chosen for all of them together."""
    pixels = np.concatenate([picture.reshape(-1, 3) for picture in pictures])
    strip = Image.fromarray((255 * pixels).round().astype(np.uint8)[None])
    few = strip.quantize(colors, method=Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)
    found = np.asarray(few.convert("RGB"))[0] / 255
    ends = np.cumsum([picture.shape[0] * picture.shape[1] for picture in pictures])[:-1]
    return [part.reshape(picture.shape) for part, picture in zip(np.split(found, ends), pictures, strict=True)]


def picture_page(
    rows: int,
    side: float,
    widths: Sequence[float],
    gaps: Sequence[float],
    *,
    top: float,
    below: float,
    bottom: float,
    width: float = WIDTH,
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure and its panels by row, all sizes in inches.

    Panels are ``side`` high, ``widths`` wide and ``gaps`` apart, the first from the left edge; ``below`` is free under
    each row, ``top`` above the first and ``bottom`` under the last.
    """
    height = top + rows * (side + below) + bottom
    fig = new_figure(height, width=width, layout=None)
    ends = np.cumsum(np.add(widths, gaps))
    places = [(end - panel, panel) for end, panel in zip(ends, widths, strict=True)]
    floors = [height - top - row * (side + below) - side for row in range(rows)]
    return fig, [[fig.add_axes((x / width, y / height, w / width, side / height)) for x, w in places] for y in floors]
