"""The tables of the benchmark of explanations: all explainers, MUTEX's parameters and masks, reduced models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from tqdm import tqdm

from common.explain.base import EXPLAINERS, create_explainer
from common.explain.comparison import Assessment, Judgement, Quality, assess, judge, predictions
from common.explain.mutex import MASKS, only_masks
from common.explain.network import AGGREGATIONS, DEGREES, STATISTICS
from common.explain.quality import max_sensitivity, sparseness
from common.explain.subject import Subject
from common.models.reduced import reduce_tokens
from common.reducers import Method
from common.registry import options_text

REFERENCE = "random"
Row = dict[str, object]


@dataclass(frozen=True)
class Benchmark:
    """Explanations of one subject, judged in one way, each made once.

    Attributes:
        folder: where finished ones outlive the process, see :func:`common.explain.comparison.assess`.
        reducer, keep_rate: of the subject's model, where it is reduced.
    """

    subject: Subject
    how: Judgement
    folder: str | Path | None = None
    reducer: str = "none"
    keep_rate: float = 1.0
    _done: dict[str, Assessment] = field(default_factory=dict, init=False, repr=False)

    def assess(self, text: str) -> Assessment:
        """Explain all images with the explainer written as ``text``, and judge that."""
        if text not in self._done:
            s, options = self.subject, {"folder": self.folder, "batch_size": self.how.batch_size}
            self._done[text] = assess(text, s.model, s.dataset, s.labels, self.how, **options)
        return self._done[text]

    def row(self, study: str, text: str, quality: Quality, seconds: float | None, part: str = "") -> Row:
        """A row of the table "explain_benchmark"."""
        name, options = EXPLAINERS.read(text)
        gains = {} if name == REFERENCE else quality.gain_over(self.assess(REFERENCE).quality)
        return {
            "study": study,
            "method": name,
            "options": options_text(options),
            "part": part,
            "reducer": self.reducer,
            "keep_rate": self.keep_rate,
            "baseline": self.how.baseline,
            **quality.summary(),
            **gains,
            "seconds": seconds,
        }

    def reduced(self, reducer: str, keep_rate: float) -> Benchmark:
        """The same images and questions for the subject's model with fewer tokens; asked about what that predicts."""
        method, s = Method.parse(reducer), self.subject
        model = reduce_tokens(s.model, method.name, keep_rate=keep_rate, **dict(method.options))
        labels, probabilities = predictions(model, s.dataset, batch_size=self.how.batch_size)
        subject = replace(s, model=model, labels=labels, probabilities=probabilities)
        return replace(self, subject=subject, reducer=reducer, keep_rate=keep_rate)


def explainer_rows(
    bench: Benchmark, texts: Sequence[str], study: str = "explainers", *, num_sensitive: int = 0
) -> Iterator[Row]:
    """All explainers on the same images.

    Args:
        num_sensitive: for how many images, from the first on, max-sensitivity is measured.
    """
    for text in tqdm(texts, study):
        found = bench.assess(text)
        row = bench.row(study, text, found.quality, found.seconds)
        yield row | {
            "sparseness": sparseness(found.explanation.heatmaps).mean().item(),
            "max_sensitivity": _sensitivity(bench, text, num_sensitive) if num_sensitive else None,
        }


def _sensitivity(bench: Benchmark, text: str, count: int) -> float:
    s = bench.subject
    explainer = create_explainer(text, s.model, batch_size=bench.how.batch_size)
    images = torch.stack([s.dataset[number][0] for number in range(min(count, len(s.dataset)))])
    return max_sensitivity(explainer, images, s.labels[: len(images)], seed=bench.how.seed).mean().item()


def parameter_rows(bench: Benchmark, values: dict[str, Sequence[float]]) -> Iterator[Row]:
    """MUTEX with one parameter changed at a time: name -> values."""
    for name, choices in values.items():
        yield from explainer_rows(bench, [f"mutex:{name}={value}" for value in choices], study=name)


def mask_rows(bench: Benchmark) -> Iterator[Row]:
    """MUTEX with all masks, and with only those of one aggregation, one degree or one statistic.

    The masks, and what the model says to each, are those of one run.
    """
    found, s = bench.assess("mutex").explanation, bench.subject
    kinds = {"aggregation": AGGREGATIONS, "degree": DEGREES, "statistic": STATISTICS}
    parts = {"all": range(len(MASKS))}
    for place, (kind, names) in enumerate(kinds.items()):
        parts |= {f"{kind}={name}": [i for i, mask in enumerate(MASKS) if mask[place] == name] for name in names}
    for part, chosen in parts.items():
        quality = judge(s.model, s.dataset, only_masks(found, chosen), bench.how)
        yield bench.row("masks", "mutex", quality, None, part)


def reduced_rows(bench: Benchmark, reducers: Sequence[str], keep_rate: float, texts: Sequence[str]) -> Iterator[Row]:
    """The subject's model reduced in several ways, each explained and judged by itself."""
    for reducer in reducers:
        yield from explainer_rows(bench.reduced(reducer, keep_rate), texts, study="reduced")
