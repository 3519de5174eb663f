"""The patterns of trained models: the grid leaves its records, and the studies of patterns read them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from fake_runs import answered, found_in

from common.analysis.runs import find_records, trained_runs
from common.errors import UsageError
from common.evaluation import Record
from common.evaluation.registry import build_registry
from common.results import write_run
from common.setup import Setup
from common.studies import method_grid
from common.studies.method_grid import Kept
from common.studies.pattern_proxies import PatternProxies, proxy_rows
from common.studies.patterns_across_data import across_rows, runs_across
from common.studies.reduction_patterns import ReductionPatterns, pattern_rows
from common.training import protocol
from common.training.experiment import Experiment
from rehearsal_data import write_datasets

CONFIG = protocol("tram", epochs=1, lr=1e-3, batch_size=40, seed=0, device="cpu")
DIGITS = Experiment("vit_digits", "digits", CONFIG, img_size=32, limit_train=40, limit_val=90)
SETUP = Setup("vit_digits", "", "digits", 32, limit_val=90, device="cpu")
METHODS, RATES = ["none", "topk", "evit", "tome"], [0.9, 0.5]


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    """The folder of records, and the rows, of four methods at two rates."""
    folder = tmp_path_factory.mktemp("grid") / "records"
    return folder, pd.DataFrame(method_grid.measure(DIGITS, METHODS, RATES, Kept(records=str(folder), cls_at=(3, 5))))


def test_each_trained_cell_leaves_its_record_by_data_set_seed_and_key(grid) -> None:
    folder, rows = grid
    found = find_records([folder])
    assert {str(path.parent.relative_to(folder)) for path in found} == {
        "digits/seed-0/vit_digits--_",
        *(f"digits/seed-0/{name}_vit_digits-1_3_4-_{rate}" for name in METHODS[1:] for rate in RATES),
    }
    for path, setting in found.items():
        record = Record.load(path, with_cls=True)
        same = rows["method"] == setting.method
        row = rows[same & (rows["keep_rate"] == ("1" if setting.method == "none" else str(setting.keep_rate)))].iloc[0]
        assert record.accuracy["top1"] == pytest.approx(row["accuracy"])
        assert (list(record.cls), record.cls[5].shape) == ([3, 5], (90, 64))
        assert setting.training == {"epochs": 1, "lr": 1e-3, "n_train": 40} and setting.weights == row["weights"]


def test_the_table_of_runs_has_them_as_trained(grid) -> None:
    table = build_registry(grid[0])
    assert len(table) == 7 and set(table["epochs"]) == set(table["epoch"]) == {1}
    after = grid[1][grid[1]["epochs"] == 1]
    assert sorted(table["max_accuracy"]) == pytest.approx(sorted(after["accuracy"]))


def test_a_block_that_is_not_there_is_refused_before_the_training(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"12"):
        method_grid.run_cell(DIGITS, Kept(records=str(tmp_path / "records"), cls_at=(12,)))
    assert not list(tmp_path.rglob("*.npz"))


def test_the_studies_of_patterns_read_them_and_say_so(grid, tmp_path) -> None:
    runs = trained_runs(grid[0], SETUP, METHODS, RATES)
    order = [(run.setting.method, run.setting.keep_rate) for run in runs]
    assert order == [("none", 1), *((name, rate) for name in METHODS[1:] for rate in RATES)]
    given = {"profile": "test", **SETUP.conditions, "seed": 0}
    write_run(proxy_rows(runs), PatternProxies, tmp_path / "runs/pattern_proxies/a.csv", **given)
    write_run(pattern_rows(runs[1:]), ReductionPatterns, tmp_path / "runs/reduction_patterns/a.csv", **given)
    setting = "digits, vit_digits, 32 px, after 1 epoch on 40 images"
    for name, title in (("pattern_proxies", f"{setting}: "), ("reduction_patterns", f"{setting}, 90 images: ")):
        found = found_in(tmp_path, name)
        assert set(found.runs["epochs"]) == {1} and set(found.runs["n_train"]) == {40}
        assert found.sections[0].title.startswith(title)
        measured = found.study.measured_on(found.table)
        assert measured == "digits at 32 px with vit_digits (random), after 1 epoch on 40 images, 90 images"
    similar = found_in(tmp_path, "pattern_proxies").runs.query("part == 'similarity'")
    changes = grid[1].set_index(["method", "keep_rate"])["accuracy"]
    for row in similar.itertuples():
        assert row.accuracy_change == pytest.approx(changes[row.method, row.keep_rate] - changes["none", "1"])
    assert answered("pattern_proxies", found_in(tmp_path, "pattern_proxies").table)


@pytest.mark.parametrize(
    ("asked", "missing"),
    [
        ({"methods": ["none", "ats"]}, "ats at keep rate 0.9, seed 0; ats at keep rate 0.5, seed 0"),
        ({"seeds": [0, 1], "methods": ["none"]}, "none at keep rate 1, seed 1"),
    ],
)
def test_a_model_that_was_not_trained_is_named(grid, asked, missing) -> None:
    with pytest.raises(UsageError) as refused:
        trained_runs(**{"folder": grid[0], "setup": SETUP, "methods": METHODS, "keep_rates": RATES, **asked})
    assert f"has no record of vit_digits trained on digits with {missing}; " in str(refused.value)


def test_images_of_several_labels_have_a_change_of_map_and_no_interval(grid, tmp_path, monkeypatch) -> None:
    """Beside those of one label: each data set has its own rows, and both their maps of depth."""
    write_datasets(tmp_path, ["coco"])
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    coco = replace(DIGITS, dataset="coco", head="fresh", recipe="which_tokens", limit_train=None, limit_val=None)
    rows = method_grid.measure(coco, METHODS, RATES, Kept(records=str(grid[0]), cls_at=(5,)))
    accuracies = {(row["method"], row["keep_rate"]): row["accuracy"] for row in rows}
    setup = replace(SETUP, dataset="coco", limit_val=None)
    similar = [row for row in proxy_rows(trained_runs(grid[0], setup, METHODS, RATES)) if row["part"] == "similarity"]
    for row in similar:
        key = row["method"], row["keep_rate"]
        assert row["accuracy"] == pytest.approx(accuracies[key], abs=1e-6)
        assert row["accuracy_change"] == pytest.approx(accuracies[key] - accuracies["none", "1"], abs=1e-6)
        assert pd.isna([row["accuracy_change_low"], row["accuracy_change_high"]]).all()
    runs = runs_across("nowhere", [SETUP, setup], METHODS, RATES, trained=str(grid[0]))
    over = [row for row in across_rows(runs, resamples=10) if row["part"] == "datasets"]
    assert {(row["method"], row["keep_rate"]) for row in over} == {
        (name, rate) for name in ("topk", "evit") for rate in ("0.9", "0.5")
    }
    assert {(row["dataset"], row["other_dataset"], row["n_train"]) for row in over} == {("digits", "coco", 40)}
