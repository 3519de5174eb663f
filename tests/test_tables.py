"""Numbers of the tables on runs whose answers are known, and how they are printed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import (
    answered,
    found_in,
    gallery_run,
    method_grid_run,
    off_the_shelf_run,
    sizing_run,
    summarised,
    throughput_run,
    training_run,
    visualize_run,
    whole_study,
)

from common.errors import UsageError
from common.report import tables
from common.report.grids import at_equal_cost, mean_ranks, ranks
from common.report.page import facts
from common.report.paired import NOT_PAIRED, ONE_SEED, PAIRED
from common.report.published import published_sections
from common.report.sections import Section, number, spread
from common.report.tables import write_tables
from common.results import read_published, read_runs
from common.schedule import keep_rate_text
from common.studies import all_studies, find_study
from common.studies.__main__ import main
from common.studies._accuracy_claims import gain_of_evit
from common.studies.off_the_shelf import OffTheShelf


def row(frame: pd.DataFrame, **where: object) -> pd.Series:
    for name, value in where.items():
        frame = frame[frame[name] == (keep_rate_text(value) if name == "keep_rate" else value)]
    assert len(frame) == 1, f"{len(frame)} rows for {where}"
    return frame.iloc[0]


def test_mean_and_sample_sd_over_seeds(tmp_path: Path) -> None:
    for seed, (last, best) in enumerate([(90.0, 92.0), (92.0, 92.0), (97.0, 98.0)]):
        training_run(tmp_path, [10.0 + seed, best, last], method="tram", keep_rate=0.5, seed=seed)
    training_run(tmp_path, [10.0, 95.0], method="none", keep_rate=1.0, seed=0, epochs=1)
    found = row(summarised(tmp_path, "finetune"), method="tram")
    assert found["n"] == 3
    assert found["last"] == pytest.approx(93.0)
    assert found["last_sd"] == pytest.approx(13**0.5)  # (9 + 1 + 16) / (3 - 1)
    assert found["best"] == pytest.approx(94.0)
    assert found["best_sd"] == pytest.approx(12**0.5)
    assert (found["before"], found["before_sd"]) == pytest.approx((11.0, 1.0))
    assert found["epoch_seconds"] == pytest.approx(3.0)
    assert pd.isna(found["published_accuracy"])
    one = row(summarised(tmp_path, "finetune"), method="none")
    assert (one["n"], one["last"]) == (1, 95.0)
    assert pd.isna(one["last_sd"])


def test_zero_epochs_count_as_they_are(tmp_path: Path) -> None:
    training_run(tmp_path, [88.0], method="tram", keep_rate=0.5, seed=0)
    found = row(summarised(tmp_path, "finetune"))
    assert (found["last"], found["best"], found["epochs"]) == (88.0, 88.0, 0)


PAPER = {"backbone": "vit_small_patch16_224.augreg_in21k_ft_in1k", "dataset": "imagenette", "img_size": 224}
PAPER |= {"weights": "timm augreg_in21k_ft_in1k", "recipe": "pretrained", "lr": 1e-4, "batch": 64, "n_train": 9469}
PAPER |= {"start": "published"}
SIX = [10.0, 90.0, 91.0, 92.0, 93.0, 95.0]


@pytest.mark.parametrize(
    ("given", "differs"),
    [
        ({}, ""),
        ({"weights": "vit_small.safetensors"}, "weights vit_small.safetensors instead of timm augreg_in21k_ft_in1k"),
        ({"n_train": 1000, "batch": 8}, "batch 8 instead of 64; n_train 1,000 instead of 9,469"),
        ({"lr": 5e-5}, "lr 5e-05 instead of 0.0001"),
        ({"head": "dataset"}, "head dataset instead of fresh"),
        ({"start": "timm"}, "start timm instead of published"),
        ({"recipe": "center_crop"}, "recipe center_crop instead of pretrained"),
        ({"dtype": "bfloat16"}, "dtype bfloat16 instead of float32"),
    ],
)
def test_a_published_value_stands_beside_the_same_experiment_only(tmp_path: Path, given: dict, differs: str) -> None:
    for method, rate in (("tram", 0.5), ("none", 1.0), ("tram", 0.25)):
        training_run(tmp_path, SIX, method=method, keep_rate=rate, seed=0, **PAPER | given)
    found = summarised(tmp_path, "finetune")
    tram, none = row(found, keep_rate=0.5), row(found, method="none")
    assert tram["differs"] == none["differs"] == differs
    assert (tram["published_accuracy"], none["published_accuracy"]) == (95.57, 98.27) or differs
    assert not differs or found["published_accuracy"].isna().all()
    assert row(found, keep_rate=0.25)["differs"] == "", "the paper has no such row"
    section = found_in(tmp_path, "finetune").sections[0]
    assert ("Published" in section.frame) == (not differs)
    assert differs in " ".join(section.notes)


ONE_EPOCH = {"seed": 0, "method": "tram", "dataset": "imagenette", "lr": 1e-4, "batch": 64, "n_train": 9469}
TUNED = {"backbone": "vit_base_patch16_224.augreg_in21k_ft_in1k", "weights": "timm augreg_in21k_ft_in1k"}
TUNED |= {"img_size": 224, "recipe": "pretrained", **ONE_EPOCH}
SCRATCH = {"weights": "random", "img_size": 160, "recipe": "scratch", "table": "scratch", **ONE_EPOCH}


def one_epoch(root: Path, keep_rate: float, start: str, **given: object) -> pd.Series:
    training_run(root, [10.0, 90.0], keep_rate=keep_rate, start=start, **given)
    return row(summarised(root, given.get("table", "finetune")), keep_rate=keep_rate, start=start)


@pytest.mark.parametrize(("keep_rate", "accuracy"), [(0.75, 97.10), (0.5, 94.75)])
def test_what_the_notebooks_printed_after_an_epoch_stands_beside_the_same(tmp_path: Path, keep_rate, accuracy) -> None:
    """The README has values of this network too, after five epochs of other weights: one difference names them."""
    same = one_epoch(tmp_path, keep_rate, "published", **TUNED)
    assert (same["published_accuracy"], same["differs"]) == (accuracy, "")
    other = one_epoch(tmp_path, keep_rate, "timm", **TUNED)
    assert pd.isna(other["published_accuracy"]) and other["differs"] == "start timm instead of published"
    titles = [section.title for section in found_in(tmp_path, "finetune").sections]
    setting = "imagenette, ViT-B/16, 224 px, 1 epoch{}, keep rate " + f"{100 * keep_rate:g} %"
    assert sorted(titles) == [setting.format(" from the published start"), setting.format("")]


@pytest.mark.parametrize(
    ("size", "keep_rate", "accuracy", "differs"),
    [
        ("base", 0.75, 31.29, ""),
        ("small", 0.75, 32.08, ""),
        ("base", 0.5, None, "weights random instead of those of the 75 % run"),
        ("small", 0.5, None, ""),  # was interrupted: nothing is printed
    ],
)
def test_what_was_printed_of_training_from_scratch(tmp_path: Path, size, keep_rate, accuracy, differs) -> None:
    found = one_epoch(tmp_path, keep_rate, "published", backbone=f"simple_vit_{size}_patch16_160", **SCRATCH)
    assert found["differs"] == differs
    assert found["published_accuracy"] == accuracy if accuracy else pd.isna(found["published_accuracy"])


def test_rows_from_before_there_was_a_choice_of_the_start_are_timm_s(tmp_path: Path) -> None:
    path = training_run(tmp_path, SIX, method="tram", keep_rate=0.5, seed=0, **PAPER)
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame.drop(columns=["start", "loading_seconds"]).to_csv(path, index=False)
    assert row(summarised(tmp_path, "finetune"))["differs"] == "start timm instead of published"
    frame.drop(columns=["start", "head"]).to_csv(path, index=False)
    with pytest.raises(UsageError, match="does not have the columns of a finetune run; delete it and run again"):
        summarised(tmp_path, "finetune")


@pytest.mark.parametrize(
    ("method", "options", "published"),
    [
        ("topk", "", 94.88),
        ("topk", "head_fusion=mean", None),
        ("ats", "sampler=random", 95.29),
        ("ats", "", None),
        ("patchmerger", "parity=true", 85.32),
        ("patchmerger", "", None),
    ],
)
def test_the_published_variant_of_a_method_is_the_one(tmp_path: Path, method: str, options: str, published) -> None:
    training_run(tmp_path, SIX, method=method, options=options, keep_rate=0.5, seed=0, **PAPER)
    found = row(summarised(tmp_path, "finetune"))
    stated = read_published("tram_accuracy").query("dataset == 'imagenette' and keep_rate == 0.5")
    stated = stated.query(f"backbone == 'vit_small_patch16_224' and method == '{method}'")["accuracy"].item()
    assert found["published_accuracy"] == stated if published else pd.isna(found["published_accuracy"])
    assert bool(found["differs"]) == (published is None)


def test_a_keep_rate_for_each_stage_is_one_value(tmp_path: Path) -> None:
    """Three rows and three stages are no three keep rates, and neither are two."""
    for epochs in (2, 1):
        run = [10.0, *[90.0] * epochs]
        training_run(tmp_path, run, method="tram", keep_rate=(0.9, 0.7, 0.5), seed=0)
        training_run(tmp_path, run, method="none", keep_rate=1.0, seed=0)
        found = summarised(tmp_path, "finetune")
        assert row(found, method="tram", epochs=epochs)["keep_rate"] == "0.9 0.7 0.5"
    titles = [section.title for section in found_in(tmp_path, "finetune").sections]
    assert sorted(title.partition("keep rate ")[2] for title in titles) == ["90, 70, 50 %", "90, 70, 50 %"]


def test_the_same_seed_twice_is_refused(tmp_path: Path) -> None:
    first = training_run(tmp_path, [10.0, 90.0], method="tram", keep_rate=0.5, seed=0)
    first.with_name("copy.csv").write_bytes(first.read_bytes())
    with pytest.raises(UsageError, match=r"was run more than once: copy, digits_vit_small_patch16_224_tram_0\.5_1_0"):
        summarised(tmp_path, "finetune")


def test_finetune_markdown_exactly(tmp_path: Path) -> None:
    for seed, last in enumerate((94.0, 95.0, 96.0)):
        training_run(tmp_path, [10.0, last], method="none", keep_rate=1.0, seed=seed)
        training_run(tmp_path, [10.0, last - 2], method="tram", keep_rate=0.5, seed=seed)
        training_run(tmp_path, [10.0, last - 12], method="topk", keep_rate=0.5, seed=seed)
    found = found_in(tmp_path, "finetune")
    assert tables.markdown(found.study.title, found.sections, found.missing) == (
        "# Accuracy after fine-tuning\n\n"
        "## digits, ViT-S/16, 32 px, 1 epoch, keep rate 50 %\n\n"
        "| Model | Seeds | Before training | Last epoch | Best epoch | Seconds per epoch |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| no reduction | 3 | 10.00 ± 0.00 | 95.00 ± 1.00 | 95.00 ± 1.00 | 2.5 |\n"
        "| TRAM | 3 | 10.00 ± 0.00 | **93.00 ± 1.00** | **93.00 ± 1.00** | 2.5 |\n"
        "| Top-K | 3 | 10.00 ± 0.00 | 83.00 ± 1.00 | 83.00 ± 1.00 | 2.5 |\n\n"
        "Embedded default: digits, not comparable with the paper.\n"
    )


def test_throughput_stands_beside_the_published_numbers(tmp_path: Path) -> None:
    throughput_run(tmp_path, {("none", 1.0): 1.0, ("tram", 0.5): 1.9, ("tram", 0.25): 2.4})
    found = summarised(tmp_path, "throughput")
    tram = row(found[found["status"] == "measured"], method="tram", keep_rate=0.5)
    assert (tram["published_gflops"], tram["published_fps"]) == ("2.1359", "1521")
    assert (tram["fps"], tram["speedup_q1"]) == pytest.approx((38.0, 1.843))
    assert pd.isna(row(found, method="tram", keep_rate=0.25)["published_fps"])
    rest = found[found["status"] == "not run here"]
    assert rest["fps"].isna().all()
    assert len(rest) == 18 - 2 + 15 + 9 + 18, (
        "README, two benchmarks and TREWA's six reduced models, less the two we ran"
    )
    where = {"backbone": "vit_base_patch16_224", "img_size": 160}
    assert row(rest, method="ats", keep_rate=0.5, **where)["published_gflops"] == "4.0943 / 4.0989"
    assert row(rest, method="none", **where)["published_fps"] == "800.46 / 797.42 / 793.98"


def test_keep_rates_of_budgets_are_compared_at_equal_cost(tmp_path: Path) -> None:
    """A MAC ratio is the speed-up here. What saves 25.9 % meets no tenth, and nothing is said of it."""
    speeds = {("none", 1.0): 1.0, ("tram", 0.7312): 1.25, ("tram", 0.5107): 2.0, ("tome", 0.7255): 1.26}
    speeds |= {("tome", 0.5012): 1.99, ("evit", 0.6): 1.35, ("ats", 0.77): 1.24, ("ppt", 0.78): 1.25}
    throughput_run(tmp_path, speeds)
    found = found_in(tmp_path, "throughput")
    (answer,) = answered("throughput", found.table)
    assert [point.partition(" (")[0] for point in answer.points] == [
        "20 % of the multiply-accumulates saved: 1.24 to 1.26 times as fast",
        "50 % of the multiply-accumulates saved: 1.99 to 2.00 times as fast",
    ]
    assert found.missing == (), "a keep rate of one method is no hole of the others"
    assert not list(found.study.figures(found.runs, {})), "there is no keep rate to compare at"
    assert "Keep rates" not in facts(found.runs)


def test_columns_without_any_value_are_left_out(tmp_path: Path) -> None:
    for backbone, printed in (("vit_small_patch16_224", True), ("vit_large_patch16_224", False)):
        throughput_run(tmp_path / backbone, {("none", 1.0): 1.0, ("ats", 0.3): 1.9}, backbone=backbone)
        section = found_in(tmp_path / backbone, "throughput").sections[0]
        assert ("Published FPS" in section.frame, "Published GFlops" in section.frame) == (printed, printed)
        assert any(note.startswith("Published FPS") for note in section.notes) == printed


def test_a_zero_has_no_sign() -> None:
    assert [number(value) for value in (-0.004, 0.0, -0.006, 1234.5)] == ["0.00", "0.00", "-0.01", "1,234.50"]


def test_throughput_markdown_keeps_the_two_kinds_of_count_apart(tmp_path: Path) -> None:
    throughput_run(tmp_path, {("none", 1.0): 1.0, ("tram", 0.5): 2.0})
    section = found_in(tmp_path, "throughput").sections[0]
    assert section.title == "ViT-S/16, 224 px, float32, batch 16"
    assert section.frame.iloc[1].to_dict() == {
        "Model": "TRAM",
        "Keep": "50 %",
        "FPS": "40.0 [39.0, 41.0]",
        "Speed-up": "2.00 [1.94, 2.04]",
        "Share of promise": "100 %",
        "GMAC": "2.3000",
        "GMAC, thop": "2.1288",
        "Published GFlops": "2.1359",
        "Params (M)": "21.58",
        "Published FPS": "1521",
    }
    assert any("one CUDA GPU, type not recorded" in note for note in section.notes)


def test_a_speed_stands_beside_what_could_be_reached_where_that_was_measured(tmp_path: Path) -> None:
    """Twice as fast where the arithmetic promises 2 and the first tokens alone give 2.5: 100 and 80 %."""
    path = throughput_run(tmp_path, {("none", 1.0): 1.0, ("tram", 0.5): 2.0})
    measured = pd.read_csv(path)
    measured["ceiling"], measured["peak_memory_mb"] = [None, 2.5], [812.4, 640.0]
    measured.to_csv(path, index=False)
    section = found_in(tmp_path, "throughput").sections[0]
    shown = section.frame[["Share of promise", "Share of ceiling", "Peak MB"]]
    assert shown.values.tolist() == [["-", "-", "812"], ["100 %", "80 %", "640"]]
    assert "Ready in (s)" not in section.frame
    assert all(f"{said}: " in section.notes[0] for said in (*shown.columns[:2], "Peak memory"))


def test_speeds_from_before_there_were_compiled_models_are_those_of_eager_ones(tmp_path: Path) -> None:
    path = throughput_run(tmp_path, {("none", 1.0): 1.0, ("tram", 0.5): 2.0})
    new = ["runtime", "compile_seconds", "peak_memory_mb", "ceiling"]
    pd.read_csv(path).drop(columns=new).to_csv(path, index=False)
    runs = read_runs(tmp_path, find_study("throughput"))
    assert set(runs["runtime"]) == {"eager"} and runs[new[1:]].isna().all(axis=None)


def test_compiled_models_have_their_own_table_and_sentence(tmp_path: Path) -> None:
    speeds = {("none", 1.0): 1.0, ("tram", 0.5): 1.5}
    throughput_run(tmp_path, speeds)
    path = throughput_run(tmp_path, {**speeds, ("tram", 0.5): 1.8}, name="b")
    pd.read_csv(path).assign(runtime="compiled", compile_seconds=12.34).to_csv(path, index=False)
    found = found_in(tmp_path, "throughput")
    eager, compiled = found.sections[:2]
    assert [part.title for part in (eager, compiled)] == [
        "ViT-S/16, 224 px, float32, batch 16",
        "ViT-S/16, 224 px, float32, compiled, batch 16",
    ]
    assert [part.frame["Speed-up"].iloc[1][:4] for part in (eager, compiled)] == ["1.50", "1.80"]
    assert compiled.frame["Ready in (s)"].tolist() == ["12.3", "12.3"]
    first, second = found.study.answers(summarised(tmp_path, "throughput"))
    assert (first.text.split(",")[0], second.text.split(" c")[1]) == ("In float32", "ompiled,")


def test_sizing_errors(tmp_path: Path) -> None:
    sizing_run(tmp_path)
    found = summarised(tmp_path, "sizing")
    assert row(found, method="none", backbone="vit_base_patch16_224")["relative_error"] == pytest.approx(0.0)
    tram = row(found, method="tram", backbone="vit_base_patch16_224", keep_rate=0.5)
    assert tram["relative_error"] == pytest.approx(1e-4)
    assert tram["closed_form_error"] == 0
    section = found_in(tmp_path, "sizing").sections[0]
    assert section.title == "Published table README, 224 px"
    shown = section.frame.query("Model == 'TRAM' and Keep == '50 %' and Backbone == 'ViT-B/16'").iloc[0]
    assert (shown["GMAC, thop"], shown["thop itself"], shown["Published GFlops"]) == ("8.4143", "8.4135", "8.4135")
    assert section.notes[1].startswith("Largest difference of a deterministic row: 0.010 %.")


def test_off_the_shelf_pivot_and_its_leaders(tmp_path: Path) -> None:
    off_the_shelf_run(tmp_path, {("none", 1.0): (99.0, 74.2), ("tram", 0.5): (90.0, 60.0), ("topk", 0.5): (95.0, 61.0)})
    restricted, full, gmac = found_in(tmp_path, "off_the_shelf").sections
    assert restricted.frame.values.tolist() == [
        ["no reduction", "99.00", "-", "-"],
        ["TRAM", "-", "90.00 (2)", "2.00"],
        ["Top-K", "-", "95.00 (1)", "1.00"],
    ]
    assert restricted.best == full.best == set(), "nothing is known image by image"
    assert restricted.notes[-1] == NOT_PAIRED
    assert gmac.frame["50 %"].tolist() == ["-", "0.630", "0.630"]


def by_image(percent: float, shift: int = 0) -> np.ndarray:
    """A hundred images, the first ``percent`` of which are right, counted from ``shift`` on."""
    return np.roll(np.arange(100) < percent, shift)


def test_the_leader_is_tested_on_the_same_images(tmp_path: Path) -> None:
    """Three points more are certain where the same images are right, and not where others are."""
    accuracies = {("none", 1.0): (99.0, None), ("tram", 0.5): (90.0, None), ("topk", 0.5): (93.0, None)}
    right = {("none", 1.0): by_image(99), ("tram", 0.5): by_image(90), ("topk", 0.5): by_image(93)}
    off_the_shelf_run(tmp_path / "nested", accuracies, {**right, ("topk", 0.5): by_image(98)} | right)
    (nested, _) = found_in(tmp_path / "nested", "off_the_shelf").sections
    assert nested.best == set(), "an interval of 3 +- 3.4 points"
    more = {**accuracies, ("topk", 0.5): (98.0, None)}
    off_the_shelf_run(tmp_path / "more", more, right | {("topk", 0.5): by_image(98)})
    found = found_in(tmp_path / "more", "off_the_shelf")
    assert found.sections[0].best == {(2, "50 %")} and found.sections[0].notes[-1] == PAIRED
    (answer,) = answered("off_the_shelf", found.table)
    assert answer.points == (
        "keep 50 %: Top-K is highest at equal cost, 98.00 % (1 seed), 1.00 points lower (paired difference to TRAM "
        "+8.00, 95 % interval +2.59 to +13.41)",
    )
    off_the_shelf_run(tmp_path / "other", more, right | {("topk", 0.5): by_image(98, 50)})
    assert found_in(tmp_path / "other", "off_the_shelf").sections[0].best == {(2, "50 %")}
    assert not set(pd.read_csv(write_tables(tmp_path / "more", [OffTheShelf()])[0])) & {"images", "sampled_on"}


def test_ranks_are_at_equal_cost() -> None:
    """By hand: the column's costs are 4, 6 and 20; 20 is out, and all are compared at 6."""
    points = [("none", "1", 10.0, 100.0), ("tram", "0.5", 4.0, 70.0), ("topk", "0.5", 6.0, 78.0)]
    points += [("tome", "0.5", 20.0, 99.0), ("tram", "0.7", 8.0, 90.0)]
    rows = pd.DataFrame(points, columns=["method", "keep_rate", "gmac", "accuracy"]).assign(options="")
    rows["accuracy_samples"] = [np.array([value, value + 2.0]) for value in rows["accuracy"]]
    found = at_equal_cost(rows.assign(sampled_on="a"), "accuracy").set_index(["method", "keep_rate"])
    assert found["equal"]["tram", "0.5"] == pytest.approx(80.0), "half way between 70 and 90"
    assert found["equal"]["topk", "0.5"] == 78.0
    assert found["equal_samples"]["tram", "0.5"].tolist() == [80.0, 82.0]
    assert found["equal"][["none", "tome"]].isna().all()
    places = ranks(found.reset_index())
    assert places.tolist()[1:3] == [1.0, 2.0] and pd.isna(places.iloc[3])


