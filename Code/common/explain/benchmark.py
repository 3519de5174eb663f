"""One model and its images under many explainers: what is explained and judged once is there for every study."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from common.evaluation.archive import KIND, pack_json, read_arrays, write_arrays
from common.explain.base import Explanation, create_explainer
from common.explain.comparison import Judgement, Quality, explain_all, judge, predictions
from common.explain.subject import Subject, open_subject
from common.models.observe import as_reduced
from common.models.reduced import reduce_tokens
from common.reducers import Method
from common.results import resolve

EXPLANATIONS, QUALITY = "explanations", "quality of explanations"
HOW = "how"
Parts = Mapping[str, Tensor]


@dataclass(frozen=True)
class Explained:
    """Explanations of n images, on the CPU, and the seconds per image that they took."""

    explanation: Explanation
    seconds: float


@dataclass(frozen=True)
class Benchmark:
    """Explanations of one subject, and what they are worth when they are judged in one way; each made once.

    Attributes:
        folder: where they outlive the process: what was made there in the same way, of the same images and weights,
            is read instead of made again. None keeps nothing.
        reducer, keep_rate: of the subject's model, where it is reduced.
    """

    subject: Subject
    how: Judgement
    folder: str | Path | None = None
    reducer: str = "none"
    keep_rate: float = 1.0
    _done: dict[tuple[str, str], Parts] = field(default_factory=dict, init=False, repr=False)

    def explain(self, text: str) -> Explained:
        """Explain all images with the explainer written as ``text``, as ``mutex`` or ``mutex:token_ratio=0.25``."""
        parts = dict(self._once(EXPLANATIONS, text, {}, self._explain))
        return Explained(seconds=parts.pop("seconds").item(), explanation=Explanation(**parts))

    def quality(self, text: str) -> Quality:
        """What the explanations by ``text`` are worth."""
        how = {**asdict(self.how), "steps": list(self.how.steps)}
        return Quality(**self._once(QUALITY, text, how, self._judge))

    def reduced(self, reducer: str, keep_rate: float) -> Benchmark:
        """The same images and questions for the subject's model with fewer tokens; asked about what that predicts."""
        method, s = Method.parse(reducer), self.subject
        model = reduce_tokens(s.model, method.name, keep_rate=keep_rate, **dict(method.options))
        labels, probabilities = predictions(model, s.dataset, batch_size=self.how.batch_size)
        subject = replace(s, model=model, labels=labels, probabilities=probabilities)
        return replace(self, subject=subject, reducer=reducer, keep_rate=keep_rate)

    def _explain(self, text: str) -> Parts:
        s = self.subject
        explainer = create_explainer(text, s.model, batch_size=self.how.batch_size)
        explanation, seconds = explain_all(explainer, s.dataset, s.labels)
        return {**_parts(explanation), "seconds": torch.tensor(seconds, dtype=torch.float64)}

    def _judge(self, text: str) -> Parts:
        model, dataset = self.subject.model, self.subject.dataset
        return _parts(judge(model, dataset, self.explain(text).explanation, self.how))

    def _once(self, kind: str, text: str, settings: dict[str, object], make: Callable[[str], Parts]) -> Parts:
        if (kind, text) not in self._done:
            self._done[kind, text] = make(text) if self.folder is None else self._kept(kind, text, settings, make)
        return self._done[kind, text]

    def _kept(self, kind: str, text: str, settings: dict[str, object], make: Callable[[str], Parts]) -> Parts:
        settings = {"kind": kind, "explainer": text, "about": self._about, **settings}
        name = hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()[:16]
        path = Path(self.folder) / f"{text.partition(':')[0]}-{name}.npz"
        if not path.is_file():
            arrays = {name: part.numpy() for name, part in make(text).items()}
            write_arrays(path, kind, {**arrays, HOW: pack_json(settings)})
        arrays = read_arrays(path, kind)
        return {name: torch.from_numpy(array) for name, array in arrays.items() if name not in (KIND, HOW)}

    @cached_property
    def _about(self) -> str:
        """Changes with the weights, the reducer, the images or the labels."""
        model, dataset, labels = as_reduced(self.subject.model), self.subject.dataset, self.subject.labels
        digest = hashlib.sha256(repr((model.reducer, dataset.name, dataset.image_ids, labels.tolist())).encode())
        for value in model.state_dict().values():
            digest.update(value.detach().cpu().float().numpy().tobytes())
        return digest.hexdigest()


def open_benchmark(
    backbone: str,
    weights: str,
    dataset: str,
    *,
    baseline: str = "black",
    batch_size: int = 32,
    seed: int = 0,
    checkpoints: str = "",
    **images: object,
) -> Benchmark:
    """The benchmark of a ``backbone`` on images of ``dataset``.

    Args:
        weights, seed, images: see :func:`common.explain.subject.open_subject`.
        baseline: see :class:`common.explain.comparison.Judgement`.
        checkpoints: folder of the benchmark, "" = none; relative to the repository.
    """
    subject = open_subject(backbone, weights, dataset, seed=seed, batch_size=batch_size, **images)
    how = Judgement(baseline=baseline, batch_size=batch_size, seed=seed)
    return Benchmark(subject, how, folder=resolve(checkpoints) if checkpoints else None)


def _parts(found: Explanation | Quality) -> Parts:
    parts = {each.name: getattr(found, each.name) for each in fields(found)}
    return {name: part for name, part in parts.items() if part is not None}
