"""Profiles, their refusals, the notebook runner, run_all.sh, and a whole study that is killed and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Literal

import nbformat
import pytest
import yaml
from forked import run_script

from checks import check_plan, check_weights
from common import list_reducers
from common.data import list_datasets
from common.errors import UsageError
from common.options import check, field_kinds
from common.parameters import kind_of
from common.schedule import ALLOWED as KEEP_RATES
from common.studies import all_studies
from common.training import TrainConfig, protocol
from common.yaml_files import parse_yaml, to_yaml
from notebooks import declared_parameters, defaults_of, read_notebook
from plan import Plan, load_plans
from profile_file import ROOT, RUN, ProfileError, list_profiles

NOTEBOOKS = sorted(
    path for name in ("Benchmark", "Pretrained", "Scratch") for path in (ROOT / "Code" / name).glob("*.py")
)
WORKFLOW = ROOT / "Code" / "workflow"
ALL_PARAMETERS = "checkpoint, csv, dataset, fail, figure, keep_rate, pause, profile, reducer, weights"
TOY = """\
# %% [markdown]
# # Toy

# %% tags=["parameters"]
csv = "results/notebook/toy.csv"
figure = "results/notebook/toy.png"
profile: str = "notebook"
dataset, reducer, keep_rate = "digits", "none", 1.0
weights = checkpoint = ""
pause = 0.0
fail = ""

# %%
import os, sys, time
from pathlib import Path
from ipykernel.connect import get_connection_info

print(get_connection_info(unpack=True)["transport"], sys.executable, os.getcwd(), sep="\\n")
time.sleep(pause)
if fail:
    exec(fail)

