"""Seven measures of two maps: the formulas taken literally, closed forms, and where the reference differs."""

import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.stats import pearsonr, spearmanr, wasserstein_distance

from common.analysis import compare_halves, compare_maps, compare_mean_maps, maps
from common.errors import UsageError

NAMES = ["KLD12", "KLD21", "JSD", "PCC", "SCC", "SIM", "EMD"]


def depth_maps(shape=(5, 5), seed=0):
    return np.random.default_rng(seed).uniform(3, 12, (2, *shape))


def divergence(q, p):
    return sum(b * np.log2(b / a) for a, b in zip(p, q, strict=True))


def full_transport(p, q, places):
    """Earth mover's distance by the linear programme over all pairs of patches."""
    count = len(p)
    cost = np.linalg.norm(places[:, None] - places, axis=2)
    rows = np.kron(np.eye(count), np.ones(count))
    columns = np.kron(np.ones(count), np.eye(count))
    return linprog(cost.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([p, q])).fun


def by_formula(m1, m2):
    """The definitions, and the JSD and distances of the reference under other names."""
    p, q = (m.ravel() / m.sum() for m in (m1, m2))
    middle = (p + q) / 2
    scaled = [(m - m.min()) / (m.max() - m.min()) for m in (m1, m2)]
    places = np.stack(np.unravel_index(np.arange(m1.size), m1.shape), axis=1)
    by_column = np.stack([np.arange(m1.size) % m1.shape[0], np.arange(m1.size) // m1.shape[0]], axis=1)
    return {
        "KLD12": divergence(q, p),
        "KLD21": divergence(p, q),
        "JSD": (divergence(p, middle) + divergence(q, middle)) / 2,
        "PCC": pearsonr(m1.ravel(), m2.ravel()).statistic,
        "SCC": spearmanr(m1.ravel(), m2.ravel()).statistic,
        "SIM": sum(map(min, *((each / each.sum()).ravel() for each in scaled))),
        "EMD": full_transport(p, q, places),
        "published JSD": (divergence(middle, p) + divergence(middle, q)) / 2,
        "published EMD": full_transport(p, q, by_column),
    }


@pytest.fixture(params=["scipy", "pot"])
def transport(request, monkeypatch):
    """Both ways to move earth."""
    if request.param == "pot":
        pytest.importorskip("ot")
    monkeypatch.setattr(maps, "find_spec", lambda name: request.param == "pot")


@pytest.mark.parametrize("shape", [(5, 5), (3, 6), (1, 7)])
@pytest.mark.parametrize("seed", [0, 1])
def test_measures_are_the_formulas(transport, shape, seed):
    m1, m2 = depth_maps(shape, seed)
    found, published, expected = compare_maps(m1, m2), compare_maps(m1, m2, parity=True), by_formula(m1, m2)
    assert list(found) == list(published) == NAMES
    for name in NAMES:
        assert found[name] == pytest.approx(expected[name], abs=1e-10), name
        assert published[name] == pytest.approx(expected.get(f"published {name}", expected[name]), abs=1e-10), name
    assert compare_maps(torch.from_numpy(m1), torch.from_numpy(m2)) == found


def test_parity_differs_in_jsd_and_off_a_square_in_emd():
    for shape, differing in (((6, 6), {"JSD"}), ((4, 9), {"JSD", "EMD"})):
        m1, m2 = depth_maps(shape)
        found, published = compare_maps(m1, m2), compare_maps(m1, m2, parity=True)
        assert {name for name in NAMES if abs(found[name] - published[name]) > 1e-9} == differing


def test_published_jsd_has_no_bound():
    """Trap 2: of two maps that hardly overlap the divergence is 1 bit at most."""
    m1 = np.where(np.arange(196).reshape(14, 14) < 98, 1.0, 1e-6)
    m2 = m1[::-1]
    assert 0.999 < compare_maps(m1, m2)["JSD"] < 1
    assert compare_maps(m1, m2, parity=True)["JSD"] == pytest.approx(np.log2(0.5 * 1e3), abs=0.01)  # sqrt(1e6)
    drawn = [compare_maps(*depth_maps((14, 14)), parity=parity)["JSD"] for parity in (False, True)]
    assert drawn[1] / drawn[0] == pytest.approx(0.0554 / 0.0520, abs=0.02)


def test_a_depth_of_zero_is_a_value_like_any_other():
    """Trap 8: patches that block 0 drops. 0 log 0 is 0, and what one map has never seen diverges without bound."""
    m1, m2 = np.array([[0.0, 1, 3]]), np.array([[0.0, 2, 2]])
    found = compare_maps(m1, m2)
    assert found["KLD12"] == pytest.approx(0.5 * np.log2(2) + 0.5 * np.log2(2 / 3))
    assert found["JSD"] == pytest.approx(
        (0.25 * np.log2(2 / 3) + 0.75 * np.log2(6 / 5)) / 2 + (np.log2(4 / 3) + np.log2(4 / 5)) / 4
    )
    assert compare_maps(m1, [[1, 1, 2]])["KLD12"] == np.inf > compare_maps(m1, [[1, 1, 2]])["KLD21"]
    published = compare_maps(m1, m2, parity=True)
    assert all(np.isnan(published[name]) for name in ("KLD12", "KLD21", "JSD"))
    assert all(published[name] == found[name] for name in ("PCC", "SCC", "SIM", "EMD"))


@pytest.mark.parametrize("parity", [False, True])
def test_constant_maps_rank_nothing(parity):
    """Trap 8: an unreduced network has a depth of 12 everywhere. What has no value is NaN, without a warning."""
    m1, _ = depth_maps()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare_maps(m1, np.full((5, 5), 12.0), parity=parity)
        same = compare_maps(np.full((5, 5), 12.0), np.full((5, 5), 3.0), parity=parity)
    for values in (found, same):
        assert {name for name in NAMES if np.isnan(values[name])} == {"PCC", "SCC", "SIM"}
    assert all(found[name] > 0 for name in ("KLD12", "KLD21", "JSD", "EMD"))
    assert all(same[name] == pytest.approx(0, abs=1e-12) for name in ("KLD12", "KLD21", "JSD", "EMD"))


def test_distances_on_a_rectangle_are_those_of_its_patches(transport):
    """Trap 8: one patch down and one to the right are one patch away; the published distances are others."""
    start, down, right = np.zeros((3, 2, 5))
    start[0, 0] = down[1, 0] = right[0, 1] = 1
    assert compare_maps(start, down)["EMD"] == compare_maps(start, right)["EMD"] == pytest.approx(1)
    by_columns = 5**0.5  # place 5 of two rows: row 1, column 2
    assert compare_maps(start, down, parity=True)["EMD"] == pytest.approx(by_columns)
    square = np.zeros((2, 5, 5))
    square[0, 0, 0] = square[1, 3, 4] = 1
    assert compare_maps(*square)["EMD"] == compare_maps(*square, parity=True)["EMD"] == pytest.approx(5)


def test_earth_on_a_line_moves_as_by_the_closed_form(transport):
    m1, m2 = np.random.default_rng(0).random((2, 1, 60))
    places = np.arange(60)
    expected = wasserstein_distance(places, places, m1[0], m2[0])
    assert compare_maps(m1, m2)["EMD"] == pytest.approx(expected, abs=1e-10)


def test_earth_of_a_whole_grid_follows_its_mean(transport):
    """A map that is moved as a whole, 14 x 14: everything moves by the same way."""
    m1, m2 = np.zeros((2, 14, 14))
    m1[:10, :9] = m2[4:, 3:12] = np.random.default_rng(0).random((10, 9))
    assert compare_maps(m1, m2)["EMD"] == pytest.approx(5, abs=1e-10)


def test_a_map_is_like_itself():
    m1, m2 = depth_maps()
    found = compare_maps(m1, 3 * m1)
    assert list(found.values()) == pytest.approx([0, 0, 0, 1, 1, 1, 0], abs=1e-10)
    one, other = compare_maps(m1, m2), compare_maps(m2, m1)
    assert (one["KLD12"], one["KLD21"]) == pytest.approx((other["KLD21"], other["KLD12"]), abs=1e-10)
    assert [one[name] for name in NAMES[2:]] == pytest.approx([other[name] for name in NAMES[2:]], abs=1e-10)


@pytest.mark.parametrize(
    ("m1", "m2", "message"),
    [
        (np.ones((2, 3)), np.ones((3, 2)), r"maps of shapes \(2, 3\) and \(3, 2\) cannot be compared; .*\(h, w\)"),
        (np.ones(4), np.ones(4), r"maps of shapes \(4,\) and \(4,\)"),
        (np.ones((2, 2)), -np.ones((2, 2)), "a map from -1 to -1 is no distribution; allowed: >= 0, not all 0"),
        (np.zeros((2, 2)), np.ones((2, 2)), "a map from 0 to 0 is no distribution"),
        (np.ones((2, 2)), np.full((2, 2), np.nan), "maps hold NaN or infinity"),
        (np.ones((2, 2)), np.full((2, 2), "a"), "maps of type <U1 are no numbers"),
    ],
)
def test_what_are_no_maps_is_refused(m1, m2, message):
    with pytest.raises(UsageError, match=message):
        compare_maps(m1, m2)


def depths(seed: int, images: int, slope: float = 1.0) -> np.ndarray:
    """Maps (n, 4, 5) of two depths, the deeper one more often towards the lower right."""
    chance = slope * np.add.outer(np.arange(4), np.arange(5)) / 8 + (1 - slope) / 2
    return np.where(np.random.default_rng(seed).random((images, 4, 5)) < chance, 6.0, 3.0)


def test_mean_maps_are_compared_with_intervals_over_the_images_of_each():
    a, b = depths(0, 300), depths(1, 200, 0.5)
    found, wanted = compare_mean_maps(a, b), compare_maps(a.mean(0), b.mean(0))
    assert {name: each.value for name, each in found.items()} == pytest.approx(wanted) and list(found) == NAMES
    assert all(each.low <= each.value <= each.high for each in found.values())
    assert found["PCC"].low > 0.9 and found["PCC"].high <= 1 and found["JSD"].low >= 0
    truth = compare_maps(depths(2, 100_000).mean(0), depths(3, 100_000, 0.5).mean(0))
    assert all(found[name].low <= truth[name] <= found[name].high for name in ("KLD12", "JSD", "PCC", "EMD"))
    few = compare_mean_maps(a[:30], b[:20])
    assert few["EMD"].error > 2 * found["EMD"].error


def test_a_pattern_that_no_image_changes_is_the_same_for_certain():
    pattern = np.tile(depths(0, 1), (9, 1, 1))
    for name, each in compare_mean_maps(pattern, pattern[:4]).items():
        one = 1 if name in ("PCC", "SCC", "SIM") else 0
        assert (each.value, each.low, each.high) == pytest.approx((one, one, one), abs=1e-9), name


def test_halves_show_what_the_same_looks_like():
    """They differ by what their images leave to chance: less, the more there are."""
    few, many = compare_halves(depths(0, 60)), compare_halves(depths(0, 2000))
    assert list(few) == NAMES and many["PCC"] > 0.99 > few["PCC"] and many["EMD"] < few["EMD"] / 3
    other = compare_maps(depths(0, 2000).mean(0), depths(1, 2000, -1.0).mean(0))
    assert other["PCC"] < -0.9 < 0.99 < many["PCC"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare_halves(np.ones((1, 4, 5))), "one image has no halves"),
        (lambda: compare_halves(np.ones((4, 5))), r"maps of shape \(4, 5\) are not allowed; give \(n, h, w\)"),
        (lambda: compare_mean_maps(np.ones((3, 4, 5)), np.ones((3, 5, 4))), "cannot be compared"),
        (lambda: compare_mean_maps(np.ones((3, 4, 5)), np.ones((3, 4, 5)), resamples=0), "resamples"),
    ],
)
def test_what_is_no_map_of_images_is_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()
