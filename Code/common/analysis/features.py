"""How alike the features are that two networks have of the same n images.

Each measure takes two matrices of n rows (images) and any number of columns (channels), as ``Record.cls`` holds them,
and subtracts from each channel its mean over the images. :func:`cka`, :func:`procrustes` and :func:`pwcca` are
distances, 0 = alike; :func:`mean_cca` is a similarity, 1 = alike. A rotation of the channels changes none of them.
Definitions as in Ding, Denain and Steinhardt, "Grounding Representation Similarity Through Statistical Testing",
NeurIPS 2021, which "Which Tokens to Use?" (Haurum et al., 2023) takes over.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from common.analysis.arrays import as_numbers
from common.analysis.canonical import canonical, canonical_of_reference, require_images
from common.analysis.intervals import Interval, drawn_groups, jackknife_interval
from common.analysis.products import Products, without_each
from common.errors import UsageError
from common.options import Count, ShareBelow1, Whole, checked

MEASURES = ("cka", "procrustes", "pwcca", "mean_cca", "mean_sq_cca")


def cka(x: ArrayLike | Tensor, y: ArrayLike | Tensor, *, debiased: bool = True) -> float:
    """Linear centred kernel alignment of ``x`` (n, a) and ``y`` (n, b) as a distance.

    1 - HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)), Kornblith et al., "Similarity of Neural Network Representations
    Revisited", ICML 2019, equation 4. Symmetric; the scale of the features has no say. HSIC = ||X^T Y||_F^2 is biased:
    with few images per channel unrelated features look alike. ``debiased`` takes the unbiased estimate HSIC_1 of Song
    et al., "Feature Selection via Dependence Maximization", JMLR 2012, instead, by which their distance is about 1.

    Args:
        debiased: False gives the number of the reference implementation, in [0, 1]; True may exceed 1.

    Raises:
        UsageError: different numbers of images or fewer than 4, values that are not finite, features that are the same
            for all images.

    >>> x = np.random.default_rng(0).normal(size=(200, 100))
    >>> abs(cka(x, 2 * x[:, ::-1])) < 1e-12
    True
    >>> y = np.random.default_rng(1).normal(size=(200, 100))  # has nothing to do with x
    >>> round(cka(x, y), 2), round(cka(x, y, debiased=False), 2)
    (1.0, 0.66)
    """
    return _cka(Products.of(*_features(x, y)), debiased=debiased)


def procrustes(x: ArrayLike | Tensor, y: ArrayLike | Tensor) -> float:
    """Orthogonal Procrustes distance, squared, of ``x`` (n, a) and ``y`` (n, b), in [0, 2]: 2 - 2 ||X^T Y||_*.

    What is left of ||X - Y R||_F^2 by the best rotation R, with X and Y centred and of Frobenius norm 1 (Ding et al.,
    2021). Symmetric.

    Raises:
        UsageError: different numbers of images, values that are not finite, features that are the same for all images.

    >>> x = np.random.default_rng(0).normal(size=(200, 3))
    >>> procrustes(x, 2 * x[:, ::-1]) < 1e-12
    True
    """
    return _procrustes(Products.of(*_features(x, y)))


def mean_cca(x: ArrayLike | Tensor, y: ArrayLike | Tensor, *, squared: bool = False, few_images: bool = False) -> float:
    """Mean canonical correlation of ``x`` (n, a) and ``y`` (n, b), in [0, 1].

    The mean is over the min(a, b) pairs of directions (Raghu et al., "SVCCA", NeurIPS 2017); channels that are linear
    in others add no direction. Invertible linear maps of the channels do not change it.

    Canonical correlations take many images per channel: independent features of 192 channels have 0.55 on 500 images.
    Below 10 images per channel they are refused. ``few_images`` gives them all the same, to be read beside
    :func:`common.analysis.cca_by_chance`.

    Args:
        squared: the mean of the squared correlations.

    Raises:
        UsageError: as for :func:`procrustes`, or too few images.

    >>> x = np.random.default_rng(0).normal(size=(200, 3))
    >>> round(mean_cca(x, x @ [[1, 0, 0], [5, 1, 0], [0, 0, 9]]), 12)
    1.0
    >>> mean_cca(x[:20], x[:20])
    Traceback (most recent call last):
        ...
    common.errors.UsageError: 20 images are too few for the canonical correlations of 3 channels; give 30 or more, or \
