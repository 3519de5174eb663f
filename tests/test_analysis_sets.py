"""Kept patches and their overlap: the formulas taken literally, chance by enumeration, and the bound over rates."""

from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from decided import record_of_stages

from common.analysis import excess, ioa, ioa_by_chance, iou, iou_by_chance, iou_limit, kept_mask
from common.errors import UsageError
from common.evaluation import Stage

KEPT = record_of_stages(
    {
        1: Stage(np.array([3, 2]), kept=np.array([[2, 0, 3], [1, 3, -1]], dtype=np.int16)),  # -1: padding of ATS
        3: Stage(np.array([2, 2]), kept=np.array([[0, -1], [3, -1]], dtype=np.int16)),  # -1: fused token of EViT
    }
)


def random_masks(images=40, patches=49, seed=0):
    rng = np.random.default_rng(seed)
    shares = rng.random((2, images, 1))
    return tuple(rng.random((2, images, patches)) < shares)


def nested_masks(large=176, small=49, patches=196, images=30):
    """What one consistent method keeps at a high and at a low rate, in as many patches as 0.9 and 0.25 keep."""
    order = np.random.default_rng(0).random((images, patches)).argsort(1).argsort(1)
    return order < large, order < small


def subsets(patches, count):
    for chosen in combinations(range(patches), count):
        yield np.isin(np.arange(patches), chosen)


def test_masks_mark_the_patches_that_are_tokens():
    assert kept_mask(KEPT, 1).tolist() == [[True, False, True, True], [False, True, False, True]]
    assert kept_mask(KEPT, 3).tolist() == [[True, False, False, False], [False, False, False, True]]
    assert kept_mask(KEPT, 1).dtype == bool


def test_of_idling_methods_the_computed_patches_count():
    computed = np.array([[True, False, True, True], [False, True, False, True]])
    record = record_of_stages({2: Stage(np.array([4, 4]), computed=computed)}, "idle_topk")
    found = kept_mask(record, 2)
    assert found.tolist() == computed.tolist()
    found[:] = False
    assert computed.any(), "the record is not changed through its mask"


def test_tokens_without_patches_and_unknown_blocks_are_refused():
    merged = record_of_stages({1: Stage(np.array([2, 2]), destination=np.zeros((2, 4), dtype=int))}, "tome")
    with pytest.raises(
        UsageError, match=r"the tokens of 'tome' are no patches; allowed: records of ats, dpcknn, .*topk"
    ):
        kept_mask(merged, 1)
    with pytest.raises(UsageError, match=r"block=2 is no stage of 'topk'; allowed: 1, 3$"):
        kept_mask(KEPT, 2)
    with pytest.raises(UsageError, match=r"block=0 is no stage of 'none'; allowed: none, it reduces nothing"):
        kept_mask(record_of_stages({}, "none"), 0)


