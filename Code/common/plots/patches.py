"""Pictures of which patches of an image survive."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from common.errors import UsageError, require_choice
from common.plots.frames import panel_axes
from common.plots.style import RC, WIDTH, new_figure

_DIM = 0.25  # share of the picture that a dimmed patch keeps; the rest is white
WRONG, RIGHT = "#D55E00", "#333333"
_CAPTION = 0.24  # inches, of a line of text below a row of panels
_NAME = 26  # characters of a class name that a caption has room for
_LEGEND_LETTERS = 50  # of a legend in one line
# Patches that two methods keep, the first or the second of them alone; share of a patch that has that colour.
_BOTH, _FIRST, _SECOND, _TINT = "#009E73", "#0072B2", "#D55E00", 0.45


@dataclass(frozen=True)
class ExampleRow:
    """One image under one model.

    Attributes:
        label: its keep rate, in words.
        kept: bool (blocks shown, P).
        predicted_full_model, predicted: classes by the full and the reduced model.
        probability_full_model, probability: of these classes, fractions.
    """

    label: str
    kept: ArrayLike
    predicted_full_model: str
    probability_full_model: float
    predicted: str
    probability: float

    def caption(self) -> str:
        """Both predictions with their probabilities."""
        before = prediction(self.predicted_full_model, self.probability_full_model)
        return f"{before}  →  {prediction(self.predicted, self.probability)}"


@dataclass(frozen=True)
class Example:
    """One image, (3, H, W) in [0, 1], its true class, and what each model kept of it."""

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
def united_grid(
    examples: Sequence[Example],
    *,
    patch_grid: tuple[int, int],
    blocks: Sequence[int],
    columns: int = 2,
    dropped: str = "black",
) -> Figure:
    """Draw each example: a row per model, with a panel for the image and one for each of ``blocks`` (counted from 0).

    Under each row stands the prediction of the full and of the reduced model, in red where the latter is wrong.
    """
    if not examples:
        raise UsageError("united_grid needs at least one example; given: none")
    columns = min(columns, len(examples))
    lines, panels = max(len(example.rows) for example in examples), 1 + len(blocks)
    page_rows = -(-len(examples) // columns)
    side = min(WIDTH / columns / (panels + 0.5), 2.2)
    fig = new_figure(page_rows * (lines * (side + _CAPTION) + 2 * _CAPTION), layout=None)
    edges = {"left": 0.03, "right": 0.99, "top": 1 - 0.3 / fig.get_figheight(), "bottom": 0.3 / fig.get_figheight()}
    page = fig.add_gridspec(page_rows, columns, wspace=0.1, hspace=2 * _CAPTION / (lines * side), **edges)
    for place, example in enumerate(examples):
        titles = [example.class_name, *(f"Block {block}" for block in blocks)]
        cell = page[place].subgridspec(lines, panels, wspace=0.03, hspace=_CAPTION / side)
        for line, row in enumerate(example.rows):
            axes = [fig.add_subplot(cell[line, panel]) for panel in range(panels)]
            for ax, mask, title in zip(axes, _masks(row.kept, blocks), titles, strict=True):
                show_picture(ax, mask_patches(example.image, mask, patch_grid, dropped))
                if line == 0:
                    ax.set_title(title, fontsize=fitting_size(title, side), pad=3)
            axes[0].set_ylabel(row.label, fontsize=9, labelpad=3)
            color = RIGHT if row.predicted == example.class_name else WRONG
            first, last = axes[0].get_position(), axes[-1].get_position()
            look = {"ha": "center", "va": "top", "fontsize": 8.5, "color": color}
            fig.text((first.x0 + last.x1) / 2, first.y0 - 0.04 / fig.get_figheight(), row.caption(), **look)
    return fig


@rc_context(RC)
def survival_map(kept: Mapping[str, ArrayLike], *, patch_grid: tuple[int, int]) -> Figure:
    """Draw after how many blocks, on average over images, each patch is still there: a panel per entry of ``kept``.

    Its values are bool (images, L, P); all panels share one scale from 0 to the largest L.
    """
    if not kept:
        raise UsageError("survival_map needs at least one group of images; given: none")
    kept = {title: as_numpy(masks).astype(bool) for title, masks in kept.items()}
    maps = {title: on_grid(masks.mean(axis=0).sum(axis=0), patch_grid, repr(title)) for title, masks in kept.items()}
    scale = Normalize(0, max(masks.shape[1] for masks in kept.values()))
    columns = min(len(maps), 4)
    rows = -(-len(maps) // columns)
    width = WIDTH if columns > 1 else WIDTH / 2
    fig = new_figure(0.2 + rows * (width / max(columns, 2.6 * width / WIDTH) - 0.1), width=width)
    axes = panel_axes(fig, len(maps), columns)
    for ax, (title, values) in zip(axes, maps.items(), strict=True):
        ax.imshow(values, norm=scale, cmap="viridis", interpolation="nearest")
        ax.set_title(title)
        ax.set_axis_off()
    bar = fig.colorbar(ScalarMappable(scale, "viridis"), ax=axes, shrink=0.85, aspect=25)
    bar.set_label(f"Blocks survived, mean (of {int(scale.vmax)})")
    return fig


@rc_context(RC)
def kept_by_two(image: ArrayLike, masks: Mapping[str, ArrayLike], *, patch_grid: tuple[int, int]) -> Figure:
    """Draw an image, and which of its patches both methods kept, one of them, or neither (faded).

    ``image`` is (3, H, W) in [0, 1], ``masks`` are two of bool (P,), by the name of their method.
    """
    if len(masks) != 2:
        raise UsageError(f"kept_by_two compares two methods; given: {', '.join(masks) or 'none'}")
    pixels = pixels_of(image, patch_grid)
    (one, first), (other, second) = masks.items()
    first, second = (on_grid(mask, patch_grid, "mask").astype(bool) for mask in (first, second))
    fig = new_figure(3.4, width=6.6)
    left, right = fig.subplots(1, 2)
    show_picture(left, pixels)
    show_picture(right, _tinted(pixels, first, second))
    right.set_title(f"{(first & second).sum()} of {(first | second).sum()} patches by both")
    entries = {f"{one} and {other}": _BOTH, f"{one} only": _FIRST, f"{other} only": _SECOND}
    handles = [Patch(color=color, label=label) for label, color in entries.items()]
    fits = sum(map(len, entries)) <= _LEGEND_LETTERS
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles) if fits else 1)
    return fig


def _tinted(pixels: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """``pixels`` (H, W, 3) in the colour of what kept each patch of the grid; pale where nothing did."""
    height, width = (pixels.shape[side] // first.shape[side] for side in (0, 1))
    shown = 1 - _DIM * (1 - pixels)
    for mask, color in ((first & second, _BOTH), (first & ~second, _FIRST), (second & ~first, _SECOND)):
        tint = (1 - _TINT) * pixels + _TINT * np.array(to_rgb(color))
        shown = np.where(mask.repeat(height, 0).repeat(width, 1)[..., None], tint, shown)
    return shown


def _masks(kept: ArrayLike, blocks: Sequence[int]) -> np.ndarray:
    """Return bool (1 + blocks, P): everything first, then what each block keeps."""
    kept = as_numpy(kept).astype(bool)
    if kept.ndim != 2 or len(kept) != len(blocks):
        raise UsageError(f"kept has shape {kept.shape}; allowed: ({len(blocks)}, patches), a row for each block shown")
    return np.concatenate([np.ones_like(kept[:1]), kept])


def show_picture(ax: Axes, picture: np.ndarray, **look: object) -> None:
    """Draw ``picture`` (H, W, 3) without frame and ticks; ``look`` is matplotlib's for images."""
    ax.imshow(picture, **look)
    bare(ax)


def bare(ax: Axes) -> None:
    """Take away frame and ticks."""
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)


def pixels_of(image: ArrayLike, patch_grid: tuple[int, int] = (1, 1)) -> np.ndarray:
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


def prediction(name: str, probability: float) -> str:
    """Return a class and its probability in percent."""
    return f"{shorten(name)} {100 * probability:.1f} %"
