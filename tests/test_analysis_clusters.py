"""Groups of patches: equal to scikit-learn and to the formulas, chance by enumeration, and all images at once."""

from itertools import permutations
from math import comb, log

import numpy as np
import pytest
import torch
from counting import python_calls
from decided import record_of_stages
from sklearn.metrics import adjusted_mutual_info_score, homogeneity_completeness_v_measure

from common.analysis import agreement, clusters, excess, labels
from common.analysis.clusters import expected_information
from common.errors import UsageError
from common.evaluation import Stage

NAMES = ("homogeneity", "completeness", "nmi", "ami")


def random_labels(images=60, patches=49, seed=0):
    """Pairs of groupings of every kind, from unrelated to the same, with -1 and with gaps in their numbers."""
    rng = np.random.default_rng(seed)
    true = rng.integers(-1, rng.integers(1, patches, (images, 1)), (images, patches))
    other = rng.integers(-1, rng.integers(1, patches, (images, 1)), (images, patches))
    return true, np.where(rng.random((images, patches)) < rng.random((images, 1)), 3 * true + 2, other)


def by_sklearn(true, predicted):
    rows = [
        (*homogeneity_completeness_v_measure(a, b), adjusted_mutual_info_score(a, b))
        for a, b in zip(true, predicted, strict=True)
    ]
    return dict(zip(NAMES, np.array(rows).T, strict=True))


def entropy(values):
    values = list(values)
    shares = [values.count(value) / len(values) for value in set(values)]
    return -sum(share * log(share) for share in shares)


def literally(true, predicted):
    """Homogeneity 1 - H(C|K) / H(C), completeness 1 - H(K|C) / H(K), and NMI 2hc / (h + c) of one image."""
    h_true, h_predicted, both = entropy(true), entropy(predicted), entropy(zip(true, predicted, strict=True))
    homogeneity = 1 - (both - h_predicted) / h_true
    completeness = 1 - (both - h_true) / h_predicted
    return homogeneity, completeness, 2 * homogeneity * completeness / (homogeneity + completeness)


def surjective(groups, patches, images, rng):
    """Random labels (images, patches) of exactly so many groups."""
    found = np.concatenate(
        [np.tile(np.arange(groups), (images, 1)), rng.integers(0, groups, (images, patches - groups))], 1
    )
    return rng.permuted(found, axis=1)


def test_labels_are_composed_over_the_stages():
    rng = np.random.default_rng(0)
    sizes = {1: (9, 6), 2: (6, 4), 4: (4, 3)}
    stages = {b: Stage(np.full(5, k), destination=rng.integers(-1, k, (5, n))) for b, (n, k) in sizes.items()}
    record = record_of_stages(stages, "tome", (3, 3), images=5)
    for last in stages:
        for image in range(5):
            composed = list(range(9))
            for block in filter(lambda block: block <= last, stages):
                moved = stages[block].destination[image]
                composed = [-1 if token == -1 else moved[token] for token in composed]
            assert labels(record, last)[image].tolist() == composed


def test_methods_that_group_nothing_and_unknown_blocks_are_refused():
    record = record_of_stages({1: Stage(np.array([2, 2]), kept=np.array([[0, 1], [2, 3]]))})
    with pytest.raises(UsageError, match=r"'topk' groups no patches; allowed: records of .*dpcknn, kmedoids, .*tome"):
        labels(record, 1)
    with pytest.raises(UsageError, match=r"block=3 is no stage of 'topk'; allowed: 1$"):
        labels(record, 3)


def test_agreement_is_that_of_scikit_learn():
    true, predicted = random_labels()
    found = agreement(true, predicted)
    for name, expected in by_sklearn(true, predicted).items():
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-10, err_msg=name)
        assert found[name].dtype == np.float64 and found[name].shape == (60,)
    torch.testing.assert_close(
        agreement(torch.from_numpy(true), torch.from_numpy(predicted).int())["nmi"], found["nmi"], rtol=0, atol=0
    )


def test_agreement_is_the_formulas():
    true, predicted = random_labels(seed=1)
    some = [(a.tolist(), b.tolist()) for a, b in zip(true, predicted, strict=True) if len(set(a)) > 1 < len(set(b))]
    found = agreement(*map(np.array, zip(*some, strict=True)))
    expected = np.array([literally(a, b) for a, b in some]).T
    np.testing.assert_allclose([found[name] for name in NAMES[:3]], expected, rtol=0, atol=1e-10)