def test_off_the_shelf_without_a_full_head(tmp_path: Path) -> None:
    off_the_shelf_run(tmp_path, {("none", 1.0): (99.0, None), ("tram", 0.5): (90.0, None)})
    titles = [section.title for section in found_in(tmp_path, "off_the_shelf").sections]
    assert len(titles) == 2
    assert not any("all classes" in title for title in titles)


GRID = {
    ("none", 1.0): 98.0,
    ("tram", 1.0): 98.0,
    ("tram", 0.9): 97.0,
    ("tram", 0.7): 96.0,
    ("tram", 0.5): 90.0,
    ("topk", 0.9): 97.0,
    ("topk", 0.7): 95.0,
    ("topk", 0.5): 95.0,
    ("tome", 0.9): 96.0,
    ("tome", 0.7): 96.0,
}


def test_ranks_by_hand() -> None:
    rows = pd.DataFrame([{"method": m, "options": "", "accuracy": a} for (m, _), a in GRID.items()])
    rows["keep_rate"] = [keep_rate_text(rate) for _, rate in GRID]
    rows["gmac"] = [rate for _, rate in GRID]
    rows = at_equal_cost(rows, "accuracy")
    found = dict(zip(GRID, ranks(rows), strict=True))
    assert [found["tram", rate] for rate in (0.9, 0.7, 0.5)] == [1, 1, 2]
    assert [found["topk", rate] for rate in (0.9, 0.7, 0.5)] == [1, 3, 1]
    assert [found["tome", rate] for rate in (0.9, 0.7)] == [3, 1]
    assert pd.isna([found["none", 1.0], found["tram", 1.0]]).all(), "the unreduced model is not ranked"
    means = mean_ranks(rows)
    assert (means["tram", ""], means["topk", ""]) == pytest.approx((4 / 3, 5 / 3))
    assert pd.isna(means["tome", ""]), "not run at 50 %"
    rows.loc[rows["keep_rate"] == "0.5", "equal"] = [95.001, 95.004]
    assert ranks(rows)[rows["keep_rate"] == "0.5"].tolist() == [1, 1], "equal as printed"