# %%
for path in filter(None, (csv, figure, checkpoint)):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("whole")
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A notebook that writes three words; its path without .py, as a profile names it."""
    (tmp_path / "toy.py").write_text(TOY)
    return tmp_path / "toy"


def write_profile(toy: Path, *entries: dict, **keys) -> str:
    """A profile beside the toy notebook, with ``entries`` as its runs (notebook and study filled in)."""
    runs = [{"notebook": str(toy), "study": "scratch", **entry} for entry in entries]
    path = toy.with_name("toy.yaml")
    path.write_text(yaml.safe_dump({"profile": "toy", "runs": runs, **keys}, sort_keys=False))
    return str(path)


def only_plan(profile: str, results: str | None = None) -> Plan:
    (plan,) = load_plans(profile, results)
    return plan


def run_ids(profile: str) -> list[str]:
    return [run.run_id for run in only_plan(profile).runs]


# --- plans


def test_grid_is_expanded_and_none_collapses(toy):
    grid = {"dataset": ["digits"], "reducer": ["none", "tram"], "keep_rate": [0.75, 0.5], "seed": [0, 1]}
    expected = ["digits-none-k100-s0", "digits-none-k100-s1"]
    expected += [f"digits-tram-k{keep}-s{seed}" for keep in (75, 50) for seed in (0, 1)]
    plan = only_plan(write_profile(toy, {"grid": grid}))
    assert [run.run_id for run in plan.runs] == expected
    assert plan.runs[0].parameters["keep_rate"] == 1.0


def test_run_knows_its_files(toy):
    plan = only_plan(write_profile(toy, {"name": "first", "grid": {"seed": [3]}}), "results/elsewhere")
    run = plan.runs[0]
    assert run.run_id == "first-s3"
    assert run.parameters == {
        "seed": 3,
        "csv": "results/elsewhere/runs/scratch/first-s3.csv",
        "figure": "results/elsewhere/figures/scratch/first-s3.png",
        "profile": "toy",
    }


def test_run_id_is_a_file_name(toy):
    grid = {"dataset": ["folder:/some data/x"], "keep_rate": [0.333], "epochs": [2], "backbones": [["a", "b"]]}
    assert run_ids(write_profile(toy, {"grid": grid})) == ["folder_some_data_x-k33.3-epochs2-a_b"]
    assert run_ids(write_profile(toy, {})) == ["toy"]


def test_placeholders_and_weights(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    first = {"name": "first", "parameters": {"checkpoint": "{results}/w.safetensors"}}
    then = {"name": "then", "parameters": {"weights": "{results}/w.safetensors"}}
    file = {"file": "{data_root}/w.safetensors", "otherwise": "timm"}
    either = {"name": "either", "parameters": {"weights": file}}
    profile = write_profile(toy, first, then, either)
    runs = only_plan(profile, "results/x").runs
    assert [run.weights_files for run in runs] == [[], ["results/x/w.safetensors"], []]
    assert runs[0].checkpoint == "results/x/w.safetensors"
    (tmp_path / "w.safetensors").touch()
    assert only_plan(profile).runs[2].weights_files == [f"{tmp_path}/w.safetensors"]


def test_a_string_may_name_the_data_set_and_the_backbone_of_its_run(toy):
    """So that one entry of a grid makes a file of weights for each, and another one has it as its teacher."""
    grid = {"dataset": ["digits", "folder:/some data/x"], "backbone": ["a.b"]}
    file = "{results}/{dataset}-{backbone}-{epochs}.safetensors"
    first = {"name": "first", "grid": grid, "parameters": {"checkpoint": file}}
    then = {"name": "then", "grid": grid, "parameters": {"teacher_weights": file, "weights": "timm"}}
    made, taught = (
        only_plan(write_profile(toy, first, then), "results/x").runs[part] for part in (slice(2), slice(2, 4))
    )
    names = [f"results/x/{name}-a.b-{{epochs}}.safetensors" for name in ("digits", "folder_some_data_x")]
    assert [run.checkpoint for run in made] == names == [run.weights_files[0] for run in taught]
    assert [run.weights_files for run in made] == [[], []]


def test_a_run_that_reads_records_waits_for_those_that_leave_them(toy):
    """For the models that it reads alone: its data sets, backbones, methods, rates and seed, and its folder."""
    toy.with_suffix(".py").write_text(TOY.replace("pause = 0.0", "pause = 0.0; records = trained = ''; seed = 0"))
    grid = {"dataset": ["digits", "imagenette"], "backbone": ["a"], "reducers": [["none"], ["tram"]], "seed": [0, 1]}
    grid["keep_rates"] = [[0.9], [0.5]]
    leaves = {"name": "leaves", "grid": grid, "parameters": {"records": "{results}/r"}}
    other = {"name": "other", "grid": grid, "parameters": {"records": "{results}/elsewhere"}}
    given = {"dataset": "digits", "backbone": "a", "reducers": ["none", "tram"], "trained": "{results}/r"}
    reads = {"name": "reads", "parameters": {**given, "keep_rates": [0.5, 0.25]}}
    plan = only_plan(write_profile(toy, leaves, other, reads), "results/x")
    last = plan.runs[-1]
    assert [Path(csv).stem for csv in plan.waits_for(last)] == [
        *(f"leaves-digits-a-none-s0-{rate}" for rate in (0.9, 0.5)),
        "leaves-digits-a-tram-s0-0.5",
    ]
    assert plan.waits_for(plan.runs[0]) == [] and last.weights_files == []
    with pytest.raises(ProfileError) as refused:
        check_weights(plan)
    assert refused.value.problems == ["profile toy: reads reads records in results/x/r, which no run leaves there"]


def test_parameters_may_be_several_mappings_of_which_a_later_one_wins(toy):
    parts = [{"seed": 0, "pause": 1.0}, {"pause": 2.0}]
    assert only_plan(write_profile(toy, {"parameters": parts})).runs[0].options == {"seed": 0, "pause": 2.0}
    for wrong in ([], [{"seed": 0}, 1]):
        with pytest.raises(ProfileError, match=r"is not allowed; give name: value for each parameter$"):
            only_plan(write_profile(toy, {"parameters": wrong}))


TRAM = {"throughput", "sizing", "finetune", "off_the_shelf", "visualize", "scratch"}
EVERY = TRAM | {"method_grid", "gallery", "explain", "explain_benchmark", "explain_agreement", "idling", "slimming"}
PATTERNS = {"reduction_patterns", "patterns_across_data", "pattern_proxies"}
EVERY |= PATTERNS
EVERY |= {"leaderboard", "serving"}
STUDIES = {"quick": EVERY, "imagenette": EVERY}
STUDIES |= {"smoke": TRAM, "tram": TRAM - {"scratch"}, "tram_scratch": {"scratch"}}
STUDIES |= {"which_tokens": {"throughput", "method_grid", *PATTERNS}, "idling": {"finetune", "idling"}}
STUDIES |= {"which_tokens_parity": {"method_grid"}}
STUDIES |= {"gpu": {"throughput", "leaderboard", "finetune", "method_grid", "slimming", "idling", *PATTERNS}}
STUDIES |= {"patch_slimming": {"slimming"}, "mutex": {"explain", "explain_benchmark", "explain_agreement"}}
BEYOND = {"tram", "random", "downsample"}  # what no table of "Which Tokens to Use?" has
PAPERS = ["tram", "tram_scratch", "which_tokens", "patch_slimming", "idling", "mutex"]


@pytest.mark.parametrize("profile", sorted(STUDIES))
@pytest.mark.usefixtures("no_init")
def test_shipped_profile_is_accepted(profile):
    plan = only_plan(profile)
    assert plan.profile == profile
    assert plan.results == f"results/{profile}"
    assert set(plan.tables) == STUDIES[profile]
    check_plan(plan)


def test_paper_is_all_papers_each_with_its_results():
    plans = load_plans("paper")
    assert [(plan.profile, plan.results) for plan in plans] == [(name, f"results/{name}") for name in PAPERS]
    assert sorted([*STUDIES, "paper"]) == list_profiles()


@pytest.mark.parametrize(("profile", "prefix"), [("which_tokens", True), ("which_tokens_parity", False)])
def test_which_tokens_is_run_by_its_published_command(profile, prefix):
    """And has each cell of its tables once: 13 methods at four rates and the unreduced model, on four data sets."""
    runs = [run for run in only_plan(profile).runs if run.study == "method_grid"]
    published = protocol("which_tokens", lr=5e-4, lr_batch_normalizer=None, mixed_precision="bf16", workers=8)
    changed = {"warmup_prefix": prefix} | dict.fromkeys(("mixup", "cutmix"), 0.0)
    for run in runs:
        given = {**defaults_of(run.notebook), **run.options}
        config = {name: given[name] for name in field_kinds(TrainConfig) if name in given}
        several = run.options["dataset"] in ("coco", "nuswide")
        different = {name: changed[name] for name in (changed if several else ["warmup_prefix"])}
        assert protocol("which_tokens", **config, lr_batch_normalizer=None) == replace(
            published, seed=run.options["seed"], **different
        )
        assert (given["head"], given["drop_path"]) == ("dataset" if given["dataset"] == "imagenet" else "fresh", 0.1)
    cells = Counter(
        run.options["dataset"] for run in runs if run.options["seed"] == 0 and not BEYOND & {*run.options["reducers"]}
    )
    assert cells == dict.fromkeys(["imagenet", "nabirds", "coco", "nuswide"], 3 * (13 * 4 + 1))


def test_an_included_profile_has_its_own_folder_and_its_name_in_its_runs(toy):
    write_profile(toy, {"name": "mine"})
    outer = toy.with_name("outer.yaml")
    outer.write_text(yaml.safe_dump({"profile": "outer", "include": ["smoke", "toy.yaml", "toy.yaml"]}))
    smoke, mine = load_plans(str(outer))
    assert (smoke.results, mine.results) == ("results/smoke", "results/toy")
    assert [run.name for run in mine.runs] == ["toy--scratch--mine"]
    assert [run.csv for run in smoke.runs] == [run.csv for run in only_plan("smoke").runs]
    assert [plan.results for plan in load_plans(str(outer), "results/x")] == ["results/x/smoke", "results/x/toy"]
    both = toy.with_name("both.yaml")
    both.write_text(yaml.safe_dump({"profile": "both", "include": ["smoke", "outer.yaml"]}))
    assert [plan.results for plan in load_plans(str(both), "results/x")] == ["results/x/smoke", "results/x/toy"]


def test_a_profile_that_includes_itself_or_nothing_known_is_refused(toy):
    for name, line in (
        ("outer.yaml", "outer.yaml: it includes itself, by way of outer.yaml"),
        ("none", f"unknown profile 'none'; allowed: {', '.join(list_profiles())}"),
    ):
        path = toy.with_name("outer.yaml")
        path.write_text(yaml.safe_dump({"profile": "outer", "include": [name]}))
        with pytest.raises(ProfileError) as refused:
            load_plans(str(path))
        assert refused.value.problems == [line]


@pytest.mark.parametrize("profile", list_profiles())
def test_shipped_profile_measures_no_baseline_twice(profile):
    """The tables refuse two runs of one condition, and every run has the unreduced model of each of its conditions."""
    measured = Counter()
    for run in (run for plan in load_plans(profile) for run in plan.runs):
        if run.study == "throughput":
            given = {"dtypes": ["float32"], "batch_sizes": [4], "img_size": None, "runtimes": ["eager"], **run.options}
            several = (given[name] for name in ("backbones", "dtypes", "batch_sizes", "runtimes"))
            measured.update(product(*several, [given["img_size"]]))
    assert [condition for condition, count in measured.items() if count > 1] == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_declares_its_outputs(notebook):
    assert {"csv", "figure", "profile"} <= set(declared_parameters(notebook))


# --- refusals


REFUSALS = {
    "key": ([{"colour": 1}], "toy.yaml: run 1: unknown key 'colour'; allowed: " + ", ".join(sorted(RUN))),
    "notebook": ([{"notebook": "Scratch/none"}], "toy.yaml: run 1: there is no notebook Code/Scratch/none.py"),
    "grid": (
        [{"grid": {"seed": 0}}],
        "toy.yaml: run 1: grid={'seed': 0} is not allowed; give name: [value, ...] for each parameter",
    ),
    "empty grid": (
        [{"grid": {"seed": []}}],
        "toy.yaml: run 1: grid={'seed': []} is not allowed; give name: [value, ...] for each parameter",
    ),
    "no grid": (
        [{"grid": None}],
        "toy.yaml: run 1: grid=None is not allowed; give name: [value, ...] for each parameter",
    ),
    "no parameters": (
        [{"parameters": None}],
        "toy.yaml: run 1: parameters=None is not allowed; give name: value for each parameter",
    ),
    "number for a name": (
        [{"parameters": {5: 1}}],
        "toy.yaml: run 1: parameters={5: 1} is not allowed; give name: value for each parameter",
    ),
    "name": ([{"name": 3}], "toy.yaml: run 1: name=3 is not allowed; give text"),
    "threads": ([{"threads": 0}], "toy.yaml: run 1: threads=0 is not allowed; give a whole number >= 1"),
    "twice": (
        [{"grid": {"keep_rate": [0.5]}, "parameters": {"keep_rate": 1}}],
        "toy.yaml: run 1: 'keep_rate' is both in grid and in parameters",
    ),
    "same run": ([{}, {}], "profile toy: run 'scratch/toy' is made by 2 runs"),
    "same checkpoint": (
        [{"name": name, "parameters": {"checkpoint": "w.safetensors"}} for name in "ab"],
        "profile toy: checkpoint 'w.safetensors' is made by 2 runs",
    ),
    "study": ([{"study": "speed"}], f"profile toy: unknown study 'speed'; allowed: {', '.join(sorted(all_studies()))}"),
    "parameter": (
        [{"parameters": {"epoch": 1}}],
        f"profile toy: unknown parameter 'epoch' for toy.py; allowed: {ALL_PARAMETERS}",
    ),
    "reducer": (
        [{"grid": {"reducer": ["trim", "tram"]}}],
        f"profile toy: unknown reducer 'trim'; allowed: {', '.join(list_reducers())}; did you mean 'tram'?",
    ),
    "dataset": (
        [{"parameters": {"dataset": "cifar"}}],
        f"profile toy: unknown dataset 'cifar'; allowed: {', '.join(list_datasets())}; did you mean 'cifar10'?",
    ),
    "keep rate above 1": (
        [{"grid": {"reducer": ["tram"], "keep_rate": [1.2, 0.5]}}],
        "profile toy: keep_rate=1.2 is not allowed; give " + KEEP_RATES,
    ),
    "keep rate 0": (
        [{"grid": {"reducer": ["tram"], "keep_rate": [0]}}],
        "profile toy: keep_rate=0 is not allowed; give " + KEEP_RATES,
    ),
    "schedule of other stages": (
        [{"parameters": {"reducer": "tram", "keep_rate": [0.9, 0.5]}}],
        "profile toy: keep_rate=(0.9, 0.5) for 3 stages is not allowed; give " + KEEP_RATES,
    ),
    "blocks that fall": (
        [{"parameters": {"reducer": "tram", "keep_rate": "0.7@5 0.5@2"}}],
        "profile toy: blocks of keep_rate=(5, 2) is not allowed; give increasing 0-based block indices",
    ),
    "budget above all": (
        [{"grid": {"reducer": ["tram"], "keep_rate": ["mac_cut=1.5"]}}],
        "profile toy: mac_cut=1.5 is not allowed; give a number from 0 to below 1",
    ),
    "budget of what has no keep rate": (
        [{"parameters": {"reducer": "idle_mlp", "keep_rate": "mac_cut=0.5"}}],
        "profile toy: 'idle_mlp' has no keep rate to solve for; allowed: methods that follow a schedule "
        "(common.idling.fit and common.slimming.search meet a mac_cut by other means)",
    ),
    "weights of no file": (
        [{"parameters": {"weights": 5}}],
        "profile toy: weights=5 is not allowed; give text or a list, each text",
    ),
    "weights": (
        [{"parameters": {"weights": "results/none.safetensors"}}],
        "profile toy: no weights at results/none.safetensors, and no run makes them",
    ),
}


@pytest.mark.parametrize(("entries", "line"), REFUSALS.values(), ids=REFUSALS)
def test_refusal(toy, entries, line):
    with pytest.raises(ProfileError) as refused:
        check_plan(only_plan(write_profile(toy, *entries)))
    assert refused.value.problems == [line]


@pytest.mark.parametrize(
    ("backbone", "line"),
    [
        ("swin_tiny_patch4_window7_224", "backbone 'swin_tiny_patch4_window7_224' is not supported"),
        ("simple_vit_digits", "reducer 'topk' reads the CLS token's attention, but this backbone has no CLS token"),
    ],
)
def test_model_that_cannot_be_built_is_refused(toy, backbone, line):
    toy.with_suffix(".py").write_text(TOY.replace("pause = 0.0", "backbone = ''"))
    profile = write_profile(toy, {"parameters": {"backbone": backbone, "reducer": "topk", "keep_rate": 0.5}})
    with pytest.raises(ProfileError, match=f"^profile toy: {line}[^\n]*$"):
        check_plan(only_plan(profile))


def test_keys_of_the_profile_are_checked(toy):
    with pytest.raises(ProfileError) as refused:
        only_plan(write_profile(toy, {}, runns=[]))
    assert refused.value.problems == [
        "toy.yaml: unknown key 'runns'; allowed: about, include, profile, results, runs, title",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("profile: toy\nruns: [1", "line 2: expected ',' or ']', but got '<stream end>'"),
        ("profile: toy\nprofile: toy", "line 2: key 'profile' stands twice"),
        ("- 1", "toy.yaml: [1] is not allowed; give a mapping with the keys profile and runs"),
        ("", "toy.yaml: None is not allowed; give a mapping with the keys profile and runs"),
        ("runs: [{}]", "toy.yaml: the key 'profile' is missing"),
        ("profile: toy\nruns:", "toy.yaml: runs=None is not allowed; give a list of runs"),
        ("profile: toy\nruns: []", "toy.yaml: runs=[] is not allowed; give a list of runs"),
        ("profile: 2024\nruns: [{}]", "toy.yaml: profile=2024 is not allowed; give text"),
        (
            "profile: toy\nruns: [Scratch/train_test]",
            "toy.yaml: run 1: 'Scratch/train_test' is not allowed; give a mapping with the keys notebook and study",
        ),
    ],
)
def test_a_profile_of_another_form_is_refused_in_one_line(tmp_path, text, line):
    path = tmp_path / "toy.yaml"
    path.write_text(text)
    with pytest.raises(ProfileError) as refused:
        only_plan(str(path))
    (problem,) = refused.value.problems
    assert problem.endswith(line) and "toy.yaml" in problem and "\n" not in problem


def test_profiles_are_read_as_trainings_are(tmp_path):
    run = "{notebook: Scratch/train_test, study: scratch, parameters: {lr: 1e-4, optimizer: no}}"
    path = tmp_path / "toy.yaml"
    path.write_text(f"{{profile: toy, runs: [{run}]}}")
    plan = only_plan(str(path))
    assert plan.runs[0].options == {"lr": 0.0001, "optimizer": "no"}
    assert parse_yaml(to_yaml(plan.runs[0].parameters), "a parameter file") == plan.runs[0].parameters
    with pytest.raises(ProfileError, match=r"^profile toy: unknown optimizer 'no'; allowed: [^\n]*$"):
        check_plan(plan)


def test_a_rate_per_stage_is_one_value_of_one_run(toy):
    plan = only_plan(write_profile(toy, {"parameters": {"reducer": "tram", "keep_rate": [0.9, 0.7, 0.5]}}))
    check_plan(plan)
    assert [run.options["keep_rate"] for run in plan.runs] == [[0.9, 0.7, 0.5]]


# --- the vocabulary

OF_STUDIES = {name: kind for study in all_studies().values() for name, kind in study.parameters.items()}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_parameter_of_a_notebook_is_in_the_vocabulary_and_its_default_passes(notebook):
    (cell,) = [cell for cell in read_notebook(notebook).cells if "parameters" in cell.metadata["tags"]]
    defaults = {}
    exec(cell.source, {}, defaults)
    assert [name for name in defaults if kind_of(name, OF_STUDIES) is None] == []
    for name, value in defaults.items():
        check(name, value, kind_of(name, OF_STUDIES))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("others", ["mutex", "lime"], "unknown explainer 'lime'"),
        ("reduced_explainers", ["mutex:parity=3"], "explainer 'mutex': parity=3 is not allowed; give true or false"),
        ("labels", ["similarity=l2"], "reducer 'idle_mlp': unknown similarity 'l2'"),
        ("labels", "similarity=blend", "give a list, each text"),
        ("pruning", ["gone"], "give a list of dropped, idle, zero"),
        ("lengths", ["learned", "greedy"], "give a list of falling, learned, tapered, uniform"),
        ("scores", ["luck"], "give a list of attention, coverage"),
        ("recipe", "crop", "unknown recipe 'crop'; allowed: center_crop, pretrained, scratch, which_tokens"),
        ("optimizer", "sgdd", "unknown optimizer 'sgdd'"),
        ("schedule", "linear", "unknown schedule 'linear'; allowed: constant, cosine, step"),
        ("mixed_precision", False, "unknown mixed_precision False; allowed: bf16, fp16, no"),
        ("lr", "1e-4", "lr='1e-4' is not allowed; give a number > 0"),
        ("epochs", 1.5, "epochs=1.5 is not allowed; give a whole number >= 0"),
        ("reducers", "tram", "reducers='tram' is not allowed; give a list, each text"),
        ("reducers", ["tram", "topk:head_fusion=min"], "reducer 'topk': unknown head_fusion 'min'; allowed: max, mean"),
        ("keep_rates", [[0.9, 0.5], 1.5], "keep_rates=[[0.9, 0.5], 1.5] is not allowed; give a list, each a ratio"),
        ("dtypes", ["half"], "give a list of bfloat16, float16, float32"),
        ("baseline", "white", "unknown baseline 'white'"),
        ("contexts", ["far"], "give a list of both, cls, conv, none"),
        ("images", [0, -1], "images=[0, -1] is not allowed"),
        ("device", "tpv", "unknown device 'tpv'"),
        ("limit_states", 0, "limit_states=0 is not allowed; give a whole number >= 1"),
        ("cuts", [20], "cuts=[20] is not allowed; give a list, each a number from 0 to 1"),
        ("img_size", "224", "img_size='224' is not allowed; give a whole number >= 1"),
    ],
)
def test_a_parameter_that_no_notebook_could_work_with_is_refused(name, value, message):
    with pytest.raises(UsageError) as refused:
        check(name, value, kind_of(name, OF_STUDIES))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_all_wrong_values_of_a_profile_are_told_at_once(toy, monkeypatch):
    source = toy.with_suffix(".py")
    source.write_text(source.read_text().replace("pause = 0.0", "pause = lr = 0.1; recipe = ''; speed = 1"))
    monkeypatch.setattr(type(all_studies()["scratch"]), "parameters", {"speed": Literal["slow", "fast"]})
    entry = {"parameters": {"lr": "fast", "recipe": "none", "speed": "light"}}
    with pytest.raises(ProfileError) as refused:
        check_plan(only_plan(write_profile(toy, entry)))
    assert refused.value.problems == [
        "profile toy: lr='fast' is not allowed; give a number > 0",
        "profile toy: unknown recipe 'none'; allowed: center_crop, pretrained, scratch, which_tokens",
        "profile toy: unknown speed 'light'; allowed: fast, slow",
    ]


# --- runner


def run_notebook(toy: Path, **parameters) -> subprocess.CompletedProcess[str]:
    file = toy.with_name("parameters.yaml")
    file.write_text(yaml.safe_dump({"csv": str(toy.with_name("toy.csv")), "figure": "", **parameters}))
    command = [WORKFLOW / "run_notebook.py", f"{toy}.py", toy.with_name("done.ipynb"), "--parameters", file]
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, cwd=toy.parent)


def test_runner_uses_this_python_over_ipc(toy):
    assert run_notebook(toy, keep_rate=0.5).returncode == 0
    cells = nbformat.read(toy.with_name("done.ipynb"), as_version=4).cells
    printed = "".join(output.text for cell in cells for output in cell.get("outputs", []))
    assert printed.splitlines() == ["ipc", sys.executable, str(ROOT)]
    assert toy.with_name("toy.csv").read_text() == "whole"


def test_runner_refuses_a_misspelt_parameter(toy):
    done = run_notebook(toy, keep_rat=0.5)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: {toy.parent.name}--done: unknown parameter 'keep_rat' for toy.py; allowed: {ALL_PARAMETERS}"
    )
    assert not list(toy.parent.glob("*.ipynb"))


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        (f"raise type('{UsageError.__name__}', (Exception,), {{}})('no such thing')", "no such thing"),
    ],
)
def test_runner_says_in_one_line_what_failed(toy, statement, message):
    done = run_notebook(toy, fail=statement)
    assert done.returncode == 1
    partial = toy.with_name("done.partial.ipynb")
    assert done.stderr.splitlines()[-1] == f"error: {toy.parent.name}--done: {message} (see {partial})"
    assert "Traceback" not in "".join(line for line in done.stderr.splitlines()[-1:])
    assert partial.exists()
    assert not toy.with_name("done.ipynb").exists()
    assert not toy.with_name("toy.csv").exists()


# --- run_all.sh


def environment() -> dict[str, str]:
    """The active environment's Python first, as --no-venv wants it."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run_all(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [ROOT / "run_all.sh", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment())


