"""Run a profile without Snakemake and Jupyter: the text notebooks, as Python, until the time is up.

    python Code/workflow/direct.py gpu --results results/gpu/MY_CARD --minutes 9 [--cores 16] [--only TEXT ...]

For a machine that is lent for minutes: it needs the package's own dependencies and jupytext. Runs start in the order of
the profile. One that takes all cores (no ``threads`` in the profile: it measures speed) has the machine for itself;
others share the cores. A run that is done, whose CSV is there, is skipped, and one that the end of the time stops goes
on from its checkpoints when this is started again. No tables: ``python -m common.studies report`` makes them.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import yaml
from tqdm import tqdm

from common.yaml_files import read_yaml
from notebooks import declared_parameters, read_notebook, undeclared
from plan import Plan, Run
from profile_file import ROOT, ProfileError
from rehearsal import SAMPLES, plans_to_run, set_the_stage

POLL = 0.2  # seconds
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """A run that has started."""

    run: Run
    process: subprocess.Popen
    log: IO[str]

    def end(self) -> int:
        """Wait for it; its exit status."""
        status = self.process.wait()
        self.log.close()
        return status


class Machine:
    """The cores of this machine and the runs on them."""

    def __init__(self, cores: int, narrow: bool) -> None:
        self.cores, self.narrow, self.jobs = cores, narrow, []

    def takes(self, run: Run) -> bool:
        """Whether ``run`` can start now."""
        if not self.jobs:
            return True
        busy = [job.run.threads or self.cores for job in self.jobs]
        return sum(busy) + (run.threads or self.cores) <= self.cores

    def start(self, run: Run) -> None:
        log = ROOT / run.log
        log.parent.mkdir(parents=True, exist_ok=True)
        threads = dict.fromkeys(ONE_THREAD, str(run.threads or self.cores))
        narrow = ["--narrow"] if self.narrow else []
        given = log.with_suffix(".yaml")
        given.write_text(yaml.safe_dump(run.parameters), encoding="utf-8")
        command = [sys.executable, __file__, "--notebook", run.notebook, "--parameters", str(given), *narrow]
        output = log.open("w", encoding="utf-8")
        environment = {"MPLBACKEND": "agg", **os.environ, **threads}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
        self.jobs.append(Job(run, process, output))

    def ended(self) -> Iterator[tuple[Run, int]]:
        """Runs that have ended since they were asked for, with their exit status."""
        for job in [job for job in self.jobs if job.process.poll() is not None]:
            self.jobs.remove(job)
            yield job.run, job.end()

    def __enter__(self) -> None:
        stop = partial(sys.exit, 128 + signal.SIGTERM)  # by way of __exit__
        self._before = signal.signal(signal.SIGTERM, lambda *_: stop())

    def __exit__(self, *_: object) -> None:
        """End what still runs."""
        signal.signal(signal.SIGTERM, self._before)
        for job in self.jobs:
            job.process.terminate()
        for job in self.jobs:
            job.end()


def run_plans(plans: Sequence[Plan], machine: Machine, minutes: float) -> tuple[list[Run], list[Run]]:
    """Run what is not done until the time is up; returns the runs that failed and those that are left.

    A run that starts from what a failed one should have made is left.
    """
    end = time.monotonic() + 60 * minutes
    waiting = [(plan, run) for plan in plans for run in plan.runs if not (ROOT / run.csv).is_file()]
    failed: list[Run] = []
    with tqdm(total=len(waiting), desc="runs") as bar, machine:
        while (waiting or machine.jobs) and time.monotonic() < end:
            for run, status in machine.ended():
                bar.update()
                if status:
                    failed.append(run)
                    bar.write(f"error: {run.name}: {_last_line(ROOT / run.log)} (see {run.log})", file=sys.stderr)
            ready = [each for each in waiting if _ready(*each)]
            if not ready and not machine.jobs:
                break  # what the others start from was not made
            for plan, run in ready:
                if not machine.takes(run):
                    break  # the next one in the profile's order comes first
                machine.start(run)
                waiting.remove((plan, run))
            time.sleep(POLL)
        left = [job.run for job in machine.jobs] + [run for _, run in waiting]
    return failed, left


def _ready(plan: Plan, run: Run) -> bool:
    """Whether all is there that ``run`` starts from and other runs make."""
    makers = {other.checkpoint for other in plan.runs}
    made = [file for file in run.weights_files if file in makers]
    return all((ROOT / path).is_file() for path in [*plan.waits_for(run), *made])


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it ended without a word"


def execute(notebook: Path, parameters: dict[str, Any]) -> None:
    """Run the code cells of a text notebook in this process, ``parameters`` after the cell that declares them."""
    for message in undeclared(parameters, notebook, declared_parameters(notebook)):
        raise ValueError(message)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(read_notebook(notebook).cells):
        if cell.cell_type != "code":
            continue
        exec(compile(cell.source, f"{notebook.name}, cell {number}", "exec"), namespace)
        if "parameters" in cell.metadata["tags"]:
            namespace.update(parameters)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profile", nargs="?", default="gpu")
    parser.add_argument("--results", help="results folder instead of results/PROFILE")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after so many, whatever runs then")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="default: all")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="runs that are called so (STUDY--RUN), or in part")
    parser.add_argument("--rehearse", nargs="?", const=SAMPLES[0], choices=SAMPLES, help="small; see rehearsal.py")
    parser.add_argument("--notebook", type=Path, help=argparse.SUPPRESS)  # one run, in this process
    parser.add_argument("--parameters", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--narrow", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.notebook:
        return _execute_one(arguments)
    os.chdir(ROOT)
    try:
        plans = plans_to_run(arguments.profile, arguments.results, arguments.rehearse)
        plans = only(plans, arguments.only) if arguments.only else plans
        if arguments.rehearse:
            set_the_stage(arguments.profile)
    except ProfileError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    failed, left = run_plans(plans, Machine(arguments.cores, bool(arguments.rehearse)), arguments.minutes)
    if left:
        print(f"left: {', '.join(run.name for run in left)}")
    return 1 if failed else 0


def only(plans: Sequence[Plan], texts: Sequence[str]) -> list[Plan]:
    """``plans`` with the runs that one of ``texts`` names, or is part of the name of.

    Raises:
        ProfileError: a text that no run has.
    """
    names = {run.name for plan in plans for run in plan.runs}
    if strangers := [text for text in texts if not any(text in name for name in names)]:
        raise ProfileError(
            [f"--only {text}: no run is called so; there are {', '.join(sorted(names))}" for text in strangers]
        )
    parts = [text for text in texts if text not in names]
    wanted = {name for name in names if name in texts or any(text in name for text in parts)}
    return [replace(plan, runs=tuple(run for run in plan.runs if run.name in wanted)) for plan in plans]


def _execute_one(arguments: argparse.Namespace) -> int:
    if arguments.narrow:
        from narrow import narrow

        narrow()
    execute(ROOT / arguments.notebook, read_yaml(arguments.parameters))
    return 0


if __name__ == "__main__":
    sys.exit(main())