def test_method_grid_off_the_shelf(tmp_path: Path) -> None:
    method_grid_run(tmp_path, GRID)
    found = found_in(tmp_path, "method_grid")
    accuracy, cost = found.sections
    assert accuracy.title == "imagenette, ViT-Ti/16, 224 px, off the shelf"
    assert tables.markdown_table(accuracy) == (
        "| Model | 100 % | 90 % | 70 % | 50 % | Mean rank |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| no reduction | 98.00 | - | - | - | - |\n"
        "| TRAM | 98.00 | 97.00 (1) | 96.00 (1) | 90.00 (2) | 1.33 |\n"
        "| Top-K | - | 97.00 (1) | 95.00 (3) | 95.00 (1) | 1.67 |\n"
        "| ToMe | - | 96.00 (3) | 96.00 (1) | - | - |"
    )
    assert accuracy.notes[0].startswith("Top-1 accuracy in percent on 3,925 images")
    assert accuracy.notes[0].endswith("no training; 1 seed.")
    assert cost.frame.loc[2, "50 %"] == "98 49 · 0.630"
    assert cost.best == set()
    assert [line.partition(" (")[0] for line in found.missing] == ["tome at keep rate 0.5"]


def test_method_grid_after_training_over_seeds(tmp_path: Path) -> None:
    grid = {("none", 1.0): 97.0, ("tram", 0.5): 90.0, ("topk", 0.5): 95.0}
    method_grid_run(tmp_path, grid)
    for seed, shift in enumerate((0.0, 2.0)):
        run = {key: value + shift for key, value in grid.items() if (key[0], seed) != ("topk", 1)}
        method_grid_run(tmp_path, run, seed=seed, epochs=5)
    found = found_in(tmp_path, "method_grid")
    _, _, accuracy, cost, ema, best = found.sections
    assert accuracy.title == "imagenette, ViT-Ti/16, 224 px, after 5 epochs on 2,000 images"
    assert accuracy.frame.values.tolist() == [
        ["no reduction", "98.00 ± 1.41", "-", "-", "2"],
        ["TRAM", "-", "91.00 ± 1.41 (2)", "2.00", "2"],
        ["Top-K", "-", "95.00 (1)", "1.00", "1"],
    ]
    assert accuracy.best == set(), "one seed decides nothing"
    assert accuracy.notes[0].endswith(
        "5 epochs of training on 2,000 images, batch 16; mean ± standard deviation over 1-2 seeds."
    )
    assert cost.frame.loc[1, "50 %"] == "98 49.5 · 0.630"
    assert (ema.folded, best.folded) == (True, True)
    assert (ema.frame.loc[2, "50 %"], best.frame.loc[2, "50 %"]) == ("94.00 (1)", "95.50 (1)")
    assert [line.partition(" (")[0] for line in found.missing] == ["topk at keep rate 0.5, seed 1"]
    numbers = row(found.table, method="tram", epochs=5)
    assert (numbers["n"], numbers["accuracy"], numbers["params"]) == (2, 91.0, 5_717_416)


