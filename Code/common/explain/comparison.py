"""Explainers over a whole dataset: their heatmaps, and how good insertion and deletion find them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from scipy.stats import ttest_rel
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from tqdm import tqdm

from common.data import make_loader
from common.data.base import LabelledDataset
from common.evaluation.archive import pack_json, read_arrays, write_arrays
from common.explain.attention import as_reduced
from common.explain.base import EXPLAINERS, Explainer, Explanation, create_explainer, untouched
from common.explain.localisation import mass_inside, pointing_game
from common.explain.metrics import STEPS, insertion_deletion, without_content
from common.models.reduced import ReducedVisionTransformer

KIND = "assessed explanation"
HOW = "how"


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


@dataclass(frozen=True)
class Assessment:
    """Explanations of n images, on the CPU, the seconds per image that they took, and their quality."""

    explanation: Explanation
    seconds: float
    quality: Quality


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean of ``values`` (n,) and its standard error, NaN for a single one."""
    error = values.std() / len(values) ** 0.5 if len(values) > 1 else torch.tensor(float("nan"))
    return values.mean().item(), error.item()


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


def assess(
    text: str,
    model: VisionTransformer,
    dataset: LabelledDataset,
    labels: Tensor,
    how: Judgement = Judgement(),
    *,
    folder: str | Path | None = None,
    batch_size: int = 32,
) -> Assessment:
    """Explain ``dataset`` and judge the explanations.

    Args:
        text: the explainer, as ``mutex`` or ``mutex:token_ratio=0.25``.
        model: reduced or not.
        labels: (n,) the classes to explain.
        folder: where finished assessments are kept: what was assessed there in the same way, of the same images and
            weights, is read instead of done again. None keeps nothing.
        batch_size: of the explainer.
    """
    model = as_reduced(model)
    explainer = create_explainer(text, model, batch_size=batch_size)
    if folder is None:
        return _assess(explainer, dataset, labels, how)
    settings = {"explainer": text, "about": _digest(model, dataset, labels), **asdict(how), "steps": list(how.steps)}
    name = hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()[:16]
    path = Path(folder) / f"{EXPLAINERS.read(text)[0]}-{name}.npz"
    if path.is_file():
        return _read(path)
    assessment = _assess(explainer, dataset, labels, how)
    _write(assessment, path, settings)
    return assessment


def _assess(explainer: Explainer, dataset: LabelledDataset, labels: Tensor, how: Judgement) -> Assessment:
    explanation, seconds = explain_all(explainer, dataset, labels)
    return Assessment(explanation, seconds, judge(explainer.model, dataset, explanation, how))


def _digest(model: ReducedVisionTransformer, dataset: LabelledDataset, labels: Tensor) -> str:
    """Changes with the weights, the reducer, the images or the labels."""
    digest = hashlib.sha256(repr((model.reducer, dataset.name, dataset.image_ids, labels.tolist())).encode())
    for value in model.state_dict().values():
        digest.update(value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def _write(assessment: Assessment, path: Path, settings: dict[str, object]) -> None:
    parts = {**vars(assessment.explanation), **vars(assessment.quality)}
    arrays = {name: part.numpy() for name, part in parts.items() if part is not None}
    arrays |= {"seconds": np.float64(assessment.seconds), HOW: pack_json(settings)}
    write_arrays(path, KIND, arrays)


def _read(path: Path) -> Assessment:
    arrays = read_arrays(path, KIND)
    parts = {name: torch.from_numpy(array) for name, array in arrays.items() if array.dtype != np.uint8 and array.ndim}
    explanation, quality = ({f.name: parts.get(f.name) for f in fields(kind)} for kind in (Explanation, Quality))
    return Assessment(Explanation(**explanation), float(arrays["seconds"]), Quality(**quality))
