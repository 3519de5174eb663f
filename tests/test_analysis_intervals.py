"""How sure a number is: closed forms, the resampling taken literally, coverage, and what the spread is not."""

import numpy as np
import pytest
import torch

from common.analysis import bootstrap, cka, independent_bootstrap, jackknife, mean_cca, paired_bootstrap
from common.errors import UsageError


def test_the_error_is_that_of_the_mean_and_not_the_spread_of_the_images():
    """Trap 10: four times the images halve the error; their spread stays."""
    drawn = np.random.default_rng(0).normal(0.5, 0.2, 1600)
    few, many = bootstrap(drawn[:400]), bootstrap(drawn)
    assert few.error == pytest.approx(drawn[:400].std() / 20, rel=0.1)
    assert many.error == pytest.approx(drawn.std() / 40, rel=0.1)
    assert few.high - few.low == pytest.approx(2 * 1.96 * few.error, rel=0.1)
    assert many.high - many.low < 0.1 * drawn.std() * 2 * 1.96


def test_the_bootstrap_is_the_resampling_taken_literally():
    values = np.random.default_rng(0).random(37)
    rng = np.random.default_rng(5)
    means = np.array([values[rng.integers(0, 37, 37)].mean() for _ in range(300)])
    found = bootstrap(values, confidence=0.9, resamples=300, seed=5)
    expected = (values.mean(), means.std(), *np.percentile(means, [5, 95]))
    assert (found.value, found.error, found.low, found.high) == pytest.approx(expected, abs=1e-10)
    assert all(type(number) is float for number in vars(found).values())


def test_an_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [bootstrap(rng.exponential(1, 80), confidence=0.9, resamples=400, seed=seed) for seed in range(300)]
    share = np.mean([each.low < 1 < each.high for each in found])
    assert share == pytest.approx(0.9, abs=0.05)


def test_columns_are_drawn_together():
    values = np.random.default_rng(0).random(50)
    both = bootstrap(np.stack([values, 1 - values], axis=1))
    alone = bootstrap(values)
    assert (both.value[0], both.error[0], both.low[0], both.high[0]) == pytest.approx(tuple(vars(alone).values()))
    np.testing.assert_allclose(both.low, 1 - both.high[::-1], rtol=0, atol=1e-10)


def test_a_seed_decides_and_the_global_state_does_not():
    values = torch.rand(60)
    assert bootstrap(values) == bootstrap(values.numpy()) != bootstrap(values, seed=1)


def test_a_single_image_or_value_has_no_spread():
    assert vars(bootstrap([0.25])) == {"value": 0.25, "error": 0, "low": 0.25, "high": 0.25}
    assert vars(bootstrap([2.0] * 9)) == {"value": 2, "error": 0, "low": 2, "high": 2}


def test_paired_differences_leave_out_what_both_find_hard():
    """Trap 10: of 1000 images one model gets 700 right, another fails on 50 of these and gets 30 others right."""
    rng = np.random.default_rng(0)
    first = np.arange(1000) < 700
    second = first.copy()
    second[[*range(50), *range(700, 730)]] ^= True
    order = rng.permutation(1000)
    found = paired_bootstrap(first[order], second[order])
    assert found.value == pytest.approx(0.02, abs=1e-10)
    assert found.error == pytest.approx(((80 - 20**2 / 1000) / 1000**2) ** 0.5, rel=0.1)  # McNemar's
    unpaired = (bootstrap(first).error ** 2 + bootstrap(second).error ** 2) ** 0.5
    assert found.error < 0.5 * unpaired
    assert found.low > 0 and found.value - 1.96 * unpaired < 0, "only the pairs show which one is better"
    assert vars(paired_bootstrap(first, first)) == {"value": 0, "error": 0, "low": 0, "high": 0}
    swapped = paired_bootstrap(second[order], first[order])
    assert (swapped.value, swapped.low, swapped.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_samples_without_a_common_image_are_drawn_by_themselves():
    """The basic interval, literally: twice the value less the quantiles of what is drawn."""
    rng = np.random.default_rng(0)
    a, b = rng.random((37, 3)), rng.random((20, 3))
    drawn = []
    for values, seed in ((a, 5), (b, 6)):
        draws = np.random.default_rng(seed)
        drawn.append([values[draws.integers(0, len(values), len(values))].mean(0) for _ in range(200)])
    again = np.array([x @ y for x, y in zip(*drawn, strict=True)])
    value = a.mean(0) @ b.mean(0)
    found = independent_bootstrap(lambda x, y: x @ y, a, b, confidence=0.9, resamples=200, seed=5)
    expected = (value, again.std(), *(2 * value - np.percentile(again, [95, 5])))
    assert (found.value, found.error, found.low, found.high) == pytest.approx(expected, abs=1e-10)
    assert found.error < independent_bootstrap(lambda x, y: x @ y, a[:9], b[:5], resamples=200).error


def test_noise_that_makes_means_look_apart_is_no_part_of_the_interval():
    """Squared distance of two means that are 0.1 apart in each of 20 places: drawn values are nearly all above it."""
    rng, truth, inside, drawn_inside = np.random.default_rng(0), 20 * 0.1**2, [], []
    for _ in range(100):
        a, b = rng.normal(0, 1, (300, 20)), rng.normal(0.1, 1, (300, 20))
        found = independent_bootstrap(lambda x, y: np.square(x - y).sum(), a, b)
        inside.append(found.low <= truth <= found.high)
        drawn_low = 2 * found.value - found.high  # the ends of the percentile interval
        drawn_inside.append(drawn_low <= truth)
    assert np.mean(inside) >= 0.9 and np.mean(drawn_inside) < 0.6


def test_the_jackknife_of_a_mean_is_the_standard_error():
    values = np.random.default_rng(0).random(40)
    single = jackknife(np.mean, values, groups=40)
    assert single.error == pytest.approx(values.std(ddof=1) / 40**0.5, abs=1e-12)
    assert single.value == values.mean()


def test_the_jackknife_is_the_formula():
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 43))
    left = [np.delete(np.arange(43), group) for group in np.array_split(np.random.default_rng(3).permutation(43), 6)]
    again = [np.corrcoef(x[keep], y[keep])[0, 1] for keep in left]
    found = jackknife(lambda a, b: np.corrcoef(a, b)[0, 1], x, y, groups=6, confidence=0.9, seed=3)
    error = (5 / 6 * np.square(again - np.mean(again)).sum()) ** 0.5
    assert found.error == pytest.approx(error, abs=1e-10)
    half = 2.0150484 * error  # Student's t, 5 degrees of freedom, 95 %
    value = np.corrcoef(x, y)[0, 1]
    assert (found.value, found.low, found.high) == pytest.approx((value, value - half, value + half), abs=1e-7)