def test_overlaps_are_the_formulas():
    a, b = random_masks()
    sets = [(set(np.flatnonzero(x)), set(np.flatnonzero(y))) for x, y in zip(a, b, strict=True)]
    expected_iou = [len(x & y) / len(x | y) if x & y else 0 for x, y in sets]
    expected_ioa = [len(x & y) / len(y) if x & y else 0 for x, y in sets]
    np.testing.assert_allclose(iou(a, b), expected_iou, rtol=0, atol=1e-10)
    np.testing.assert_allclose(ioa(a, b), expected_ioa, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(iou(torch.from_numpy(a), torch.from_numpy(b)), iou(a, b), strict=True)
    assert iou(a, b).dtype == ioa(a, b).dtype == np.float64
    np.testing.assert_array_equal(iou(a, b), iou(b, a))
    assert not np.array_equal(ioa(a, b), ioa(b, a)), "relative to the second"


def test_nothing_shared_is_no_overlap():
    nothing, some = np.zeros((1, 4), dtype=bool), np.array([[True, False, False, False]])
    for a, b in ((nothing, nothing), (nothing, some), (some, nothing), (some, np.roll(some, 1))):
        assert iou(a, b) == ioa(a, b) == 0
    for measure in (iou_by_chance, ioa_by_chance, iou_limit):
        assert measure(nothing, some) == measure(some, nothing) == measure(nothing, nothing) == 0


@pytest.mark.parametrize("sizes", [(1, 1), (2, 3), (3, 3), (5, 2), (6, 4), (6, 6)])
def test_chance_is_the_mean_over_all_sets_of_the_same_sizes(sizes):
    pairs = [(a, b) for a in subsets(6, sizes[0]) for b in subsets(6, sizes[1])]
    a, b = (np.array(masks) for masks in zip(*pairs, strict=True))
    np.testing.assert_allclose(iou_by_chance(a[:1], b[:1]), iou(a, b).mean(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(ioa_by_chance(a[:1], b[:1]), ioa(a, b).mean(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(iou_limit(a[:1], b[:1]), iou(a, b).max(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("sizes", [(176, 176), (98, 98), (98, 24), (49, 5)])
def test_chance_of_196_patches_is_the_hypergeometric_sum(sizes):
    first, second = sizes
    ways = {k: comb(first, k) * comb(196 - first, second - k) for k in range(max(0, sum(sizes) - 196), second + 1)}
    exact = sum(Fraction(way * k, comb(196, second) * (first + second - k)) for k, way in ways.items())
    a, b = (np.arange(196)[None] < size for size in sizes)
    np.testing.assert_allclose(iou_by_chance(a, b), float(exact), rtol=0, atol=1e-10)


def test_chance_is_that_of_each_image():
    a, b = random_masks()
    alone = [iou_by_chance(x[None], y[None])[0] for x, y in zip(a, b, strict=True)]
    np.testing.assert_array_equal(iou_by_chance(a, b), alone)


def test_over_rates_the_overlap_is_capped_by_the_numbers_of_patches():
    """Trap 4: the most consistent method has an IoU of K_B / K_A and no more, an IoA of 1; the excess says 1."""
    a, b = nested_masks()
    np.testing.assert_allclose(iou(a, b), 49 / 176, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(iou_limit(a, b), iou(a, b))
    np.testing.assert_array_equal(ioa(a, b), 1)
    np.testing.assert_allclose(excess(iou(a, b), iou_by_chance(a, b), iou_limit(a, b)), 1, rtol=0, atol=1e-10)
    assert (excess(iou(a, b), iou_by_chance(a, b)) < 0.1).all(), "without the limit it looks like chance"
    drawn = random_masks()
    assert (iou(*drawn) <= iou_limit(*drawn)).all()


def test_excess_of_unrelated_sets_is_zero_on_average():
    rng = np.random.default_rng(0)
    a, b = (rng.random((4000, 196)).argsort(1) < size for size in (137, 98))
    found = excess(iou(a, b), iou_by_chance(a, b), iou_limit(a, b))
    assert abs(found.mean()) < 4 * found.std() / 4000**0.5


def test_excess_by_hand():
    np.testing.assert_allclose(excess([0.1, 0.2, 0.5, 0.8], 0.2, 0.8), [-1 / 6, 0, 0.5, 1])
    whole = np.ones((1, 9), dtype=bool)
    assert np.isnan(excess(iou(whole, whole), iou_by_chance(whole, whole))), "two methods that keep all"
    assert np.isnan(excess(1.0, 1.0))


@pytest.mark.parametrize("measure", [iou, ioa, iou_by_chance, ioa_by_chance, iou_limit])
def test_what_are_no_masks_is_refused(measure):
    mask = np.ones((2, 4), dtype=bool)
    for other in (mask[:1], mask[:, :3], mask[0], mask[:0]):
        with pytest.raises(
            UsageError, match=r"masks of shapes \(2, 4\) and .* cannot be compared; give both .*\(n, P\)"
        ):
            measure(mask, other)
    with pytest.raises(UsageError, match="masks of types bool and int64 are not allowed; give truth values"):
        measure(mask, mask.astype(np.int64))


def test_excess_of_what_does_not_fit_is_refused():
    with pytest.raises(UsageError, match=r"shapes \(2,\), \(3,\), \(\) do not fit"):
        excess([0.1, 0.2], [0.1, 0.2, 0.3])
    with pytest.raises(UsageError, match="hold NaN or infinity"):
        excess([np.nan], 0.5)
