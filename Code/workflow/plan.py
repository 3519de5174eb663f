"""From a profile (YAML) to the list of notebook runs that Snakemake executes.

A profile lists notebooks with a grid of parameters; every point of the grid is one run, which makes one CSV:

    profile: quick
    title: Handwritten digits
    about: One paragraph that the report prints.
    runs:
      - notebook: Scratch/train_test        # Code/Scratch/train_test.py
        study: scratch                      # results/quick/runs/scratch/<run_id>.csv
        name: long                          # optional, starts the run_id
        threads: 1                          # optional: cores of one run; default all, for honest timings
        parameters: {epochs: 8}
        grid: {dataset: [digits], reducer: [none, tram], keep_rate: [0.75, 0.5], seed: [0]}

``{results}`` and ``{data_root}`` in a string stand for the results folder and for the folder that holds the data. A
parameter given as ``{file: PATH, otherwise: VALUE}`` is PATH where that file exists, else VALUE. A run with the
``checkpoint`` of another run among its ``weights`` waits for it. The reducer "none" keeps everything: its keep_rate is
1.0.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen

from common.errors import UsageError
from common.options import Count, check
from common.yaml_files import read_yaml

ROOT = Path(__file__).resolve().parents[2]
PROFILES = Path(__file__).resolve().parent / "profiles"
NAMED_WEIGHTS = ("timm", "digits")  # what the notebooks take besides the path of a file
Parameters = Annotated[dict[str, Any], "name: value for each parameter"]
Grid = Annotated[dict[str, Annotated[list[Any], MinLen(1)]], "name: [value, ...] for each parameter"]
Runs = Annotated[list[Any], MinLen(1), "a list of runs"]
PROFILE = {"profile": str, "title": str, "about": str, "results": str, "runs": Runs}
RUN = {"notebook": str, "study": str, "name": str, "threads": Count, "parameters": Parameters, "grid": Grid}


class ProfileError(ValueError):
    """A profile that cannot run; ``problems`` has one line for each thing that is wrong."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


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

    @property
    def name(self) -> str:
        """What Snakemake and a cluster's queue call the run; a scheduler refuses a job with a slash in its name."""
        return f"{self.study}--{self.run_id}"

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

    @property
    def weights_files(self) -> list[str]:
        """The files that the run starts from."""
        weights = self.options.get("weights") or []
        named = [weights] if isinstance(weights, str) else weights
        return [name for name in named if name and name not in NAMED_WEIGHTS]

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


def list_profiles() -> list[str]:
    """Names of the profiles in Code/workflow/profiles."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load_plan(profile: str, results: str | None = None) -> Plan:
    """Expand a profile: its name, or the path of a YAML file. ``results`` replaces the folder results/<profile>.

    Raises :class:`ProfileError` for what is wrong with the form of the profile; checks.py looks at the values.
    """
    path = Path(profile) if profile.endswith((".yaml", ".yml")) else PROFILES / f"{profile}.yaml"
    if not path.is_file():
        raise ProfileError([f"unknown profile {profile!r}; allowed: {', '.join(list_profiles())}"])
    try:
        given = read_yaml(path)
    except UsageError as error:
        raise ProfileError([str(error)]) from error
    problems = [f"{path.name}: {problem}" for problem in _form_problems(given)]
    if problems:
        raise ProfileError(problems)
    name = given["profile"]
    folder = _shown(results or given.get("results") or f"results/{name}")
    runs = tuple(run for entry in given["runs"] for run in _expand(entry, name, folder))
    _refuse_duplicates(runs, name)
    return Plan(name, given.get("title", name), given.get("about", ""), folder, runs)


def state_folder(results: str) -> str:
    """The folder, inside Snakemake's, for what the workflow remembers about one results folder."""
    digest = hashlib.sha256(results.encode()).hexdigest()[:8]
    return f".snakemake/runs/{_safe(Path(results).name)}-{digest}"


def refusal(function: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[str]:
    """What ``function`` has against its arguments: one line, or nothing."""
    try:
        function(*arguments, **options)
    except UsageError as error:
        yield str(error)


def _form_problems(profile: Any) -> Iterator[str]:
    problems = list(_mapping_problems(profile, PROFILE, ("profile", "runs")))
    yield from problems
    for number, entry in enumerate([] if problems else profile["runs"], start=1):
        yield from (f"run {number}: {problem}" for problem in _entry_problems(entry))


def _entry_problems(entry: Any) -> Iterator[str]:
    problems = list(_mapping_problems(entry, RUN, ("notebook", "study")))
    yield from problems
    if problems:
        return
    if not (ROOT / _source(entry["notebook"])).is_file():
        yield f"there is no notebook {_source(entry['notebook'])}"
    for key in sorted(entry.get("grid", {}).keys() & entry.get("parameters", {}).keys()):
        yield f"{key!r} is both in grid and in parameters"


def _mapping_problems(given: Any, kinds: Mapping[str, Any], needed: tuple[str, ...]) -> Iterator[str]:
    """One line for each thing that is wrong with a mapping whose values shall be of ``kinds``."""
    if not isinstance(given, dict):
        yield f"{given!r} is not allowed; give a mapping with the keys {' and '.join(needed)}"
        return
    for key, value in given.items():
        if key in kinds:
            yield from refusal(check, key, value, kinds[key])
        else:
            yield f"unknown key {key!r}; allowed: {', '.join(sorted(kinds))}"
    yield from (f"the key {key!r} is missing" for key in needed if key not in given)


def _expand(entry: dict[str, Any], profile: str, results: str) -> Iterator[Run]:
    grid, fixed = entry.get("grid", {}), _none_keeps_all(entry.get("parameters", {}))
    seen = set()
    for values in itertools.product(*grid.values()):
        point = _none_keeps_all(dict(zip(grid, values, strict=True)))
        run_id = _run_id(entry, point)
        if run_id in seen and point.get("reducer") == "none":
            continue
        seen.add(run_id)
        options = {key: _resolve(value, results) for key, value in {**fixed, **point}.items()}
        source, threads = _source(entry["notebook"]), entry.get("threads")
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


def _source(notebook: str) -> str:
    """Code/NOTEBOOK.py, or any file when the notebook is given as an absolute path (without .py as well)."""
    return f"{notebook}.py" if Path(notebook).is_absolute() else f"Code/{notebook}.py"


def _resolve(value: Any, results: str) -> Any:
    if isinstance(value, dict) and value.keys() == {"file", "otherwise"}:
        path = _resolve(value["file"], results)
        return path if (ROOT / path).is_file() else _resolve(value["otherwise"], results)
    if isinstance(value, str):
        return value.replace("{results}", results).replace("{data_root}", _data_root())
    if isinstance(value, list):
        return [_resolve(item, results) for item in value]
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
