"""From a profile (profile_file.py) to the list of notebook runs that Snakemake executes.

Every point of a grid is one run, which makes one CSV. ``{results}`` and ``{data_root}`` in a string stand for the
results folder and for the folder that holds the data, ``{dataset}``, ``{backbone}`` and ``{seed}`` for those of the
run, as a part of a file's name. A parameter given as ``{file: PATH, otherwise: VALUE}`` is PATH where that file exists,
else VALUE. A run with the ``checkpoint`` of another run among its ``weights``, or as its ``teacher_weights``, waits for
it, and so does one that reads in the folder ``trained`` what others leave there as their ``records``. The reducer
"none" keeps everything: its keep_rate is 1.0.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from notebooks import defaults_of
from profile_file import ROOT, ProfileError, find_profile, read_profile, source_of

HUB = "timm"
PLACES = ("dataset", "backbone", "seed")  # parameters that a string may name
NAMED_WEIGHTS = (HUB, "digits")  # what the notebooks take besides the path of a file


@dataclass(frozen=True)
class Run:
    """One execution of one notebook. Paths are relative to the repository where they are inside it."""

    study: str
    run_id: str
    notebook: str
    results: str
    options: Mapping[str, Any]  # what the profile sets; ``parameters`` adds the paths of the outputs
    profile: str
    threads: int | None = None  # None: all cores
    prefix: str = ""  # of the name, where several profiles run together
    narrow: bool = False  # in a rehearsal: see narrow.py

    @property
    def name(self) -> str:
        """What Snakemake and a cluster's queue call the run; a scheduler refuses a job with a slash in its name."""
        return f"{self.prefix}{self.study}--{self.run_id}"

    @property
    def csv(self) -> str:
        return f"{self.results}/runs/{self.study}/{self.run_id}.csv"

    @property
    def figure(self) -> str:
        return f"{self.results}/figures/{self.study}/{self.run_id}.png"

    @property
    def executed(self) -> str:
        return f"{self.results}/notebooks/{self.study}/{self.run_id}.ipynb"

    @property
    def log(self) -> str:
        return f"{self.results}/logs/{self.study}/{self.run_id}.log"

    @property
    def checkpoint(self) -> str:
        return str(self.options.get("checkpoint") or "")

    def values(self, name: str) -> list[Any]:
        """Values of a parameter and of its plural, which notebooks have that loop inside one run."""
        single = [self.options[name]] if name in self.options else []
        return single + list(self.options.get(f"{name}s", []))

    @property
    def named_weights(self) -> list[str]:
        weights = self.options.get("weights") or []
        teacher = self.options.get("teacher_weights") or ""
        return [*([weights] if isinstance(weights, str) else weights), *([teacher] if teacher else [])]

    @property
    def weights_files(self) -> list[str]:
        """The files that the run starts from."""
        return [name for name in self.named_weights if name and name not in NAMED_WEIGHTS]

    @property
    def makes(self) -> list[str]:
        """What other runs may need: the file of its weights, and a name for each record that it leaves."""
        return [*([self.checkpoint] if self.checkpoint else []), *self._records("records")]

    @property
    def needs(self) -> list[str]:
        """What the run starts from, of what :attr:`makes` names."""
        return [*self.weights_files, *self.reads]

    @property
    def reads(self) -> list[str]:
        """The records of trained models among :attr:`needs`."""
        return self._records("trained")

    def _records(self, parameter: str) -> list[str]:
        """A name for each trained model whose record lies in the folder that ``parameter`` names."""
        folder = self.options.get(parameter)
        if not folder:
            return []
        given = {**defaults_of(self.notebook), **self.options}
        names = ("dataset", "backbone", "seed", "reducer", "keep_rate")
        *places, reducers, rates = (given.get(f"{name}s") or [given.get(name)] for name in names)
        models = [(name, rate) for name in reducers for rate in ([1.0] if name == "none" else rates)]
        return [f"{folder}: {' '.join(map(str, model))}" for model in itertools.product(*places, models)]

    @property
    def parameters(self) -> dict[str, Any]:
        return {**self.options, "csv": self.csv, "figure": self.figure, "profile": self.profile}

    @property
    def parameter_file(self) -> str:
        """Where Snakemake and the runner find ``parameters``; written by state.py."""
        return f"{state_folder(self.results)}/{self.study}/{self.run_id}.yaml"

    @property
    def code_file(self) -> str:
        """Where Snakemake finds the fingerprints of the code that the run depends on; written by state.py."""
        return f"{state_folder(self.results)}/{self.study}/{self.run_id}.code"


@dataclass(frozen=True)
class Plan:
    """A profile, expanded."""

    profile: str
    title: str
    about: str
    results: str
    runs: tuple[Run, ...]

    @property
    def tables(self) -> list[str]:
        return sorted({run.study for run in self.runs})

    @property
    def pages(self) -> list[str]:
        """What the report rule writes besides tables; the leaderboard where the unreduced model and others are run."""
        boards = [run for run in self.runs if run.study == "leaderboard"]
        models = {name for run in boards for name in run.options.get("reducers", ["none", "by default others"])}
        compared = "none" in models and len(models) > 1
        return [f"{self.results}/{name}.html" for name in ("report", *(["leaderboard"] if compared else []))]

    def waits_for(self, run: Run) -> list[str]:
        """The CSVs of the runs that leave the records which ``run`` reads."""
        read = set(run.reads)
        return [other.csv for other in self.runs if read.intersection(other.makes)] if read else []

    def named(self) -> Plan:
        """The same with the profile in the name of each run."""
        return replace(self, runs=tuple(replace(run, prefix=f"{self.profile}--") for run in self.runs))


