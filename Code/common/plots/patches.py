"""Pictures of which patches of an image survive."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from common.errors import UsageError, require_choice
from common.plots.style import RC, WIDTH, new_figure

_DIM = 0.25  # share of the picture that a dimmed patch keeps; the rest is white
WRONG, RIGHT = "#D55E00", "#333333"
_NAME = 26  # characters of a class name that a caption has room for


@dataclass(frozen=True)
class ExampleRow:
    """One image at one keep rate: ``kept`` is bool (layers shown, P); probabilities are fractions."""

    keep_rate: float
    kept: ArrayLike
    predicted_full_model: str
    probability_full_model: float
    predicted: str
    probability: float

    def caption(self) -> str:
        """Return the predicted class and its probability, before and after reduction."""
        before, after = (shorten(name) for name in (self.predicted_full_model, self.predicted))
        return f"{before} {100 * self.probability_full_model:.1f} %  →  {after} {100 * self.probability:.1f} %"


@dataclass(frozen=True)
class Example:
    """One image, (3, H, W) in [0, 1], its true class, and what was kept at each keep rate."""

    image: ArrayLike
    class_name: str
    rows: tuple[ExampleRow, ...]


def mask_patches(image: ArrayLike, kept: ArrayLike, patch_grid: tuple[int, int], dropped: str = "black") -> np.ndarray:
    """Return ``image`` (3, H, W) as (H, W, 3) with the dropped patches black, or faded towards white ("dim").

    ``kept`` is bool (P,), row-major over ``patch_grid`` = (rows, columns). Kept pixels are the input's, bit for bit.
    Raises :class:`UsageError` if shapes do not fit or pixels leave [0, 1], as those of a normalised image do.
    """
    require_choice(dropped, ("black", "dim"), "way to show dropped patches")
    mask = on_grid(kept, patch_grid, "kept").astype(bool)
    pixels = pixels_of(image, patch_grid)
    height, width = (pixels.shape[side] // patch_grid[side] for side in (0, 1))
    shown = mask.repeat(height, axis=0).repeat(width, axis=1)
    hidden = np.zeros_like(pixels) if dropped == "black" else 1 - _DIM * (1 - pixels)
    return np.where(shown[..., None], pixels, hidden)


@rc_context(RC)
def kept_patches(
    image: ArrayLike,
    kept: ArrayLike,
    *,
    patch_grid: tuple[int, int],
    layers: Sequence[int],
    titles: Sequence[str] | None = None,
    dropped: str = "black",
) -> Figure:
    """Draw the whole image, then what is left of it after each of ``layers`` (0-based), in one row.

    ``image`` is (3, H, W) in [0, 1]; ``kept`` is bool (len(layers), P). ``titles`` are those of all panels, the whole
    image's first; the default counts layers from 1. Raises :class:`UsageError` as :func:`mask_patches` does.
    """
    masks = _masks(kept, layers)
    titles = titles or ["All patches", *(f"Layer {layer + 1}" for layer in layers)]
    if len(titles) != len(masks):
        raise UsageError(f"{len(titles)} titles for {len(masks)} panels (the whole image and {len(layers)} layers)")
    fig = new_figure(WIDTH / len(masks) + 0.4)
    axes = fig.subplots(1, len(masks))
    for ax, mask, title in zip(axes, masks, titles, strict=True):
        show_picture(ax, mask_patches(image, mask, patch_grid, dropped))
        ax.set_title(title)
        ax.set_xlabel(f"{int(mask.sum())} of {mask.size} patches")
    return fig


@rc_context(RC)
def united_grid(
    examples: Sequence[Example],
    *,
    patch_grid: tuple[int, int],
    layers: Sequence[int],
    columns: int = 2,
    dropped: str = "black",
) -> Figure:
    """Draw a block per example: a row per keep rate, a panel for the image and for each of ``layers`` (0-based).

    Under each row stands the prediction of the full and of the reduced model, in red where the latter is wrong.
    Raises :class:`UsageError` if there is no example, or as :func:`mask_patches` does.
    """
    if not examples:
        raise UsageError("united_grid needs at least one example; given: none")
    columns = min(columns, len(examples))
    page = _Page(columns, 1 + len(layers), max(len(example.rows) for example in examples), len(examples))
    fig = new_figure(page.height, layout=None)
    for place, example in enumerate(examples):
        for line, row in enumerate(example.rows):
            masks = _masks(row.kept, layers)
            titles = [example.class_name, *(f"Layer {layer + 1}" for layer in layers)] if line == 0 else None
            for panel, mask in enumerate(masks):
                ax = fig.add_axes(page.panel(place, line, panel))
                show_picture(ax, mask_patches(example.image, mask, patch_grid, dropped))
                if titles:
                    ax.set_title(titles[panel], fontsize=fitting_size(titles[panel], page.side), pad=3)
                if panel == 0:
                    ax.set_ylabel(f"{100 * row.keep_rate:g} %", fontsize=9, labelpad=3)
            color = RIGHT if row.predicted == example.class_name else WRONG
            x, y = page.caption(place, line)
            fig.text(x, y, row.caption(), ha="center", va="center", fontsize=8.5, color=color)
    return fig


@rc_context(RC)
def survival_map(kept_layers: ArrayLike | Mapping[str | float, ArrayLike], *, patch_grid: tuple[int, int]) -> Figure:
    """Draw after how many layers, on average over images, each patch is still there.

    ``kept_layers`` is bool (images, L, P); a mapping of them gives one panel per key (a text, or a keep rate) on one
    scale from 0 to the largest L. Raises :class:`UsageError` if P is not the size of ``patch_grid``.
    """
    groups = kept_layers if isinstance(kept_layers, Mapping) else {"": kept_layers}
    if not groups:
        raise UsageError("survival_map needs at least one group of images; given: none")
    maps = {_group_title(key): _survival(kept, patch_grid) for key, kept in groups.items()}
    scale = Normalize(0, max(as_numpy(kept).shape[1] for kept in groups.values()))
    columns = min(len(maps), 4)
    rows = -(-len(maps) // columns)
    width = WIDTH if columns > 1 else WIDTH / 2
    fig = new_figure(0.2 + rows * (width / max(columns, 2.6 * width / WIDTH) - 0.1), width=width)
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    for ax, (title, values) in zip(axes, maps.items(), strict=False):
        ax.imshow(values, norm=scale, cmap="viridis", interpolation="nearest")
        ax.set_title(title)
    bar = fig.colorbar(ScalarMappable(scale, "viridis"), ax=axes.tolist(), shrink=0.85, aspect=25)
    bar.set_label(f"Layers survived, mean (of {int(scale.vmax)})")
    return fig


def _survival(kept: ArrayLike, patch_grid: tuple[int, int]) -> np.ndarray:
    """Return (rows, columns): the layers each patch survives, summed over layers and averaged over images."""
    kept = as_numpy(kept).astype(bool)
    if kept.ndim != 3 or kept.shape[2] != patch_grid[0] * patch_grid[1] or not len(kept):
        grid = " x ".join(map(str, patch_grid))
        raise UsageError(
            f"kept has shape {kept.shape}; allowed for a {grid} grid: (images, layers, {np.prod(patch_grid)})"
        )
    return kept.mean(axis=0).sum(axis=0).reshape(patch_grid)


def _group_title(key: str | float) -> str:
    return key if isinstance(key, str) else f"keep rate {100 * key:g} %"


def _masks(kept: ArrayLike, layers: Sequence[int]) -> np.ndarray:
    """Return bool (1 + layers, P): everything first, then what each layer keeps."""
    kept = as_numpy(kept).astype(bool)
    if kept.ndim != 2 or len(kept) != len(layers):
        raise UsageError(f"kept has shape {kept.shape}; allowed: ({len(layers)}, patches), a row for each layer shown")
    return np.concatenate([np.ones_like(kept[:1]), kept])


def show_picture(ax: Axes, picture: np.ndarray, **look: object) -> None:
    """Draw ``picture`` (H, W, 3) without frame and ticks; ``look`` is matplotlib's for images."""
    ax.imshow(picture, **look)
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)


