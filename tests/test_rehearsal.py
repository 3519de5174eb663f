"""A rehearsal: which runs it samples, how small it makes them, its pictures, its networks, and that it finds faults."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import nbformat
import pandas as pd
import pytest
import timm
import torch
import yaml
from forked import run_script
from timm.models import _registry
from torchvision import datasets

import passes
import rehearsal
from common import create_model, load_dataset
from estimate import passes_of
from narrow import GRID, WIDTH, narrow
from plan import Run, load_plans
from profile_file import ROOT, list_profiles
from rehearsal import COUNTING, IMAGES, LARGEST, SOME, plans_to_run, sample
from rehearsal_data import SPLITS, SYNSETS, write_datasets
from run_notebook import COUNTED

WORKFLOW = ROOT / "Code" / "workflow"
REHEARSED = tuple(count * len(SYNSETS) for count in SPLITS.values())  # images to train on, and to validate
EMBEDDED = ("digits", "photo-tiles")  # which a rehearsal does not generate


def runs_of(profile: str) -> list[Run]:
    return [run for plan in load_plans(profile) for run in plan.runs]


def meetings(runs: list[Run]) -> set:
    """(kind, parameter and value, another parameter and its value) of everything that is no number."""
    found = set()
    for run in runs:
        words = rehearsal._words(run)
        kind = run.notebook, frozenset(run.options)
        found |= {(kind, *pair) for pair in itertools.combinations_with_replacement(words, 2)}
    return found


# --- which runs


@pytest.mark.parametrize("profile", list_profiles())
def test_pairs_meet_everything_that_meets_in_the_profile(profile):
    runs = runs_of(profile)
    chosen = sample(runs, "pairs")
    assert meetings(chosen) == meetings(runs)
    assert len(chosen) <= len(runs)


@pytest.mark.parametrize("profile", list_profiles())
def test_kinds_are_one_run_of_each_and_those_that_make_what_they_need(profile):
    runs = runs_of(profile)
    chosen = sample(runs, "kinds")
    kinds = {(run.notebook, frozenset(run.options)) for run in runs}
    assert {(run.notebook, frozenset(run.options)) for run in chosen} == kinds
    small = [run for plan in plans_to_run(profile, rehearsed="kinds") for run in plan.runs]
    needed = {what for run in small for what in run.needs}
    assert len(small) == len(chosen)
    assert len([run for run in small if needed.isdisjoint(run.makes)]) <= len(kinds)
    assert needed <= {what for run in small for what in (*run.makes, *run.weights_files)}


def test_numbers_alone_are_sampled(tmp_path):
    """Two data sets with two methods meet in four runs; three rates and two seeds add none."""
    words = {"dataset": ["digits", "imagenette"], "reducer": ["tram", "topk"]}
    grid = {**words, "keep_rate": [0.9, 0.5, 0.25], "seed": [0, 1]}
    path = tmp_path / "p.yaml"
    run = {"notebook": "Pretrained/finetune", "study": "finetune", "grid": grid}
    path.write_text(yaml.safe_dump({"profile": "p", "runs": [run]}))
    (plan,) = load_plans(str(path))
    assert (len(plan.runs), len(sample(list(plan.runs), "pairs"))) == (24, 4)


def test_runs_that_leave_the_records_that_a_run_reads_are_taken_with_it():
    """Of three methods at the ends of the keep rates, so that no record is missing and few runs are needed."""
    runs = [run for plan in plans_to_run("which_tokens", rehearsed="kinds") for run in plan.runs]
    left = {what for run in runs for what in run.makes}
    readers = [run for run in runs if run.options.get("trained")]
    assert {run.study for run in readers} == {"reduction_patterns", "pattern_proxies", "patterns_across_data"}
    for run in readers:
        assert left.issuperset(run.needs)
        assert (len(run.options["reducers"]), run.options["keep_rates"]) == (SOME, [0.9, 0.25])


@pytest.mark.parametrize("profile", list_profiles())
def test_runs_are_small_and_leave_the_real_results_alone(profile):
    for plan in plans_to_run(profile, rehearsed="pairs"):
        assert plan.title.startswith("Rehearsal: ") and "No number means anything" in plan.about
        for run in plan.runs:
            assert run.csv.startswith("results/rehearsal/") and run.parameters["profile"] == "rehearsal"
            for name, value in run.options.items():
                if name in LARGEST:
                    assert value <= LARGEST[name]
                if name.startswith("limit_"):
                    assert value <= IMAGES


# --- on what


NAMES = ["imagenet", "imagenette", "fashion-mnist", "cifar10", "cifar100", "nabirds", "coco", "nuswide"]


@pytest.fixture
def rehearsed(monkeypatch) -> None:
    """timm and torchvision as :func:`narrow` leaves them, and afterwards as they were."""
    monkeypatch.setattr(_registry, "_model_entrypoints", dict(_registry._model_entrypoints))
    for archive, name in itertools.product((datasets.CIFAR10, datasets.CIFAR100), ("train_list", "test_list", "meta")):
        monkeypatch.setattr(archive, name, getattr(archive, name))
    narrow()


@pytest.mark.parametrize("name", [*NAMES, "folder"])
@pytest.mark.usefixtures("rehearsed")
def test_pictures_lie_as_those_of_the_real_data_set(name, tmp_path):
    name = f"folder:{tmp_path}/mini" if name == "folder" else name
    write_datasets(tmp_path, [name])
    for split, count in SPLITS.items():
        dataset = load_dataset(name, split, root=tmp_path, img_size=32)
        assert len(dataset) == count * len(SYNSETS)
        assert dataset.num_classes == (100 if name == "cifar100" else 10)
        assert dataset.multi_label == (name in ("coco", "nuswide"))
        image, _ = dataset[0]
        assert image.shape == (3, 32, 32) and image.std() > 0.1


def test_folders_of_the_user_are_never_written(tmp_path):
    write_datasets(tmp_path / "stage", [f"folder:{tmp_path}/mine"])
    assert not (tmp_path / "mine").exists()


@pytest.mark.usefixtures("rehearsed")
def test_networks_are_narrow_and_ask_no_hub():
    for name in ("vit_base_patch16_224.augreg_in21k_ft_in1k", "deit_base_distilled_patch16_224"):
        model = create_model(name, weights="timm", reducer="tram", keep_rate=0.5)
        assert (model.embed_dim, len(model.blocks), model.blocks[0].attn.num_heads) == (WIDTH, 12, 12)
        assert model.patch_embed.grid_size == (GRID, GRID)
        assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
    assert create_model("simple_vit_small_patch16_160").embed_dim == WIDTH
    assert create_model("vit_digits").embed_dim == 64


def test_networks_are_as_wide_as_ever_without_a_rehearsal():
    assert timm.create_model("vit_tiny_patch16_224").embed_dim == 192


# --- what it finds


def rehearse(profile: str, results: Path, how: str = "kinds") -> subprocess.CompletedProcess[str]:
    command = [WORKFLOW / "launch.py", profile, "--rehearse", how, "--results", results, "--threads", 1]
    return run_script(*command)


@pytest.fixture
def planted(tmp_path):
    """Writes a profile of one run of the notebook off_the_shelf, with whatever is wrong with its parameters."""

    def write(**parameters: object) -> str:
        given = {"dataset": "digits", "backbone": "vit_digits", "reducers": ["none", "tram"], "keep_rates": [0.5]}
        run = {"notebook": "Pretrained/off_the_shelf", "study": "off_the_shelf", "parameters": {**given, **parameters}}
        (tmp_path / "p.yaml").write_text(yaml.safe_dump({"profile": "p", "runs": [run]}))
        return str(tmp_path / "p.yaml")

    return write


def test_a_broken_parameter_is_found(planted, results):
    done = rehearse(planted(keep_rat=[0.5]), results)
    assert done.returncode == 2
    assert done.stderr.startswith("error: profile p: unknown parameter 'keep_rat' for off_the_shelf.py; allowed: ")


def test_a_missing_weight_file_is_found(planted, results):
    done = rehearse(planted(weights="results/none.safetensors"), results)
    assert done.returncode == 2
    assert done.stderr == "error: profile p: no weights at results/none.safetensors, and no run makes them\n"


@pytest.mark.slow
def test_a_wrong_shape_is_found(planted, results, tmp_path):
    from common.weights import save_state

    save_state(create_model("simple_vit_digits"), tmp_path / "other.safetensors")
    done = rehearse(planted(weights=str(tmp_path / "other.safetensors")), results)
    assert done.returncode == 1
    assert "other.safetensors' does not fit backbone 'vit_digits'" in done.stderr
    assert done.stdout.startswith("rehearsing 1 of 1 runs:\n  off_the_shelf--off_the_shelf\n")


@pytest.fixture
def everything(tmp_path) -> str:
    """A profile that includes all that are shipped."""
    (tmp_path / "all.yaml").write_text(yaml.safe_dump({"profile": "all", "include": list_profiles()}))
    return str(tmp_path / "all.yaml")


def test_every_notebook_is_taken_once_and_every_profile_has_one(everything):
    plans = plans_to_run(everything, rehearsed="notebooks")
    runs = [run for plan in plans for run in plan.runs]
    needed = {what for run in runs for what in run.needs}
    assert {plan.profile for plan in plans} == {name for name in list_profiles() if name != "paper"}
    alone = {plan.results for plan in plans if len(plan.runs) == 1}  # else the profile would have none
    notebooks = [run.notebook for run in runs if needed.isdisjoint(run.makes) and run.results not in alone]
    assert len(notebooks) == len(set(notebooks))
    assert {run.notebook for run in runs} == {run.notebook for run in runs_of(everything)}


@pytest.mark.slow
def test_every_shipped_profile_gets_through_its_rehearsal(everything, results):
    """All of them in one go, one run of every notebook, from the generated pictures to the page.

    Each makes as many passes as its estimate foresees; fewer where it takes what another run of its profile has kept.
    """
    done = rehearse(everything, results, "notebooks")
    assert done.returncode == 0, done.stderr[-3000:]
    plans = plans_to_run(everything, str(results), "notebooks")
    assert all((ROOT / run.csv).is_file() for plan in plans for run in plan.runs)
    assert all("Rehearsal: " in (ROOT / plan.results / "report.html").read_text() for plan in plans)
    off = {run.name: ratio for plan in plans for run in plan.runs if not 0.75 < (ratio := passes_ratio(run)) < 1.35}
    taking = ("explain_agreement", "reduction_patterns", "patterns_across_data")
    assert {name: ratio for name, ratio in off.items() if ratio > 1 or not any(text in name for text in taking)} == {}


def passes_ratio(run: Run) -> float:
    """Passes that a rehearsed run made, and that its estimate foresees on as few images; 1.0 where none are counted."""
    cell = nbformat.read(run.executed, as_version=4).cells[-1]
    if cell.source != COUNTED or run.notebook in COUNTING:
        return 1.0
    counted = float(cell.outputs[0].text.split()[0])
    with mock.patch.dict(passes.IMAGES, {name: REHEARSED for name in passes.IMAGES if name not in EMBEDDED}):
        return counted / passes_of(run)


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_last_epoch(results, tmp_path):
    """A run of the profile tram, as it is rehearsed, but of 30 epochs: what was trained is not trained again."""
    first = plans_to_run("tram", str(results), "kinds")[0].runs[0]
    run = replace(first, options={**first.options, "epochs": 30})
    write_datasets(tmp_path / "data", run.values("dataset"))
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text(yaml.safe_dump(run.parameters))
    command = [WORKFLOW / "run_notebook.py", run.notebook, run.executed, "--parameters", parameters, "--narrow"]
    environment = {**os.environ, "DATA_ROOT": str(tmp_path / "data"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    start = partial(subprocess.Popen, [sys.executable, *command], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)

    with start() as killed:
        (log,) = wait_for(lambda: list(results.glob("training/*/log.csv")), killed)
        wait_for(lambda: len(pd.read_csv(log)) > 3, killed)
        killed.kill()
    kept = pd.read_csv(log)
    assert not Path(run.csv).exists() and len(kept) < 30
    with start() as second:
        assert second.wait() == 0
    rows = pd.read_csv(run.csv)
    assert rows["epoch"].tolist() == list(range(31))
    assert rows["epoch_seconds"][: len(kept)].tolist() == kept["epoch_seconds"].tolist()
    assert not log.exists(), "a training that is done keeps nothing"


def wait_for(found: Callable[[], Any], process: subprocess.Popen) -> Any:
    while process.poll() is None:
        if value := found():
            return value
        time.sleep(0.05)
    pytest.fail("the run ended too early")
