"""Similarity against difference of accuracy: rank correlations of pairs, and what chance is when runs are few."""

import itertools
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau, spearmanr, t

from common.analysis import correlate
from common.errors import UsageError

ACCURACY = {"a": 71.0, "b": 68.5, "c": 60.0, "d": 42.0, "e": 41.0}


def comparisons(similarity, runs=ACCURACY, **columns) -> pd.DataFrame:
    rows = [(x, y, similarity(x, y)) for x, y in itertools.combinations(runs, 2)]
    return pd.DataFrame(rows, columns=["a", "b", "mean"]).assign(**{"block": 3, "metric": "iou", **columns})


def noise(x, y):
    return np.random.default_rng(ord(x) * 31 + ord(y)).random()


def cell(table):
    (found,) = table.to_dict("records")
    return found


@pytest.mark.parametrize(("statistic", "oracle"), [("spearman", spearmanr), ("kendall", kendalltau)])
@pytest.mark.parametrize("difference", ["signed", "size"])
def test_values_are_scipys_also_with_ties(statistic, oracle, difference):
    table = comparisons(lambda x, y: round(noise(x, y), 1))
    signed = np.array([ACCURACY[x] - ACCURACY[y] for x, y in itertools.combinations(ACCURACY, 2)])
    wanted = oracle(np.abs(signed) if difference == "size" else signed, table["mean"]).statistic
    found = cell(correlate(table, ACCURACY, differences=(difference,), statistics=(statistic,)))
    assert found["value"] == pytest.approx(wanted, abs=1e-12)
    assert (found["pairs"], found["runs"]) == (10, 5)


def test_what_is_asked_for_is_what_there_is():
    table, both = comparisons(noise), {"differences": ("signed", "size"), "statistics": ("kendall", "spearman")}
    found = correlate(table, ACCURACY, **both)
    wanted = [("signed", "kendall"), ("signed", "spearman"), ("size", "kendall"), ("size", "spearman")]
    assert list(zip(found["difference"], found["statistic"], strict=True)) == wanted
    pd.testing.assert_frame_equal(correlate(table, ACCURACY), found.tail(1).reset_index(drop=True))
    for wrong in ({"differences": ("squared",)}, {"statistics": "spearman"}, {"statistics": ("pearson",)}):
        with pytest.raises(UsageError, match=r"^(differences|statistics)=.* is not allowed; give "):
            correlate(table, ACCURACY, **wrong)


