"""Insertion and deletion: does the model's answer hang on what a heatmap ranks highest?

Insertion starts from an image without content and shows more and more of what a heatmap ranks highest; deletion starts
from the image and takes it away. The area under the probability of the class should be large for insertion and small
for deletion (Petsiuk, Das, Saenko, "RISE", BMVC 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from common.errors import UsageError
from common.models.support import check_head
from common.options import Count, Many, check, checked

STEPS = (0, 1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)  # percent: the published points, and 0
Baseline = Literal["black", "zero", "mean", "blur", "noise"]
BLUR_KERNEL, BLUR_SIGMA = 15 / 224, 7 / 224  # the published blur, relative to the side of the image


@dataclass(frozen=True)
class Curves:
    """Probabilities of the explained classes along insertion and deletion.

    Attributes:
        shares: (K,) share of the image that is inserted or deleted, from 0 to 1.
        insertion, deletion: (B, K) probabilities.
        insertion_auc, deletion_auc: (B,) area under the curves, in [0, 1]; with ``parity`` as published, up to 100.
    """

    shares: Tensor
    insertion: Tensor
    deletion: Tensor
    insertion_auc: Tensor
    deletion_auc: Tensor


def without_content(
    images: Tensor, baseline: Baseline, *, mean: Sequence[float], std: Sequence[float], seed: int = 0
) -> Tensor:
    """Images (B, 3, H, W) that say nothing, to take the place of ``images``.

    Args:
        images: normalised by ``mean`` and ``std`` of the three channels.
        baseline: "black": pixel value 0. "zero": 0 after normalisation, the mean colour, which the reference calls
            black. "mean": each image's own mean colour. "blur": Gaussian, kernel 15 and sigma 7 at 224 px.
            "noise": standard normal after normalisation, the same for all images, so that no batch has a say in it.
        seed: of the noise.
    """
    check("baseline", baseline, Baseline)
    if baseline == "black":
        black = -torch.as_tensor(mean, dtype=torch.float32) / torch.as_tensor(std, dtype=torch.float32)
        return black.to(images)[:, None, None].expand_as(images)
    if baseline == "zero":
        return torch.zeros_like(images)
    if baseline == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images)
    if baseline == "blur":
        side = max(images.shape[2:])
        return gaussian_blur(images, [2 * round(side * BLUR_KERNEL / 2 - 0.5) + 1] * 2, [side * BLUR_SIGMA] * 2)
    noise = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed))
    return noise.to(images).expand_as(images)


@checked
@torch.inference_mode()
def insertion_deletion(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    heatmaps: Tensor,
    labels: Tensor,
    baseline: Tensor,
    *,
    steps: Many[float] = STEPS,
    ranking: Literal["patch", "pixel"] = "patch",
    batch_size: Count = 32,
    parity: bool = False,
) -> Curves:
    """Insertion and deletion curves of a batch.

    >>> from common import create_model
    >>> images, heatmaps, labels = torch.rand(2, 3, 32, 32), torch.rand(2, 8, 8), torch.tensor([3, 0])
    >>> curves = insertion_deletion(create_model("vit_digits").eval(), images, heatmaps, labels, 0 * images)
    >>> curves.insertion.shape, curves.insertion_auc.shape
    (torch.Size([2, 13]), torch.Size([2]))

    Args:
        model: normalised images -> logits (B, classes), in eval mode.
        images: (B, 3, H, W).
        heatmaps: (B, h, w), one value per cell of a grid over the image; (B, H, W) ranks single pixels.
        labels: (B,) the classes whose probability is measured.
        baseline: (B, 3, H, W), what stands in place of what is not shown; see :func:`without_content`.
        steps: percent, increasing, from 0 to 100.
        ranking: "patch": whole cells, as many as come closest to each step. "pixel": the pixels of a cell one after the
            other, row by row. Cells of equal heat follow each other row by row.
        batch_size: images that go through the model at once.
        parity: the published areas: over percent; insertion without its point at 0 %, deletion with the value 0 there.

    Raises:
        UsageError: heatmaps with NaN, arguments that do not fit each other, or a ViT without a head.
    """
    if isinstance(model, VisionTransformer):
        check_head(model, "insertion and deletion follow the probability of a class")
    steps = _checked_steps(steps)
    _check_shapes(images, heatmaps, labels, baseline)
    order, counts = _ranks(heatmaps.to(images.device), images.shape[2:], ranking, steps)
    inner = counts[1:-1, None, None]
    shown = order[:, None] < inner  # (B, K - 2, h, w)
    everything = torch.ones_like(order[:, None], dtype=torch.bool)
    masks = torch.cat([everything, ~everything, shown, ~shown], dim=1)
    found = _probabilities(model, images, labels.to(images.device), baseline, masks, batch_size).cpu()
    (clean, empty), (insertion, deletion) = found[:, :2].split(1, dim=1), found[:, 2:].chunk(2, dim=1)
    insertion, deletion = torch.cat([empty, insertion, clean], dim=1), torch.cat([clean, deletion, empty], dim=1)
    if parity:
        percent, unmeasured = torch.tensor(steps), torch.zeros_like(clean)
        areas = (
            torch.trapezoid(insertion[:, 1:], percent[1:], dim=1),
            torch.trapezoid(torch.cat([unmeasured, deletion[:, 1:]], dim=1), percent, dim=1),
        )
        return Curves(percent / 100, insertion, deletion, *areas)
    shares = counts.cpu() / counts[-1].item()
    areas = (torch.trapezoid(curve, shares, dim=1) for curve in (insertion, deletion))
    return Curves(shares, insertion, deletion, *areas)


def _ranks(heatmaps: Tensor, size: torch.Size, ranking: str, steps: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Rank (B, h, w) of every cell or pixel, 0 = hottest, and how many of them (K,) each step takes."""
    if ranking == "pixel":
        heatmaps = F.interpolate(heatmaps[:, None].float(), size, mode="nearest")[:, 0]
    flat = heatmaps.flatten(1)
    ranks = flat.argsort(dim=1, descending=True, stable=True).argsort(dim=1).view_as(heatmaps)
    exact = torch.tensor(steps, dtype=torch.float64, device=flat.device) * flat.shape[1] / 100
    return ranks, (exact.floor() if ranking == "pixel" else exact.round()).long()


