"""Check a profile, then become the Snakemake that runs it. ./run_all.sh calls this.

python Code/workflow/launch.py PROFILE [--results FOLDER] [Snakemake options]
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
import time
from importlib.metadata import version

from checks import check_data, check_plan
from plan import ROOT, Plan, ProfileError, load_plan, state_folder, write_parameter_files

WAIT_FOR_LOCK = 10  # seconds that a killed run may take to be gone
CLUSTER_THREADS = 8
DRY_RUN = {"-n", "--dry-run", "--dryrun"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("profile")
    parser.add_argument("--results", help="results folder instead of results/PROFILE")
    parser.add_argument("--threads", type=int, help="cores for each run (default: all; on a cluster 8)")
    arguments, options = parser.parse_known_args()
    os.chdir(ROOT)
    try:
        plan = load_plan(arguments.profile, arguments.results)
        check_plan(plan)
        if not DRY_RUN & set(options):
            check_data(plan)
    except ProfileError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    print(f"{plan.profile}: {len(plan.runs)} runs, report: {ROOT / plan.results / 'report.html'}", flush=True)
    write_parameter_files(plan)
    if not _lock(plan):
        print(f"error: another run is working in {plan.results}; wait for it or end it", file=sys.stderr)
        return 1
    os.execv(sys.executable, [sys.executable, "-m", "snakemake", *_command(arguments, plan, options)])


def _command(arguments: argparse.Namespace, plan: Plan, options: list[str]) -> list[str]:
    config = [f"profile={arguments.profile}", f"results={plan.results}"]
    on_cluster = any(option.split("=")[0] in ("--executor", "-e") for option in options)
    threads = arguments.threads or (CLUSTER_THREADS if on_cluster else None)
    config += [f"threads={threads}"] if threads else []
    cores = [] if on_cluster or _has_cores(options) else ["--cores", "all"]
    fixed = ["--snakefile", "Code/workflow/Snakefile", "--scheduler", "greedy", "--rerun-incomplete", "--keep-going"]
    return [*fixed, "--nolock", "--quiet", *_quiet(), *cores, *options, "--config", *config]


def _quiet() -> list[str]:
    """What Snakemake need not print: run_notebook.py has a line for each run already."""
    return ["rules"] if version("snakemake").startswith("7.") else ["host", "rules"]


def _has_cores(options: list[str]) -> bool:
    return any(option.startswith(("--cores", "--jobs", "-c", "-j")) for option in options)


def _lock(plan: Plan) -> bool:
    """Take the results folder for this process, or return False when another one has it.

    The lock lives as long as the process, which Snakemake takes over: unlike Snakemake's own, nothing is left of it
    after a kill -9.
    """
    path = ROOT / state_folder(plan.results) / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    os.set_inheritable(file, True)
    for _ in range(WAIT_FOR_LOCK):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(1)
    return False


if __name__ == "__main__":
    sys.exit(main())