few_images=True and read them beside cca_by_chance
    """
    products = Products.of(*_features(x, y))
    require_images(products, few_images)
    correlations = canonical(products)[1]
    return float((correlations**2 if squared else correlations).mean())


def pwcca(x: ArrayLike | Tensor, y: ArrayLike | Tensor, *, parity: bool = False, few_images: bool = False) -> float:
    """Projection-weighted CCA distance of ``x`` (n, a) and ``y`` (n, b), in [0, 1]: 1 - sum_i alpha_i rho_i.

    The weight of the canonical correlation rho_i is how much of x its direction h_i accounts for:
    alpha_i ~ sum_j |<h_i, x_j>| over the channels x_j, with a sum of 1 over the pairs of directions (Morcos, Raghu and
    Bengio, "Insights on Representational Similarity in Neural Networks with Canonical Correlation", NeurIPS 2018).
    Not symmetric: the weights are those of ``x``.

    Args:
        parity: as the reference implementation, whose weights have a sum of 1 over all a directions of x. Where a > b
            the a - b directions without a partner then count as uncorrelated. They are any basis of a null space: the
            number is arbitrary within a range, and the order of the channels may change it.
        few_images: as for :func:`mean_cca`.

    Raises:
        UsageError: as for :func:`mean_cca`.

    >>> x = np.random.default_rng(0).normal(size=(200, 8))
    >>> pwcca(x, x[:, :5]) < 1e-12, pwcca(x, x[:, :5], parity=True) > 0.2
    (True, True)
    """
    products = Products.of(*_features(x, y))
    require_images(products, few_images)
    return _pwcca(products, *(canonical_of_reference(products) if parity else canonical(products)))


def feature_measures(
    x: ArrayLike | Tensor, y: ArrayLike | Tensor, *, parity: bool = False, few_images: bool = False
) -> dict[str, float]:
    """All measures of ``x`` (n, a) and ``y`` (n, b) by name, from one decomposition; options as of :func:`pwcca`.

    With ``parity`` CKA is the biased one.

    >>> x = np.random.default_rng(0).normal(size=(200, 3))
    >>> {name: round(value, 6) + 0.0 for name, value in feature_measures(x, x[:, ::-1]).items()}
    {'cka': 0.0, 'procrustes': 0.0, 'pwcca': 0.0, 'mean_cca': 1.0, 'mean_sq_cca': 1.0}
    """
    found = _measures(Products.of(*_features(x, y)), parity, few_images)
    return dict(zip(MEASURES, found.tolist(), strict=True))


@checked
def feature_intervals(
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    *,
    parity: bool = False,
    few_images: bool = False,
    groups: Count = 20,
    confidence: ShareBelow1 = 0.95,
    seed: Whole = 0,
) -> dict[str, Interval]:
    """:func:`common.analysis.jackknife` of :func:`feature_measures`, whose options these are, in one pass over images.

    Leaving out a group takes decompositions of products of channels (:mod:`common.analysis.products`): as long for
    50,000 images as for 5,000.

    Args:
        groups: as for :func:`common.analysis.jackknife`; (a + b)^2 numbers are held for each.

    Raises:
        UsageError: as for both, also for the images that are left.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(500, 8))
    >>> found = feature_intervals(x, x + rng.normal(size=(500, 8)))["cka"]
    >>> found.low < found.value < found.high, found.error < 0.03
    (True, True)
    """
    x, y = _features(x, y)
    drawn = drawn_groups(len(x), groups, seed)
    value = _measures(Products.of(x, y), parity, few_images)
    again = [_measures(left, parity, few_images) for left in without_each(x, y, drawn)]
    found = jackknife_interval(value, np.array(again), confidence)
    ends = np.array([found.value, found.error, found.low, found.high]).T.tolist()
    return {name: Interval(*numbers) for name, numbers in zip(MEASURES, ends, strict=True)}


def _measures(products: Products, parity: bool, few_images: bool) -> np.ndarray:
    """All measures, in the order of MEASURES."""
    require_images(products, few_images)
    directions, correlations = canonical(products)
    weighted = canonical_of_reference(products) if parity else (directions, correlations)
    distances = _cka(products, debiased=not parity), _procrustes(products), _pwcca(products, *weighted)
    return np.array([*distances, correlations.mean(), (correlations**2).mean()])


def _cka(of: Products, *, debiased: bool) -> float:
    if debiased and of.images < 4:
        raise UsageError(f"debiased CKA of {of.images} images is not defined; give 4 or more, or debiased=False")
    alignment = partial(_debiased, of.images) if debiased else _biased
    pairs = ((of.xx, of.own_xx), (of.xy, of.own_xy), (of.yy, of.own_yy))
    xx, xy, yy = (alignment(products, own) for products, own in pairs)
    return float(1 - xy / np.sqrt(xx * yy))


def _biased(products: np.ndarray, own: float) -> float:
    return np.square(products).sum()


def _debiased(n: int, products: np.ndarray, own: float) -> float:
    """n (n - 3) times the unbiased estimate of HSIC, of kernels with a trace of 1."""
    return _biased(products, own) - n / (n - 2) * own + 1 / ((n - 1) * (n - 2))


def _procrustes(of: Products) -> float:
    return float(2 - 2 * np.linalg.svd(of.xy, compute_uv=False).sum())


def _pwcca(of: Products, directions: np.ndarray, correlations: np.ndarray) -> float:
    weights = np.abs(directions.T @ of.xx).sum(1)
    return float(1 - (weights / weights.sum())[: len(correlations)] @ correlations)


def _features(x: ArrayLike | Tensor, y: ArrayLike | Tensor) -> tuple[np.ndarray, np.ndarray]:
    x, y = as_numbers(x, "features"), as_numbers(y, "features")
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not x.size or not y.size:
        raise UsageError(f"features of shapes {x.shape} and {y.shape} do not fit; give (n, channels) for n images")
    return x, y
