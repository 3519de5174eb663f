"""Heat over images: what one explanation says and whether the model agrees, and one image under many explainers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from common.errors import UsageError
from common.plots.patches import RIGHT, WRONG, as_numpy, fitting_size, shorten, show_picture
from common.plots.style import RC, WIDTH, explainer_label, new_figure

INSERTION, DELETION = "#0072B2", "#D55E00"
# A figure's file has 256 colours and 150 kB at most. So heat has few levels, the odd number with one for 0; so does the
# grey below it; and all images together have few colours and pixels.
_HEAT, _SIGNED, _GREYS = colormaps["inferno"].resampled(12), colormaps["RdBu_r"].resampled(13), 9
_MAX_COLORS, _MAX_PIXELS, _MAX_DPI = 64, 220_000, 150
_LUMA = np.array([0.299, 0.587, 0.114])  # grey of a colour, ITU-R BT.601
_OPACITY = (0.15, 0.75)  # of the coldest and of the hottest patch
_TITLE = 8.5
_LINE = 12  # characters of a line above a column of explainer_gallery, and of the names left of its rows


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
    maps = [_map(row.heatmap) for row in rows]
    images = [_picture(row.image, 2 * len(rows), page.side) for row in rows]
    shown = _of_one_palette(images)
    fig = new_figure(page.height, layout=None)
    for number, (row, values, image) in enumerate(zip(rows, maps, images, strict=True)):
        cells = [fig.add_axes(place) for place in page.places(number)]
        show_picture(cells[0], shown[number], interpolation="nearest")
        show_picture(cells[1], overlay(image, values), interpolation="nearest")
        _patch_heat(cells[2], values)
        _name(cells[0], row, page.side)
        _curve(cells[3], row.shares, row.insertion, row.insertion_auc, INSERTION, "Insertion")
        _curve(cells[4], row.shares, row.deletion, row.deletion_auc, DELETION, "Deletion")
        cells[3].set_ylabel(f"Probability of\n{shorten(row.explained or row.predicted)}", fontsize=_TITLE)
        cells[4].tick_params(labelleft=False)
        if number == 0:
            cells[1].set_title("Heat", fontsize=_TITLE, pad=4)
            cells[2].set_title("Heat per patch", fontsize=_TITLE, pad=4)
    cells[3].set_xlabel("% of the image shown", fontsize=_TITLE)
    cells[4].set_xlabel("% of the image removed", fontsize=_TITLE)
    if title:
        fig.text(0.5, 1 - 0.08 / page.height, title, ha="center", va="top", fontsize=10.5, fontweight="bold")
    return fig


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
    pictures = [_picture(image, len(images) * page.columns, page.side) for image in images]
    for row, (picture, shown) in enumerate(zip(pictures, _of_one_palette(pictures), strict=True)):
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


def overlay(image: np.ndarray, heatmap: ArrayLike, *, signed: bool | None = None) -> np.ndarray:
    """Return ``image`` (H, W, 3) in grey under the colours of ``heatmap`` (h, w), interpolated linearly, as (H, W, 3).

    The hotter, the more opaque; signed heat is centred on 0, and the more opaque the farther from it. Heat is
    ``signed`` by default if it has negative values. Raises :class:`UsageError` on another shape, or NaN.
    """
    values = _map(heatmap)
    norm, cmap = _scale(values, bool((values < 0).any()) if signed is None else signed)
    smooth = Image.fromarray(values.astype(np.float32)).resize(image.shape[1::-1], Image.Resampling.BILINEAR)
    share = (np.asarray(norm(np.asarray(smooth))) * cmap.N).astype(int).clip(0, cmap.N - 1)
    low, high = _OPACITY
    strength = np.abs(2 * share / (cmap.N - 1) - 1) if cmap is _SIGNED else share / (cmap.N - 1)
    opacity = (low + (high - low) * strength)[..., None]
    grey = (image @ _LUMA * (_GREYS - 1)).round()[..., None] / (_GREYS - 1)
    return ((1 - opacity) * grey + opacity * cmap(share)[..., :3]).clip(0, 1)


def _lines(text: str) -> str:
    """Break ``text`` into short lines, options in brackets apart."""
    name, bracket, options = text.partition(" (")
    return textwrap.fill(name, _LINE, break_long_words=False) + (f"\n({options}" if bracket else "")


def _size(lines: str, inches: float) -> float:
    """Font size at which ``lines`` fit, the same for all that are short."""
    return fitting_size("x" * max(_LINE, *map(len, lines.split("\n"))), inches)


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
    norm, cmap = _scale(values, bool((values < 0).any()))
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
    ax.set_title(f"{name}, AUC {auc:.3f}", fontsize=_TITLE, pad=4)


def _legend(fig: Figure, signed: bool, unsigned: bool) -> None:
    """Say below the panels what the colours mean; signed heat has colours of its own."""
    bars = [(_HEAT, ("lowest", "highest"), "Heat\n(each panel on its own scale)")] if unsigned else []
    if signed:
        ticks = ("against", "0", "for the class")
        bars.append((_SIGNED, ticks, "Signed heat\n(each panel on its own scale around 0)"))
    width, height = fig.get_size_inches()
    for place, (cmap, ticks, label) in enumerate(bars):
        left = width * (place + 0.5) / len(bars) - 1
        cax = fig.add_axes([left / width, 0.62 / height, 2 / width, 0.09 / height])
        bar = fig.colorbar(ScalarMappable(Normalize(0, 1), cmap), cax=cax, orientation="horizontal")
        bar.set_ticks(np.linspace(0, 1, len(ticks)), labels=ticks, fontsize=8)
        bar.set_label(label, fontsize=8.5, labelpad=2)


def _scale(values: np.ndarray, signed: bool) -> tuple[Normalize, Colormap]:
    low, high = float(values.min()), float(values.max())
    if signed:
        limit = max(-low, high)
        return Normalize(-limit, limit), _SIGNED
    return Normalize(low, high if high > low else low + 1), _HEAT  # heat that is the same everywhere is lowest


def _map(heatmap: ArrayLike) -> np.ndarray:
    """Return one heatmap (h, w) as floats."""
    values = np.asarray(as_numpy(heatmap), float)
    if values.ndim != 2:
        raise UsageError(f"heatmap has shape {values.shape}; allowed: (h, w), a value per patch")
    return _finite(values, "heatmap")


def _maps(heatmaps: ArrayLike, explainer: str, count: int) -> np.ndarray:
    """Return the heatmaps (count, h, w) of an explainer as floats."""
    values = np.asarray(as_numpy(heatmaps), float)
    if values.ndim != 3 or len(values) != count:
        raise UsageError(
            f"heatmaps of {explainer!r} have shape {values.shape}; allowed: ({count}, h, w), one per image"
        )
    return _finite(values, f"heat of {explainer!r}")


def _finite(values: np.ndarray, what: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise UsageError(f"{what} has NaN or infinite values; give finite ones")
    return values


def _picture(image: ArrayLike, count: int, inches: float) -> np.ndarray:
    """Return ``image`` (H, W, 3) at a size of which ``count`` fit into a figure's file, each ``inches`` wide."""
    pixels = np.asarray(as_numpy(image), float)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UsageError(f"image has shape {pixels.shape}; allowed: (height, width, 3)")
    low, high = float(pixels.min()), float(pixels.max())
    if low < -1e-3 or high > 1 + 1e-3:  # undoing a normalisation may overshoot by a rounding error
        raise UsageError(f"image has values from {low:.3g} to {high:.3g}; allowed: 0 to 1 (undo the normalisation)")
    height, width, _ = pixels.shape
    factor = min((_MAX_PIXELS / count) ** 0.5, _MAX_DPI * inches) / max(height, width)
    whole = Image.fromarray((255 * pixels.clip(0, 1)).round().astype(np.uint8))
    if factor >= 2:  # small images keep their pixels as squares
        whole = whole.resize((width * int(factor), height * int(factor)), Image.Resampling.NEAREST)
    elif factor < 1:
        whole = whole.resize((round(width * factor), round(height * factor)), Image.Resampling.LANCZOS)
    return np.asarray(whole) / 255


def _of_one_palette(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return ``pictures`` with few colours, chosen for all of them together."""
    pixels = np.concatenate([picture.reshape(-1, 3) for picture in pictures])
    strip = Image.fromarray((255 * pixels).round().astype(np.uint8)[None])
    few = strip.quantize(_MAX_COLORS, method=Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)
    found = np.asarray(few.convert("RGB"))[0] / 255
    ends = np.cumsum([picture.shape[0] * picture.shape[1] for picture in pictures])[:-1]
    return [part.reshape(picture.shape) for part, picture in zip(np.split(found, ends), pictures, strict=True)]


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
