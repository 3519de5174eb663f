"""A rehearsal: which runs it samples, how small it makes them, its pictures, its networks, and that it finds faults."""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any
from unittest import mock

import nbformat
import pandas as pd
import pytest
import timm
import torch
import yaml
from forked import run_call, run_module, run_script, start_call
from timm.models import _registry
from torchvision import datasets

import passes
import rehearsal
from common import create_model, load_dataset
from common.precision import lacking
from common.studies import find_study
from direct import execute
from estimate import passes_of
from narrow import GRID, WIDTH, narrow
from needs import data_of
from pass_counter import count_passes, counted
from plan import Plan, Run, load_plans
from profile_file import ROOT, list_profiles
from rehearsal import IMAGES, LARGEST, SOME, plans_to_run, sample
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


def rehearse(profile: str, results: Path, how: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [WORKFLOW / "launch.py", profile, "--rehearse", how, "--results", results, "--threads", 1]
    return run_script(*command, *options)


@pytest.fixture
def planted(tmp_path):
    """Writes a profile of runs of the notebook off_the_shelf, with whatever is wrong with the parameters of each."""
    given = {"dataset": "digits", "backbone": "vit_digits", "reducers": ["none", "tram"], "keep_rates": [0.5]}
    run = {"notebook": "Pretrained/off_the_shelf", "study": "off_the_shelf"}

    def write(**each: dict[str, object]) -> str:
        runs = [{**run, "name": name, "parameters": {**given, **parameters}} for name, parameters in each.items()]
        (tmp_path / "p.yaml").write_text(yaml.safe_dump({"profile": "p", "runs": runs}))
        return str(tmp_path / "p.yaml")

    return write


def test_a_broken_parameter_is_found(planted, results):
    done = rehearse(planted(one={"keep_rat": [0.5]}), results, "kinds")
    assert done.returncode == 2
    assert done.stderr.startswith("error: profile p: unknown parameter 'keep_rat' for off_the_shelf.py; allowed: ")


def test_a_missing_weight_file_is_found(planted, results):
    done = rehearse(planted(one={"weights": "results/none.safetensors"}), results, "kinds")
    assert done.returncode == 2
    assert done.stderr == "error: profile p: no weights at results/none.safetensors, and no run makes them\n"


@pytest.mark.slow
def test_a_wrong_shape_is_found_and_stops_no_other_run(planted, results, tmp_path):
    """Of the other run, the notebook that is executed says how many passes it made."""
    from common.weights import save_state

    save_state(create_model("simple_vit_digits"), tmp_path / "other.safetensors")
    profile = planted(wrong={"weights": str(tmp_path / "other.safetensors")}, right={"weights": ""})
    done = rehearse(profile, results, "pairs")
    assert done.returncode == 1
    assert done.stdout.startswith("rehearsing 2 of 2 runs:\n  off_the_shelf--wrong\n  off_the_shelf--right\n")
    assert "other.safetensors' does not fit backbone 'vit_digits'" in done.stderr
    wrong, right = (run for plan in plans_to_run(profile, str(results), "pairs") for run in plan.runs)
    assert [Path(run.csv).is_file() for run in (wrong, right)] == [False, True]
    cell = nbformat.read(right.executed, as_version=4).cells[-1]
    assert cell.source == COUNTED
    assert cell.outputs[0].text == "50.0 passes\n"  # 24 images and one that is counted on, of two models


@pytest.fixture
def everything(tmp_path, monkeypatch) -> str:
    """A profile that includes all that are shipped, where none of its data and weights are."""
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
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


def test_the_rehearsal_of_all_profiles_is_a_plan_of_snakemake(everything, results):
    """Whose values pass the checks, with a maker of everything that a run starts from, and a page of each profile."""
    done = rehearse(everything, results, "notebooks", "--dry-run", "--printshellcmds", "--quiet", "progress")
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout + done.stderr
    for plan in plans_to_run(everything, str(results), "notebooks"):
        assert f" -m common.studies both {shlex.quote(plan.results)} --title={shlex.quote(plan.title)} " in said
        for run in plan.runs:
            narrow = " --narrow" if run.narrow else ""
            assert f"run_notebook.py {run.notebook} {shlex.quote(run.executed)} --parameters " in said
            assert f"--log {shlex.quote(run.log)}{narrow}\n" in said


def rehearse_here(run: Run) -> float:
    """The passes that a rehearsed run makes; it changes the process for good."""
    os.chdir(ROOT)
    torch.set_num_threads(1)  # the threads of torch's pool are not in a fork
    if run.narrow:
        narrow()
        count_passes()
    execute(ROOT / run.notebook, run.parameters)
    print(f"{counted():.1f} passes")
    return counted()


@pytest.mark.slow
def test_every_shipped_profile_gets_through_its_rehearsal(everything, results, tmp_path):
    """All of them in one go, one run of every notebook, from the generated pictures to the page.

    Each makes as many passes as its estimate foresees; fewer where it takes what another run of its profile has kept.
    Each is a fork of this process, which has the libraries already: half of the time of a start by Snakemake.
    """
    write_datasets(tmp_path / "data", data_of(load_plans(everything)))
    plans = plans_to_run(everything, str(results), "notebooks")
    find_study("slimming")  # all are imported now
    off = {}
    for run in in_order_of_needs(plans):
        done = run_call(rehearse_here, run)
        assert done.returncode == 0, f"{run.name}: {done.stderr[-3000:]}"
        if not 0.75 < (ratio := passes_ratio(run, float(done.stdout.split()[-2]))) < 1.35:
            off[run.name] = ratio
    assert all((ROOT / run.csv).is_file() for plan in plans for run in plan.runs)
    for plan in plans:
        done = run_module("common.studies", "both", plan.results, f"--title={plan.title}", f"--about={plan.about}")
        assert done.returncode == 0, f"{plan.profile}: {done.stderr[-3000:]}"
        assert plan.pages == [f"{plan.results}/report.html"] and "Rehearsal: " in Path(*plan.pages).read_text()
    taking = ("explain_agreement", "reduction_patterns", "patterns_across_data")
    assert {name: ratio for name, ratio in off.items() if ratio > 1 or not any(text in name for text in taking)} == {}


def in_order_of_needs(plans: list[Plan]) -> Iterator[Run]:
    """All runs, each after those of its profile that make what it starts from."""
    for plan in plans:
        waiting = list(plan.runs)
        while waiting:
            missing = {what for run in waiting for what in run.makes}
            ready = [run for run in waiting if missing.isdisjoint(run.needs)]
            assert ready, f"{plan.profile}: {[run.name for run in waiting]} wait for each other"
            yield from ready
            waiting = [run for run in waiting if run not in ready]


def passes_ratio(run: Run, made: float) -> float:
    """Passes that a rehearsed run made, and that its estimate foresees on as few images; 1.0 where none are counted.

    Number formats that this processor has no units for are left out of a benchmark.
    """
    if not run.narrow:
        return 1.0
    if "dtypes" in run.options:
        there = [dtype for dtype in run.options["dtypes"] if not lacking(dtype, torch.device("cpu"))]
        run = replace(run, options={**run.options, "dtypes": there})
    with mock.patch.dict(passes.IMAGES, {name: REHEARSED for name in passes.IMAGES if name not in EMBEDDED}):
        return made / passes_of(run)


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_last_epoch(results, monkeypatch, tmp_path):
    """A run of the profile tram, as it is rehearsed, but of 30 epochs: what was trained is not trained again."""
    first = plans_to_run("tram", str(results), "kinds")[0].runs[0]
    run = replace(first, options={**first.options, "epochs": 30})
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    write_datasets(tmp_path / "data", run.values("dataset"))

    killed = start_call(rehearse_here, run)
    (log,) = wait_for(lambda: list(results.glob("training/*/log.csv")), killed)
    wait_for(lambda: len(pd.read_csv(log)) > 3, killed)
    killed.kill()
    killed.join()
    kept = pd.read_csv(log)
    assert not Path(run.csv).exists() and len(kept) < 30
    second = start_call(rehearse_here, run)
    second.join()
    assert second.exitcode == 0
    rows = pd.read_csv(run.csv)
    assert rows["epoch"].tolist() == list(range(31))
    assert rows["epoch_seconds"][: len(kept)].tolist() == kept["epoch_seconds"].tolist()
    assert not log.exists(), "a training that is done keeps nothing"


def wait_for(found: Callable[[], Any], process: ForkProcess) -> Any:
    while process.is_alive():
        if value := found():
            return value
        time.sleep(0.05)
    pytest.fail("the run ended too early")