def test_method_grid_leader_over_seeds(tmp_path: Path) -> None:
    for seed in (0, 1):
        method_grid_run(tmp_path, {("tram", 0.5): 90.0 + seed, ("topk", 0.5): 95.0 + seed}, seed=seed, epochs=5)
        accuracy = found_in(tmp_path, "method_grid").sections[0]
        assert accuracy.best == ({(1, "50 %")} if seed else set())
        assert accuracy.notes[-1] == (PAIRED if seed else ONE_SEED)


def test_images_of_several_labels_are_measured_by_map(tmp_path: Path) -> None:
    """In titles, notes, answers and claims; a data set of one label beside it keeps its top-1."""
    grid = {("none", 1.0): 80.0, ("topk", 0.25): 70.0, ("evit", 0.25): 71.0}
    for seed, dataset in enumerate(("coco", "nabirds")):
        method_grid_run(tmp_path, grid, dataset=dataset, epochs=30, seed=seed)
    found = found_in(tmp_path, "method_grid")
    several, one = ([each for each in found.sections if each.title.startswith(name)] for name in ("coco", "nabirds"))
    assert several[0].title == "coco, ViT-Ti/16, 224 px, mAP after 30 epochs on 2,000 images"
    assert several[0].notes[0].startswith("mAP in percent on 3,925 images")
    assert one[0].notes[0].startswith("Top-1 accuracy in percent")
    answers = [answer.text for answer in answered("method_grid", found.table)]
    assert answers == [
        "On coco at 224 px with ViT-Ti/16, mAP after 30 epochs on 2,000 images: 80.00 % (1 seed) without reduction.",
        "On nabirds at 224 px with ViT-Ti/16, after 30 epochs on 2,000 images: 80.00 % (1 seed) without reduction.",
    ]
    ((_, figure),) = find_study("method_grid").figures(
        found.runs, {"throughput": read_runs(tmp_path, find_study("throughput"))}
    )
    assert [ax.get_ylabel() for ax in figure.axes] == ["mAP (%)", "Accuracy, dataset's classes (%)"]
    verdicts = [gain_of_evit(rows).numbers for _, rows in found.table.groupby("dataset")]
    assert verdicts == ["+1.00 (no interval) points, mAP", "+1.00 (no interval) points, top-1"]


