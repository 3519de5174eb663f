"""What measures of features take of n images: products of channels; and those of all images but one group, cheaply.

With :func:`without_each` nothing grows with the images but one pass over them, however many groups are left out: the
products of the images that are left are those within each group, and those of the groups' means (Chan, Golub and
LeVeque, "Algorithms for Computing the Sample Variance", The American Statistician 1983). Only what is left is added
up; nothing is taken away from a sum, so that no digits are lost where a group holds nearly all of the variance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import UsageError


@dataclass(frozen=True, eq=False)
class Products:
    """Of features X (n, a) and Y (n, b), each centred over the images and of Frobenius norm 1.

    Attributes:
        images: n.
        xx, xy, yy: X^T X (a, a), X^T Y (a, b), Y^T Y (b, b).
        own_xx, own_xy, own_yy: products of the diagonals |x_i|^2 and |y_i|^2 of the kernels X X^T and Y Y^T, summed
            over the images i.
    """

    images: int
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray
    own_xx: float
    own_xy: float
    own_yy: float

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> Products:
        """Of all images.

        Raises:
            UsageError: features that are the same for all images.
        """
        for features in (x, y):
            _require_several(features)
        both = np.concatenate([x, y], axis=1)
        both -= both.mean(0)
        own = _squares(both, np.zeros((1, both.shape[1])), x.shape[1])[..., 0]  # (2, n)
        return cls._scaled(len(both), both.T @ both, own @ own.T, x.shape[1])

    @classmethod
    def _scaled(cls, images: int, products: np.ndarray, own: np.ndarray, channels: int) -> Products:
        """From ``products`` (a + b, a + b) of the centred channels of both, those of x first, and their own (2, 2)."""
        xx, xy, yy = products[:channels, :channels], products[:channels, channels:], products[channels:, channels:]
        x, y = np.trace(xx), np.trace(yy)
        scale = np.array([x, y])
        own = own / np.outer(scale, scale)
        return cls(images, xx / x, xy / np.sqrt(x * y), yy / y, own[0, 0], own[0, 1], own[1, 1])


def without_each(x: np.ndarray, y: np.ndarray, groups: Sequence[np.ndarray]) -> Iterator[Products]:
    """:meth:`Products.of` the images that are left without each of ``groups``, in turn.

    Args:
        x, y: (n, a) and (n, b).
        groups: places of images; each image is in one of them.

    Raises:
        UsageError: features that are the same for all images that are left.
    """
    both, channels = np.concatenate([x, y], axis=1), x.shape[1]
    for features in (x, y):
        _require_several_without_each(features, groups)
    sizes = np.array([len(group) for group in groups])
    others = 1.0 - np.eye(len(groups))  # (G, G) which groups are left
    means = np.stack([both[group].mean(0) for group in groups])  # (G, a + b)
    middle = (others * sizes) @ means / (others @ sizes)[:, None]  # (G, a + b) of the images that are left
    within, own = [], np.zeros((len(groups), 2, 2))
    for number, group in enumerate(groups):
        rows = both[group] - means[number]
        within.append(rows.T @ rows)
        squares = _squares(rows, middle - means[number], channels)  # (2, images, G)
        own += others[:, number, None, None] * np.einsum("ing,jng->gij", squares, squares)
    left = np.tensordot(others, np.stack(within), axes=1)  # (G, a + b, a + b)
    for number, rest in enumerate(others > 0):
        apart = means[rest] - middle[number]
        products = left[number] + (sizes[rest, None] * apart).T @ apart
        yield Products._scaled(int(sizes[rest].sum()), products, own[number], channels)


def _squares(rows: np.ndarray, points: np.ndarray, channels: int) -> np.ndarray:
    """Squared distances (2, n, G) of ``rows`` (n, a + b) from ``points`` (G, a + b), in x and in y."""
    parts = [(rows[:, part], points[:, part]) for part in (slice(channels), slice(channels, None))]
    return np.stack([np.square(x).sum(1)[:, None] - 2 * x @ at.T + np.square(at).sum(1) for x, at in parts])


def _require_several(features: np.ndarray) -> None:
    if (features == features[0]).all():
        raise UsageError("features that are the same for all images cannot be compared")


def _require_several_without_each(features: np.ndarray, groups: Sequence[np.ndarray]) -> None:
    """Refuse a group without which all features are the same; NaN, which equals nothing, stands for several."""
    alike = [(features[group] == features[group[0]]).all() for group in groups]
    only = np.stack([np.where(same, features[group[0]], np.nan) for same, group in zip(alike, groups, strict=True)])
    for number in range(len(groups)):
        _require_several(np.delete(only, number, axis=0))