def test_exchanging_the_two_exchanges_homogeneity_and_completeness():
    true, predicted = random_labels()
    one, other = agreement(true, predicted), agreement(predicted, true)
    for name, swapped in zip(NAMES, ("completeness", "homogeneity", "nmi", "ami"), strict=True):
        np.testing.assert_allclose(one[name], other[swapped], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("true", "predicted", "expected"),
    [
        ([0, 0, 0, 0], [7, 7, 7, 7], (1, 1, 1, 1)),
        ([0, 0, 0, 0], [0, 1, 2, 3], (1, 0, 0, 0)),
        ([0, 1, 2, 3], [2, 2, 2, 2], (0, 1, 0, 0)),
        ([0, 1, 2, 3], [3, 1, 2, 0], (1, 1, 1, 1)),  # scikit-learn divides two roundings by each other here
        ([0, 0, 1, 1], [1, 1, 0, 0], (1, 1, 1, 1)),
        ([0, 0, 1, 1], [0, 1, 0, 1], (0, 0, 0, -0.5)),
        ([-1, -1, 5, 5], [0, 0, 1, 1], (1, 1, 1, 1)),
    ],
)
def test_special_cases(true, predicted, expected):
    found = agreement([true], [predicted])
    assert tuple(found[name].item() for name in NAMES) == pytest.approx(expected, abs=1e-10)


def test_many_groups_of_one_patch_are_one_grouping():
    order = np.random.default_rng(0).permuted(np.tile(np.arange(196), (3, 1)), axis=1)
    assert all((values > 1 - 1e-10).all() for values in agreement(order, order[::-1]).values())


def test_chance_is_the_mean_over_all_ways_to_deal_the_patches():
    true, predicted = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 3]
    dealt = np.array(list(permutations(predicted)))
    found = agreement(np.tile(true, (len(dealt), 1)), dealt)
    np.testing.assert_allclose(found["nmi_chance"], found["nmi"].mean(), rtol=0, atol=1e-10)
    assert found["ami"].mean() == pytest.approx(0, abs=1e-10)


def test_expected_information_is_the_hypergeometric_sum():
    table = expected_information(12)
    for a in range(1, 13):
        for b in range(1, 13):
            shared = range(max(1, a + b - 12), min(a, b) + 1)
            terms = [comb(b, k) * comb(12 - b, a - k) / comb(12, a) * k / 12 * log(12 * k / (a * b)) for k in shared]
            assert table[a, b] == pytest.approx(sum(terms), abs=1e-12)


def test_the_adjusted_information_is_the_excess_of_nmi_over_its_chance():
    true, predicted = random_labels()
    found = agreement(true, predicted)
    open_ = found["nmi_chance"] < 1 - 1e-9
    expected = excess(found["nmi"][open_], found["nmi_chance"][open_])
    np.testing.assert_allclose(found["ami"][open_], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("groups", "nmi"), [(176, 0.97), (98, 0.82), (49, 0.62), (24, 0.38)])
def test_random_groups_look_alike_by_nmi_but_not_by_ami(groups, nmi):
    """Trap 3: at the numbers of clusters of the four keep rates."""
    rng = np.random.default_rng(0)
    found = agreement(*(surjective(groups, 196, 400, rng) for _ in range(2)))
    assert found["nmi"].mean() == pytest.approx(nmi, abs=0.01)
    assert found["nmi"].mean() == pytest.approx(found["nmi_chance"].mean(), abs=0.002)
    assert abs(found["ami"].mean()) < 4 * found["ami"].std() / 20


def test_images_do_not_depend_on_those_beside_them(monkeypatch):
    true, predicted = random_labels()
    whole = agreement(true, predicted)
    monkeypatch.setattr(clusters, "IMAGES", 7)
    for name, values in agreement(true, predicted).items():
        np.testing.assert_allclose(values, whole[name], rtol=0, atol=1e-12)


def test_fifty_thousand_images_are_computed_as_arrays():
    """Equal to scikit-learn on some of them; Python runs by part of the images and not by image."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, 98, (50_000, 196), dtype=np.int16)
    predicted = np.where(
        rng.random((50_000, 196), dtype=np.float32) < 0.5, true, rng.integers(0, 49, true.shape, np.int16)
    )
    found = agreement(true, predicted)
    some = [0, 4095, 4096, 31_415, 49_999]
    for name, expected in by_sklearn(true[some], predicted[some]).items():
        np.testing.assert_allclose(found[name][some], expected, rtol=0, atol=1e-10)
    calls = [python_calls(agreement, true[:images], predicted[:images]) for images in (10, 4096)]
    assert abs(calls[1] - calls[0]) < 10


@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [
        (
            [[0, 1]],
            [[0, 1, 2]],
            r"labels of shapes \(1, 2\) and \(1, 3\) cannot be compared; give both the shape \(n, P\)",
        ),
        ([0, 1], [0, 1], r"labels of shapes \(2,\) and \(2,\)"),
        (np.zeros((0, 4), int), np.zeros((0, 4), int), r"labels of shapes \(0, 4\)"),
        ([[0.0, 1.0]], [[0, 1]], r"labels from 0.0 to 1.0 \(float64\) are not allowed; give whole numbers from -1 to "),
        ([[0, -2]], [[0, 1]], r"labels from -2 to 0 \(int64\) are not allowed"),
        ([[0, 2**31]], [[0, 1]], r"labels from 0 to 2147483648"),
    ],
)
def test_what_are_no_labels_is_refused(true, predicted, message):
    with pytest.raises(UsageError, match=message):
        agreement(true, predicted)
