"""Intervals of similarities without going over the images again: the numbers of the plain definition."""

import numpy as np
import pytest

from common.analysis import feature_intervals, feature_measures
from common.analysis.products import Products, without_each
from common.errors import UsageError
from references import intervals_by_deleting


def related(images=400, a=6, b=9, seed=0):
    """Features of a and b channels that share four directions, with means and scales of their own."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(images, 4))
    x = common @ rng.normal(size=(4, a)) + rng.normal(size=(images, a)) * np.arange(1, a + 1) - 3
    return x, common @ rng.normal(size=(4, b)) + rng.normal(size=(images, b)) + 5


def far_out():
    """One image holds nearly all of the variance, and moves the mean by half as much as the others are wide."""
    x, y = related()
    x[7], y[7] = 1e3, 2e3
    return x, y


def without_a_direction():
    """Two channels of x follow from others, one of y never changes, and one is the same but for a single image."""
    x, y = related()
    x[:, 4:6] = x[:, :2] @ [[1.0, 2.0], [3.0, 4.0]]
    y[:, 0], y[:, 1] = 0.1, 0.3
    y[5, 1] = 9.0
    return x, y


@pytest.mark.parametrize(
    ("features", "options"),
    [
        (related(), {}),
        (related(a=9, b=6), {"groups": 7, "confidence": 0.9, "seed": 3}),
        (related(), {"parity": True}),
        (related(a=9, b=6), {"parity": True}),
        (related(images=61), {"groups": 61, "few_images": True}),
        (related(images=203), {"groups": 2}),
        (related(images=40, a=50, b=45), {"few_images": True}),
        (tuple(1e6 + each for each in related()), {}),
        (far_out(), {}),
        (without_a_direction(), {}),
        (tuple(each.astype(np.float16) for each in related()), {}),
    ],
    ids=["", "seed", "parity", "wide", "single", "halves", "few", "far", "outlier", "rank", "float16"],
)
def test_intervals_are_those_of_deleting_images(features, options):
    found = feature_intervals(*features, **options)
    wanted = intervals_by_deleting(*features, **options)
    assert list(found) == ["cka", "procrustes", "pwcca", "mean_cca", "mean_sq_cca"]
    numbers = [[each.value, each.error, each.low, each.high] for each in found.values()]
    np.testing.assert_allclose(numbers, wanted, rtol=0, atol=1e-10)


def test_what_is_left_are_the_products_of_the_images_that_are_left():
    x, y = related(images=50)
    groups = np.array_split(np.random.default_rng(1).permutation(50), 4)
    for group, left in zip(groups, without_each(x, y, groups), strict=True):
        keep = np.setdiff1d(np.arange(50), group)
        u, v = (each[keep] - each[keep].mean(0) for each in (x, y))
        u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
        assert left.images == len(keep)
        for found, wanted in ((left.xx, u.T @ u), (left.xy, u.T @ v), (left.yy, v.T @ v)):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-14)
        own = np.square(u).sum(1), np.square(v).sum(1)
        wanted = [own[0] @ own[0], own[0] @ own[1], own[1] @ own[1]]
        np.testing.assert_allclose([left.own_xx, left.own_xy, left.own_yy], wanted, rtol=1e-12)


def test_no_digits_are_lost_where_a_group_holds_all_of_the_variance():
    """Taken from the sums of all images, 1e16 times as large, nothing would be left of the others' products."""
    x, y = related(images=50)
    wild = x.copy()
    wild[:10] *= 1e8
    left, *_ = without_each(wild, y, [np.arange(10), np.arange(10, 50)])
    wanted = Products.of(x[10:], y[10:])
    np.testing.assert_allclose(left.xx, wanted.xx, rtol=0, atol=1e-14)
    np.testing.assert_allclose(left.xy, wanted.xy, rtol=0, atol=1e-14)
    assert left.own_xy == pytest.approx(wanted.own_xy, rel=1e-12)


@pytest.mark.parametrize("place", [0, 7])
def test_images_that_are_all_alike_without_a_group_are_refused(place):
    x, y = related(images=100)
    x[:] = 0.1
    x[place] = np.arange(6)
    assert feature_measures(x, y, parity=True)["procrustes"] < 2, "of all images there is something to compare"
    for wrong in ((x, y), (y, x)):
        with pytest.raises(UsageError, match=r"^features that are the same for all images cannot be compared$"):
            feature_intervals(*wrong, parity=True)


def test_too_few_images_are_refused_also_of_those_that_are_left():
    x, y = related(images=94)
    with pytest.raises(UsageError, match=r"^89 images are too few .* of 9 channels; give 90"):
        feature_intervals(x, y)
    with pytest.raises(UsageError, match=r"^debiased CKA of 3 images is not defined; give 4 or more"):
        feature_intervals(x[:4], y[:4], groups=4, few_images=True)
    with pytest.raises(UsageError, match=r"^95 groups of 94 images are not allowed; give 2 to n groups of n images$"):
        feature_intervals(x, y, groups=95)
