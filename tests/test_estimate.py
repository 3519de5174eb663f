"""What a profile costs before it runs, and what is fetched for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from forked import run_script

import fetch
from estimate import CHECKPOINT_BYTES, PASSES, TFLOPS, cost_of
from needs import data_of, weights_of
from outlook import describe, hours_text, summary, table
from plan import load_plans, state_folder
from profile_file import ROOT, list_profiles

WORKFLOW = ROOT / "Code" / "workflow"


@pytest.fixture
def profile(tmp_path):
    def write(notebook: str, study: str, **parameters: object) -> str:
        path = tmp_path / "p.yaml"
        run = {"notebook": notebook, "study": study, "parameters": parameters}
        path.write_text(yaml.safe_dump({"profile": "p", "runs": [run]}))
        return str(path)

    return write


def test_every_notebook_has_its_estimate():
    notebooks = {path.relative_to(ROOT / "Code").with_suffix("").as_posix() for path in ROOT.glob("Code/*/*.py")}
    folders = ("Benchmark/", "Pretrained/", "Scratch/")
    assert set(PASSES) == {notebook for notebook in notebooks if notebook.startswith(folders)}


def test_a_training_costs_three_passes_an_image_and_one_to_validate(profile):
    """5 epochs on CIFAR-10: 10,000 + 5 (3 x 50,000 + 10,000) passes of ViT-Ti."""
    given = {"dataset": "cifar10", "backbone": "vit_tiny_patch16_224", "img_size": 224, "epochs": 5, "weights": "timm"}
    (plan,) = load_plans(profile("Pretrained/finetune", "finetune", **given))
    cost = cost_of(plan.runs[0])
    block = 197 * 12 * 192**2 + 2 * 197**2 * 192
    macs = 12 * block + 196 * 768 * 192 + 192 * 1000
    assert cost.hours == pytest.approx(2 * macs * 810_000 / (TFLOPS["no"] * 1e12) / 3600)
    assert cost.disk == 0


def test_a_limit_and_a_grid_of_methods_count(profile):
    given = {"dataset": "imagenette", "backbone": "vit_tiny_patch16_224", "img_size": 224, "weights": "timm"}
    small = given | {"reducers": ["none", "tram"], "keep_rates": [0.5], "limit_val": 100}
    large = given | {"reducers": ["none", "tram", "topk"], "keep_rates": [0.5, 0.25], "limit_val": 1000}
    hours = [
        cost_of(load_plans(profile("Pretrained/off_the_shelf", "off_the_shelf", **options))[0].runs[0]).hours
        for options in (small, large)
    ]
    assert hours[1] / hours[0] == pytest.approx(6 * 1000 / (2 * 100))


def test_checkpoints_need_disk(profile):
    given = {"dataset": "imagenet", "backbone": "deit_tiny_patch16_224", "img_size": 224, "checkpoints": "results/x"}
    options = given | {"reducers": ["tram", "topk"], "keep_rates": [0.5]}
    (plan,) = load_plans(profile("Pretrained/method_grid", "method_grid", **options))
    assert cost_of(plan.runs[0]).disk == pytest.approx(2 * CHECKPOINT_BYTES * 5_717_416 / 1e9)


def test_what_is_downloaded_and_what_has_to_be_there(profile):
    given = {"backbone": "vit_tiny_patch16_224", "img_size": 224, "weights": "timm", "reducers": ["none"]}
    plans = load_plans(profile("Pretrained/off_the_shelf", "off_the_shelf", dataset="cifar10", **given))
    assert data_of(plans) == {"cifar10": ["val"]}
    assert weights_of(plans) == ["vit_tiny_patch16_224"]
    assert "downloads: cifar10 0.17 GB, weights of 1 backbones 0.0 GB" in describe(plans)
    plans = load_plans(profile("Pretrained/method_grid", "method_grid", dataset="imagenet", **given))
    assert data_of(plans) == {"imagenet": ["train", "val"]}
    assert "has to be under DATA_ROOT: imagenet" in describe(plans)


@pytest.mark.parametrize(
    ("hours", "text"), [(0.02, "under 0.1"), (0.1, "0.1"), (3.26, "3.3"), (99.94, "99.9"), (1234.4, "1,234")]
)
def test_hours_are_told_as_precisely_as_they_are_known(hours, text):
    assert hours_text(hours) == f"{text} GPU-hours"


@pytest.mark.parametrize("name", list_profiles())
def test_every_profile_has_a_plan(name):
    found = summary(load_plans(name))
    assert found["runs"] == sum(len(plan.runs) for plan in load_plans(name))
    assert found["longest"] <= found["hours"]


def test_readme_has_the_plan_of_every_profile():
    readme = (ROOT / "README.md").read_text()
    assert readme.split("<!-- plan table -->\n")[1].split("\n<!-- end -->")[0] == table()


def test_plan_says_what_it_costs_and_runs_nothing(profile, results):
    path = profile("Pretrained/off_the_shelf", "off_the_shelf", dataset="digits", backbone="vit_digits")
    done = run_script(WORKFLOW / "launch.py", path, "--plan", "--results", results)
    assert done.returncode == 0, done.stderr
    assert done.stdout == describe(load_plans(path)) + "\n"
    assert not results.exists()


def test_fetch_opens_the_data_and_the_profile_then_goes_offline(profile, monkeypatch):
    path = profile("Pretrained/off_the_shelf", "off_the_shelf", dataset="digits", backbone="vit_digits")
    (plan,) = plans = load_plans(path)
    record = ROOT / state_folder(plan.results) / "fetched"
    monkeypatch.delenv(fetch.OFFLINE, raising=False)
    fetch.go_offline(plans)
    assert fetch.OFFLINE not in os.environ
    done = run_script(WORKFLOW / "fetch.py", path)
    try:
        assert (done.returncode, done.stdout) == (0, "digits, val: 360 images\n"), done.stderr
        fetch.go_offline(plans)
        assert os.environ[fetch.OFFLINE] == "1"
    finally:
        record.unlink(missing_ok=True)


def test_fetch_tells_all_that_is_missing(profile, monkeypatch, tmp_path):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    path = profile("Pretrained/method_grid", "method_grid", dataset="imagenet", backbone="vit_tiny_patch16_224")
    done = run_script(WORKFLOW / "fetch.py", path)
    assert done.returncode == 2
    lines = [f"error: imagenet: no folder {Path(tmp_path, 'imagenet', split)}" for split in ("train", "val")]
    assert [line.split(" (wanted")[0] for line in done.stderr.splitlines()] == lines
