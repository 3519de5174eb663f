"""The study of patterns on other data and in other backbones, on records of given decisions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from decided import record_of_stages
from fake_runs import answered, found_in

from common import plots
from common.analysis import compare, compare_maps
from common.analysis.runs import RunData
from common.errors import UsageError
from common.evaluation import Record, Stage
from common.results import write_run
from common.studies.patterns_across_data import (
    ONE_BACKBONE,
    PatternsAcrossData,
    across_rows,
    capacity_table,
    depth_maps,
    similarity_table,
)

IMAGES, GRID, PATCHES = 120, (6, 6), 36
WIDTHS = {"vit_digits": 64, "vit_digits_narrow": 32}
CONDITIONS = {"profile": "test", "img_size": 32, "recipe": "pretrained"}


def order(seed: int, lean: np.ndarray) -> np.ndarray:
    """Patches of each image (n, P), those first that score high: ``lean`` (P,) and noise."""
    noise = np.random.default_rng(seed).normal(size=(IMAGES, PATCHES))
    return (-lean - noise).argsort(1)


def keeping(method: str, patches: np.ndarray, dataset: str, backbone: str) -> Record:
    counts = {1: 18, 3: 9}
    stages = {block: Stage(np.full(IMAGES, count), kept=patches[:, :count]) for block, count in counts.items()}
    return record_of_stages(stages, method, GRID, IMAGES, seed=0, **where(dataset, backbone))


def where(dataset: str, backbone: str) -> dict[str, object]:
    ids = tuple(f"{dataset}-{number}" for number in range(IMAGES))
    return {"dataset": dataset, "backbone": backbone, "width": WIDTHS[backbone], "weights": "w", "image_ids": ids}


@pytest.fixture(scope="module")
def runs() -> list[RunData]:
    """Top-K leans to the right on both data sets, ATS to the right on one and to the left on the other; over backbones
    Top-K keeps the same patches, ATS others. ToMe merges alike in both, and everything in the end."""
    right = np.tile(np.linspace(-1.5, 1.5, 6), 6)
    made = []
    for number, dataset in enumerate(("left", "right")):
        for backbone in WIDTHS:
            own = 2 + (backbone == "vit_digits_narrow") + 10 * number
            made.append(keeping("topk", order(number, right), dataset, backbone))
            made.append(keeping("ats", order(own, right if number else -right), dataset, backbone))
            made.append(keeping("l2", np.tile(order(99, right)[0], (IMAGES, 1)), dataset, backbone))
            groups = np.random.default_rng(number).integers(0, 9, (IMAGES, PATCHES))
            last = np.zeros((IMAGES, 9), dtype=int)
            stages = {1: Stage(np.full(IMAGES, 9), destination=groups), 3: Stage(np.ones(IMAGES), destination=last)}
            made.append(record_of_stages(stages, "tome", GRID, IMAGES, seed=0, **where(dataset, backbone)))
    return [RunData.of(record) for record in made]


@pytest.fixture(scope="module")
def rows(runs: list[RunData]) -> list[dict]:
    return list(across_rows(runs, 40))


@pytest.fixture(scope="module")
def run(rows: list[dict], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write_run(rows, PatternsAcrossData, folder / "runs/patterns_across_data/a.csv", **CONDITIONS)
    return folder


def of(table: pd.DataFrame, part: str, method: str, backbone: str = "vit_digits") -> pd.DataFrame:
    return table[(table["part"] == part) & (table["method"] == method) & (table["backbone"] == backbone)]


def test_maps_of_two_data_sets_are_compared_by_all_measures(runs: list[RunData], run: Path) -> None:
    table = found_in(run, "patterns_across_data").table
    (topk,), (ats,), (fixed,) = (of(table, "datasets", name).to_dict("records") for name in ("topk", "ats", "l2"))
    assert (topk["dataset"], topk["other_dataset"], topk["n_images"], topk["other_n_images"]) == (
        "left", "right", IMAGES, IMAGES,
    )  # fmt: skip
    wanted = compare_maps(runs[0].depth_map, runs[8].depth_map)
    assert {name: topk[name] for name in wanted} == pytest.approx(wanted)
    assert topk["PCC_low"] > 0.9 and ats["PCC_high"] < -0.9 and ats["EMD_low"] > topk["EMD_high"]
    assert (fixed["PCC"], fixed["JSD"], fixed["JSD_high"]) == pytest.approx((1, 0, 0))
    assert of(table, "datasets", "tome").empty, "merged tokens are no patches"


def test_halves_of_one_data_set_say_what_the_same_is(run: Path) -> None:
    table = found_in(run, "patterns_across_data").table
    halves = of(table, "halves", "ats")
    assert sorted(halves["dataset"]) == ["left", "right"] and (halves["PCC"] > 0.9).all()
    assert halves["PCC_low"].isna().all() and halves["other_dataset"].fillna("").eq("").all()


def test_backbones_are_compared_on_the_same_images(runs: list[RunData], run: Path) -> None:
    table = found_in(run, "patterns_across_data").table
    widths = table[table["part"] == "capacity"]
    assert set(widths["backbone"]) == {"vit_digits"} and set(widths["other_backbone"]) == {"vit_digits_narrow"}
    assert of(widths, "capacity", "topk")["iou_excess"].tolist() == pytest.approx([1] * 4)
    ats = of(widths, "capacity", "ats")
    found = ats[(ats["dataset"] == "left") & (ats["block"] == 3)].iloc[0]
    wanted = compare(runs[1].decisions, runs[5].decisions)
    wanted = wanted[(wanted["block"] == 3) & (wanted["metric"] == "iou_excess")].iloc[0]
    assert (found["iou_excess"], found["iou_excess_low"]) == pytest.approx((wanted["mean"], wanted["low"]))
    tome = of(widths, "capacity", "tome").set_index("block")
    assert tome.loc[1, "ami"].tolist() == pytest.approx([1, 1]) and (tome.loc[3, "nmi_chance"] == 1).all()


def test_page_tells_maps_beside_halves_and_agreement_by_block(run: Path) -> None:
    found = found_in(run, "patterns_across_data")
    sections = {section.title: section.frame for section in found.sections}
    maps = sections["left and right, vit_digits: how alike the maps are"].set_index("Model")
    assert list(maps.index) == ["Top-K", "ATS"] and list(maps.columns) == ["Keep", "PCC", "SCC", "SIM", "EMD"]
    same = of(found.table, "halves", "ats")["PCC"].min()
    assert maps.loc["ATS", "PCC"].startswith("-0.9") and maps.loc["ATS", "PCC"].endswith(f"] ({same:.2f})")
    kept = sections["left, vit_digits and vit_digits_narrow: patches kept in two backbones"].set_index("Model")
    assert kept.loc["Top-K"].tolist() == ["50 %", "1.00 (1.00)", "1.00 (1.00)"]
    merged = sections["left, vit_digits and vit_digits_narrow: patches merged in two backbones"]
    assert list(merged.columns) == ["Model", "Keep", "Block 1"], "one group of all patches is no agreement"


def test_answers_are_made_from_the_numbers(run: Path) -> None:
    data, _, widths, *_ = answers = answered("patterns_across_data", found_in(run, "patterns_across_data").table)
    assert data.text == "Maps of depth on 120 images of left and 120 of right, with vit_digits:"
    assert data.points[0].startswith("keep 50 %: correlation from ATS -0.9") and "to Top-K 0.9" in data.points[0]
    assert data.points[1].startswith("of 2 maps, 1 certainly correlate over the data sets, 1 as far as those of two")
    assert widths.text.startswith("vit_digits and vit_digits_narrow on the same 120 images of left, patches kept")
    assert ONE_BACKBONE not in [answer.text for answer in answers]


def test_one_backbone_is_no_comparison_of_backbones(runs: list[RunData], tmp_path: Path) -> None:
    some = across_rows([run for run in runs if run.setting.backbone == "vit_digits"], 20)
    write_run(some, PatternsAcrossData, tmp_path / "runs/patterns_across_data/a.csv", **CONDITIONS)
    found = found_in(tmp_path, "patterns_across_data")
    assert answered("patterns_across_data", found.table)[-1].text == ONE_BACKBONE
    assert not [section for section in found.sections if "two backbones" in section.title]
    with pytest.raises(UsageError, match="runs on left cannot be compared; give two data sets or more"):
        list(across_rows(runs[:4]))


def test_figures_have_what_the_rows_say(rows: list[dict], run: Path) -> None:
    table = pd.DataFrame(rows).assign(**CONDITIONS)
    similar = similarity_table(table)
    assert similar["label"].tolist() == ["Top-K", "ATS", "two halves"] * 2, "no fixed pattern"
    assert set(similar["pair"]) == {"left and right"}
    assert list(similar["panel"].unique()) == ["vit_digits, 50 %", "vit_digits_narrow, 50 %"]
    assert len(plots.map_similarity(similar).axes) == 2
    kept = capacity_table(table, "iou_excess")
    assert set(kept["method"]) == {"topk", "ats", "l2"} and kept["pair"].nunique() == 2
    assert set(capacity_table(table, "ami")["block"]) == {1}
    maps = depth_maps(rows, "vit_digits", GRID)
    assert list(maps) == ["Top-K", "ATS", "l2 pattern"] and list(maps["ATS"]) == ["left\n50 %", "right\n50 %"]
    assert maps["ATS"]["left\n50 %"][:, 0].mean() > maps["ATS"]["left\n50 %"][:, 5].mean() + 2


@pytest.mark.parametrize("measure", ["iou_excess", "ami"])
def test_one_backbone_is_compared_with_no_other(measure):
    """Rows of one backbone have no columns of two."""
    assert capacity_table(pd.DataFrame([{"part": "datasets", "method": "tram", "PCC": 0.5}]), measure).empty
