"""Explanations of the same images by many explainers, and how good they are: each made once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from scipy.stats import ttest_rel
from torch import Tensor

from common.data.base import LabelledDataset
from common.evaluation.archive import KIND, read_arrays, write_arrays
from common.explain.base import Explanation, create_explainer
from common.explain.images import choose_images
from common.explain.metrics import STEPS, Baseline, Curves, insertion_deletion, without_content
from common.explain.quality import mass_inside, pointing_game
from common.models.reduced import ReducedVisionTransformer
from common.options import check
from common.schema import SEM
from common.setup import Setup
from common.training import inference_pass, predict
from common.training.metrics import means_with_errors

EXPLANATIONS, QUALITY = "explanations", "quality of explanations"
MEASURED = {"unit": {"ranking": "patch"}, "published": {"ranking": "pixel", "parity": True}}
Areas = Literal[tuple(MEASURED)]
Parts = Mapping[str, Tensor]


@dataclass(frozen=True)
class Quality(Curves):
    """How good explanations of n images are: their curves, and where the data place their objects, localisation.

    Attributes:
        pointing, mass: (n,), see :func:`common.explain.quality.pointing_game`, or None.
    """

    pointing: Tensor | None = None
    mass: Tensor | None = None

    def summary(self) -> dict[str, float | int | None]:
        """Number of images; mean and standard error over them of every measure."""
        found: dict[str, float | int | None] = {"n_images": len(self.insertion_auc)}
        for name in ("insertion_auc", "deletion_auc", "pointing", "mass"):
            values = getattr(self, name)
            found |= {name: None, name + SEM: None} if values is None else means_with_errors(**{name: values})
        return found

    def gain_over(self, other: Quality) -> dict[str, float]:
        """Mean gain over ``other`` explanations of the same images, its error, and p of the two-sided paired t test.

        A gain is good: more insertion, less deletion.
        """
        found = {}
        for name, sign in (("insertion", 1), ("deletion", -1)):
            mine, others = (getattr(quality, f"{name}_auc").double() for quality in (self, other))
            found |= means_with_errors(**{f"{name}_gain": sign * (mine - others)})
            found[f"{name}_p"] = float(ttest_rel(mine.numpy(), others.numpy()).pvalue)
        return found


@dataclass(frozen=True)
class Explanations:
    """Explanations of images by many explainers, and how good they are; each made once.

    Every image is asked about the class that the model predicts for it, right or wrong. In the folder of the ``setup``,
    where it has one, explanations outlive the process: what was made there in the same way, of the same images and
    weights, is read in place of being made again.

    Args:
        setup: backbone and data.
        images: see :func:`common.explain.images.choose_images`.
        baseline: see :func:`common.explain.metrics.without_content`.
        steps: see :func:`common.explain.metrics.insertion_deletion`.
        areas: "unit": whole patches are ranked, areas lie in [0, 1]. "published": as MUTEX's authors measure, pixels
            are ranked, and areas are those of ``parity`` of :func:`common.explain.metrics.insertion_deletion`.
        reducer, keep_rate: by which the backbone is reduced, written as for :class:`common.reducers.Method`.

    Example:
        >>> found = Explanations(Setup("vit_digits", "", "digits", img_size=32), images=4)
        >>> tuple(found.explain("rollout").heatmaps.shape), tuple(found.quality("rollout").insertion_auc.shape)
        ((4, 8, 8), (4,))
    """

    setup: Setup
    images: int | str | Sequence[int] | None = None
    baseline: Baseline = "black"
    steps: Sequence[float] = STEPS
    areas: Areas = "unit"
    reducer: str = "none"
    keep_rate: float | tuple[float, ...] = 1.0
    _done: dict[tuple[str, str], Parts] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check("baseline", self.baseline, Baseline)
        check("areas", self.areas, Areas)

    def reduced(self, reducer: str, keep_rate: float | tuple[float, ...]) -> Explanations:
        """Explanations of the same images for the backbone with fewer tokens, which is asked about what it predicts."""
        return replace(self, reducer=reducer, keep_rate=keep_rate)

    @cached_property
    def model(self) -> ReducedVisionTransformer:
        """What is explained, in eval mode."""
        return self.setup.reduced(self.reducer, keep_rate=self.keep_rate)

    @cached_property
    def dataset(self) -> LabelledDataset:
        """The n images, normalised as the weights expect."""
        return choose_images(self.setup, self.images)

    @cached_property
    def labels(self) -> Tensor:
        """The classes (n,) that the model predicts."""
        return self._logits.argmax(1)

    @property
    def probabilities(self) -> Tensor:
        """The probabilities (n,) of these classes."""
        return self._logits.softmax(1).amax(1)

    @cached_property
    def _logits(self) -> Tensor:
        return predict({self.reducer: self.model}, self.setup.loader(self.dataset))[0][self.reducer].logits

    def explain(self, text: str) -> Explanation:
        """Explanations, on the CPU, by the explainer written as ``text``: ``mutex`` or ``mutex:token_ratio=0.25``."""
        return Explanation(**{name: part for name, part in self._explained(text).items() if name != "seconds"})

    def seconds(self, text: str) -> float:
        """Seconds per image that explaining took, without the first of several batches: it pays for what is new."""
        return self._explained(text)["seconds"].item()

    def quality(self, text: str) -> Quality:
        """How good the explanations by ``text`` are."""
        how = (self.baseline, tuple(self.steps), self.areas, self.setup.seed)
        return Quality(**self._once(QUALITY, text, how, lambda: _parts(self.measure(self.explain(text)))))

    def measure(self, explanation: Explanation) -> Quality:
        """Insertion, deletion and, where the dataset has boxes, pointing of an ``explanation`` of all images."""
        size, dataset, found = self.setup.batch_size, self.dataset, []
        explained = zip(explanation.heatmaps.split(size), explanation.labels.split(size), strict=True)
        empty = {"baseline": self.baseline, "mean": dataset.mean, "std": dataset.std, "seed": self.setup.seed}
        options = {"steps": tuple(self.steps), "batch_size": size, **MEASURED[self.areas]}
        with inference_pass([self.model], self.setup.loader(dataset), "insertion and deletion") as batches:
            for (images, _), (heat, labels) in zip(batches, explained, strict=True):
                hidden = without_content(images, **empty)
                found.append(insertion_deletion(self.model, images, heat, labels, hidden, **options))
        curves = {name: torch.cat([vars(part)[name] for part in found]) for name in vars(found[0])}
        curves["shares"] = found[0].shares.clone()
        if not hasattr(dataset, "box"):
            return Quality(**curves)
        boxes = torch.tensor([dataset.box(index) for index in range(len(dataset))])
        where = (explanation.heatmaps, boxes, tuple(dataset[0][0].shape[1:]))
        return Quality(**curves, pointing=pointing_game(*where), mass=mass_inside(*where))

    def _explained(self, text: str) -> Parts:
        return self._once(EXPLANATIONS, text, (), lambda: self._explain_all(text))

    def _explain_all(self, text: str) -> Parts:
        size, found, seconds = self.setup.batch_size, [], []
        explainer, wanted = create_explainer(text, self.model, batch_size=size), self.labels.split(size)
        with inference_pass([self.model], self.setup.loader(self.dataset), "explaining") as batches:
            for (images, _), labels in zip(batches, wanted, strict=True):
                start = time.perf_counter()
                found.append(_parts(explainer(images, labels)))
                seconds.append((time.perf_counter() - start, len(images)))
        spent, images = (sum(column) for column in zip(*(seconds[1:] or seconds), strict=True))
        parts = {name: torch.cat([part[name] for part in found]).cpu() for name in found[0]}
        return {**parts, "seconds": torch.tensor(spent / images, dtype=torch.float64)}

    def _once(self, kind: str, text: str, how: tuple, make: Callable[[], Parts]) -> Parts:
        if (kind, text) not in self._done:
            self._done[kind, text] = self._kept(kind, text, how, make) if self.setup.folder else make()
        return self._done[kind, text]

    def _kept(self, kind: str, text: str, how: tuple, make: Callable[[], Parts]) -> Parts:
        digest = hashlib.sha256(repr((kind, text, self._fingerprint, how)).encode()).hexdigest()[:16]
        path = self.setup.place(f"{text.partition(':')[0]}-{digest}.npz")
        if not path.is_file():
            write_arrays(path, kind, {name: part.numpy() for name, part in make().items()})
        arrays = read_arrays(path, kind)
        return {name: torch.from_numpy(array) for name, array in arrays.items() if name != KIND}

    @cached_property
    def _fingerprint(self) -> str:
        """Changes with the weights, the reducer, the images or the labels."""
        about = (self.model.reducer, self.dataset.name, self.dataset.image_ids, self.labels.tolist())
        digest = hashlib.sha256(repr(about).encode())
        for value in self.model.state_dict().values():
            digest.update(value.detach().cpu().float().numpy().tobytes())
        return digest.hexdigest()


def _parts(found: Explanation | Quality) -> Parts:
    return {name: part for name, part in vars(found).items() if part is not None}
