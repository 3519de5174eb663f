"""Similarity of features: the formulas taken literally, what leaves them alone, and what makes unrelated ones alike."""

import numpy as np
import pytest
import torch

from common.analysis import cca_by_chance, cka, mean_cca, procrustes, pwcca
from common.errors import UsageError

MEASURES = {
    "cka": cka,
    "biased cka": lambda x, y: cka(x, y, debiased=False),
    "procrustes": procrustes,
    "mean_cca": mean_cca,
    "mean_sq_cca": lambda x, y: mean_cca(x, y, squared=True),
    "pwcca": pwcca,
    "pwcca as published": lambda x, y: pwcca(x, y, parity=True),
}


def related(images=400, a=6, b=9, noise=1.0, seed=0):
    """Features of a and b channels that share four directions, with means and scales of their own."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(images, 4))
    x = common @ rng.normal(size=(4, a)) + noise * rng.normal(size=(images, a)) * np.arange(1, a + 1)
    y = common @ rng.normal(size=(4, b)) + noise * rng.normal(size=(images, b)) + 5
    return x, y


def prepared(x):
    """Channels in rows, as the reference keeps them, centred and of Frobenius norm 1."""
    rows = x.T - x.T.mean(1, keepdims=True)
    return rows / np.sqrt((rows**2).sum())


def inverse_root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(values**-0.5) @ vectors.T


def canonical(x, y):
    """Canonical vectors (a, n) of x, all of them, and the correlations: whitened by eigen-decomposition."""
    a, b = prepared(x), prepared(y)
    white = inverse_root(a @ a.T)
    left, correlations, _ = np.linalg.svd(white @ a @ b.T @ inverse_root(b @ b.T))
    return left.T @ white @ a, correlations


def by_formula(name, x, y):
    a, b = prepared(x), prepared(y)
    if name == "biased cka":
        return 1 - ((b @ a.T) ** 2).sum() / np.sqrt(((a @ a.T) ** 2).sum() * ((b @ b.T) ** 2).sum())
    if name == "procrustes":
        return (a**2).sum() + (b**2).sum() - 2 * np.linalg.norm(a @ b.T, "nuc")
    vectors, correlations = canonical(x, y)
    weights = np.abs(vectors @ a.T).sum(1)
    truncated = (weights / weights.sum())[: len(correlations)]
    return {
        "mean_cca": correlations.mean(),
        "mean_sq_cca": (correlations**2).mean(),
        "pwcca": 1 - (truncated / truncated.sum() * correlations).sum(),
        "pwcca as published": 1 - (truncated * correlations).sum(),
    }[name]


def debiased_by_kernels(x, y):
    """HSIC_1 of Song et al. from n x n kernels without their diagonals."""

    def hsic(k, m):
        n, ones = len(k), np.ones(len(k))
        middle = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + middle - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))

    k, m = (each @ each.T * (1 - np.eye(len(each))) for each in (x, y))
    return 1 - hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize("shape", [{"a": 6, "b": 9}, {"a": 9, "b": 6}, {"a": 7, "b": 7}, {"a": 1, "b": 3}])
@pytest.mark.parametrize("name", [name for name in MEASURES if name != "cka"])
def test_measures_are_the_formulas(name, shape):
    x, y = related(**shape)
    assert MEASURES[name](x, y) == pytest.approx(by_formula(name, x, y), abs=1e-10)


@pytest.mark.parametrize("images", [4, 5, 60])
def test_debiased_cka_is_the_formula_without_its_matrices(images):
    x, y = related(images)
    assert cka(x, y) == pytest.approx(debiased_by_kernels(x, y), abs=1e-10)


@pytest.mark.parametrize("name", MEASURES)
def test_features_are_like_themselves(name):
    x, _ = related()
    alike = 1.0 if "mean" in name else 0.0
    assert MEASURES[name](x, x) == pytest.approx(alike, abs=1e-10)
    assert MEASURES[name](x, 3 * x[:, ::-1] + 7) == pytest.approx(alike, abs=1e-10)


@pytest.mark.parametrize("name", MEASURES)
def test_a_rotation_of_the_channels_changes_nothing(name):
    x, y = related()
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(9, 9)))
    assert MEASURES[name](x, y @ rotation) == pytest.approx(MEASURES[name](x, y), abs=1e-10)


@pytest.mark.parametrize("name", ["mean_cca", "mean_sq_cca"])
def test_canonical_correlations_ask_for_no_basis_at_all(name):
    x, y = related()
    mixed = x @ np.random.default_rng(1).normal(size=(6, 6))
    assert MEASURES[name](mixed, y) == pytest.approx(MEASURES[name](x, y), abs=1e-10)
    assert cka(mixed, y) != pytest.approx(cka(x, y), abs=1e-3)


def test_only_pwcca_is_not_symmetric():
    x, y = related()
    for name, measure in MEASURES.items():
        symmetric = measure(x, y) == pytest.approx(measure(y, x), abs=1e-10)
        assert symmetric == ("pwcca" not in name), name


@pytest.mark.parametrize("name", MEASURES)
def test_order_of_images_and_precision_do_not_matter(name):
    x, y = related()
    order = np.random.default_rng(1).permutation(len(x))
    assert MEASURES[name](x[order], y[order]) == pytest.approx(MEASURES[name](x, y), abs=1e-10)
    half = torch.from_numpy(x).half(), torch.from_numpy(y).half()
    rounded = (each.numpy().astype(np.float64) for each in half)
    assert MEASURES[name](*half) == MEASURES[name](*rounded)
    brain = torch.from_numpy(x).bfloat16()
    assert MEASURES[name](brain, y) == MEASURES[name](brain.double().numpy(), y)


def test_a_channel_that_others_determine_is_no_direction():
    x, y = related()
    more = np.concatenate([x, x[:, :2] @ [[1.0], [2.0]], np.ones((len(x), 1))], axis=1)
    assert mean_cca(more, y) == pytest.approx(mean_cca(x, y), abs=1e-10)
    assert pwcca(y, more) == pytest.approx(pwcca(y, x), abs=1e-10)


@pytest.mark.parametrize(("a", "b"), [(6, 9), (7, 7)])
def test_parity_of_pwcca_is_the_default_where_all_directions_have_a_partner(a, b):
    x, y = related(a=a, b=b)
    assert pwcca(x, y, parity=True) == pytest.approx(pwcca(x, y), abs=1e-10)


def test_published_pwcca_of_a_linear_map_of_x_is_arbitrary_when_x_is_wider():
    """Trap 1: y is almost linear in x, so that the distance is 0.00; published weights give 0.2 and more, and hang on
    the order of the channels, which no measure of similarity may."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 8)) @ rng.normal(size=(8, 8))
    y = x @ rng.normal(size=(8, 5)) + 0.05 * rng.normal(size=(300, 5))
    orders = [rng.permutation(8) for _ in range(20)]
    right = [pwcca(x[:, order], y) for order in orders]
    published = [pwcca(x[:, order], y, parity=True) for order in orders]
    assert min(right) > 0 and max(right) < 0.005 and np.ptp(right) < 1e-10
    assert min(published) > 0.2 and np.ptp(published) > 0.02
    assert pwcca(y, x) == pytest.approx(pwcca(y, x, parity=True), abs=1e-10) and pwcca(y, x) < 0.005