def test_gallery_counts_who_is_right(tmp_path: Path) -> None:
    gallery_run(tmp_path)
    found = found_in(tmp_path, "gallery")
    (section,) = found.sections
    assert section.title == "digits, vit_digits, 32 px: 1 (val-7)"
    assert section.frame[["Model", "Tokens", "Predicted", "Epochs trained"]].to_numpy().tolist() == [
        ["ToMe", "16", "1", "0"],
        ["Sinkhorn", "18", "5", "1"],
    ]
    (answer,) = answered("gallery", found.table)
    assert answer.text == "val-7 (1): 1 of 2 methods see what it is, from 16 to 18 tokens."


def test_visualize_looks_at_the_last_block(tmp_path: Path) -> None:
    visualize_run(tmp_path)
    found = row(summarised(tmp_path, "visualize"))
    assert (found["n_images"], found["num_tokens"], found["same_share"]) == (4, 24.0, 0.75)
    assert found["same_share_sem"] == pytest.approx(0.25) and found["num_tokens_sem"] == 0
    assert (found["probability_full_model"], found["probability"]) == pytest.approx((0.9, 0.8))


def test_missing_conditions_are_named(tmp_path: Path) -> None:
    for method, keep_rate, seed in (("tram", 0.5, 0), ("tram", 0.5, 1), ("topk", 0.5, 0), ("tram", 0.25, 0)):
        training_run(tmp_path, [10.0, 90.0], method=method, keep_rate=keep_rate, seed=seed)
    missing = found_in(tmp_path, "finetune").missing
    assert [line.partition(" (")[0] for line in missing] == [
        "topk at keep rate 0.5, seed 1",
        "topk at keep rate 0.25, seed 0",
        "topk at keep rate 0.25, seed 1",
        "tram at keep rate 0.25, seed 1",
    ]
    empty = found_in(tmp_path, "scratch")
    assert empty.missing == ("no run of this study: no CSV in runs/scratch",)
    assert empty.sections == ()