def test_memory_does_not_grow_with_permutations_and_pairs_of_pairs():
    """The signs of all pairs of 276 pairs under 4,000 permutations are 2.4 GB; all differences are 9 MB."""
    runs = {f"run {place}": float(value) for place, value in enumerate(np.random.default_rng(0).permutation(24))}
    table = comparisons(lambda x, y: np.random.default_rng([*map(ord, x + y)]).random(), runs)
    tracemalloc.start()
    found = cell(correlate(table, runs, statistics=("kendall",), permutations=4000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["pairs"] == 276 and peak < 40e6


def test_four_runs_cannot_be_more_certain_than_one_in_24():
    """The six pairs of four rates are not six observations."""
    four = dict(itertools.islice(ACCURACY.items(), 4))
    found = cell(correlate(comparisons(lambda x, y: 1 - abs(four[x] - four[y]) / 100, four), four))
    assert found["value"] == pytest.approx(-1) and found["p"] == pytest.approx(1 / 24)
    assert spearmanr([1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]).pvalue < 1e-6, "as six independent pairs would say"


def test_p_counts_the_ways_to_deal_accuracies_to_runs():
    table = comparisons(noise)
    found, names = cell(correlate(table, ACCURACY)), list(ACCURACY)
    at_least = 0
    for dealt in itertools.permutations(ACCURACY.values()):
        value = dict(zip(names, dealt, strict=True))
        differences = [abs(value[x] - value[y]) for x, y in zip(table["a"], table["b"], strict=True)]
        at_least += abs(spearmanr(differences, table["mean"]).statistic) >= abs(found["value"]) - 1e-9
    assert found["p"] == pytest.approx(at_least / 120)


def test_of_many_runs_permutations_are_drawn():
    runs = {chr(97 + place): float(value) for place, value in enumerate(np.random.default_rng(0).permutation(13))}
    table = comparisons(noise, runs)
    one, other = (correlate(table, runs, permutations=200, seed=seed) for seed in (0, 0))
    assert one.equals(other)
    assert 0.05 < cell(one)["p"] < 1 and (cell(one)["p"] * 200) % 1 == pytest.approx(0, abs=1e-9)


def test_given_the_number_of_tokens_nothing_is_left_of_a_similarity_that_only_counts_them():
    tokens = {name: 10.0 * place**1.5 for place, name in enumerate(ACCURACY)}

    def alike(x, y):
        return 1 - abs(tokens[x] - tokens[y]) / 100 + 0.2 * noise(x, y)

    found = cell(correlate(comparisons(alike), ACCURACY, tokens))
    x = [abs(ACCURACY[p] - ACCURACY[q]) for p, q in itertools.combinations(ACCURACY, 2)]
    y = [alike(p, q) for p, q in itertools.combinations(ACCURACY, 2)]
    z = [abs(tokens[p] - tokens[q]) for p, q in itertools.combinations(ACCURACY, 2)]
    xy, xz, yz = (spearmanr(*pair).statistic for pair in ((x, y), (x, z), (y, z)))
    assert found["partial"] == pytest.approx((xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2)), abs=1e-12)
    assert abs(found["partial"]) < abs(found["value"])
    assert np.isnan(cell(correlate(comparisons(alike), ACCURACY))["partial"])


def test_intervals_leave_out_runs():
    """A relation that hangs on one run has a wide interval, one that all runs share a narrow one."""
    steady = cell(correlate(comparisons(lambda x, y: -abs(ACCURACY[x] - ACCURACY[y])), ACCURACY))
    assert (steady["low"], steady["high"]) == pytest.approx((-1, -1))
    loose = cell(correlate(comparisons(noise), ACCURACY))
    assert loose["low"] < loose["value"] < loose["high"] and loose["high"] - loose["low"] > 0.5


def test_groups_are_correlated_apart_and_what_does_not_vary_has_no_value():
    table = pd.concat([comparisons(noise), comparisons(lambda x, y: 0.5, metric="nmi")])
    found = correlate(table, ACCURACY, groups={"a": "first", "b": "first"})
    assert set(zip(found["group"], found["metric"], strict=True)) == {
        (group, metric) for group in ("first", "all") for metric in ("iou", "nmi")
    }
    assert found.query("metric == 'nmi'")["value"].isna().all() and found.query("metric == 'nmi'")["p"].isna().all()


def test_runs_without_accuracy_are_named():
    with pytest.raises(UsageError, match=r"^no accuracy of run 'd' and 1 more$"):
        correlate(comparisons(noise), {name: ACCURACY[name] for name in "abc"})
    with pytest.raises(
        UsageError, match=r"^comparisons lack the columns block, metric; give what compare_all returns$"
    ):
        correlate(comparisons(noise).drop(columns=["block", "metric"]), ACCURACY)


def test_a_run_that_is_in_all_pairs_is_not_left_out():
    """The unreduced model stands beside every other one; without it nothing would be left."""
    rows = [("none", name, -abs(75.0 - value) + 9 * noise("a", name)) for name, value in ACCURACY.items()]
    table = pd.DataFrame(rows, columns=["a", "b", "mean"]).assign(block=3, metric="cka")
    found = cell(correlate(table, {"none": 75.0, **ACCURACY}))
    left = [[row for row in rows if row[1] != name] for name in ACCURACY]
    values = np.array([spearmanr([75 - ACCURACY[b] for _, b, _ in some], [s for *_, s in some])[0] for some in left])
    half = t.ppf(0.975, 4) * np.sqrt(4 * np.mean((values - values.mean()) ** 2))
    assert found["low"] == pytest.approx(max(found["value"] - half, -1)) and found["runs"] == 6
