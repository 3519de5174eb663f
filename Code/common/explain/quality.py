"""How concentrated and how steady a heatmap is and, for data with boxes (``Digits.box``), whether it points into them.

The first two give the numbers of the library quantus (0.6) where that has an answer. They are written out here because
there the number of an image hangs on the batch it comes in: quantus scales heat by the largest value of the batch
before it adds a constant, draws noise for max-sensitivity batch by batch from numpy's global state, and ends with an
AssertionError at a batch whose heat is constant or negative throughout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import UsageError
from common.explain.base import Explainer
from common.options import Count, Positive, Whole, checked


def sparseness(heatmaps: Tensor) -> Tensor:
    """Gini index (B,) of the absolute heat: 0 where all P patches are equally hot, 1 - 1/P where a single one is.

    Chalasani et al., "Concise Explanations of Neural Networks using Adversarial Training", ICML 2020. An explanation
    that says more with fewer patches is easier to grasp, not better by itself. The scale of the heat has no say; the
    index of a heatmap without heat is 0.

    Args:
        heatmaps: (B, h, w), finite.
    """
    heat = _flat(heatmaps).abs().sort(dim=1).values
    count = heat.shape[1]
    weights = 2 * torch.arange(1, count + 1, device=heat.device) - count - 1
    total = heat.sum(1)
    return ((weights * heat).sum(1) / (count * torch.where(total > 0, total, 1.0))).float()


@checked
def max_sensitivity(
    explainer: Explainer,
    images: Tensor,
    labels: Tensor | int | None = None,
    *,
    samples: Count = 5,
    radius: Positive = 0.2,
    seed: Whole = 0,
) -> Tensor:
    """How far the heat of each image moves (B,) when the image is changed a little: the largest move of ``samples``.

    max over y of ||heat(y) - heat(x)|| / ||heat(x)||, Euclidean norms, y = x plus uniform noise; lower is steadier.
    Where heat(x) is 0 everywhere, the move itself is given. The label that is explained stays that of x. All images
    get the same noise, and all explainers, for as long as ``seed`` and size of the images do.

    Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019, who do not divide by the norm;
    quantus and captum do, as heat of different methods has different scales. A maximum of few samples is a lower
    bound of that over the whole neighbourhood: compare only numbers of the same ``samples``.

    Args:
        images: (B, 3, H, W), normalised; they go through the model ``explainer.batch_size`` at a time.
        labels: as for the explainer; None = what the model predicts for the images as they are.
        radius: largest change of a normalised pixel value; 0.2 as in quantus.
        seed: of the noise. The global random states are neither read nor changed.

    Raises:
        UsageError: samples or radius that are no positive numbers, heat that is not finite.
    """
    explanation = explainer(images, labels)
    heat = _flat(explanation.heatmaps)
    generator, moves = torch.Generator().manual_seed(seed), []
    for _ in range(samples):
        noise = radius * (2 * torch.rand(images.shape[1:], generator=generator) - 1)
        moved = explainer(images + noise.to(images), explanation.labels).heatmaps
        moves.append((_flat(moved) - heat).norm(dim=1))
    size = heat.norm(dim=1)
    return (torch.stack(moves).amax(0) / torch.where(size > 0, size, 1.0)).float().cpu()


def _flat(heatmaps: Tensor) -> Tensor:
    """Finite ``heatmaps`` (B, h, w) -> (B, P), float64."""
    if heatmaps.dim() != 3 or not heatmaps.isfinite().all():
        raise UsageError(f"heatmaps {tuple(heatmaps.shape)} are no (B, h, w) of finite values")
    return heatmaps.flatten(1).double()


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
    _check_boxes(heatmaps, boxes)
    (height, width), (rows, columns) = img_size, heatmaps.shape[1:]
    where = heatmaps.device
    y = (torch.arange(rows, device=where) + 0.5) * (height / rows)  # of the centres of cells
    x = (torch.arange(columns, device=where) + 0.5) * (width / columns)
    x0, y0, x1, y1 = boxes[:, :, None].to(where).unbind(1)
    inside = ((y >= y0) & (y < y1))[:, :, None] & ((x >= x0) & (x < x1))[:, None]
    hottest = heatmaps == heatmaps.amax((1, 2), keepdim=True)
    return (hottest & inside).sum((1, 2)) / hottest.sum((1, 2))


def mass_inside(heatmaps: Tensor, boxes: Tensor, img_size: tuple[int, int]) -> Tensor:
    """Share (B,) of the positive heat that lies inside the box; 0 without heat.

    Arguments as for :func:`pointing_game`. Cells on the border of the box count by their area: heat spread evenly gets
    the box's share of the image.
    """
    _check_boxes(heatmaps, boxes)
    (height, width), (rows, columns) = img_size, heatmaps.shape[1:]
    x0, y0, x1, y1 = boxes[:, :, None].to(heatmaps.device, torch.float32).unbind(1)
    covered = _covered(y0, y1, rows, height)[:, :, None] * _covered(x0, x1, columns, width)[:, None]
    heat = heatmaps.clamp(min=0)
    return (heat * covered).sum((1, 2)) / heat.sum((1, 2)).clamp(min=torch.finfo(heat.dtype).tiny)


def _check_boxes(heatmaps: Tensor, boxes: Tensor) -> None:
    if heatmaps.dim() != 3 or boxes.shape != (len(heatmaps), 4):
        given = f"heatmaps {tuple(heatmaps.shape)} and boxes {tuple(boxes.shape)}"
        raise UsageError(f"{given} do not fit each other; allowed: (B, h, w) and (B, 4)")
    if not heatmaps.isfinite().all():
        raise UsageError("heatmaps with NaN or infinite values point nowhere; give finite ones")


def _covered(start: Tensor, end: Tensor, cells: int, side: int) -> Tensor:
    """Share (B, cells) of each cell of a line of ``side`` pixels that lies between ``start`` and ``end`` (B, 1)."""
    edges = torch.arange(cells + 1, device=start.device) * (side / cells)
    return (torch.minimum(end, edges[1:]) - torch.maximum(start, edges[:-1])).clamp(min=0) / (side / cells)