def test_canonical_correlations_of_few_images_are_refused_or_stand_beside_chance():
    """Trap 5: features of 192 channels that have nothing to do with each other, on 500 images."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 500, 192))
    for measure in (mean_cca, pwcca):
        with pytest.raises(
            UsageError, match=r"500 images are too few .* of 192 channels; give 1920 or more, or few_images"
        ):
            measure(x, y)
    found = mean_cca(x, y, few_images=True)
    assert found == pytest.approx(0.55, abs=0.01)
    assert found == pytest.approx(cca_by_chance(images=500, channels=(192, 192)), abs=0.005)
    assert 1 - pwcca(x, y, few_images=True) == pytest.approx(found, abs=0.01)
    with pytest.raises(UsageError, match="give 90 or more"):
        mean_cca(*(each[:89] for each in related()))
    assert 0 < mean_cca(*(each[:90] for each in related())) < 1


@pytest.mark.parametrize(("images", "a", "b"), [(120, 24, 40), (120, 40, 24), (60, 30, 45), (40, 12, 12), (30, 40, 5)])
def test_chance_is_the_mean_over_independent_features(images, a, b):
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=(images, a)), rng.normal(size=(images, b))) for _ in range(60)]
    for squared in (False, True):
        found = [mean_cca(x, y, squared=squared, few_images=True) for x, y in pairs]
        chance = cca_by_chance(images=images, channels=(a, b), squared=squared)
        assert np.mean(found) == pytest.approx(chance, abs=0.01 if not squared else 0.006)


def test_chance_by_closed_forms():
    """Squares have the mean max(a, b) / (n - 1); with as many channels as images everything correlates."""
    assert cca_by_chance(images=101, channels=(5, 20), squared=True) == 0.2
    assert cca_by_chance(images=101, channels=(5, 100)) == cca_by_chance(images=50, channels=(99, 99)) == 1
    few_channels = 4 / (3 * np.pi) * 2e-3  # the mean of a quarter circle of radius 2 sqrt(a / n)
    assert cca_by_chance(images=10**8 + 1, channels=(100, 100)) == pytest.approx(few_channels, rel=1e-4)
    assert cca_by_chance(images=9, channels=(3, 2)) == cca_by_chance(images=9, channels=(2, 3))


def test_unrelated_features_are_far_apart_by_debiased_cka_only():
    rng = np.random.default_rng(0)
    found = [(cka(x, y), cka(x, y, debiased=False)) for x, y in rng.normal(size=(30, 2, 200, 100))]
    debiased, biased = np.mean(found, axis=0)
    assert debiased == pytest.approx(1, abs=0.005)
    assert biased == pytest.approx(1 - 100 / (200 + 100), abs=0.01)  # of a + n, the a that chance gives


def test_both_kinds_of_cka_meet_with_many_images():
    x, y = related(20_000)
    assert cka(x, y) == pytest.approx(cka(x, y, debiased=False), abs=2e-3)


@pytest.mark.parametrize("name", MEASURES)
def test_features_that_cannot_be_compared_are_refused(name):
    x, y = related()
    for wrong in (y[:-1], y[:, 0], y[:, :0]):
        with pytest.raises(UsageError, match=r"features"):
            MEASURES[name](x, wrong)
    with pytest.raises(UsageError, match="the same for all images"):
        MEASURES[name](x, np.full_like(y, 0.1))
    broken = y.copy()
    broken[3, 2] = np.nan
    with pytest.raises(UsageError, match="features hold NaN or infinity; allowed: finite numbers"):
        MEASURES[name](x, broken)


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match="debiased CKA of 3 images is not defined; give 4 or more"):
        cka(*(each[:3] for each in related()))
    with pytest.raises(UsageError, match="images=1 is not allowed; give 2 or more"):
        cca_by_chance(images=1, channels=(2, 2))
    with pytest.raises(UsageError, match=r"channels=\(0, 2\) is not allowed"):
        cca_by_chance(images=10, channels=(0, 2))