def features(rng, images=400):
    shared = rng.normal(size=(images, 4))
    return [shared + rng.normal(size=(images, 4)) for _ in range(2)]


@pytest.mark.parametrize("measure", [cka, mean_cca])
def test_the_jackknife_finds_the_error_that_fresh_images_show(measure):
    """Trap 10: CKA and CCA are no means over images."""
    rng = np.random.default_rng(0)
    fresh = np.std([measure(*features(rng)) for _ in range(200)])
    found = [jackknife(measure, *features(rng)) for _ in range(20)]
    assert np.mean([each.error for each in found]) == pytest.approx(fresh, rel=0.25)


def test_a_bootstrap_takes_images_that_it_sees_twice_for_agreement():
    """Trap 10: independent features correlate by chance, and by more on the 63 % of the images that are drawn."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 400, 6))
    drawn = [rng.integers(0, 400, 400) for _ in range(100)]
    again = [mean_cca(x[images], y[images]) for images in drawn]
    assert np.mean(again) - mean_cca(x, y) > 1.5 * np.std(again)
    found = jackknife(mean_cca, x, y)
    assert found.value == mean_cca(x, y) and found.error > 0.5 * np.std(again)


def test_the_jackknife_asks_for_no_order_of_the_images():
    """Data sets lie class by class: groups are drawn at random."""
    values = np.repeat(np.arange(10.0), 40)
    assert jackknife(np.mean, values, groups=10).error == pytest.approx(values.std() / 20, rel=0.5)


def test_what_cannot_be_resampled_is_refused():
    for wrong, message in (
        (np.zeros(0), r"values of shape \(0,\) are not allowed; give \(n,\) or \(n, M\)"),
        (np.zeros((2, 2, 2)), r"values of shape \(2, 2, 2\)"),
        (0.5, r"values of shape \(\)"),
        ([0.5, np.nan], "values hold NaN or infinity"),
    ):
        with pytest.raises(UsageError, match=message):
            bootstrap(wrong)
    with pytest.raises(
        UsageError, match=r"values of shapes \(3,\) and \(2,\) cannot be compared; give both the shape \(n\)"
    ):
        paired_bootstrap([1, 2, 3], [1, 2])
    for options, message in (({"resamples": 0}, "resamples=0"), ({"confidence": 1.0}, "confidence=1.0 .* below 1")):
        with pytest.raises(UsageError, match=message):
            bootstrap([1.0], **options)
    for groups in (1, 10):
        with pytest.raises(UsageError, match=f"^{groups} groups of 9 images are not allowed; give 2 to n groups of n"):
            jackknife(np.mean, np.zeros(9), groups=groups)
    for arrays in ([np.zeros(9), np.zeros(8)], []):
        with pytest.raises(UsageError, match=r"^arrays of \[.*\] images are not allowed; give arrays of the same n"):
            jackknife(np.mean, *arrays, groups=3)
