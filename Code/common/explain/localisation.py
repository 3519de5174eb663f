"""Does a heatmap point at the object? For data that say where it is, as the embedded digits do (``Digits.box``)."""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import UsageError


def pointing_game(heatmaps: Tensor, boxes: Tensor, img_size: tuple[int, int]) -> Tensor:
    """Share (B,) of the hottest cells whose centre lies inside the box: 0 or 1 where one cell is hottest.

    Zhang et al., "Top-down Neural Attention by Excitation Backprop", IJCV 2018, without their tolerance of 15 pixels.

    Args:
        heatmaps: (B, h, w).
        boxes: (B, 4) as x0, y0, x1, y1 in pixels, x1 and y1 exclusive.
        img_size: height and width of the images in pixels.

    Raises:
        UsageError: heatmaps with NaN, or not one box for each.
    """
    _check(heatmaps, boxes)
    rows, columns = (_centres(cells, side) for cells, side in zip(heatmaps.shape[1:], img_size, strict=True))
    x0, y0, x1, y1 = boxes[:, :, None].unbind(1)
    inside = ((rows >= y0) & (rows < y1))[:, :, None] & ((columns >= x0) & (columns < x1))[:, None]
    hottest = heatmaps == heatmaps.amax((1, 2), keepdim=True)
    return (hottest & inside).sum((1, 2)) / hottest.sum((1, 2))


def mass_inside(heatmaps: Tensor, boxes: Tensor, img_size: tuple[int, int]) -> Tensor:
    """Share (B,) of the positive heat that lies inside the box; 0 without heat.

    Arguments as for :func:`pointing_game`. Cells on the border of the box count by their area: heat spread evenly gets
    the box's share of the image.
    """
    _check(heatmaps, boxes)
    (height, width), (rows, columns) = img_size, heatmaps.shape[1:]
    x0, y0, x1, y1 = boxes[:, :, None].float().unbind(1)
    covered = _covered(y0, y1, rows, height)[:, :, None] * _covered(x0, x1, columns, width)[:, None]
    heat = heatmaps.clamp(min=0)
    return (heat * covered).sum((1, 2)) / heat.sum((1, 2)).clamp(min=torch.finfo(heat.dtype).tiny)


def _check(heatmaps: Tensor, boxes: Tensor) -> None:
    if heatmaps.dim() != 3 or boxes.shape != (len(heatmaps), 4):
        given = f"heatmaps {tuple(heatmaps.shape)} and boxes {tuple(boxes.shape)}"
        raise UsageError(f"{given} do not fit each other; allowed: (B, h, w) and (B, 4)")
    if not heatmaps.isfinite().all():
        raise UsageError("heatmaps with NaN or infinite values point nowhere; give finite ones")


def _centres(cells: int, side: int) -> Tensor:
    return (torch.arange(cells) + 0.5) * (side / cells)


def _covered(start: Tensor, end: Tensor, cells: int, side: int) -> Tensor:
    """Share (B, cells) of each cell of a line of ``side`` pixels that lies between ``start`` and ``end`` (B, 1)."""
    edges = torch.arange(cells + 1) * (side / cells)
    return (torch.minimum(end, edges[1:]) - torch.maximum(start, edges[:-1])).clamp(min=0) / (side / cells)
