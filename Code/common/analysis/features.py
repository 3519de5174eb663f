"""How alike the features are that two networks have of the same n images.

Each measure takes two matrices of n rows (images) and any number of columns (channels), as ``Record.cls`` holds them,
and subtracts from each channel its mean over the images. :func:`cka`, :func:`procrustes` and :func:`pwcca` are
distances, 0 = alike; :func:`mean_cca` is a similarity, 1 = alike. A rotation of the channels changes none of them.
Definitions as in Ding, Denain and Steinhardt, "Grounding Representation Similarity Through Statistical Testing",
NeurIPS 2021, which "Which Tokens to Use?" (Haurum et al., 2023) takes over.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from common.analysis.arrays import as_numbers
from common.errors import UsageError
from common.options import Count, checked

PER_CHANNEL = 10  # images that a canonical correlation takes
ROUNDING = 1e-12  # share of the largest variance below which a direction of the features is none
NODES = 200  # of an integral
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
    return _cka(*_normalised(x, y), debiased=debiased)


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
    return _procrustes(*_normalised(x, y))


def mean_cca(x: ArrayLike | Tensor, y: ArrayLike | Tensor, *, squared: bool = False, few_images: bool = False) -> float:
    """Mean canonical correlation of ``x`` (n, a) and ``y`` (n, b), in [0, 1].

    The mean is over the min(a, b) pairs of directions (Raghu et al., "SVCCA", NeurIPS 2017); channels that are linear
    in others add no direction. Invertible linear maps of the channels do not change it.

    Canonical correlations take many images per channel: independent features of 192 channels have 0.55 on 500 images.
    Below 10 images per channel they are refused. ``few_images`` gives them all the same, to be read beside
    :func:`cca_by_chance`.

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
    x, y = _for_cca(x, y, few_images)
    correlations = _canonical(x, y)[1]
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
    x, y = _for_cca(x, y, few_images)
    return _pwcca(x, *(_canonical_of_reference(x, y) if parity else _canonical(x, y)))


def feature_measures(
    x: ArrayLike | Tensor, y: ArrayLike | Tensor, *, parity: bool = False, few_images: bool = False
) -> dict[str, float]:
    """All measures of ``x`` (n, a) and ``y`` (n, b) by name, from one decomposition; options as of :func:`pwcca`.

    With ``parity`` CKA is the biased one.

    >>> x = np.random.default_rng(0).normal(size=(200, 3))
    >>> {name: round(value, 6) + 0.0 for name, value in feature_measures(x, x[:, ::-1]).items()}
    {'cka': 0.0, 'procrustes': 0.0, 'pwcca': 0.0, 'mean_cca': 1.0, 'mean_sq_cca': 1.0}
    """
    x, y = _for_cca(x, y, few_images)
    directions, correlations = _canonical(x, y)
    weighted = _canonical_of_reference(x, y) if parity else (directions, correlations)
    mean, square = float(correlations.mean()), float((correlations**2).mean())
    found = _cka(x, y, debiased=not parity), _procrustes(x, y), _pwcca(x, *weighted), mean, square
    return dict(zip(MEASURES, found, strict=True))


@checked
def cca_by_chance(*, images: Count, channels: tuple[Count, Count], squared: bool = False) -> float:
    """:func:`mean_cca` of independent features of so many ``channels`` on so many ``images``; 1 - it is their PWCCA.

    The limit of many normally distributed channels (Wachter, "The Limiting Empirical Measure of Multiple Discriminant
    Ratios", Annals of Statistics 1980), within 0.01 from a dozen channels on. ``squared`` is exact for any number.

    Args:
        channels: of the one and the other network.

    Raises:
        UsageError: no channels, or fewer than 2 images.

    >>> round(cca_by_chance(images=500, channels=(192, 192)), 2)
    0.55
    """
    if images < 2:
        raise UsageError(f"images={images} is not allowed; give 2 or more")
    freedom = images - 1  # the means take one
    fewer, more = (min(count, freedom) / freedom for count in sorted(channels))
    if squared or more == 1:
        return more
    # the squares s have the density sqrt((s - low) (high - s)) / (2 pi fewer s (1 - s)) from low to high, which are
    # middle - half and middle + half; where fewer + more > 1, some correlations are exactly 1
    first, second = fewer * (1 - more), more * (1 - fewer)
    middle, half = first + second, 2 * np.sqrt(first * second)
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    angle = np.pi / 2 * (nodes + 1)
    square = middle + half * np.cos(angle)
    density = (half * np.sin(angle)) ** 2 / (2 * np.pi * fewer * square * (1 - square))
    return float(np.pi / 2 * weights @ (density * np.sqrt(square)) + max(0.0, fewer + more - 1) / fewer)


