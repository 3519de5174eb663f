"""Runs as jobs of a SLURM cluster: how they are called, what a killed start leaves, and one study on a real cluster."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from forked import run_script

import launch
from plan import load_plans
from profile_file import list_profiles

NOTEBOOK = """\
# %% tags=["parameters"]
csv = figure = profile = ""
seed = 0

# %%
from pathlib import Path

for path in (csv, figure):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(f"seed {seed}")
"""


@pytest.fixture
def profile(tmp_path: Path) -> str:
    """Two runs of a notebook that writes its seed."""
    (tmp_path / "toy.py").write_text(NOTEBOOK)
    run = {"notebook": str(tmp_path / "toy"), "study": "scratch", "threads": 1, "grid": {"seed": [1, 2]}}
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump({"profile": "toy", "runs": [run]}))
    return str(path)


@pytest.mark.parametrize("profile", list_profiles())
def test_schedulers_take_the_names_of_runs(profile):
    """SLURM's plugin refuses a slash, others a digit in front or what a shell reads."""
    names = [run.name for plan in load_plans(profile) for run in plan.runs]
    assert [name for name in names if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]{,199}", name)] == []
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("folder", ["results/quick", "results/my study (2. try)", "results/" + 80 * "x"])
def test_slurm_takes_the_names_of_jobs(profile, folder):
    """The plugin's own rule; two results folders do not share a name."""
    name = launch.job_name(load_plans(profile, folder))
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,50}", name)
    assert name != launch.job_name(load_plans(profile, folder + "_"))


def test_jobs_that_a_killed_start_left_are_cancelled(tmp_path, monkeypatch, capsys):
    """Only those of these results, named by the prefix; commands of the cluster are played by two scripts."""
    queue = tmp_path / "queue"
    queue.write_text("11 quick-1a2b_77-ff\n12 other_77-ff\n13 quick-1a2b_78-ff\n14 quick-1a2b3c_9\n")
    cancel = f"for job in $@; do echo $job >>{tmp_path}/cancelled; sed -i /^$job/d {queue}; done"
    for name, script in {"squeue": f"cat {queue}", "scancel": cancel}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    launch.cancel_left_jobs("quick-1a2b")
    assert (tmp_path / "cancelled").read_text() == "11\n13\n"
    assert capsys.readouterr().out == "cancelling 2 jobs that an earlier start left in the queue\n"


def partition_of_this_machine() -> str:
    """The SLURM partition whose only node is this machine; the test is skipped where there is none."""
    if shutil.which("sinfo"):
        listing = ["sinfo", "--noheader", "--format", "%R %N"]
        found = subprocess.run(listing, capture_output=True, text=True, check=False).stdout
        for partition, nodes in (line.split() for line in found.splitlines()):
            if nodes == socket.gethostname().split(".")[0]:
                return partition
    pytest.skip("no SLURM partition with this machine as its only node")


def test_machine_without_slurm_is_refused(profile, results):
    command = [sys.executable, launch.__file__, profile, "--results", results, "--executor", "slurm", "--jobs", "2"]
    nowhere = {**os.environ, "PATH": str(results)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=nowhere)
    line = "error: there is no SLURM here (the command sbatch); log in where jobs are submitted\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_jobs_ask_for_their_estimate_unless_the_user_says_more(profile, results):
    pytest.importorskip("snakemake_executor_plugin_slurm")
    first, second = load_plans(profile, str(results))[0].runs

    def asked(*options: str) -> list[tuple[str, ...]]:
        slurm = [
            first.csv,
            second.csv,
            "--executor",
            "slurm",
            "--jobs",
            "2",
            "--dry-run",
            "--quiet",
            "progress",
            *options,
        ]
        done = run_script(Path(launch.__file__), profile, "--results", results, *slurm)
        assert done.returncode == 0, done.stdout + done.stderr
        found = [re.findall(rf"resources:.*\b{name}=(\d+)", done.stdout) for name in ("mem_mb", "runtime")]
        return list(zip(*found, strict=True))

    assert asked("--default-resources", "runtime=240") == 2 * [("16000", "240")]
    assert sorted(asked("--set-resources", f"{first.name}:runtime=600")) == [("16000", "60"), ("16000", "600")]


@pytest.mark.slow
def test_study_runs_on_slurm(profile, results):
    """With the options of Code/workflow/README.md, as far as this cluster has what they ask for."""
    resources = [f"slurm_partition={partition_of_this_machine()}", "runtime=10", "mem_mb=1000"]
    options = ["--jobs", "50", "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "5"]
    csvs = [run.csv for run in load_plans(profile, str(results))[0].runs]
    command = [sys.executable, launch.__file__, profile, "--results", results, *csvs, "--executor", "slurm"]
    done = subprocess.run([*command, *options, "--default-resources", *resources], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [Path(csv).read_text() for csv in csvs] == ["seed 1", "seed 2"]
