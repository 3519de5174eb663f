"""The tables of the benchmark of explanations: all explainers, MUTEX's parameters and masks, reduced models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tqdm import tqdm

from common.explain.base import create_explainer, explainer_columns
from common.explain.benchmark import Benchmark
from common.explain.comparison import Quality, judge
from common.explain.mutex import MASKS, only_masks
from common.explain.network import AGGREGATIONS, DEGREES, STATISTICS
from common.explain.quality import max_sensitivity, sparseness

REFERENCE = "random"
Row = dict[str, object]


def benchmark_row(
    bench: Benchmark, part: str, text: str, quality: Quality, seconds: float | None, masks: str = ""
) -> Row:
    """A row of the table "explain_benchmark"."""
    columns = explainer_columns(text)
    gains = {} if columns["method"] == REFERENCE else quality.gain_over(bench.quality(REFERENCE))
    return {
        "part": part,
        **columns,
        "masks": masks,
        "reducer": bench.reducer,
        "keep_rate": bench.keep_rate,
        "baseline": bench.how.baseline,
        **quality.summary(),
        **gains,
        "seconds": seconds,
    }


def explainer_rows(
    bench: Benchmark, texts: Sequence[str], part: str = "explainers", *, num_sensitive: int = 0
) -> Iterator[Row]:
    """All explainers on the same images.

    Args:
        num_sensitive: for how many images, from the first on, max-sensitivity is measured.
    """
    for text in tqdm(texts, part):
        found = bench.explain(text)
        row = benchmark_row(bench, part, text, bench.quality(text), found.seconds)
        yield row | {
            "sparseness": sparseness(found.explanation.heatmaps).mean().item(),
            "max_sensitivity": _sensitivity(bench, text, num_sensitive) if num_sensitive else None,
        }


def _sensitivity(bench: Benchmark, text: str, count: int) -> float:
    s = bench.subject
    explainer = create_explainer(text, s.model, batch_size=bench.how.batch_size)
    images = s.dataset.stack(range(min(count, len(s.dataset))))
    return max_sensitivity(explainer, images, s.labels[: len(images)], seed=bench.how.seed).mean().item()


def parameter_rows(bench: Benchmark, values: dict[str, Sequence[float]]) -> Iterator[Row]:
    """MUTEX with one parameter changed at a time: name -> values."""
    for name, choices in values.items():
        yield from explainer_rows(bench, [f"mutex:{name}={value}" for value in choices], part=name)


def mask_rows(bench: Benchmark) -> Iterator[Row]:
    """MUTEX with all masks, and with only those of one aggregation, one degree or one statistic.

    The masks, and what the model says to each, are those of one run.
    """
    found, s = bench.explain("mutex").explanation, bench.subject
    kinds = {"aggregation": AGGREGATIONS, "degree": DEGREES, "statistic": STATISTICS}
    parts = {"all": range(len(MASKS))}
    for place, (kind, names) in enumerate(kinds.items()):
        parts |= {f"{kind}={name}": [i for i, mask in enumerate(MASKS) if mask[place] == name] for name in names}
    for part, chosen in parts.items():
        quality = judge(s.model, s.dataset, only_masks(found, chosen), bench.how)
        yield benchmark_row(bench, "masks", "mutex", quality, None, part)


def reduced_rows(bench: Benchmark, reducers: Sequence[str], keep_rate: float, texts: Sequence[str]) -> Iterator[Row]:
    """The subject's model reduced in several ways, each explained and judged by itself."""
    for reducer in reducers:
        yield from explainer_rows(bench.reduced(reducer, keep_rate), texts, part="reduced")
