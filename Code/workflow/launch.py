"""Check a profile, then become the Snakemake that runs it. ./run_all.sh calls this.

python Code/workflow/launch.py PROFILE [--results FOLDER] [Snakemake options]
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import version

from accept import accept
from checks import check_plan, check_values, check_weights
from fetch import go_offline
from outlook import describe
from plan import Plan, load_plans, state_folder
from profile_file import ROOT, ProfileError
from rehearsal import SAMPLES, plans_to_run, set_the_stage
from state import changed_code, changes, state_files, write

WAIT_FOR_LOCK = 10  # seconds that a killed run may take to be gone
WAIT_FOR_JOBS = 60  # seconds that a cancelled job may take
CLUSTER_THREADS = 8
DRY_RUN = {"-n", "--dry-run", "--dryrun"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("profile")
    parser.add_argument("--results", help="results folder instead of results/PROFILE")
    parser.add_argument("--threads", type=int, help="cores for each run (default: all; on a cluster 8)")
    parser.add_argument("--accept", nargs="*", metavar="RUN", help="let these results, or all, stand for today's code")
    parser.add_argument("--rehearse", nargs="?", const=SAMPLES[0], choices=SAMPLES, help="small; see rehearsal.py")
    parser.add_argument("--plan", action="store_true", help="only say what the profile costs and downloads")
    arguments, options = parser.parse_known_args()
    os.chdir(ROOT)
    try:
        if arguments.plan:
            plans = load_plans(arguments.profile)
            for plan in plans:
                check_values(plan)
            print(describe(plans))
            return 0
        plans = _prepare(arguments, options)
    except ProfileError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    if arguments.accept is not None:
        return 0
    os.execv(sys.executable, [sys.executable, "-m", "snakemake", *_command(arguments, plans, options)])


def _prepare(arguments: argparse.Namespace, options: list[str]) -> list[Plan]:
    """Whatever must be right before Snakemake starts. Raises ProfileError."""
    on_slurm, dry_run = _executor(options) == "slurm", bool(DRY_RUN & set(options))
    if on_slurm and not dry_run and not shutil.which("sbatch"):
        raise ProfileError(["there is no SLURM here (the command sbatch); log in where jobs are submitted"])
    if arguments.rehearse:
        set_the_stage(arguments.profile)
    plans = plans_to_run(arguments.profile, arguments.results, arguments.rehearse)
    go_offline(plans)
    if arguments.rehearse:
        names = [run.name for plan in plans for run in plan.runs]
        of = sum(len(plan.runs) for plan in load_plans(arguments.profile))
        print(f"rehearsing {len(names)} of {of} runs:", *names, sep="\n  ", flush=True)
    changed = [changes(state_files(plan)) for plan in plans]
    for plan, new in zip(plans, changed, strict=True):
        (check_plan if new else check_weights)(plan)  # what has no change was checked, with this very code
    for plan in plans:
        print(f"{plan.profile}: {len(plan.runs)} runs, report: {ROOT / plan.results / 'report.html'}", flush=True)
        if not _lock(plan):
            raise ProfileError([f"another run is working in {plan.results}; wait for it or end it"])
    if code := sorted({module for new in changed for module in changed_code(new)}):
        print(f"changed, and what depends on it is stale: {', '.join(code)}", flush=True)
    for new in changed:
        write(new)
    if arguments.accept is not None:
        accepted = accept(plans, arguments.accept, _command(arguments, plans, []))
        print(f"accepted {len(accepted)} stale results; they stand in the accepted.csv of their folder", flush=True)
    elif on_slurm and not dry_run:
        cancel_left_jobs(job_name(plans))
    return plans


def _command(arguments: argparse.Namespace, plans: list[Plan], options: list[str]) -> list[str]:
    config = [f"profile={arguments.profile}", *([f"results={arguments.results}"] if arguments.results else [])]
    executor = _executor(options)
    on_cluster = executor not in ("", "local")
    config += [f"rehearse={arguments.rehearse}"] if arguments.rehearse else []
    config += ["queued=yes"] if on_cluster else []
    threads = arguments.threads or (CLUSTER_THREADS if on_cluster else None)
    config += [f"threads={threads}"] if threads else []
    cores = [] if on_cluster or _has_cores(options) else ["--cores", "all"]
    prefix = ["--slurm-jobname-prefix", job_name(plans)] if executor == "slurm" else []
    fixed = ["--snakefile", "Code/workflow/Snakefile", "--scheduler", "greedy", "--rerun-incomplete", "--keep-going"]
    fixed += ["--rerun-triggers", "mtime", "input", "params"]  # the code of a run is one of its inputs
    return [*fixed, "--nolock", "--quiet", *_quiet(on_cluster), *cores, *prefix, *options, "--config", *config]


def _executor(options: list[str]) -> str:
    """What --executor names; empty without it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--executor", "-e", default="")
    return parser.parse_known_args(options)[0].executor


def job_name(plans: list[Plan]) -> str:
    """How the names of these results folders' jobs start in SLURM's queue; of the letters and length that it takes."""
    folders = [(ROOT / plan.results).resolve() for plan in plans]
    digest = hashlib.sha256(":".join(map(str, folders)).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', folders[-1].name)[:40]}-{digest}"


def cancel_left_jobs(prefix: str) -> None:
    """Cancel what a killed start left in SLURM's queue: it would make the same files again, beside the new jobs."""
    jobs = _queued(prefix)
    if jobs:
        print(f"cancelling {len(jobs)} jobs that an earlier start left in the queue", flush=True)
        subprocess.run(["scancel", *jobs], check=True)
    for _ in range(WAIT_FOR_JOBS):
        if not jobs or not _queued(prefix):
            return
        time.sleep(1)


def _queued(prefix: str) -> list[str]:
    """The numbers of this user's jobs whose names start with the prefix, to which the plugin adds "_" and a number."""
    listing = ["squeue", "--me", "--noheader", "--format", "%i %j"]
    queue = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    return [job for job, name in map(str.split, queue.splitlines()) if name.startswith(f"{prefix}_")]


def _quiet(on_cluster: bool) -> list[str]:
    """What Snakemake need not print: run_notebook.py has a line for each run already, which a cluster does not show."""
    host = [] if version("snakemake").startswith("7.") else ["host"]
    return host if on_cluster else [*host, "rules"]


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
