"""Reading a profile: a YAML file that lists notebooks, each with a grid of parameters.

    profile: quick
    title: Handwritten digits
    about: One paragraph that the report prints.
    include: [smoke]                        # optional: profiles that run too, each with its own results folder
    runs:
      - notebook: Scratch/train_test        # Code/Scratch/train_test.py
        study: scratch                      # results/quick/runs/scratch/<run_id>.csv
        name: long                          # optional, starts the run_id
        threads: 1                          # optional: cores of one run; default all, for honest timings
        parameters: {epochs: 8}             # or a list of such mappings, of which a later one wins
        grid: {dataset: [digits], reducer: [none, tram], keep_rate: [0.75, 0.5], seed: [0]}

What the values of parameters may be is the matter of checks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen

from common.errors import UsageError
from common.options import Count, Many, check
from common.yaml_files import read_yaml

ROOT = Path(__file__).resolve().parents[2]
PROFILES = Path(__file__).resolve().parent / "profiles"
Parameters = Annotated[dict[str, Any], "name: value for each parameter"]
Grid = Annotated[dict[str, Annotated[list[Any], MinLen(1)]], "name: [value, ...] for each parameter"]
Runs = Annotated[list[Any], MinLen(1), "a list of runs"]
PROFILE = {"profile": str, "title": str, "about": str, "results": str, "include": Many[str], "runs": Runs}
RUN = {"notebook": str, "study": str, "name": str, "threads": Count, "parameters": Parameters, "grid": Grid}


class ProfileError(ValueError):
    """A profile that cannot run; ``problems`` has one line for each thing that is wrong."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def list_profiles() -> list[str]:
    """Names of the profiles in Code/workflow/profiles."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def find_profile(profile: str, beside: Path | None = None) -> Path:
    """The file of a profile: one by its name, or a YAML file, whose relative path starts from the folder ``beside``."""
    is_file = profile.endswith((".yaml", ".yml"))
    path = Path(beside or "", profile) if is_file else PROFILES / f"{profile}.yaml"
    if not path.is_file():
        raise ProfileError([f"unknown profile {profile!r}; allowed: {', '.join(list_profiles())}"])
    return path


def read_profile(path: Path) -> dict[str, Any]:
    """What the file says, in the form above. Raises :class:`ProfileError` for any other form."""
    try:
        given = read_yaml(path)
    except UsageError as error:
        raise ProfileError([str(error)]) from error
    given = _merged(given)
    problems = [f"{path.name}: {problem}" for problem in _form_problems(given)]
    if problems:
        raise ProfileError(problems)
    return given


def _merged(profile: Any) -> Any:
    """``profile`` with each list of parameters as one mapping; what has another form is left to be refused."""
    runs = profile.get("runs") if isinstance(profile, dict) else None
    if not isinstance(runs, list):
        return profile
    return {**profile, "runs": [_with_one_mapping(entry) for entry in runs]}


def _with_one_mapping(entry: Any) -> Any:
    given = entry.get("parameters") if isinstance(entry, dict) else None
    if not isinstance(given, list) or not given or not all(isinstance(part, dict) for part in given):
        return entry
    return {**entry, "parameters": {name: value for part in given for name, value in part.items()}}


def source_of(notebook: str) -> str:
    """Code/NOTEBOOK.py, or any file when the notebook is given as an absolute path (without .py as well)."""
    return f"{notebook}.py" if Path(notebook).is_absolute() else f"Code/{notebook}.py"


def refusal(function: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[str]:
    """What ``function`` has against its arguments: one line, or nothing."""
    try:
        function(*arguments, **options)
    except UsageError as error:
        yield str(error)


def _form_problems(profile: Any) -> Iterator[str]:
    needed = ("profile",) if isinstance(profile, dict) and "include" in profile else ("profile", "runs")
    problems = list(_mapping_problems(profile, PROFILE, needed))
    yield from problems
    for number, entry in enumerate([] if problems else profile.get("runs", []), start=1):
        yield from (f"run {number}: {problem}" for problem in _entry_problems(entry))


def _entry_problems(entry: Any) -> Iterator[str]:
    problems = list(_mapping_problems(entry, RUN, ("notebook", "study")))
    yield from problems
    if problems:
        return
    if not (ROOT / source_of(entry["notebook"])).is_file():
        yield f"there is no notebook {source_of(entry['notebook'])}"
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
