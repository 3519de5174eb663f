"""Results that stand although the code they depend on has changed: ./run_all.sh PROFILE --accept [RUN ...].

What is accepted is recorded in results/PROFILE/accepted.csv, which is tracked and read by common.report.accepted.
"""

from __future__ import annotations

import fnmatch
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone

from plan import Plan, Run
from profile_file import ROOT, ProfileError


def accept(plans: Sequence[Plan], patterns: Sequence[str], snakemake: Sequence[str]) -> list[Run]:
    """Let results count as made by today's code, record those that were stale, and return their runs.

    Args:
        patterns: of the names of runs, such as "finetune--*"; without any, all that have a result. The runs that make
            the weights which they start from count too.
        snakemake: its options for these plans.

    Raises ProfileError for a pattern without a result, and for a result that was made with other parameters: that is
    another experiment, not the same one by other code.
    """
    there = {run.name: run for plan in plans for run in plan.runs if (ROOT / run.csv).is_file()}
    patterns = patterns or ["*"]
    chosen = {pattern: fnmatch.filter(there, pattern) for pattern in patterns}
    runs = _with_sources([there[name] for names in chosen.values() for name in names], there.values())
    folders = " and ".join(plan.results for plan in plans)
    problems = [f"{folders} has no result of a run {pattern}" for pattern, names in chosen.items() if not names]
    problems += [problem for run in runs for problem in _other_parameters(run)]
    if problems:
        raise ProfileError(problems)
    before = {run.csv: _age(run) for run in runs}
    command = [sys.executable, "-m", "snakemake", *before, *snakemake, "--touch", "--no-hooks", "--quiet", "all"]
    subprocess.run(command, check=True)
    stale = [run for run in runs if _age(run) != before[run.csv]]
    for plan in plans:
        _record(plan, [run for run in plan.runs if run in stale])
    return stale


def _with_sources(runs: Iterable[Run], there: Iterable[Run]) -> list[Run]:
    """The runs, and those that make the weights which they start from."""
    makers = {run.checkpoint: run for run in there if run.checkpoint}
    found: dict[str, Run] = {}
    waiting = list(runs)
    while waiting:
        run = waiting.pop()
        found[run.name] = run
        waiting += [makers[file] for file in run.weights_files if file in makers]
    return list(found.values())


def _age(run: Run) -> int:
    return (ROOT / run.csv).stat().st_mtime_ns


def _other_parameters(run: Run) -> Iterator[str]:
    """What the executed notebook beside a result says against it; nothing where there is none, as in a fresh clone."""
    if (ROOT / run.executed).is_file():
        notebook = json.loads((ROOT / run.executed).read_text(encoding="utf-8"))
        made_with, wanted = notebook["metadata"]["papermill"]["parameters"], run.parameters
        names = [name for name in sorted({*made_with, *wanted}) if made_with.get(name) != wanted.get(name)]
        if names:
            yield f"{run.csv} was made with other values of {', '.join(names)}; make it again first"


def _record(plan: Plan, accepted: Sequence[Run]) -> None:
    if not accepted:
        return
    import pandas as pd

    from common.provenance import git_commit
    from common.report.accepted import COLUMNS, accepted_runs, sha256
    from common.results import write_atomically

    now = datetime.now(timezone.utc).date().isoformat(), git_commit(ROOT)
    new = [(run.study, run.run_id, sha256(ROOT / run.csv), sha256(ROOT / run.code_file), *now) for run in accepted]
    rows = pd.concat([accepted_runs(plan.results), pd.DataFrame(new, columns=COLUMNS)])
    rows = rows.drop_duplicates(["study", "run_id"], keep="last").sort_values(["study", "run_id"])
    path = ROOT / plan.results / "accepted.csv"
    write_atomically(path, lambda file: rows.to_csv(file, index=False, lineterminator="\n"))
