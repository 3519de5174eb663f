"""What a profile costs before it runs, and what is fetched for it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from documents import part, running, section
from forked import run_script

import fetch
import passes
from common.budget import COST_IMAGES
from common.reducers import list_reducers, reducer_class
from common.slimming.allocation import SHARES, TAPERS
from common.slimming.top_down import SearchSettings
from estimate import CHECKPOINT_BYTES, TFLOPS, cost_of, passes_of
from limits import LEAST_MB, LEAST_MINUTES, limits_of, mem_mb, runtime
from needs import data_of, weights_of
from outlook import describe, hours_text, summary, table
from passes import PASSES
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


IDLE = {"epochs": 10, "batch_size": 50, "limit_train": 1000, "limit_val": 200, "limit_calibration": 100}
IDLE |= {"labels": ["similarity=blend", "similarity=rel_norm,influence=rollout"]}
SLIM = {"img_size": 224, "batch_size": 50, "num_calibration": 120, "limit_val": 400}
EXPLAINERS = ["mutex", "random", "rollout", "chefer", "integrated_gradients:n_steps=16"]  # 55, 0, 1, 3 and 49 passes
# notebook, parameters -> passes by hand. ViT-Ti has 12 blocks; a training counts 3 for an image, 4 with a teacher.
BY_HAND = [
    # two labels at two shares, of which the second kind looks twice at an image, and two taus, all of the first kind
    (
        "idle_patches",
        IDLE | {"idle_shares": [0.2, 0.35], "cuts": [0.2, 0.35], "taus": [0.95, 0.9], "limit_states": 60},
        2 * (50 + 10 * (1000 + 50))  # learnt: by change, at each share
        + 2 * (50 + 10 * (2 * 1000 + 50))  # by influence
        + 2 * (50 + 10 * (1000 + 50))  # by change, at each tau
        + (60 + 100 * (1 + 2 * (1 + 2)))  # similarities, and the tau of each share
        + 3 * 2 * 4 * 100  # thresholds for three kinds of models
        + (1 + 4 * 2 + 3 * 2) * 200,  # measured
    ),
    # no published labels; the gradients of two classes, one pass ahead and one for the change
    (
        "idle_patches",
        IDLE
        | {"labels": ["", "influence=fisher"], "idle_shares": [0.2], "cuts": [0.2], "taus": [], "limit_states": 60},
        (50 + 10 * (4 * 1000 + 50)) + (60 + 100 * (1 + 4)) + 4 * 100 + 2 * 200,
    ),
    (
        "idle_study",
        IDLE
        | {"tune_epochs": 2, "tune_rates": [1e-5, 1e-4], "contexts": ["cls"], "random_seeds": [0, 1, 2]}
        | {"cut_weights": [20.0, 0.0], "limit_variants": 300, "limit_study": 80},
        (50 + 10 * (1000 + 50))
        + 2 * (50 + 10 * (2 * 1000 + 50))  # labels, and a context by the last of them
        + (1 + 2) * 100
        + (2 + 1) * 4 * 100
        + 2 * (50 + 2 * (4 * 300 + 50) + (4 + 2) * 100)  # learning rates
        + 2 * (50 + 2 * (4 * 1000 + 50) + (4 + 1) * 100)  # tuned
        + (1 + 2 * 2) * 200
        + 2 * (50 + 2 * (4 * 300 + 50) + 80)  # IdleViT
        + 80 * (2 * (2 + 3) + 2 * (2 + 2) + 4),  # bounds, contexts, re-entry
    ),
    (
        "method_grid",
        {"reducers": ["none", "topk", "dynamicvit"], "keep_rates": [0.9, 0.5], "epochs": 3, "ema_decay": 0.999}
        | {"limit_train": 1000, "limit_val": 200},
        5 * (200 + 3 * (3 * 1000 + 200) + (2 + 3) * 200) + 2 * 3 * 1000,
    ),
    (
        "methods_gallery",
        {"reducers": ["topk", "sinkhorn", "dynamicvit"], "epochs": 2, "limit_train": 1000, "limit_val": 20},
        2 * (20 + 2 * (3 * 1000 + 20)) + 2 * 1000,
    ),
    ("off_the_shelf", {"reducers": ["none", "topk", "ats"], "keep_rates": [0.9, 0.5], "limit_val": 200}, 5 * 200),
    ("pattern_proxies", {"reducers": ["none", "topk"], "keep_rates": [0.9, 0.5, 0.25], "limit_val": 200}, 4 * 200),
    (
        "reduction_patterns",
        {"reducers": ["topk", "random", "ats:sampler=random"], "keep_rates": [0.9, 0.5], "seeds": [0, 1, 2]}
        | {"limit_val": 200},
        (2 + 2 * 3 + 2 * 3) * 200,
    ),
    (
        "patterns_across_data",
        {"datasets": ["imagenette", "cifar10"], "limits": [None, 1000], "reducers": ["topk"], "keep_rates": [0.5, 0.25]}
        | {"backbones": ["vit_tiny_patch16_224", "vit_small_patch16_224"], "weights": ["timm", "timm"]},
        2 * 2 * (3925 + 1000),
    ),
    ("visualize", {"keep_rates": [0.75, 0.5], "num_images": 60}, 3 * 60),
    (
        "explain",
        {"explainer": "mutex", "others": ["rollout", "chefer"], "images": [3, 8, 21], "weights": ["timm", "timm"]}
        | {"backbones": ["vit_tiny_patch16_224", "vit_small_patch16_224"]},
        3 * (2 * (1 + 55 + 24) + 1 + 3),
    ),
    (
        "explain_benchmark",
        {"explainers": EXPLAINERS, "reducers": ["tram", "tome"], "reduced_explainers": ["mutex", "random"]}
        | {"num_images": 70, "num_sensitive": 5},
        70 * (1 + 108 + 5 * 24 + 2 * (1 + 55 + 2 * 24)) + 5 * 6 * 108,
    ),
    (
        "explain_agreement",
        {"explainers": EXPLAINERS, "reducers": ["tram", "tome"], "num_images": 70},
        70 * (1 + 2 + 108),
    ),
    (
        "mutex_study",
        {"min_cuts": [0.0, 0.01], "token_ratios": [0.5], "starting_layers": [0, 6], "num_images": 70},
        70 * (1 + (5 + 1) * (55 + 24) + (1 + 14) * 24),
    ),
    # a search looks at the features of 11 blocks, half of the network below each and the two above, and tunes these two
    (
        "patch_slimming",
        SLIM
        | {"lengths": ["learned", "uniform"], "scores": ["significance"], "error_images": 30, "epochs": 2}
        | {"distill_epochs": 1, "finetune_epochs": 3, "rounds": 7, "batch_size": 50}
        | {"limit_train": 1000, "gate_epochs": 4, "gate_images": 90, "limit_dynamic": 100}
        | {"budgets": [0.8, 0.5], "limit_budgets": 60},
        2 * 120 * 11 * (0.5 + 1.5 / 12 + 2 / 12 * (0.75 * 3 * 2 + 0.25 * 2))
        + (120 + 30 * (2 + 11 * 11 / 2))  # lengths that are learned
        + 2 * (50 + 4 * 1000 + 50)
        + 2 * (50 + 3 * (3 * 1000 + 50))
        + (1 + 2 * 4) * (400 + 2 * 7 * 50)  # each stage measured, and timed in rounds of an untimed and a timed pass
        + 90 * (3 * 4 + 3)
        + 4 * 100
        + (1 + 2 * 6) * 60
        + 3 * 120
        + 30 * (2 + 11 * 11 / 2),
    ),
    (
        "patch_slimming_limits",
        {"num_calibration": 120, "limit_val": 400, "similarity_images": 16}
        | {"tapers": [0, 0.2], "floors": [1, 0.6], "other_scores": ["random"], "scored_on": []},
        (1 + 4 + 2 + 1) * 400  # the unreduced network, two tapers by two floors, both bottom-up, and another score
        + (1 + 1) * 120  # by significance, which all lengths share, and by the other score
        + 2 * 7 * 120  # from the bottom up: what lies above each of 12 blocks, and the blocks themselves
        + 16,
    ),
    (
        "patch_slimming_study",
        SLIM
        | {"blocks": [2, 6, 10], "kept_shares": [0.1], "pruning": ["idle", "dropped"], "scores": ["significance"]}
        | {"random_masks": 5, "sensitivity_kept_shares": [0.8, 0.5], "limit_sensitivity": 100}
        | {"tolerances": [0.01, 0.02, 0.04], "tolerance_epochs": 0, "step": 7, "limit_tolerances": 50}
        | {"finetune_epochs": 2, "limit_train": 1000, "batch_size": 50},
        100 * (2 + 2 * 12 / 2)
        + 400 * (2 + 6 * 2 * (10 + 6 + 2) / 12)  # what is left of the network from each block on
        + 17 * 120
        + 3 * 120 * 11 * (0.5 + 1.5 / 12 + (1 + 196 / 7 / 4) * 2 / 12 * 0.25)
        + 3 * (50 + 2 * (3 * 1000 + 50))
        + 4 * 50,
    ),
]


@pytest.mark.parametrize(("notebook", "given", "wanted"), BY_HAND, ids=[notebook for notebook, *_ in BY_HAND])
def test_passes_are_those_of_the_notebook(profile, notebook, given, wanted):
    several = "backbones" in given or "backbone" in given
    backbone = {} if several else {"backbone": "vit_tiny_patch16_224", "weights": "timm"}
    given = {"img_size": 224, **({} if "datasets" in given else {"dataset": "imagenette"}), **backbone, **given}
    (plan,) = load_plans(profile(f"Pretrained/{notebook}", "finetune", **given))
    assert passes_of(plan.runs[0]) == pytest.approx(wanted)


def test_speed_is_measured_twice_in_every_round(profile):
    """Two backbones, two types, batches of 1 and 16; three models, and two with as many tokens.

    A first pass, and 5 rounds of an untimed and a timed one; each model is counted, and there is the test of identity.
    """
    given = {"backbones": ["vit_tiny_patch16_224", "vit_small_patch16_224"], "dtypes": ["float32", "bfloat16"]}
    given |= {"batch_sizes": [1, 16], "reducers": ["tram"], "keep_rates": [0.75, 0.5], "rounds": 5}
    (plan,) = load_plans(profile("Benchmark/throughput", "throughput", **given))
    assert passes_of(plan.runs[0]) == 2 * 2 * 17 * (3 + 2) * 11 + 2 * (3 + 2)


def test_numbers_that_the_estimate_repeats_are_those_of_the_package():
    """It is read where the package is not imported."""
    adaptive = {name for name in list_reducers() if reducer_class(name).adaptive}
    assert adaptive == passes.ADAPTIVE and passes.COST_IMAGES == COST_IMAGES
    assert (len(SHARES), len(TAPERS)) == (passes.SHARES, passes.FAMILIES)
    assert SearchSettings(mac_cut=0.5).score_images == passes.SCORED


def test_budgets_of_what_depends_on_the_images_take_passes_to_be_solved(profile):
    """ATS at two budgets: about 15 times 32 photographs each. Top-K's are counted."""
    given = {"backbones": ["vit_tiny_patch16_224"], "reducers": ["ats", "topk"], "keep_rates": ["mac_cut=0.2", 0.5]}
    given |= {"rounds": 5, "batch_sizes": [8], "ceilings": False, "img_size": 224}
    shown = {"dataset": "imagenette", "weights": "timm"}
    (random,), (photographs,) = (
        load_plans(profile("Benchmark/throughput", "throughput", **given, **more))[0].runs for more in ({}, shown)
    )
    assert passes_of(random) == 5 * 8 * 11 + 3 + 4
    assert passes_of(photographs) == passes_of(random) + 2 * 15 * 32


