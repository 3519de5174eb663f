"""Intervals of mean differences between models on the same images, by resampling the images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 2000
_CHUNK = 100  # resamples at once: (chunk, images) numbers


@dataclass(frozen=True)
class Bootstrap:
    """Means of several models on the same resampled images.

    Attributes:
        samples: (models, n), what each model scores on each image.
        means: (resamples, models), the same draws for all models, so that differences of columns are paired.
    """

    samples: np.ndarray
    means: np.ndarray

    @classmethod
    def of(cls, samples: np.ndarray, seed: int = 0) -> Bootstrap:
        """Draw n of the n images :data:`RESAMPLES` times."""
        samples, rng = np.asarray(samples, np.float32), np.random.default_rng(seed)
        images = samples.shape[1]
        means = []
        for _ in range(RESAMPLES // _CHUNK):
            drawn = rng.integers(0, images, (_CHUNK, images)) + images * np.arange(_CHUNK)[:, None]
            times = np.bincount(drawn.ravel(), minlength=_CHUNK * images).reshape(_CHUNK, images)
            means.append(times.astype(np.float32) @ samples.T / images)
        return cls(samples, np.concatenate(means))

    def difference(self, first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
        """Mean of one mixture of the models minus that of another, and its 95 % percentile interval.

        Args:
            first, second: (models,) weights of the mixtures, each of sum 1.

        >>> pair = Bootstrap.of(np.array([[1, 1, 1, 0], [0, 1, 0, 0]]))
        >>> [round(end, 2) for end in pair.difference(np.array([1, 0]), np.array([0, 1]))]
        [0.5, 0.0, 1.0]
        """
        weights = first - second
        low, high = np.percentile(self.means @ weights, [2.5, 97.5])
        return float(weights @ self.samples.mean(1, dtype=np.float64)), float(low), float(high)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float | None:
    """Exact two-sided p of McNemar's test that two models are right equally often; None where hits are no yes or no.

    Args:
        first, second: (n,) percent of each image: 0, 100, or between them the mean over seeds.

    >>> round(mcnemar(np.array([100, 100, 100, 100, 100, 0]), np.zeros(6)), 4)
    0.0625
    """
    if not np.isin([first, second], (0, 100)).all():
        return None
    only_first, only_second = int((first > second).sum()), int((second > first).sum())
    return 1.0 if only_first + only_second == 0 else float(binomtest(only_first, only_first + only_second).pvalue)
