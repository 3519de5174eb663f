"""What the workflow remembers about the runs of one results folder: their parameters and the code they depend on.

Each run has two files in ``state_folder``: RUN.yaml, its parameters, and RUN.code, the fingerprints of the code that it
depends on (closure.py). Both are inputs of its Snakemake job, and written only when what they say changes: they and the
weights that it starts from make a run stale, and nothing else does. The file PRESENTATION does the same for tables and
report. All are new in a fresh clone, where the committed CSVs are older by definition and are made again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from closure import Closure
from common.yaml_files import to_yaml
from plan import Plan, state_folder
from profile_file import ROOT, ProfileError

CODE = ROOT / "Code"


def state_files(plan: Plan) -> dict[Path, str]:
    """What the files of the plan should say. Raises ProfileError for code that is no Python."""
    try:
        return _state_files(plan, Closure(CODE, ROOT / "results" / "published"))
    except SyntaxError as error:
        raise ProfileError([f"{error.filename}, line {error.lineno}: {error.msg}"]) from error


def _state_files(plan: Plan, closure: Closure) -> dict[Path, str]:
    files = {ROOT / presentation_file(plan): _presentation()}
    for run in plan.runs:
        fingerprints = closure.fingerprints(ROOT / run.notebook, run.options)
        files[ROOT / run.parameter_file] = to_yaml(run.parameters)
        files[ROOT / run.code_file] = "".join(f"{name} {value}\n" for name, value in fingerprints.items())
    return files


def presentation_file(plan: Plan) -> str:
    return f"{state_folder(plan.results)}/PRESENTATION"


def _presentation() -> str:
    paths = sorted(path for path in (CODE / "common").rglob("*") if path.suffix in (".py", ".j2", ".js", ".css"))
    return "".join(f"{path.relative_to(CODE)} {_digest(path.read_bytes())}\n" for path in paths)


def changes(files: Mapping[Path, str]) -> dict[Path, str]:
    """Those of the files that do not say this yet."""
    return {path: text for path, text in files.items() if not path.is_file() or path.read_text() != text}


def write(files: Mapping[Path, str]) -> None:
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        partial.write_text(text)
        partial.replace(path)


def changed_code(files: Mapping[Path, str]) -> list[str]:
    """The modules in which ``files`` differ from those that are there."""
    code = {path: text for path, text in files.items() if path.suffix == ".code" and path.is_file()}
    lines = set().union(*(set(path.read_text().splitlines()) ^ set(text.splitlines()) for path, text in code.items()))
    return sorted({line.split()[0] for line in lines})


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
