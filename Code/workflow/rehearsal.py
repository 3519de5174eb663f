"""A rehearsal: the runs of a profile at their smallest, to find what would break before a long study starts.

The notebooks, the workflow, tables and page are those of the real study; generated pictures lie in the real layouts
(rehearsal_data.py), networks are narrow and random (narrow.py), trainings take an epoch of three steps, and of cells
that differ in values only some run. What comes out is in a folder of its own, and means nothing.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

from needs import data_of
from notebooks import defaults_of
from plan import Plan, Run, load_plans
from profile_file import ROOT, find_profile

FOLDER = Path("results/rehearsal")
ABOUT = "Generated pictures and narrow random networks: this page shows that everything runs. No number means anything."
SAMPLES = ("kinds", "pairs", "notebooks")  # see sample(); the first if nothing is said
COUNTING = ("Code/Benchmark/sizing.py",)  # runs no network, and checks what the published ones count
SOME = 3  # methods of a run that reads the records of trained models
IMAGES = 24  # of every part of a data set that a parameter can limit
# The largest value that a parameter, or each item of the parameter in the plural, may have.
LARGEST = {
    **dict.fromkeys(("epochs", "tune_epochs", "distill_epochs", "gate_epochs", "tolerance_epochs"), 1),
    "finetune_epochs": 1,
    **dict.fromkeys(("workers", "warmup_epochs"), 1),
    **dict.fromkeys(("rounds", "random_masks", "num_shown", "num_sensitive", "num_images", "grad_accum_steps"), 2),
    **dict.fromkeys(("batch_size", "error_images"), 8),
    "resamples": 10,
    **dict.fromkeys(("requests", "client", "max_batch"), 4),
    **dict.fromkeys(("num_calibration", "gate_images"), IMAGES),
}


def plans_to_run(profile: str, results: str | None = None, rehearsed: str | None = None) -> list[Plan]:
    """:func:`plan.load_plans`, or with one of SAMPLES as ``rehearsed`` a rehearsal of them."""
    if not rehearsed:
        return load_plans(profile, results)
    plans = load_plans(profile, results or str(FOLDER / find_profile(profile).stem))
    chosen = sample([run for plan in plans for run in plan.runs], rehearsed)
    smaller = [_smaller(plan, [run for run in plan.runs if run in chosen], rehearsed) for plan in plans]
    return [plan for plan in smaller if plan.runs]


def set_the_stage(profile: str) -> None:
    """Write the pictures of a rehearsal where they are missing, and let this process and its children see no others."""
    from rehearsal_data import write_datasets  # no other start of a profile needs it, nor numpy and Pillow

    root = ROOT / FOLDER / "data"
    os.environ.update(DATA_ROOT=str(root), HF_HUB_OFFLINE="1")
    write_datasets(root, data_of(load_plans(profile)))


def sample(runs: list[Run], how: str) -> list[Run]:
    """Some of the ``runs``, in their order, with those that make the weights they start from.

    "kinds": one run of every notebook with the same set of parameters. "pairs": of each such kind so many that any two
    values that are no numbers, such as a data set and a method, meet if they meet in any run. "notebooks": one run of
    every notebook, that which needs the fewest others, and at least one of every profile; of several
    backbones, which a rehearsal makes equally narrow, it has the first, unless each is to have weights of its own.
    """
    makers = _makers(runs)
    chosen = _spread(runs, makers) if how == "notebooks" else []
    for same in () if chosen else _kinds(runs):
        chosen += same[:1] if how == "kinds" else _all_pairs(same)
    for run in chosen:  # grows while a run is found that another needs
        chosen += [maker for maker in makers[run.csv] if maker not in chosen]
    return [run for run in runs if run in chosen]


def _makers(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """By the CSV of each of ``runs``: those that make what it starts from when it is small."""
    making = {what: run for run in runs for what in run.makes}
    needs = {run.csv: replace(run, options=_small_options(run)).needs for run in runs}
    return {
        csv: list({making[what].csv: making[what] for what in names if what in making}.values())
        for csv, names in needs.items()
    }


def _kinds(runs: Iterable[Run]) -> Iterator[list[Run]]:
    kinds: dict[Any, list[Run]] = {}
    for run in runs:
        kinds.setdefault((run.notebook, frozenset(run.options)), []).append(run)
    yield from kinds.values()


def _spread(runs: Sequence[Run], makers: Mapping[str, list[Run]]) -> list[Run]:
    """One run of every notebook, so that every profile has one, and few make only what others start from."""
    by_notebook: dict[str, list[Run]] = {}
    for run in runs:
        by_notebook.setdefault(run.notebook, []).append(run)
    notebooks = Counter(folder for same in by_notebook.values() for folder in _folders(same))
    ready = [_folders(run for run in same if not makers[run.csv]) for same in by_notebook.values()]
    alone = Counter(folder for folders in ready for folder in folders)
    chosen: list[Run] = []

    def price(run: Run) -> tuple[int, int, int]:
        """Makers beyond one run of every notebook; what its profile has already, and could have by itself."""
        known = {each.notebook for each in chosen}
        beyond = sum(maker.notebook in known for maker in makers[run.csv] if maker not in chosen)
        return beyond, sum(each.results == run.results for each in chosen), alone[run.results]

    # first the notebooks of profiles that have few
    for same in sorted(by_notebook.values(), key=lambda same: min(notebooks[folder] for folder in _folders(same))):
        if same[0].notebook not in {run.notebook for run in chosen}:  # else one makes the weights of another
            best = min(same, key=price)
            chosen += [best, *(maker for maker in makers[best.csv] if maker not in chosen)]
    for folder in sorted(_folders(runs) - _folders(chosen)):
        chosen.append(min((run for run in runs if run.results == folder), key=lambda run: len(makers[run.csv])))
    return chosen


def _folders(runs: Iterable[Run]) -> set[str]:
    return {run.results for run in runs}


def _all_pairs(runs: list[Run]) -> list[Run]:
    """Greedily, the run with the most pairs that none before it has."""
    pairs = {id(run): set(itertools.combinations_with_replacement(_words(run), 2)) for run in runs}
    chosen, seen = [], set()
    while best := max(runs, key=lambda run: len(pairs[id(run)] - seen), default=None):
        if chosen and not pairs[id(best)] - seen:
            break
        chosen.append(best)
        seen |= pairs[id(best)]
    return chosen


def _words(run: Run) -> list[tuple[str, str]]:
    """The parameters of a run that are no numbers."""
    return [(name, str(value)) for name, value in sorted(run.options.items()) if not _is_numeric(value)]


def _is_numeric(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_numeric, value))
    return isinstance(value, Real) and not isinstance(value, bool)


def _smaller(plan: Plan, runs: list[Run], how: str) -> Plan:
    made = {run.checkpoint for run in plan.runs}
    options = _with_one_backbone if how == "notebooks" else _small_options
    same = {"profile": "rehearsal", "threads": 1}  # so narrow that more threads would only wait for each other
    small = [replace(run, **same, options=options(run), narrow=_narrow(run, made)) for run in runs]
    return replace(plan, title=f"Rehearsal: {plan.title}", about=ABOUT, runs=tuple(small))


def _narrow(run: Run, made: set[str]) -> bool:
    """Not where it would not fit: where weights come from a file that no run of the rehearsal makes."""
    return run.notebook not in COUNTING and made.issuperset(run.weights_files)


def _small_options(run: Run) -> dict[str, Any]:
    given = {**defaults_of(run.notebook), **run.options}
    small = {name: _small(name, value) for name, value in given.items()}
    if given.get("trained"):  # each of its models is a run of its own
        small["reducers"] = given["reducers"][:SOME]
    return dict(run.options) | {name: value for name, value in small.items() if value != given[name]}


def _with_one_backbone(run: Run) -> dict[str, Any]:
    options = _small_options(run)
    if "backbones" not in options or isinstance(defaults_of(run.notebook).get("weights"), list):
        return options
    return options | {"backbones": options["backbones"][:1]}


def _small(name: str, value: Any) -> Any:
    if name == "limits":
        return [_small("limit_", item) for item in value]
    if name.startswith("limit_"):
        return min(value or IMAGES, IMAGES)
    if name.endswith("s") and isinstance(value, list) and _is_numeric(value):
        ends = value if len(value) < 2 else [value[0], value[-1]]
        return list(dict.fromkeys(_small(name.removesuffix("s"), item) for item in ends))
    return min(value, LARGEST[name]) if name in LARGEST and _is_numeric(value) else value
