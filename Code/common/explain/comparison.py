"""Explainers over a whole dataset: their heatmaps, and how good insertion and deletion find them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from scipy.stats import ttest_rel
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from tqdm import tqdm

from common.data import make_loader
from common.data.base import LabelledDataset
from common.explain.base import Explainer, Explanation
from common.explain.localisation import mass_inside, pointing_game
from common.explain.metrics import STEPS, insertion_deletion, without_content
from common.models.observe import untouched
from common.training.metrics import mean_and_error


@dataclass(frozen=True)
class Judgement:
    """How insertion and deletion are measured; see :func:`common.explain.metrics.insertion_deletion`.

    Args:
        baseline: what stands in place of what is not shown, see :func:`common.explain.metrics.without_content`.
        batch_size: images that go through the model at once.
        seed: of the baseline "noise".
    """

    baseline: str = "black"
    ranking: str = "patch"
    steps: Sequence[float] = STEPS
    batch_size: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Quality:
    """What explanations of n images are worth.

    Attributes:
        shares: (K,) share of the image inserted or deleted.
        insertion, deletion: (n, K) probability of the explained class.
        insertion_auc, deletion_auc: (n,), in [0, 1]; insertion should be high, deletion low.
        pointing, mass: (n,), see :mod:`common.explain.localisation`; None where the data do not place their objects.
    """

    shares: Tensor
    insertion: Tensor
    deletion: Tensor
    insertion_auc: Tensor
    deletion_auc: Tensor
    pointing: Tensor | None = None
    mass: Tensor | None = None

    def summary(self) -> dict[str, float | int | None]:
        """Number of images; mean and standard error over them of every measure."""
        found: dict[str, float | int | None] = {"n_images": len(self.insertion_auc)}
        for name in ("insertion_auc", "deletion_auc", "pointing", "mass"):
            values = getattr(self, name)
            found[name], found[f"{name}_sem"] = (None, None) if values is None else mean_and_error(values)
        return found

    def gain_over(self, other: Quality) -> dict[str, float]:
        """Mean gain over ``other`` explanations of the same images, and p of the two-sided paired t test.

        A gain is good: more insertion, less deletion.
        """
        found = {}
        for name, sign in (("insertion", 1), ("deletion", -1)):
            mine, others = (getattr(quality, f"{name}_auc").double() for quality in (self, other))
            found[f"{name}_gain"] = sign * (mine - others).mean().item()
            found[f"{name}_p"] = float(ttest_rel(mine.numpy(), others.numpy()).pvalue)
        return found


def predictions(model: VisionTransformer, dataset: LabelledDataset, *, batch_size: int = 32) -> tuple[Tensor, Tensor]:
    """The classes (n,) that ``model`` predicts, and their probabilities (n,)."""
    device = next(model.parameters()).device
    loader = make_loader(dataset, batch_size, shuffle=False, seed=0)
    with untouched(model), torch.inference_mode():
        found = [model(images.to(device)).softmax(1).max(1) for images, _ in tqdm(loader, "predictions", leave=False)]
    probabilities, labels = (torch.cat(part).cpu().clone() for part in zip(*found, strict=True))
    return labels, probabilities


def explain_all(explainer: Explainer, dataset: LabelledDataset, labels: Tensor) -> tuple[Explanation, float]:
    """Explanations, on the CPU, of all images of ``dataset`` for ``labels`` (n,), and seconds per image.

    The first batch is not timed where there are several: it pays for what is made once.
    """
    size = explainer.batch_size
    loader = make_loader(dataset, size, shuffle=False, seed=0)
    found, seconds = [], []
    for (images, _), wanted in zip(tqdm(loader, "explaining", leave=False), labels.split(size), strict=True):
        start = time.perf_counter()
        explanation = explainer(images, wanted)
        found.append([getattr(explanation, field.name) for field in fields(Explanation)])
        seconds.append((time.perf_counter() - start, len(images)))
    columns = [None if column[0] is None else torch.cat(column).cpu() for column in zip(*found, strict=True)]
    spent, images = (sum(column) for column in zip(*(seconds[1:] or seconds), strict=True))
    return Explanation(*columns), spent / images


def judge(
    model: VisionTransformer, dataset: LabelledDataset, explanation: Explanation, how: Judgement = Judgement()
) -> Quality:
    """Insertion, deletion and, where ``dataset`` has boxes, pointing of the ``explanation`` of all its images."""
    device = next(model.parameters()).device
    loader = make_loader(dataset, how.batch_size, shuffle=False, seed=0)
    heatmaps, labels = (part.split(how.batch_size) for part in (explanation.heatmaps, explanation.labels))
    options = {"steps": how.steps, "ranking": how.ranking, "batch_size": how.batch_size}
    found = []
    with untouched(model):
        batches = zip(tqdm(loader, "insertion and deletion", leave=False), heatmaps, labels, strict=True)
        for (images, _), heat, explained in batches:
            images = images.to(device)
            empty = without_content(images, how.baseline, mean=dataset.mean, std=dataset.std, seed=how.seed)
            found.append(insertion_deletion(model, images, heat, explained, empty, **options))
    names = ("insertion", "deletion", "insertion_auc", "deletion_auc")
    curves = {name: torch.cat([getattr(part, name) for part in found]).clone() for name in names}
    return Quality(found[0].shares.clone(), **curves, **_localisation(dataset, explanation.heatmaps))


def _localisation(dataset: LabelledDataset, heatmaps: Tensor) -> dict[str, Tensor]:
    if not hasattr(dataset, "box"):
        return {}
    boxes = torch.tensor([dataset.box(index) for index in range(len(dataset))])
    size = tuple(dataset[0][0].shape[1:])
    return {"pointing": pointing_game(heatmaps, boxes, size), "mass": mass_inside(heatmaps, boxes, size)}