def test_every_client_sends_as_many_images_in_every_round(profile):
    """Two backbones, three models each, two ways to serve; 10 requests of 1 and of 4 clients and one before of each.

    A first pass; each model is counted, and there is the test of identity.
    """
    given = {"backbones": ["vit_tiny_patch16_224", "vit_small_patch16_224"], "reducers": ["tram", "tome"]}
    given |= {"keep_rates": [0.5], "clients": [1, 4], "requests": 10, "max_batch": 8, "rounds": 5}
    (plan,) = load_plans(profile("Benchmark/serving", "serving", **given))
    assert passes_of(plan.runs[0]) == 2 * (3 * 2 * 5 * ((10 + 1) + (12 + 4)) + 3 + 2 + 3)


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


def test_the_manual_has_the_plan_of_every_profile():
    assert part("plan table") == table()


def test_plan_says_what_it_costs_and_runs_nothing(profile, results):
    path = profile("Pretrained/off_the_shelf", "off_the_shelf", dataset="digits", backbone="vit_digits")
    done = run_script(WORKFLOW / "launch.py", path, "--plan", "--results", results)
    assert done.returncode == 0, done.stderr
    assert done.stdout == describe(load_plans(path)) + "\n"
    assert not results.exists()


@pytest.mark.parametrize(("name", "value"), [("limit_vall", 8), ("reducers", ["tomx"])])
def test_plan_refuses_what_no_run_could_take(profile, results, name, value):
    path = profile(
        "Pretrained/off_the_shelf", "off_the_shelf", dataset="digits", backbone="vit_digits", **{name: value}
    )
    done = run_script(WORKFLOW / "launch.py", path, "--plan", "--results", results)
    wrong = value[0] if isinstance(value, list) else name
    assert done.returncode == 2 and done.stdout == ""
    assert f"'{wrong}'" in done.stderr and done.stderr.count("\n") == 1


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


