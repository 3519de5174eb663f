"""How sure a number is that was measured on n images.

The spread over the images says how different images are, not how wrong their mean may be: it stays the same however
many there are. Images are drawn anew instead. Such an interval is about other images of the same kind; about another
training of the networks it says nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t
from torch import Tensor

from common.analysis.arrays import as_array, as_numbers, require_alike
from common.errors import UsageError
from common.options import Count, ShareBelow1, Whole, checked


@dataclass(frozen=True)
class Interval:
    """A number and how sure it is; of several numbers, arrays.

    Attributes:
        value: over all images.
        error: its standard error.
        low, high: ends of its interval.
    """

    value: float | np.ndarray
    error: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray


@checked
def bootstrap(
    values: ArrayLike | Tensor, *, confidence: ShareBelow1 = 0.95, resamples: Count = 1000, seed: Whole = 0
) -> Interval:
    """The mean over images of ``values`` (n,), or of each column of (n, M), with its bootstrap percentile interval.

    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3. Columns share the images that are
    drawn, and so do calls of the same n, resamples and seed.

    Raises:
        UsageError: values of another shape or that are not finite; options out of range.

    >>> rng = np.random.default_rng(0)
    >>> mean = bootstrap(rng.normal(5, 1, size=400))  # a spread of 1, a mean known to 1 / sqrt(400)
    >>> round(mean.error, 2), mean.low < 5 < mean.high
    (0.05, True)
    """
    values = as_numbers(values, "values")
    if values.ndim not in (1, 2) or not values.size:
        raise UsageError(f"values of shape {values.shape} are not allowed; give (n,) or (n, M) for n images")
    means = _drawn_means(values, resamples, seed)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return _interval(values.mean(0), means.std(0), low, high)


@checked
def paired_bootstrap(
    a: ArrayLike | Tensor,
    b: ArrayLike | Tensor,
    *,
    confidence: ShareBelow1 = 0.95,
    resamples: Count = 1000,
    seed: Whole = 0,
) -> Interval:
    """The difference mean(a) - mean(b) of two runs on the same n images, in the same order, with its interval.

    Both runs keep their images when these are drawn anew, so that what is hard for both has no part in the interval: as
    a rule it is far narrower than that of two independent samples.

    Args:
        a, b: (n,) of each image, for instance whether it is classified correctly; or (n, M).

    Raises:
        UsageError: different shapes; otherwise as :func:`bootstrap`.

    >>> right = np.arange(100) < 80
    >>> difference = paired_bootstrap(right, right & (np.arange(100) % 20 > 0))  # b fails on four more
    >>> round(difference.value, 12), difference.low > 0
    (0.04, True)
    """
    a, b = as_numbers(a, "values"), as_numbers(b, "values")
    require_alike(a, b, "values", *("n", "M")[: max(a.ndim, 1)])
    return bootstrap(a - b, confidence=confidence, resamples=resamples, seed=seed)


@checked
def independent_bootstrap(
    measure: Callable[..., float | np.ndarray],
    *samples: ArrayLike | Tensor,
    confidence: ShareBelow1 = 0.95,
    resamples: Count = 100,
    seed: Whole = 0,
) -> Interval:
    """``measure`` of the means of samples that share no image, with its basic bootstrap interval.

    The images of each sample are drawn anew by themselves. Noise makes two means look less alike than what they are
    means of, and drawing adds as much noise again; so the interval is not that of the drawn values but of how far they
    lie from the value, 2 value - quantile (Davison and Hinkley, "Bootstrap Methods and their Application", 1997,
    section 5.2), and reaches at least to the value.

    Args:
        measure: a mean (...) of each sample -> a number, or several in one array.
        samples: (n, ...) each, of as many images as there are.

    Raises:
        UsageError: a sample without images, values that are not finite; options out of range.

    >>> rng = np.random.default_rng(0)
    >>> dogs, cats = rng.normal(3, 1, size=400), rng.normal(1, 1, size=100)
    >>> found = independent_bootstrap(lambda dog, cat: dog - cat, dogs, cats)
    >>> found.low < 2 < found.high, round(found.error, 1)  # about the root of 1 / 400 + 1 / 100
    (True, 0.1)
    """
    arrays = [np.atleast_1d(as_numbers(each, "samples")) for each in samples]
    if not arrays or not all(map(len, arrays)):
        raise UsageError(f"samples of {[len(each) for each in arrays]} images are not allowed; give at least one image")
    value = np.asarray(measure(*(each.mean(0) for each in arrays)), float)
    drawn = [_drawn_means(each, resamples, seed + place) for place, each in enumerate(arrays)]
    again = np.array([measure(*means) for means in zip(*drawn, strict=True)])
    tail = (1 - confidence) / 2
    with np.errstate(invalid="ignore"):  # what is infinite has no interval
        low, high = 2 * value - np.quantile(again, [1 - tail, tail], axis=0)
        return _interval(value, again.std(0), np.minimum(low, value), np.maximum(high, value))


@checked
def jackknife(
    measure: Callable[..., float | np.ndarray],
    *arrays: ArrayLike | Tensor,
    groups: Count = 20,
    confidence: ShareBelow1 = 0.95,
    seed: Whole = 0,
) -> Interval:
    """``measure(*arrays)`` with its delete-a-group jackknife error and interval, for what is no mean over images.

    A bootstrap would see some images twice, which CKA and CCA take for agreement. Here each of the ``groups``, which
    are drawn at random and of equal size up to one image, is left out once; on average the error is not too small:
    error^2 = (G - 1) / G sum_g (m_g - mean of m)^2 (Kott, "The Delete-a-Group Jackknife", Journal of Official
    Statistics 2001), and the interval is Student's with G - 1 degrees of freedom around the value of all images.

    Args:
        measure: arrays of the same images -> a number, such as :func:`cka`, or several in one array.
        arrays: (n, ...) each.
        groups: how many times it is measured again, 2 to n; n leaves out single images.
        seed: of the groups.

    Raises:
        UsageError: arrays of different numbers of images, options out of range; whatever ``measure`` raises, also for
            the images that are left.

    >>> from common.analysis import cka
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(500, 8))
    >>> found = jackknife(cka, x, x + rng.normal(size=(500, 8)))
    >>> found.low < found.value < found.high, found.error < 0.03
    (True, True)
    """
    arrays = [np.atleast_1d(as_array(each)) for each in arrays]
    lengths = {len(each) for each in arrays}
    if len(lengths) != 1:
        raise UsageError(f"arrays of {sorted(lengths)} images are not allowed; give arrays of the same n images")
    images = lengths.pop()
    left = [np.delete(np.arange(images), group) for group in drawn_groups(images, groups, seed)]
    value = np.asarray(measure(*arrays), float)
    again = np.array([measure(*(each[keep] for each in arrays)) for keep in left])
    return jackknife_interval(value, again, confidence)


def drawn_groups(images: int, groups: int, seed: int) -> list[np.ndarray]:
    """Places of the images in each of the ``groups`` of :func:`jackknife`."""
    if not 2 <= groups <= images:
        raise UsageError(f"{groups} groups of {images} images are not allowed; give 2 to n groups of n images")
    return np.array_split(np.random.default_rng(seed).permutation(images), groups)


def jackknife_interval(value: np.ndarray, again: np.ndarray, confidence: float) -> Interval:
    """That of :func:`jackknife` from the ``value`` of all images and those ``again`` (G, ...) without each group."""
    groups = len(again)
    error = np.sqrt((groups - 1) * np.square(again - again.mean(0)).mean(0))
    half = t.ppf((1 + confidence) / 2, groups - 1) * error
    return _interval(value, error, value - half, value + half)


def _drawn_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means (resamples, ...) of ``values`` (n, ...) over the images that each time are drawn."""
    rows = values.reshape(len(values), -1)
    means = np.stack([times.astype(np.float64) @ rows for times in _drawn(len(rows), resamples, seed)]) / len(rows)
    return means.reshape(resamples, *values.shape[1:])


@lru_cache(maxsize=2)
def _drawn(images: int, resamples: int, seed: int) -> np.ndarray:
    """How often (resamples, images) each image is drawn; kept, as many calls in turn are about the same images."""
    rng, times = np.random.default_rng(seed), np.empty((resamples, images), dtype=np.uint8)
    for row in times:
        row[:] = np.bincount(rng.integers(0, images, images), minlength=images)
    times.flags.writeable = False
    return times


def _interval(*numbers: float | np.ndarray) -> Interval:
    return Interval(*(number if np.ndim(number) else float(number) for number in numbers))
