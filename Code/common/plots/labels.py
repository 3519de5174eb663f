"""Small text beside points, placed so that it hides neither points nor lines nor other text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

_SIZE = 7.5
_MARKER = 8.0
_STEP = 3.0  # a line is avoided as dots this far apart
_DIRECTIONS = ((0, 1), (0, -1), (1, 0.6), (-1, 0.6), (1, -0.6), (-1, -0.6), (1, 0), (-1, 0))
_SHIFTS = [(right, up, ring) for ring, (right, up) in itertools.product((0, 1, 2), _DIRECTIONS)]

Label = tuple[Axes, float, float, str, str]


def place_labels(fig: Figure, labels: Sequence[Label]) -> None:
    """Write ``labels`` (axes, x, y, text, colour) near their points, each where it hides least.

    All distances are in points (1/72 inch). Hiding a marker or another label counts most, then crossing a line, then
    the distance to the point.
    """
    fig.draw_without_rendering()  # the layout decides where a data point lands on the page
    points = 72 / fig.dpi
    centres = np.array([ax.transData.transform((x, y)) for ax, x, y, _, _ in labels]).reshape(-1, 2) * points
    taken = [_box(centre, (_MARKER, _MARKER)) for centre in centres]
    dots = {ax: _line_dots(ax) * points for ax in {label[0] for label in labels}}
    for (ax, x, y, text, color), centre in zip(labels, centres, strict=True):
        size = np.array([0.6 * _SIZE * len(text), 1.15 * _SIZE])
        shifts = [_shift(size, *shift) for shift in _SHIFTS]
        boxes = [_box(centre + shift, size) for shift in shifts]
        hidden = [10 * box.count_overlaps(taken) + box.count_contains(dots[ax]) * _STEP / 10 for box in boxes]
        costs = [cost + ring for cost, (*_, ring) in zip(hidden, _SHIFTS, strict=True)]
        best = int(np.argmin(costs))
        taken.append(boxes[best])
        note = ax.annotate(text, (x, y), shifts[best], textcoords="offset points", ha="center", va="center")
        note.set(
            fontsize=_SIZE, color=color, in_layout=False, path_effects=[withStroke(linewidth=2, foreground="white")]
        )


def _shift(size: np.ndarray, right: float, up: float, ring: int) -> np.ndarray:
    return np.array([right * (size[0] / 2 + 6 + 6 * ring), up * (9 + 9 * ring)])


def _box(centre: np.ndarray, size: ArrayLike) -> Bbox:
    return Bbox.from_bounds(*(centre - np.divide(size, 2)), *size)


def _line_dots(ax: Axes) -> np.ndarray:
    """Return dots (M, 2) in pixels along every line of ``ax``."""
    dots = [np.empty((0, 2))]
    for line in ax.lines:
        ends = line.get_transform().transform(line.get_xydata())
        for start, end in itertools.pairwise(ends):
            count = max(int(np.abs(end - start).max() / _STEP), 2)
            dots.append(np.linspace(start, end, count))
    return np.concatenate(dots)
