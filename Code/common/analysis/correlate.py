"""Which similarity of two runs goes with a small difference of their accuracies?

Runs are few: four keep rates are four runs and six pairs, and the pairs are not independent, as each run is in several.
So chance and error are those of runs: accuracies are dealt anew to the runs, and runs, not pairs, are left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from math import factorial
from typing import Literal, get_args

import numpy as np
import pandas as pd
from scipy.stats import rankdata, t

from common.errors import UsageError
from common.options import Count, Many, ShareBelow1, Whole, checked

Difference = Literal["signed", "size"]
Statistic = Literal["spearman", "kendall"]
DIFFERENCES, STATISTICS = get_args(Difference), get_args(Statistic)
AT_ONCE = 2**20  # differences of dealt accuracies, 8 MB
COLUMNS = (
    "group",
    "block",
    "metric",
    "difference",
    "statistic",
    "value",
    "low",
    "high",
    "p",
    "partial",
    "pairs",
    "runs",
)


@checked
def correlate(
    comparisons: pd.DataFrame,
    accuracies: Mapping[str, float],
    tokens: Mapping[str, float] | None = None,
    *,
    groups: Mapping[str, str] | None = None,
    differences: Many[Difference] = ("size",),
    statistics: Many[Statistic] = ("spearman",),
    permutations: Count = 1000,
    confidence: ShareBelow1 = 0.95,
    seed: Whole = 0,
) -> pd.DataFrame:
    """Rank correlation, over pairs of runs, of their similarity with the difference of their accuracies.

    Args:
        comparisons: rows of :func:`common.analysis.compare_all`: ``a``, ``b``, ``block``, ``metric``, ``mean``.
        accuracies: of each run, in percent, by its key.
        tokens: of each run, those left at the end, on average; with them ``partial`` is filled in.
        groups: of each run ``a``, what it is correlated with others of; None = all rows together.
        differences: of accuracies: "signed", that of a minus that of b, or its "size".
        statistics: "spearman" or "kendall" (tau-b, whose time is quadratic in the pairs).
        permutations: at most so many; where the runs have no more, all of them, and p is exact.
        confidence: of the interval.
        seed: of permutations that are drawn.

    Returns:
        One row for each group, block, metric, difference and statistic:

        value           over the pairs; NaN where one of both does not vary
        low, high       interval, delete-one-run jackknife (a run that is in all pairs stays), cut to [-1, 1]
        p               share of all ways to deal the accuracies to the runs with a value of at least this size: of
                        four runs at best 1 / 24, of three 1 / 6
        partial         the same correlation given the difference of ``tokens`` in size, of ranks
        pairs, runs     how many

    Raises:
        UsageError: a run without accuracy, a table without the columns, options out of range.

    >>> runs = {"a": 70.0, "b": 68.0, "c": 60.0, "d": 40.0}
    >>> rows = [(x, y, 3, "iou", 1 - abs(runs[x] - runs[y]) / 100) for x in runs for y in runs if x < y]
    >>> table = correlate(pd.DataFrame(rows, columns=["a", "b", "block", "metric", "mean"]), runs)
    >>> table[["difference", "statistic", "value", "p", "runs"]].round(3).to_numpy().tolist()
    [['size', 'spearman', -1.0, 0.042, 4]]
    """
    _require(comparisons, accuracies)
    grouped = comparisons.assign(group=[(groups or {}).get(run, "all") for run in comparisons["a"]])
    rows = []
    for (group, block, metric), cells in grouped.dropna(subset=["mean"]).groupby(
        ["group", "block", "metric"], sort=False
    ):
        pairs = _Pairs(cells, accuracies, tokens)
        same = {"group": group, "block": block, "metric": metric, "pairs": len(cells), "runs": len(pairs.accuracy)}
        dealt = np.array(list(_dealt(pairs.accuracy, permutations, seed)))  # (permutations, runs)
        for difference, statistic in itertools.product(differences, statistics):
            found = {
                "difference": difference,
                "statistic": statistic,
                **pairs.row(difference, statistic, dealt, confidence),
            }
            rows.append(same | found)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _require(comparisons: pd.DataFrame, accuracies: Mapping[str, float]) -> None:
    missing = [name for name in ("a", "b", "block", "metric", "mean") if name not in comparisons]
    if missing:
        raise UsageError(f"comparisons lack the columns {', '.join(missing)}; give what compare_all returns")
    unknown = sorted({*comparisons["a"], *comparisons["b"]} - accuracies.keys())
    if unknown:
        raise UsageError(f"no accuracy of run {unknown[0]!r}{f' and {len(unknown) - 1} more' if unknown[1:] else ''}")


class _Pairs:
    """The pairs of one group: which runs they are of, how similar these are, and what the runs score."""

    def __init__(
        self, cells: pd.DataFrame, accuracies: Mapping[str, float], tokens: Mapping[str, float] | None
    ) -> None:
        names = sorted({*cells["a"], *cells["b"]})
        self.first, self.second = (pd.Index(names).get_indexer(cells[side]) for side in ("a", "b"))  # (pairs,)
        self.similarity = cells["mean"].to_numpy(float)  # (pairs,)
        self.accuracy = np.array([accuracies[name] for name in names], float)  # (runs,)
        self.tokens = None if tokens is None else np.array([tokens[name] for name in names], float)

    def row(self, difference: str, statistic: str, dealt: np.ndarray, confidence: float) -> dict[str, float]:
        measure, values = _MEASURES[statistic], self._differences(difference, self.accuracy)
        value = float(measure(values, self.similarity))
        parts = np.array_split(dealt, -(-len(dealt) * len(values) // AT_ONCE))
        chance = np.concatenate([measure(self._differences(difference, part), self.similarity) for part in parts])
        p = float(np.mean(np.abs(chance) >= abs(value) - 1e-9)) if np.isfinite(value) else np.nan
        low, high = self._interval(difference, statistic, value, confidence)
        partial = np.nan
        if self.tokens is not None:
            partial = _partial(statistic, values, self.similarity, self._differences("size", self.tokens))
        return {"value": value, "low": low, "high": high, "p": p, "partial": partial}

    def _differences(self, kind: str, values: np.ndarray) -> np.ndarray:
        """Of the runs' ``values`` (..., runs), between the runs of each pair (..., pairs)."""
        signed = values[..., self.first] - values[..., self.second]
        return np.abs(signed) if kind == "size" else signed

    def _interval(self, difference: str, statistic: str, value: float, confidence: float) -> tuple[float, float]:
        """Delete-one-run jackknife; NaN where the pairs that are left do not vary."""
        values = self._differences(difference, self.accuracy)
        left = [(self.first != run) & (self.second != run) for run in range(len(self.accuracy))]
        found = np.array([_MEASURES[statistic](values[some], self.similarity[some]) for some in left if some.any()])
        count = len(found)
        if count < 2 or np.isnan([value, *found]).any():
            return np.nan, np.nan
        half = t.ppf((1 + confidence) / 2, count - 1) * np.sqrt((count - 1) * np.square(found - found.mean()).mean())
        return max(value - half, -1.0), min(value + half, 1.0)


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's correlation (...) of ``x`` (..., m) with ``y`` (m,); NaN where one does not vary."""
    x, y = rankdata(x, axis=-1), rankdata(y)
    x, y = x - x.mean(-1, keepdims=True), y - y.mean()
    return _normalised(x @ y, np.square(x).sum(-1), np.square(y).sum())


def kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b (...) of ``x`` (..., m) with ``y`` (m,); NaN where one does not vary.

    The pairs of the m are counted place by place, so that no more than (..., m) signs are held.
    """
    agree, own_x, own_y = np.zeros(x.shape[:-1]), np.zeros(x.shape[:-1]), 0.0
    for place in range(len(y) - 1):
        in_x, in_y = (np.sign(each[..., place, None] - each[..., place + 1 :]) for each in (x, y))
        agree += in_x @ in_y
        own_x += np.abs(in_x).sum(-1)
        own_y += np.abs(in_y).sum()
    return _normalised(agree, own_x, own_y)


_MEASURES = {"spearman": spearman, "kendall": kendall}


def _normalised(product: np.ndarray, own_x: np.ndarray, own_y: float) -> np.ndarray:
    lengths = np.sqrt(own_x * own_y)
    return np.where(lengths > 0, product / np.where(lengths > 0, lengths, 1.0), np.nan)


def _partial(statistic: str, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> float:
    """Correlation of x and y given z: (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2))."""
    xy, xz, yz = (float(_MEASURES[statistic](*pair)) for pair in ((x, y), (x, z), (y, z)))
    rest = (1 - xz**2) * (1 - yz**2)
    return (xy - xz * yz) / np.sqrt(rest) if rest > 1e-12 else np.nan


def _dealt(accuracy: np.ndarray, limit: int, seed: int) -> Iterator[np.ndarray]:
    """All orders of ``accuracy``; of more than ``limit``, the given one and others that are drawn."""
    if factorial(len(accuracy)) <= limit:
        yield from map(np.array, itertools.permutations(accuracy))
        return
    yield accuracy
    rng = np.random.default_rng(seed)
    for _ in range(limit - 1):
        yield rng.permutation(accuracy)