def load_plans(profile: str, results: str | None = None) -> list[Plan]:
    """Expand a profile, its name or the path of a YAML file, and before it the profiles that it includes.

    Each has its own results folder: results/<profile>, or what the file says. ``results`` replaces the folder of
    ``profile``; those that it includes, and those that these include, then get folders inside of it.

    Raises :class:`ProfileError` for what is wrong with the form of a profile; checks.py looks at the values.
    """
    plans = list(_load(find_profile(profile), results, results, ()))
    unique = list({plan.results: plan for plan in plans}.values())
    return [plan.named() for plan in unique] if len(unique) > 1 else unique


def _load(path: Path, results: str | None, inside: str | None, including: tuple[Path, ...]) -> Iterator[Plan]:
    path = path.resolve()
    if path in including:
        raise ProfileError([f"{path.name}: it includes itself, by way of {', '.join(p.name for p in including)}"])
    given = read_profile(path)
    for name in given.get("include", []):
        included = find_profile(name, path.parent)
        yield from _load(included, inside and f"{inside}/{included.stem}", inside, (*including, path))
    if given.get("runs"):
        name = given["profile"]
        folder = _shown(results or given.get("results") or f"results/{name}")
        runs = tuple(run for entry in given["runs"] for run in _expand(entry, name, folder))
        _refuse_duplicates(runs, name)
        yield Plan(name, given.get("title", name), given.get("about", ""), folder, runs)


def state_folder(results: str) -> str:
    """The folder, inside Snakemake's, for what the workflow remembers about one results folder."""
    digest = hashlib.sha256(results.encode()).hexdigest()[:8]
    return f".snakemake/runs/{_safe(Path(results).name)}-{digest}"


def _expand(entry: dict[str, Any], profile: str, results: str) -> Iterator[Run]:
    grid, fixed = entry.get("grid", {}), _none_keeps_all(entry.get("parameters", {}))
    seen = set()
    for values in itertools.product(*grid.values()):
        point = _none_keeps_all(dict(zip(grid, values, strict=True)))
        run_id = _run_id(entry, point)
        if run_id in seen and point.get("reducer") == "none":
            continue
        seen.add(run_id)
        options = {**fixed, **point}
        own = {name: _safe(str(options[name])) for name in PLACES if isinstance(options.get(name), str | int)}
        places = {"results": results, "data_root": _data_root(), **own}
        options = {key: _resolve(value, places) for key, value in options.items()}
        source, threads = source_of(entry["notebook"]), entry.get("threads")
        yield Run(entry["study"], run_id, source, results, options, profile, threads)


def _none_keeps_all(options: dict[str, Any]) -> dict[str, Any]:
    """With the reducer "none", keep_rate is 1.0 whatever was given; it follows the reducer in the run_id."""
    if options.get("reducer") != "none":
        return options
    others = [(key, value) for key, value in options.items() if key != "keep_rate"]
    place = 1 + [key for key, _ in others].index("reducer")
    return dict([*others[:place], ("keep_rate", 1.0), *others[place:]])


def _run_id(entry: dict[str, Any], point: dict[str, Any]) -> str:
    parts = [entry["name"]] if "name" in entry else []
    parts += [_label(key, value) for key, value in point.items()]
    return _safe("-".join(parts) or Path(entry["notebook"]).name)


def _label(key: str, value: Any) -> str:
    if key == "keep_rate" and isinstance(value, float):
        return f"k{100 * value:g}"
    if key == "seed":
        return f"s{value}"
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "_".join(str(item) for item in value)
    return f"{key}{value}"


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)


def _resolve(value: Any, places: Mapping[str, str]) -> Any:
    if isinstance(value, dict) and value.keys() == {"file", "otherwise"}:
        path = _resolve(value["file"], places)
        return path if (ROOT / path).is_file() else _resolve(value["otherwise"], places)
    if isinstance(value, str):
        return re.sub("|".join(f"{{{name}}}" for name in places), lambda place: places[place[0][1:-1]], value)
    if isinstance(value, list):
        return [_resolve(item, places) for item in value]
    return value


def _data_root() -> str:
    """As common.data has it; importing that would cost every job some seconds."""
    return os.path.expanduser(os.environ.get("DATA_ROOT") or "~/.cache/token-reduction")


def _shown(path: str) -> str:
    """Relative to the repository where it is inside it, so that a moved clone keeps its records."""
    absolute = (ROOT / path).resolve()
    return str(absolute.relative_to(ROOT)) if absolute.is_relative_to(ROOT) else str(absolute)


def _refuse_duplicates(runs: tuple[Run, ...], profile: str) -> None:
    made_twice = [
        f"profile {profile}: {what} {value!r} is made by {count} runs"
        for what, values in (("run", (f"{run.study}/{run.run_id}" for run in runs)), ("checkpoint", _checkpoints(runs)))
        for value, count in Counter(values).items()
        if count > 1
    ]
    if made_twice:
        raise ProfileError(made_twice)


def _checkpoints(runs: tuple[Run, ...]) -> Iterator[str]:
    return (run.checkpoint for run in runs if run.checkpoint)
