"""The studies of which tokens methods keep, on records of given decisions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from decided import record_of_stages
from fake_runs import answered, found_in
from matplotlib.figure import Figure

from common.analysis import compare
from common.analysis.runs import RunData
from common.evaluation import Record, Stage
from common.report import sections as show
from common.results import read_runs, write_run
from common.studies import find_study
from common.studies.pattern_proxies import PatternProxies, correlation_figure, proxy_rows
from common.studies.reduction_patterns import ReductionPatterns, agreement_figure, depth_maps, pattern_rows

IMAGES, PATCHES = 80, 49
CONDITIONS = {"profile": "test", "backbone": "vit_digits", "weights": "w", "dataset": "noise", "img_size": 32}


def order(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((IMAGES, PATCHES)).argsort(1)


def keeping(method: str, rate: float, patches: np.ndarray, **changes: object) -> Record:
    """Keeps the first patches of each row of ``patches`` (n, P) in blocks 1 and 3."""
    counts = {1: int(rate * PATCHES), 3: int(rate**2 * PATCHES)}
    stages = {block: Stage(np.full(IMAGES, count), kept=patches[:, :count]) for block, count in counts.items()}
    return record_of_stages(stages, method, (7, 7), IMAGES, keep_rate=rate, seed=0, **changes)


def merging(method: str, groups: np.ndarray) -> Record:
    stage = Stage(np.full(IMAGES, 12), destination=groups)
    return record_of_stages({1: stage}, method, (7, 7), IMAGES, seed=0)


@pytest.fixture
def runs(tmp_path: Path) -> list[RunData]:
    """Top-K and EViT always agree, the random ones never do; ToMe and K-Medoids merge at random."""
    consistent, own = order(0), order(1)
    made = [keeping(method, rate, consistent) for method in ("topk", "evit") for rate in (0.9, 0.5)]
    made += [keeping("tram", rate, order(int(10 * rate))) for rate in (0.9, 0.5)]
    made += [keeping("l2", 0.5, np.tile(own[0], (IMAGES, 1)))]
    rng = np.random.default_rng(3)
    made += [merging(method, rng.integers(0, 12, (IMAGES, PATCHES))) for method in ("tome", "sit")]
    return [RunData.of(record) for record in made]


@pytest.fixture
def run(runs: list[RunData], tmp_path: Path) -> Path:
    write_run(pattern_rows(runs), ReductionPatterns, tmp_path / "runs/reduction_patterns/a.csv", **CONDITIONS)
    return tmp_path


def pair(table: pd.DataFrame, part: str, method: str, other: str, block: int) -> pd.Series:
    either = (table["method"] == method) & (table["other"] == other)
    either |= (table["method"] == other) & (table["other"] == method)
    rows = table[either & (table["part"] == part) & (table["block"] == block) & (table["keep_rate"] == "0.5")]
    assert len(rows) == 1
    return rows.iloc[0]


def test_rows_are_the_measures_of_the_analysis(runs: list[RunData], run: Path) -> None:
    table = found_in(run, "reduction_patterns").table
    same = pair(table, "methods", "topk", "evit", 3)
    assert (same["iou"], same["iou_excess"], same["iou_low"], same["iou_high"]) == pytest.approx((1, 1, 1, 1))
    apart = pair(table, "methods", "topk", "tram", 1)
    known = {(run.setting.method, run.setting.keep_rate): run.decisions for run in runs}
    wanted = compare(known["topk", 0.5], known["tram", 0.5])
    wanted = wanted[(wanted["block"] == 1) & (wanted["metric"] == "iou")].iloc[0]
    assert (apart["iou"], apart["iou_chance"]) == pytest.approx((wanted["mean"], wanted["chance"]))
    assert apart["iou_low"] < apart["iou_chance"] < apart["iou_high"]
    merged = pair(table, "methods", "tome", "sit", 1)
    assert pd.isna(merged["iou"]) and merged["ami_low"] < 0 < merged["ami_high"] < merged["nmi_chance"]


def test_depth_is_told_of_methods_whose_tokens_are_patches(runs: list[RunData], run: Path) -> None:
    table = found_in(run, "reduction_patterns").table
    depths = table[table["part"] == "depth"]
    assert set(depths["method"]) == {"topk", "evit", "tram", "l2"}
    half = depths[(depths["method"] == "l2")].iloc[0]
    assert half["depth"] == pytest.approx((25 * 1 + 12 * 3 + 12 * 6) / 49), (
        "24 patches stay after block 1, 12 to the end"
    )
    assert half["kept"] == "49 %, 24 %"
    maps = depth_maps(list(pattern_rows(runs)), 0.5)
    assert maps["l2 pattern"].shape == (7, 7) and sorted(set(maps["l2 pattern"].ravel())) == [1, 3, 6]


def test_one_method_at_two_rates(run: Path) -> None:
    table = found_in(run, "reduction_patterns").table
    rates = table[table["part"] == "rates"].set_index(["method", "block"])
    assert set(rates.index.get_level_values(0)) == {"topk", "evit", "tram"}
    assert rates.loc[("topk", 1), "iou"] == pytest.approx(24 / 44), "the bound of 24 patches in 44"
    assert rates.loc[("topk", 1), "iou_excess"] == pytest.approx(1)
    assert abs(rates.loc[("tram", 1), "iou_excess"]) < 0.2


def test_page_says_who_agrees(run: Path) -> None:
    found = found_in(run, "reduction_patterns")
    titles = [section.title for section in found.sections]
    assert titles[0].endswith("how deep patches come") and titles[-1].endswith("one method at two keep rates")
    matrix = next(section.frame for section in found.sections if "keep rate 50 %: patches kept" in section.title)
    cells = matrix.set_index("Model")
    assert cells.loc["Top-K", "EViT"] == cells.loc["EViT", "Top-K"] == "1.00" and cells.loc["TRAM", "TRAM"] == "-"
    answer = answered("reduction_patterns", found.table)[0]
    wanted = "keep 50 %: most alike are Top-K and EViT, 1.00 (95 % interval 1.00 to 1.00); 5 of 6 pairs no more than by"
    assert any(point.startswith(wanted) for point in answer.points)
    assert "least TRAM " in answer.points[-1]


def proxy_run(root: Path, wrong: int) -> Path:
    """The more noise there is in the features of a model, the more images, by ``wrong``, it takes for another class."""
    rng = np.random.default_rng(0)
    x, targets = rng.normal(size=(IMAGES, 4)), np.zeros(IMAGES, dtype=np.int32)
    made = []
    for place, (method, rate) in enumerate(
        [("none", 1.0), *((m, r) for m in ("topk", "evit") for r in (0.9, 0.5, 0.25))]
    ):
        taken = np.arange(IMAGES)[:, None] < wrong * place
        told = {"targets": targets, "predictions": np.where(taken, 1, np.zeros((IMAGES, 5), dtype=np.int32))}
        told |= {"accuracy": {"top1": 100 * (1 - wrong * place / IMAGES), "top5": 100.0}}
        told["cls"] = {1: x + place * rng.normal(size=x.shape), 3: x + rng.normal(size=x.shape)}
        record = (
            keeping(method, rate, order(place), **told)
            if place
            else record_of_stages({}, "none", (7, 7), IMAGES, keep_rate=1.0, seed=0, **told)
        )
        made.append(RunData.of(record))
    write_run(proxy_rows(made), PatternProxies, root / "runs/pattern_proxies/a.csv", seed=0, **CONDITIONS)
    return root


@pytest.fixture
def proxies(tmp_path: Path) -> Path:
    return proxy_run(tmp_path, wrong=8)


def test_what_accuracy_follows_is_found(proxies: Path) -> None:
    table = found_in(proxies, "pattern_proxies").table
    correlations = table[table["part"] == "correlation"].set_index(["pairs", "measure", "block"])
    found = correlations.loc[("with unreduced", "cka", 1)]
    assert found["correlation"] > 0.9 and found["p"] < 0.02 and (found["n_pairs"], found["n_models"]) == (6, 7)
    assert abs(correlations.loc[("with unreduced", "cka", 3), "correlation"]) < 0.9
    similar = table[(table["part"] == "similarity") & (table["block"] == 1)].set_index(["method", "keep_rate"])
    row = similar.loc[("topk", "0.9")]
    assert (row["accuracy"], row["accuracy_change"]) == pytest.approx((90, -10))
    assert row["accuracy_change_low"] < -10 < row["accuracy_change_high"] < 0


def test_answers_name_the_strongest_measure(proxies: Path) -> None:
    found = found_in(proxies, "pattern_proxies")
    (answer,) = answered("pattern_proxies", found.table)
    assert answer.points[0].startswith("pairs with unreduced: strongest by ")
    assert [point.partition(":")[0] for point in answer.points] == ["pairs with unreduced", "pairs of keep rates"], (
        "methods at one rate differ by the same 24 images here, so there is nothing to correlate with"
    )
    assert found.sections[0].title.endswith("similarity and difference of accuracy")


def test_one_group_of_all_patches_is_no_agreement(tmp_path: Path) -> None:
    """Two methods that put everything into one token share all, and it says nothing."""
    apart, together = np.random.default_rng(0).integers(0, 4, (IMAGES, PATCHES)), np.zeros((IMAGES, PATCHES), dtype=int)
    for name, groups in (("apart", apart), ("together", together)):
        runs = [RunData.of(merging(method, groups)) for method in ("tome", "sit")]
        path = tmp_path / name / "runs/reduction_patterns/a.csv"
        write_run(pattern_rows(runs), ReductionPatterns, path, **CONDITIONS)
    said = {
        name: answered("reduction_patterns", found_in(tmp_path / name, "reduction_patterns").table)
        for name in ("apart", "together")
    }
    assert "most alike are ToMe and SiT, 1.00" in said["apart"][0].points[0]
    assert said["together"] == []


def test_without_a_difference_in_accuracy_one_sentence_says_so(tmp_path: Path) -> None:
    """Features still stand beside those of the unreduced model; no figure, answer or verdict is made of nothing."""
    found = found_in(proxy_run(tmp_path, wrong=0), "pattern_proxies")
    why = "No rank correlation: all models have the same accuracy, 100.00 %, so no similarity can tell how it differs."
    correlations, similarities = found.sections
    assert correlations.notes[0] == why and set(correlations.frame["Correlation"]) == {show.NONE}
    assert len(similarities.frame) == 6 and set(similarities.frame["Change"]) == {"0.00 [0.00, 0.00]"}
    assert drawn_text(correlation_figure(found.runs)) == why
    assert list(found.study.figures(found.runs, {})) == answered("pattern_proxies", found.table) == []
    assert [judge(found.table) for judge in found.study.claims.values()] == [None, None, None]


def test_without_complete_pairs_one_sentence_says_so(run: Path) -> None:
    rows = found_in(run, "reduction_patterns").runs
    wanted = "No agreement about patches kept beyond chance: at no keep rate do all pairs of methods have a number."
    assert drawn_text(agreement_figure(rows[rows["part"] == "depth"], "iou_excess")) == wanted


def drawn_text(figure: Figure) -> str:
    (text,) = figure.texts
    return text.get_text().replace("\n", " ")


def test_of_several_settings_the_figure_is_of_the_one_with_the_most_images() -> None:
    """The committed runs hold one off the shelf, on 3,925 images, and one of trained models, on 2,000."""
    runs = read_runs("results/imagenette", find_study("pattern_proxies"))
    assert set(runs["n_images"]) == {3925, 2000}
    drawn = dict(find_study("pattern_proxies").figures(runs, {}))
    alone = correlation_figure(runs[runs["n_images"] == 3925])
    axes, wanted = (figure.axes[0].get_yticklabels() for figure in (drawn[""], alone))
    assert list(drawn) == [""] and [label.get_text() for label in axes] == [label.get_text() for label in wanted]