def pixels_of(image: ArrayLike, patch_grid: tuple[int, int]) -> np.ndarray:
    """Return ``image`` (3, H, W) as (H, W, 3); raise :class:`UsageError` as :func:`mask_patches` does."""
    pixels = as_numpy(image)
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        raise UsageError(f"image has shape {pixels.shape}; allowed: (3, height, width)")
    (_, height, width), (rows, columns) = pixels.shape, patch_grid
    if height % rows or width % columns:
        raise UsageError(f"image of {height} x {width} px does not divide into {rows} x {columns} patches")
    low, high = float(pixels.min()), float(pixels.max())
    if low < -1e-3 or high > 1 + 1e-3:  # undoing a normalisation may overshoot by a rounding error
        raise UsageError(f"image has values from {low:.3g} to {high:.3g}; allowed: 0 to 1 (undo the normalisation)")
    return pixels.clip(0, 1).transpose(1, 2, 0)


def on_grid(values: ArrayLike, patch_grid: tuple[int, int], what: str) -> np.ndarray:
    """Return ``values`` (P,) as (rows, columns); raise :class:`UsageError` if P is not the size of ``patch_grid``."""
    values, (rows, columns) = as_numpy(values), patch_grid
    if values.shape != (rows * columns,):
        raise UsageError(f"{what} has shape {values.shape}; allowed for a {rows} x {columns} grid: ({rows * columns},)")
    return values.reshape(patch_grid)


def as_numpy(values: ArrayLike) -> np.ndarray:
    """Return an array, also of a torch tensor on any device, without asking for torch."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def fitting_size(text: str, inches: float) -> float:
    """Return the font size, in points, at which ``text``, be it bold, is no wider than ``inches``."""
    return min(8.5, 72 * inches / (0.64 * max(len(text), 1)))


def shorten(name: str) -> str:
    """Return the name of a class, cut to what a caption has room for."""
    return textwrap.shorten(name, _NAME, placeholder="…")


@dataclass(frozen=True)
class _Page:
    """Where the panels of :func:`united_grid` lie: sizes in inches, places as fractions of the page."""

    columns: int
    panels: int
    lines: int
    examples: int

    left, gap, title, text, between = 0.3, 0.04, 0.25, 0.24, 0.1

    @property
    def side(self) -> float:
        return min((WIDTH / self.columns - self.left - self.between) / self.panels - self.gap, 2.2)

    @property
    def block(self) -> float:
        return self.title + self.lines * (self.side + self.text) + self.between

    @property
    def height(self) -> float:
        return -(-self.examples // self.columns) * self.block

    def panel(self, place: int, line: int, panel: int) -> tuple[float, float, float, float]:
        x = (place % self.columns) * WIDTH / self.columns + self.left + panel * (self.side + self.gap)
        y = (place // self.columns) * self.block + self.title + line * (self.side + self.text) + self.side
        return (x / WIDTH, 1 - y / self.height, self.side / WIDTH, self.side / self.height)

    def caption(self, place: int, line: int) -> tuple[float, float]:
        left, bottom, width, _ = self.panel(place, line, 0)
        centre = left + self.panels * (width + self.gap / WIDTH) / 2
        return (centre, bottom - self.text / 2 / self.height)