def test_cells() -> None:
    assert spread(95.678, 0.123) == "95.68 ± 0.12"
    assert spread(95.678, float("nan")) == "95.68"
    assert spread(float("nan"), float("nan")) == "-"
    table = Section("t", pd.DataFrame({"Model": ["a|b"], "FPS": ["1"]}), best=frozenset({(0, "FPS")}))
    assert tables.markdown_table(table) == "| Model | FPS |\n| --- | ---: |\n| a\\|b | **1** |"
    assert tables.shortened([str(number) for number in range(22)])[-1] == "and 2 more"


def test_published_tables_print_as_they_were_printed() -> None:
    text = tables.markdown("Published numbers", published_sections())
    assert "| TRAM | 483 | 11.8498 | 95.62 | 96.36 | 93.50 |" in text
    assert "| TRAM_Tiny | SimpleViT-Ti/16 | 2 | 6321.82 | 0.2777 | 5481034 |" in text
    assert "| MultiViT | ViT-B/16 | 1027.11 | 6.0855 |" in text
    assert "| 97.10 | 3811 | 0.0969 | 233.16 | 3.0068 | 0.2629 |" in text


def test_command_line_writes_every_table_and_again_the_same(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    whole_study(tmp_path)
    assert main(["tables", str(tmp_path)]) == 0
    written = {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()}
    names = {f"{name}.{kind}" for name in all_studies() for kind in ("csv", "md")}
    assert set(written) == names | {"claims.csv", "claims.md", "published.md"}
    assert main(["tables", str(tmp_path)]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()} == written
    assert f"{len(written)} files in" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "tables/finetune.csv")) == 5


def test_command_line_without_runs_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["tables", str(tmp_path)]) == 0
    assert "no CSV in runs/finetune" in (tmp_path / "tables/finetune.md").read_text()
    assert main(["tables", str(tmp_path / "absent")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no results folder")
    assert error.count("\n") == 1