def _probabilities(
    model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, baseline: Tensor, masks: Tensor, batch_size: int
) -> Tensor:
    """Probability (B, M) of each label when ``masks`` (B, M, h, w) choose between image and baseline."""
    owner = torch.arange(len(images), device=images.device).repeat_interleave(masks.shape[1])
    found = []
    for part, mask in zip(owner.split(batch_size), masks.flatten(0, 1).split(batch_size), strict=True):
        mask = F.interpolate(mask[:, None].float(), images.shape[2:], mode="nearest").bool()
        logits = model(torch.where(mask, images[part], baseline[part]))
        found.append(logits.float().softmax(1).gather(1, labels[part, None]))
    return torch.cat(found).view(len(images), -1)


def _checked_steps(steps: Sequence[float]) -> list[float]:
    steps = [float(step) for step in steps]
    if len(steps) < 3 or steps != sorted(set(steps)) or (steps[0], steps[-1]) != (0, 100):
        raise UsageError(f"steps={steps} are not allowed; give at least three percentages, increasing from 0 to 100")
    return steps


def _check_shapes(images: Tensor, heatmaps: Tensor, labels: Tensor, baseline: Tensor) -> None:
    given = f"heatmaps {tuple(heatmaps.shape)}"
    if heatmaps.dim() != 3 or len(heatmaps) != len(images) or labels.shape != (len(images),):
        given += f" and labels {tuple(labels.shape)}"
        raise UsageError(f"{given} do not fit {len(images)} images; allowed: (B, h, w) and (B,)")
    if any(cells > pixels for cells, pixels in zip(heatmaps.shape[1:], images.shape[2:], strict=True)):
        raise UsageError(f"{given} are finer than images {tuple(images.shape)}; scale them down")
    if baseline.shape != images.shape:
        raise UsageError(f"baseline {tuple(baseline.shape)} does not fit images {tuple(images.shape)}; they are alike")
    if not heatmaps.isfinite().all():
        raise UsageError("heatmaps with NaN or infinite values cannot be ranked; give finite ones")