def _cka(x: np.ndarray, y: np.ndarray, *, debiased: bool) -> float:
    if debiased and len(x) < 4:
        raise UsageError(f"debiased CKA of {len(x)} images is not defined; give 4 or more, or debiased=False")
    alignment = _debiased if debiased else _biased
    return float(1 - alignment(x, y) / np.sqrt(alignment(x, x) * alignment(y, y)))


def _procrustes(x: np.ndarray, y: np.ndarray) -> float:
    return float(2 - 2 * np.linalg.svd(x.T @ y, compute_uv=False).sum())


def _pwcca(x: np.ndarray, directions: np.ndarray, correlations: np.ndarray) -> float:
    weights = np.abs(directions.T @ (x.T @ x)).sum(1)
    return float(1 - (weights / weights.sum())[: len(correlations)] @ correlations)


def _biased(x: np.ndarray, y: np.ndarray) -> float:
    return np.square(x.T @ y).sum()


def _debiased(x: np.ndarray, y: np.ndarray) -> float:
    """n (n - 3) times the unbiased estimate of HSIC, from centred features: no matrix of n x n is made."""
    n = len(x)
    own_x, own_y = np.square(x).sum(1), np.square(y).sum(1)  # (n,) the diagonals of the two kernels
    between = own_x.sum() * own_y.sum() / ((n - 1) * (n - 2))
    return _biased(x, y) - n / (n - 2) * (own_x @ own_y) + between


def _canonical(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What (a, m) makes of x its canonical directions, and their correlations (m,) with those of y.

    m is the smaller rank. All is done with products of channels: nothing but their making grows with the images.
    """
    white = _whitening(x)
    rotation, correlations, _ = np.linalg.svd(white.T @ (x.T @ y) @ _whitening(y), full_matrices=False)
    return white @ rotation, np.minimum(correlations, 1.0)


def _whitening(x: np.ndarray) -> np.ndarray:
    """What (a, rank) makes of x orthonormal columns."""
    values, vectors = np.linalg.eigh(x.T @ x)
    some = values > ROUNDING * values[-1]
    return vectors[:, some] / np.sqrt(values[some])


def _canonical_of_reference(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All a directions of x, those without a partner in y last, and the min(a, b) correlations."""
    white = _inverse_root(x)
    rotation, correlations, _ = np.linalg.svd(white @ (x.T @ y) @ _inverse_root(y))
    return white @ rotation, correlations


def _inverse_root(x: np.ndarray) -> np.ndarray:
    """(X^T X)^(-1/2), 0 along eigenvectors whose eigenvalue is not positive."""
    values, vectors = np.linalg.eigh(x.T @ x)
    positive = values > 0
    return vectors * np.where(positive, 1 / np.sqrt(np.where(positive, values, 1.0)), 0.0) @ vectors.T


def _normalised(x: ArrayLike | Tensor, y: ArrayLike | Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Both centred over the images and of Frobenius norm 1."""
    x, y = as_numbers(x, "features"), as_numbers(y, "features")
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise UsageError(f"features of shapes {x.shape} and {y.shape} do not fit; give (n, channels) for n images")
    if not x.size or not y.size or (x == x[0]).all() or (y == y[0]).all():
        raise UsageError("features that are the same for all images cannot be compared")
    x, y = x - x.mean(0), y - y.mean(0)
    return x / np.linalg.norm(x), y / np.linalg.norm(y)


def _for_cca(x: ArrayLike | Tensor, y: ArrayLike | Tensor, few_images: bool) -> tuple[np.ndarray, np.ndarray]:
    x, y = _normalised(x, y)
    channels = max(x.shape[1], y.shape[1])
    if len(x) < PER_CHANNEL * channels and not few_images:
        raise UsageError(
            f"{len(x)} images are too few for the canonical correlations of {channels} channels; give "
            f"{PER_CHANNEL * channels} or more, or few_images=True and read them beside cca_by_chance"
        )
    return x, y
