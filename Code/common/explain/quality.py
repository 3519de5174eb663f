"""What a heatmap is like, whatever it is right about: how concentrated it is, and how steady.

Both measures give the numbers of the library quantus (0.6) where that has an answer. They are written out here because
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
    _require_finite(heatmaps)
    heat = heatmaps.flatten(1).double().abs().sort(dim=1).values
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
    _require_finite(heatmaps)
    return heatmaps.flatten(1).double()


def _require_finite(heatmaps: Tensor) -> None:
    if heatmaps.dim() != 3 or not heatmaps.isfinite().all():
        raise UsageError(f"heatmaps {tuple(heatmaps.shape)} are no (B, h, w) of finite values")
