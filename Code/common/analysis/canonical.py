"""Canonical correlations of features: the directions that two networks share, and what chance makes of few images."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dpotrf

from common.analysis.products import Products
from common.errors import UsageError
from common.options import Count, checked

PER_CHANNEL = 10  # images that a canonical correlation takes
ROUNDING = 1e-12  # share of the largest variance below which a direction of the features is none
NODES = 200  # of an integral
_gauss = cache(np.polynomial.legendre.leggauss)  # the same for all pairs of runs


@checked
def cca_by_chance(*, images: Count, channels: tuple[Count, Count], squared: bool = False) -> float:
    """:func:`common.analysis.mean_cca` of independent features of so many ``channels``; 1 - it is their PWCCA.

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
    nodes, weights = _gauss(NODES)
    angle = np.pi / 2 * (nodes + 1)
    square = middle + half * np.cos(angle)
    density = (half * np.sin(angle)) ** 2 / (2 * np.pi * fewer * square * (1 - square))
    return float(np.pi / 2 * weights @ (density * np.sqrt(square)) + max(0.0, fewer + more - 1) / fewer)


def require_images(of: Products, few_images: bool) -> None:
    """Refuse fewer images than canonical correlations take, unless ``few_images``."""
    needed = PER_CHANNEL * max(of.xy.shape)
    if of.images < needed and not few_images:
        raise UsageError(
            f"{of.images} images are too few for the canonical correlations of {max(of.xy.shape)} channels; give "
            f"{needed} or more, or few_images=True and read them beside cca_by_chance"
        )


def canonical(of: Products) -> tuple[np.ndarray, np.ndarray]:
    """What (a, m) makes of x its canonical directions, and their correlations (m,) with those of y.

    m is the smaller rank.
    """
    white = _whitening(of.xx)
    rotation, correlations, _ = np.linalg.svd(white.T @ of.xy @ _whitening(of.yy), full_matrices=False)
    return white @ rotation, np.minimum(correlations, 1.0)


def canonical_of_reference(of: Products) -> tuple[np.ndarray, np.ndarray]:
    """All a directions of x, those without a partner in y last, and the min(a, b) correlations."""
    white = _inverse_root(of.xx)
    rotation, correlations, _ = np.linalg.svd(white @ of.xy @ _inverse_root(of.yy))
    return white @ rotation, correlations


def _whitening(products: np.ndarray) -> np.ndarray:
    """What (a, rank) makes of x orthonormal columns, from X^T X of trace 1.

    By Cholesky's decomposition, for a quarter of the time, where that shows no eigenvalue to be too small.
    """
    unit = np.eye(len(products))
    if dpotrf(products - ROUNDING * unit)[1] == 0:
        return solve_triangular(np.linalg.cholesky(products), unit, lower=True, check_finite=False).T
    values, vectors = np.linalg.eigh(products)
    some = values > ROUNDING * values[-1]
    return vectors[:, some] / np.sqrt(values[some])


def _inverse_root(products: np.ndarray) -> np.ndarray:
    """(X^T X)^(-1/2), 0 along eigenvectors whose eigenvalue is not positive."""
    values, vectors = np.linalg.eigh(products)
    positive = values > 0
    return vectors * np.where(positive, 1 / np.sqrt(np.where(positive, values, 1.0)), 0.0) @ vectors.T