# --- what a cluster is asked for


def test_a_queue_is_asked_for_three_times_the_hours_and_more_on_every_attempt(profile):
    given = {"dataset": "imagenet", "backbone": "deit_base_patch16_224", "img_size": 224, "weights": "timm"}
    given |= {"reducers": ["tram"], "keep_rates": [0.5], "epochs": 30, "batch_size": 512, "mixed_precision": "bf16"}
    (plan,) = load_plans(profile("Pretrained/method_grid", "method_grid", **given))
    run, cost = plan.runs[0], cost_of(plan.runs[0])
    assert cost.hours > 10 and cost.memory > 60
    assert runtime(run) == pytest.approx(3 * 60 * cost.hours, abs=1)
    assert mem_mb(run) == pytest.approx(1500 * cost.memory, abs=1)
    assert [(runtime(run, attempt), mem_mb(run, attempt)) for attempt in (2, 3)] == [
        (attempt * runtime(run), attempt * mem_mb(run)) for attempt in (2, 3)
    ]


def test_a_small_run_and_an_unknown_notebook_get_the_least(profile, tmp_path):
    small = {"dataset": "digits", "backbone": "vit_digits"}
    (plan,) = load_plans(profile("Pretrained/off_the_shelf", "off_the_shelf", **small))
    assert (runtime(plan.runs[0]), mem_mb(plan.runs[0], 2)) == (LEAST_MINUTES, 2 * LEAST_MB)
    (tmp_path / "own.py").write_text('# %% tags=["parameters"]\ncsv = figure = profile = ""\n')
    plans = load_plans(profile(str(tmp_path / "own"), "scratch"))
    assert (runtime(plans[0].runs[0]), mem_mb(plans[0].runs[0])) == (LEAST_MINUTES, LEAST_MB)
    assert f"not counted, as there is no estimate: {tmp_path / 'own.py'}" in describe(plans)


def test_the_manual_says_what_the_longest_run_asks_for():
    longest = max(runtime(run) for plan in load_plans("paper") for run in plan.runs)
    assert f"The longest asks for {longest / 60:.0f} hours" in running(section("On a SLURM cluster"))


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (None, {"runtime", "mem_mb"}),
        (["tmpdir=system_tmpdir", "runtime=240"], {"mem_mb"}),
        (["mem_mb=32000"], {"runtime"}),
        (["mem='32 GB'", "runtime=1"], set()),
    ],
)
def test_what_the_user_asks_for_stands(profile, given, left):
    (plan,) = load_plans(profile("Pretrained/off_the_shelf", "off_the_shelf", dataset="digits", backbone="vit_digits"))
    defaults = None if given is None else SimpleNamespace(args=given)
    workflow = SimpleNamespace(resource_settings=SimpleNamespace(default_resources=defaults))
    found = limits_of(plan.runs[0], workflow)
    assert set(found) == left
    assert all(limit(None, 3) == 3 * limit(None, 1) for limit in found.values())
