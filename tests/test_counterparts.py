"""Every printed number has the run that measures it again, or its reason."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from common.results import PUBLISHED, read_published
from common.yaml_files import read_yaml
from counterparts import KEYS, NOT_RUN, counterparts, is_meant, reason, shipped_runs
from profile_file import ROOT

# Table -> rows that are run again, and rows that have a reason why not.
COVERED = {
    "tram_accuracy": (60, 0),
    "tram_throughput_vit": (30, 0),
    "tram_throughput_simple_vit": (18, 0),
    "trewa_efficiency": (21, 0),
    "tram_training": (4, 3),
    "patch_slimming": (13, 19),
    "patch_slimming_figures": (28, 0),
    "patch_idling": (7, 10),
    "mutex_auc": (6, 0),
    "which_tokens_claims": (17, 0),
}


@pytest.fixture(scope="module")
def runs():
    return shipped_runs()


@pytest.mark.parametrize("table", COVERED)
def test_every_row_has_its_run_or_its_reason(table, runs):
    found = counterparts(table, runs)
    without = found["why"] == ""
    missing = found[without & found["runs"].map(lambda names: None in names or len(names) < len(KEYS[table]))]
    assert missing.drop(columns=["source", "why"]).to_dict("records") == []
    assert (int(without.sum()), int((~without).sum())) == COVERED[table]


def test_every_table_is_looked_at():
    assert set(KEYS) == set(COVERED) == {path.stem for path in (ROOT / PUBLISHED).glob("*.csv")}


def test_every_reason_is_of_a_row_or_of_what_no_row_claims():
    for entry in read_yaml(NOT_RUN):
        rows = read_published(entry["table"])
        meant = any(is_meant(entry, entry["table"], row) for _, row in rows.iterrows())
        assert meant == ("rows" in entry) and ("rows" in entry) != ("not_printed" in entry), entry


@pytest.mark.parametrize(
    ("table", "row", "run"),
    [
        (
            "tram_accuracy",
            {"backbone": "vit_small_patch16_224", "dataset": "cifar10", "method": "ats", "keep_rate": 0.5},
            (
                "tram--finetune--published-cifar10-vit_small_patch16_224.augreg_in21k_ft_in1k-ats_sampler_random-k50-s42",
            ),
        ),
        ("patch_slimming", {"variant": "DPS", "model": "DeiT-Ti"}, ("patch_slimming--slimming--dynamic-",)),
        ("patch_slimming_figures", {"part": "stages"}, ("patch_slimming--slimming--imagenet-deit_small",)),
        ("patch_slimming_figures", {"block": 10, "score": "random"}, ("patch_slimming--slimming--figures-",)),
        ("patch_idling", {"tau": 0.9, "attention": "standard"}, ("idling--idling--patches-",)),
        ("mutex_auc", {"model": "DeiT"}, ("mutex--explain--imagenet",)),
    ],
)
def test_the_run_is_the_one_that_is_meant(table, row, run, runs):
    found = counterparts(table, runs)
    found = found[(found[list(row)] == pd.Series(row)).all(axis=1)]
    assert len(found)
    for names in found["runs"]:
        assert all(name.startswith(start) for name, start in zip(names, run, strict=False)), names


def test_a_run_of_other_conditions_is_no_counterpart(runs):
    """One epoch less, another batch, a smaller image: the strict join of the results would not put them together."""
    trained = [run for run in runs if run.name.startswith("tram--finetune--") and run.options["epochs"] == 5]
    for changed in ({"epochs": 4}, {"batch_size": 32}, {"img_size": 160}, {"head": "auto"}, {"limit_train": 1000}):
        moved = [replace(run, options={**run.options, **changed}) for run in trained]
        assert {names[0] for names in counterparts("tram_accuracy", moved)["runs"]} == {None}, changed


def test_no_reason_where_a_row_is_run(runs):
    assert reason("mutex_auc", read_published("mutex_auc").iloc[0]) == ""