def test_help_lists_the_profiles(tmp_path):
    done = run_all("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"profiles: {', '.join(list_profiles())}\n" in done.stdout


def test_unknown_profile_is_refused_before_anything_is_installed(tmp_path):
    done = run_all("papper", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    allowed = f"{', '.join(list_profiles())}, the path of a YAML file (or fetch, test, bench, lab)"
    assert done.stderr == f"error: unknown profile 'papper'; allowed: {allowed}\n"


def test_profile_is_taken_by_its_path_from_where_one_is(toy, results):
    write_profile(toy, {"name": "mine"})
    options = ["--no-venv", "--no-install", "--dry-run", "--results", results]
    done = run_all("toy.yaml", *options, cwd=toy.parent)
    assert done.returncode == 0, done.stderr
    assert "scratch--mine" in done.stdout + done.stderr
    missing = run_all("other.yaml", *options, cwd=toy.parent)
    assert (missing.returncode, missing.stderr) == (2, "error: there is no profile 'other.yaml'\n")


def test_lab_opens_the_notebooks_with_this_environment(tmp_path):
    """A module in JupyterLab's place says how it was called, and which Python is the kernel "python3"."""
    (tmp_path / "jupyterlab.py").write_text(
        "import sys\n"
        "from jupyter_client.kernelspec import get_kernel_spec\n"
        "print(get_kernel_spec('python3').argv[0], *sys.argv[1:], sep='\\n')\n"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    command = [ROOT / "run_all.sh", "lab", "--no-venv", "--no-install", "--no-browser"]
    done = subprocess.run(command, capture_output=True, text=True, env={**environment(), "PYTHONPATH": path})
    wanted = [
        sys.executable,
        f"--ServerApp.root_dir={ROOT}",
        "--LabApp.default_url=/lab/tree/notebooks",
        "--no-browser",
    ]
    assert done.stdout.splitlines() == wanted


@pytest.mark.skipif(find_spec("jupyterlab") is not None, reason="JupyterLab is installed")
def test_lab_that_is_missing_is_said_in_one_line():
    done = run_all("lab", "--no-venv", "--no-install")
    line = f"error: JupyterLab is not installed in {sys.executable}; run without --no-install\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_bench_starts_the_comparisons_with_its_options(tmp_path):
    """A script in Python's place says how it was called."""
    (tmp_path / "python").write_text('#!/bin/sh\n[ "$1" = -c ] || echo "$@"\n')
    (tmp_path / "python").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    command = [ROOT / "run_all.sh", "bench", "tram", "--no-venv", "--no-install", "--rounds", "3"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert (done.stdout, done.stderr) == ("Code/bench/bench.py tram --rounds 3\n", "")
    assert (ROOT / "Code" / "bench" / "bench.py").is_file()


def test_dry_run_says_what_would_run(results):
    done = run_all("smoke", "--no-venv", "--no-install", "--dry-run", "--results", results)
    assert done.returncode == 0, done.stderr
    assert [run.name for run in only_plan("smoke").runs if run.name not in done.stdout + done.stderr] == []
    assert not results.exists()


def launch(profile: str, results: Path, *options: object) -> subprocess.CompletedProcess[str]:
    return run_script(WORKFLOW / "launch.py", profile, "--results", results, *options)


def test_only_what_is_missing_or_stale_runs(toy, results):
    first = {"name": "first", "parameters": {"checkpoint": "{results}/w.safetensors"}}
    then = {"name": "then", "parameters": {"weights": "{results}/w.safetensors", "keep_rate": 0.5}}
    profile = write_profile(toy, first, then)
    csvs = [run.csv for run in only_plan(profile, str(results)).runs]
    assert launch(profile, results, *csvs).returncode == 0
    before = [os.stat(csv).st_mtime_ns for csv in csvs]
    assert "Nothing to be done" in launch(profile, results, *csvs).stderr
    then["parameters"]["keep_rate"] = 0.75
    assert launch(write_profile(toy, first, then), results, *csvs).returncode == 0
    after = [os.stat(csv).st_mtime_ns for csv in csvs]
    assert (after[0] == before[0], after[1] > before[1]) == (True, True)


def test_results_that_were_not_made_here_count_as_nothing_done(toy, results):
    profile = write_profile(toy, {})
    run = only_plan(profile, str(results)).runs[0]
    for path in (run.csv, run.figure, run.executed):
        Path(path).parent.mkdir(parents=True)
        Path(path).write_text("from elsewhere")
    assert launch(profile, results, run.csv).returncode == 0
    assert Path(run.csv).read_text() == "whole"


def test_a_profile_that_says_nothing_about_itself_has_a_page(toy, results):
    done = launch(write_profile(toy, {}), results, "--dry-run", "--printshellcmds", "--quiet", "progress")
    assert f" -m common.studies both '{results}' --title=toy --about=\n" in done.stdout + done.stderr


def test_wrong_profile_starts_nothing(toy, results):
    done = launch(write_profile(toy, {"parameters": {"reducer": "trim", "epoch": 1}}), results)
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.split(";")[0] for line in done.stderr.splitlines()] == [
        "error: profile toy: unknown parameter 'epoch' for toy.py",
        "error: profile toy: unknown reducer 'trim'",
    ]
    assert not results.exists()


@pytest.mark.slow
def test_smoke_profile_goes_on_after_a_kill(results, tmp_path):
    command = [ROOT / "run_all.sh", "smoke", "--no-venv", "--no-install", "--results", results, "--cores", "1"]
    with open(tmp_path / "first.log", "w") as log:
        first = subprocess.Popen(command, env=environment(), stdout=log, stderr=log, start_new_session=True)
    finished = {path: path.stat().st_mtime_ns for path in wait_for_finished_runs(results, first)}
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (results / "report.html").exists()

    second = launch("smoke", results)
    assert second.returncode == 0, second.stdout + second.stderr
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert (results / "report.html").stat().st_size > 10_000
    assert str(results / "report.html") in second.stdout
    made = sorted(path.relative_to(results / "runs") for path in results.glob("runs/*/*.csv"))
    assert made == sorted(Path(run.study, f"{run.run_id}.csv") for run in only_plan("smoke").runs)

    third = launch("smoke", results)
    assert "Nothing to be done" in third.stdout + third.stderr


def wait_for_finished_runs(results: Path, process: subprocess.Popen, settled: float = 5.0) -> list[Path]:
    """CSVs of the runs that ended ``settled`` seconds ago, so that Snakemake has noticed; at least one."""
    while process.poll() is None:
        ended = [path for path in results.glob("notebooks/*/*.ipynb") if ".partial" not in path.name]
        ended = [path for path in ended if path.stat().st_mtime < time.time() - settled]
        if ended:
            return [results / "runs" / path.parent.name / f"{path.stem}.csv" for path in ended]
        time.sleep(0.2)
    pytest.fail("the study ended before a run did")
