"""Published claims: every test decides hand-made numbers as it should, and tables and page print the verdicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import method_grid_run, off_the_shelf_run

from common.report.claims import CLAIMS, NOT_RUN, VERDICTS, claims, claims_table, judge, summary
from common.report.page import write_report
from common.report.tables import findings, write_tables
from common.results import read_published
from common.studies import all_studies, find_study

IMAGES = 1000
ACCURACY = find_study("off_the_shelf").claims
PATTERNS = find_study("reduction_patterns").claims
PROXIES = find_study("pattern_proxies").claims
ACROSS = find_study("patterns_across_data").claims
TEN = ["topk:head_fusion=mean", "evit", "dynamicvit", "ats", "tome", "kmedoids", "dpcknn", "patchmerger"]
TEN += ["sinkhorn", "sit"]


def accuracies(right: dict[tuple[str, float], int], images: int = IMAGES) -> pd.DataFrame:
    """Rows of models that are right on the first so many images, their keep rates and values by image."""
    rows = []
    for (text, rate), count in right.items():
        name, _, options = text.partition(":")
        samples = 100.0 * (np.arange(images) < count)
        row = {"method": name, "options": options, "keep_rate": f"{rate:g}", "accuracy": samples.mean()}
        rows.append({**row, "accuracy_samples": samples, "sampled_on": "these"})
    return pd.DataFrame(rows).assign(dataset="imagenette")


def at(rates: dict[float, dict[str, int]]) -> pd.DataFrame:
    return accuracies({(name, rate): count for rate, models in rates.items() for name, count in models.items()})


BEHIND = dict.fromkeys(TEN[1:], 500)
SECOND, FOURTH = {"tome": 800}, {"tome": 800, "ats": 790, "evit": 780}


@pytest.mark.parametrize(
    ("ahead", "outcome", "sure"),
    [
        ([{}, {}, SECOND], "supported", "certainly first in 2 of 3 cases, certainly not in 1"),
        ([SECOND, SECOND, SECOND], "not supported", "certainly first in 0 of 3 cases, certainly not in 3"),
        ([{}, SECOND, {"tome": 701}], "undecided", "certainly first in 1 of 3 cases, certainly not in 1"),
    ],
)
def test_topk_is_first_in_a_third_of_the_rates(ahead: list[dict], outcome: str, sure: str) -> None:
    """700 of 1,000 right against 500: certain; against 701: not. What is right at 25 % is no case."""
    cases = {rate: {TEN[0]: 700, **BEHIND, **more} for rate, more in zip((0.9, 0.7, 0.5), ahead, strict=True)}
    found = ACCURACY["topk_first"](at(cases | {0.25: {TEN[0]: 1, **BEHIND}}))
    assert found.outcome == outcome and found.numbers.startswith(sure)


@pytest.mark.parametrize(
    ("ahead", "outcome"),
    [([SECOND, {}, SECOND], "supported"), ([SECOND, FOURTH, {}], "not supported"), ([{}, {}, None], "undecided")],
)
def test_topk_is_among_three_in_83_percent_of_the_rates(ahead: list[dict | None], outcome: str) -> None:
    """Two of three are fewer; with four that are as good as Top-K it is open whether it is third."""
    level = dict.fromkeys(TEN[1:5], 700)
    cases = {
        rate: {TEN[0]: 700, **BEHIND, **(level if more is None else more)}
        for rate, more in zip((0.9, 0.7, 0.5), ahead, strict=True)
    }
    found = ACCURACY["topk_among_three"](at(cases))
    assert found.outcome == outcome
    if outcome == "not supported":
        assert "70 %: place 4 of 10, best is ToMe +10.00 (+8.14 to +11.86)" in found.numbers


def test_a_place_among_few_methods_is_no_case_and_variants_do_not_count_twice() -> None:
    assert ACCURACY["topk_first"](at({0.5: {TEN[0]: 700, "evit": 1, "ats": 1}})) is None
    assert ACCURACY["topk_first"](at({0.5: {"tome": 1, "evit": 1, "ats": 1, "l2": 1, "tram": 900}})) is None
    parity = {"tome": 1, "tome:parity=true": 980}
    variants = {"topk": 990, **parity, "dpcknn:equal_weight=true": 1, "tram": 999, "l1": 999}
    found = ACCURACY["topk_first"](at({0.5: {TEN[0]: 700, "evit": 1, "ats": 1, **variants}}))
    assert found.outcome == "supported" and "place 1 of 5" in found.numbers
    alone = ACCURACY["topk_first"](at({0.5: {TEN[0]: 700, "evit": 1, "ats:parity=true": 1, "tome:parity=true": 980}}))
    assert "place 2 of 4" in alone.numbers, "a method run as its authors did stands for it"


@pytest.mark.parametrize(
    ("evit", "outcome", "numbers"),
    [
        (710, "supported", "+1.00 (+0.38 to +1.62) points, top-1"),
        (690, "not supported", "-1.00 (-1.62 to -0.38) points, top-1"),
        (760, "not supported", "+6.00 (+4.53 to +7.47) points, top-1"),
        (701, "undecided", "+0.10 (-0.10 to +0.30) points, top-1"),
        (718, "undecided", "+1.80 (+0.97 to +2.63) points, top-1"),
    ],
)
def test_evit_gains_up_to_two_points(evit: int, outcome: str, numbers: str) -> None:
    found = ACCURACY["evit_at_25"](at({0.25: {TEN[0]: 700, "evit": evit}}))
    assert (found.outcome, found.numbers) == (outcome, numbers)


def test_without_values_of_the_same_images_nothing_is_decided() -> None:
    rows = at({0.25: {TEN[0]: 700, "evit": 710}})
    for changes in ({"sampled_on": ["these", "others"]}, {"accuracy_samples": [None, None]}):
        found = ACCURACY["evit_at_25"](rows.assign(**changes))
        assert (found.outcome, found.numbers) == ("undecided", "+1.00 (no interval) points, top-1")
    one_seed = accuracies({(TEN[0], 0.25): 0, ("evit", 0.25): 1}, images=1)
    assert ACCURACY["evit_at_25"](one_seed).outcome == "undecided"


@pytest.mark.parametrize(
    ("ats", "outcome"),
    [
        (4006, "supported"),
        (4002, "undecided"),
        (4000, "not supported"),
        (3950, "not supported"),
        (4090, "not supported"),
    ],
)
def test_five_methods_exceed_the_unreduced_model_by_half_a_point(ats: int, outcome: str) -> None:
    right = {("none", 1): 4000, **{(name, 0.9): 4006 for name in (TEN[0], "evit", "tome")}, ("ats", 0.9): ats}
    found = ACCURACY["above_unreduced_at_90"](accuracies(right, images=5000))
    assert found.outcome == outcome and found.numbers.endswith("; not run: DynamicViT")
    assert ACCURACY["above_unreduced_at_90"](accuracies({("ats", 0.9): 4, ("tome", 0.5): 5})) is None


def test_accuracy_among_all_classes_of_the_head_goes_before() -> None:
    rows = at({0.25: {TEN[0]: 700, "evit": 690}})
    full = accuracies({(TEN[0], 0.25): 300, ("evit", 0.25): 310})
    rows = rows.assign(accuracy_full=full["accuracy"], accuracy_full_samples=full["accuracy_samples"])
    found = ACCURACY["evit_at_25"](rows)
    assert found.outcome == "supported" and found.numbers.endswith("points, top-1 among all classes of the head")


def agreement(part: str, measure: str, **values: float | tuple[float, float, float]) -> pd.DataFrame:
    """Rows of two blocks for each pair, written method or method__other; a number has an interval of 0.02 around it."""
    rows = []
    for name, value in values.items():
        method, _, other = name.partition("__")
        mean, low, high = value if isinstance(value, tuple) else (value, value - 0.01, value + 0.01)
        for away in (-0.05, 0.05):  # of two blocks
            ends = {f"{measure}_low": low + away, f"{measure}_high": high + away}
            row = {"part": part, "method": method, "options": "", "other": other or method, measure: mean + away}
            rows.append({**row, **ends})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("measure", "claim", "values", "outcome"),
    [
        ("iou_excess", "pruning_over_rates", {"topk": 0.9, "evit": 0.5, "ats": 0.3}, "supported"),
        ("iou_excess", "pruning_over_rates", {"topk": 0.9, "ats": 0.5}, "not supported"),
        ("iou_excess", "pruning_over_rates", {"topk": 0.9, "evit": 0.3, "ats": 0.3}, "not supported"),
        ("iou_excess", "pruning_over_rates", {"topk": 0.9, "ats": (0.39, 0.37, 0.41)}, "undecided"),
        ("ami", "hard_clusters_over_rates", {"tome": 0.5, "kmedoids": 0.42}, "supported"),
        ("ami", "hard_clusters_over_rates", {"tome": 0.5, "kmedoids": 0.3}, "not supported"),
        ("ami", "hard_clusters_over_rates", {"tome": 0.4, "kmedoids": 0.5}, "undecided"),
        ("iou_excess", "hard_centres_over_rates", {"dpcknn": 0.1, "kmedoids": -0.2}, "supported"),
        ("iou_excess", "hard_centres_over_rates", {"dpcknn": 0.1, "kmedoids": 0.8}, "not supported"),
        ("iou_excess", "hard_centres_over_rates", {"dpcknn": (0.3, 0.1, 0.5)}, "undecided"),
        ("ami", "soft_over_rates", {"patchmerger": 0.2, "sit": 0.1}, "supported"),
        ("ami", "soft_over_rates", {"sinkhorn": 0.6}, "not supported"),
        ("ami", "soft_over_rates", {"sinkhorn": 0.4}, "undecided"),
    ],
)
def test_consistency_over_keep_rates(measure: str, claim: str, values: dict, outcome: str) -> None:
    rows = agreement("rates", measure, **values, tram=0.9, l2=1.0)
    assert PATTERNS[claim](rows).outcome == outcome
    assert PATTERNS[claim](rows[~rows["method"].isin(values)]) is None
    assert PATTERNS[claim](rows.assign(part="methods")) is None


def test_numbers_are_means_over_blocks_and_name_the_variant() -> None:
    rows = agreement("rates", "ami", dpcknn=0.5).assign(options="equal_weight=true")
    assert PATTERNS["hard_clusters_over_rates"](rows).numbers == "DPC-KNN (equal_weight=true) 0.50 (0.49 to 0.51)"


@pytest.mark.parametrize(
    ("measure", "claim", "values", "outcome"),
    [
        ("iou_excess", "pruning_over_capacity", {"topk": 0.1, "ats": 0.3}, "supported"),
        ("iou_excess", "pruning_over_capacity", {"topk": 0.1, "ats": 0.5}, "not supported"),
        ("iou_excess", "pruning_over_capacity", {"topk": 0.1, "ats": 0.4}, "undecided"),
        ("ami", "hard_clusters_over_capacity", {"tome": 0.5, "dpcknn": 0.45}, "supported"),
        ("ami", "hard_clusters_over_capacity", {"tome": 0.5, "dpcknn": 0.35}, "not supported"),
        ("ami", "patchmerger_over_capacity", {"patchmerger": 0.6}, "supported"),
        ("ami", "patchmerger_over_capacity", {"patchmerger": 0.4}, "undecided"),
    ],
)
def test_consistency_over_capacity(measure: str, claim: str, values: dict, outcome: str) -> None:
    """Where the claim names keep rates, lower ones do not count, nor groups of all patches."""
    rows = agreement("capacity", measure, **values, l2=1.0).assign(keep_rate="0.9", nmi_chance=0.5)
    low = rows.assign(keep_rate="0.25", **{measure: 0.0, f"{measure}_low": 0.0, f"{measure}_high": 0.0})
    one = rows.assign(nmi_chance=1.0, **{measure: 1.0})
    assert ACROSS[claim](pd.concat([rows, low, one] if measure == "ami" else [rows])).outcome == outcome
    assert ACROSS[claim](rows.assign(part="datasets")) is None
    assert measure == "iou_excess" or ACROSS[claim](low) is None


@pytest.mark.parametrize(
    ("values", "correlate", "weaker"),
    [
        ({"topk": 0.8, "ats": 0.5, "kmedoids": 0.3}, "supported", "supported"),
        ({"topk": 0.8, "ats": 0.3, "kmedoids": 0.5}, "not supported", "not supported"),
        ({"topk": 0.8, "ats": 0.405, "kmedoids": 0.4}, "undecided", "undecided"),
        ({"topk": 0.8, "evit": (0.7, 0.2, 1.0), "dpcknn": 0.1}, "undecided", "supported"),
    ],
)
def test_correlation_over_data(values: dict, correlate: str, weaker: str) -> None:
    rows = agreement("datasets", "PCC", **values, l2=1.0)
    assert ACROSS["pruning_over_data"](rows).outcome == correlate
    assert ACROSS["others_weaker_over_data"](rows).outcome == weaker
    assert ACROSS["others_weaker_over_data"](rows[rows["method"].isin(["topk", "ats", "evit"])]) is None
    assert ACROSS["pruning_over_data"](rows.assign(part="halves")) is None


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ({"topk__l1": 0.05, "linf__ats": -0.1}, "supported"),
        ({"topk__l1": 0.05, "linf__ats": 0.3}, "not supported"),
        ({"topk__l1": 0.1, "topk__l2": 0.28, "evit__l2": 0.2}, "undecided"),
    ],
)
def test_overlap_with_fixed_patterns(values: dict, outcome: str) -> None:
    """In whatever order a pair stands; patterns with each other and other methods do not count."""
    rows = agreement("methods", "iou_excess", **values, l1__l2=0.9, topk__evit=0.9, l1__tram=0.9)
    found = PATTERNS["fixed_patterns_overlap"](rows)
    assert found.outcome == outcome
    if outcome == "supported":
        assert found.numbers == "Top-K 0.05 (0.04 to 0.06); ATS -0.10 (-0.11 to -0.09)"


def correlation(measure: str, methods: tuple, rates: tuple | None) -> pd.DataFrame:
    """Rows of the last block of both kinds of pairs, and of an earlier block that must not count."""
    rows = []
    for pairs, span in (("of methods", methods), ("of keep rates", rates)):
        for block, ends in ((3, (0.0, -0.1, 0.1)), (11, span)):
            if span:
                value = dict(zip(("correlation", "correlation_low", "correlation_high"), ends, strict=True))
                rows.append({"part": "correlation", "measure": measure, "pairs": pairs, "block": block, **value})
    return pd.DataFrame(rows).assign(n_models=9)


@pytest.mark.parametrize(
    ("claim", "measure", "methods", "rates", "outcome"),
    [
        ("procrustes_and_accuracy", "procrustes", (0.9, 0.8, 1.0), (0.8, 0.72, 0.9), "supported"),
        ("procrustes_and_accuracy", "procrustes", (0.9, 0.8, 1.0), (0.5, 0.4, 0.6), "not supported"),
        ("procrustes_and_accuracy", "procrustes", (0.9, 0.8, 1.0), (0.75, 0.6, 0.9), "undecided"),
        ("nmi_and_accuracy", "nmi", (-0.9, -1.0, -0.8), (-0.8, -0.9, -0.72), "supported"),
        ("nmi_and_accuracy", "nmi", (-0.9, -1.0, 1.0), (-0.8, -0.9, -0.72), "undecided"),
        ("nmi_and_accuracy", "nmi", (-0.3, -0.6, 0.0), (-0.8, -0.9, -0.72), "not supported"),
        ("iou_and_accuracy", "iou", (-0.5, -0.6, -0.42), (-0.9, -1.0, -0.8), "supported"),
        ("iou_and_accuracy", "iou", (-0.2, -0.3, -0.1), (-0.9, -1.0, -0.8), "not supported"),
        ("iou_and_accuracy", "iou", (-0.5, -0.7, -0.3), (-0.9, -1.0, -0.8), "undecided"),
    ],
)
def test_proxies_of_accuracy(claim: str, measure: str, methods: tuple, rates: tuple, outcome: str) -> None:
    """After the last block, whatever its sign; a similarity goes down where the difference in accuracy goes up."""
    found = PROXIES[claim](correlation(measure, methods, rates))
    assert found.outcome == outcome and found.numbers.startswith("pairs of methods, block 11, 9 models: 0.")
    assert PROXIES[claim](correlation(measure, methods, None)) is None
    assert PROXIES[claim](correlation("cka", methods, rates)) is None


def test_thresholds_of_the_printed_tests_are_those_of_the_code() -> None:
    """Just inside and just outside of each limit that the text of a test says."""
    table = read_published(CLAIMS, as_printed=True).set_index("claim")
    limits = {"topk_first": "36 %", "topk_among_three": "83 %", "evit_at_25": "above 0 and at most 2 points"}
    limits |= {"above_unreduced_at_90": "above 0 and at most 0.5 points", "fixed_patterns_overlap": "at most 0.2"}
    limits |= dict.fromkeys(["hard_clusters_over_rates", "iou_and_accuracy"], "at least 0.4")
    limits |= dict.fromkeys(["hard_centres_over_rates", "soft_over_rates", "pruning_over_rates"], "at most 0.4")
    limits |= dict.fromkeys(["hard_clusters_over_capacity", "patchmerger_over_capacity"], "at least 0.4")
    limits |= {"pruning_over_data": "at least 0.4 for every one", "pruning_over_capacity": "at most 0.4"}
    limits |= {"others_weaker_over_data": "of each of the three lower than of each of Top-K, EViT and ATS"}
    limits |= dict.fromkeys(["procrustes_and_accuracy", "nmi_and_accuracy"], "at least 0.7")
    assert all(limit in table.loc[claim, "test"].replace("At ", "at ") for claim, limit in limits.items())
    assert set(limits) == set(ACCURACY) | set(PATTERNS) | set(PROXIES) | set(ACROSS)
    for edge, outcome in ((0.401, "supported"), (0.399, "undecided")):
        rows = agreement("rates", "ami", tome=(0.45, edge, 0.5))
        assert PATTERNS["hard_clusters_over_rates"](rows).outcome == outcome


def test_every_claim_has_a_source_and_is_tested_by_the_studies_and_columns_that_it_names() -> None:
    table, studies = read_published(CLAIMS, as_printed=True), all_studies()
    assert len(table) == table["claim"].nunique() == 17
    assert list(table) == ["claim", "source", "statement", "test", "studies", "columns"]
    assert table["source"].str.contains("arXiv 2308.04657").all()
    assert (table[["statement", "test"]].map(len) > 40).all().all() and table["statement"].str.endswith(".").all()
    tested = {name: set(study.claims) for name, study in studies.items() if study.claims}
    named = {name: set(table["claim"][table["studies"].str.split().map(set) >= {name}]) for name in tested}
    assert named == tested and set(" ".join(table["studies"]).split()) == set(tested)
    for row in table.itertuples():
        columns = {column for name in row.studies.split() for column in studies[name].columns}
        assert set(row.columns.split()) <= columns


def test_a_verdict_is_one_of_four_and_without_an_interval_it_is_open() -> None:
    assert VERDICTS == ("supported", "not supported", "undecided", "not run")
    assert judge(float("nan"), float("nan"), least=0.4) == "undecided"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """EViT right on 30 images more than Top-K off the shelf; one seed of trained models."""
    some = {("none", 1.0): 3000, ("topk", 0.25): 2900, ("evit", 0.25): 2930}
    right = {key: np.arange(3925) < count for key, count in some.items()}
    accuracies = {key: (99.0, 100 * count / 3925) for key, count in some.items()}
    off_the_shelf_run(tmp_path, accuracies, right)
    trained = {("none", 1.0): 90.0, ("topk", 0.25): 70.0, ("evit", 0.25): 71.0}
    method_grid_run(tmp_path, trained, epochs=3)
    return tmp_path


def test_each_setting_has_a_verdict_that_says_what_it_was_measured_on(results: Path) -> None:
    found = claims([findings(results, study) for study in all_studies().values()])
    by_name = {claim.name: claim for claim in found}
    assert [claim.name for claim in found] == read_published(CLAIMS)["claim"].tolist()
    shelf, grid = by_name["evit_at_25"].ours
    assert "imagenette at 224 px with ViT-Ti/16" in shelf.measured_on and "off the shelf, 3,925" in shelf.measured_on
    assert "after 3 epochs on 2,000 images, 1 seed" in grid.measured_on
    assert grid.verdict.outcome == "undecided" and grid.verdict.numbers == "+1.00 (no interval) points, top-1"
    assert by_name["topk_first"].ours == by_name["pruning_over_data"].ours == ()
    table = claims_table(found)
    assert (table["outcome"] == NOT_RUN).sum() == 16 and len(table) == 18
    assert summary(found).startswith("17 claims: ") and "16 not run" in summary(found)


def test_tables_and_page_print_them(results: Path) -> None:
    write_tables(results, all_studies().values())
    text = (results / "tables/claims.md").read_text(encoding="utf-8")
    assert "## At a keep rate of 25 %, EViT's fused token gains up to 2 points over Top-K.\n" in text
    assert "- **undecided** on " in text and "- **not run**" in text and "They are other experiments" in text
    assert pd.read_csv(results / "tables/claims.csv")["claim"].nunique() == 17
    page = write_report(results, all_studies()).read_text(encoding="utf-8")
    assert '<span class="verdict undecided">undecided</span> on imagenette' in page
    assert "fine-tuned on DeiT-Ti, -S and -B and four data sets" in page and page.count('class="claim"') == 17
