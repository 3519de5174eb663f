"""What makes a run stale: its parameters and the code it depends on, by content. And results that stand as they are."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from forked import run_script

import common
import launch
from closure import Closure
from common.report.accepted import accepted_runs, accepted_sentences
from plan import load_plans
from profile_file import ROOT

PUBLISHED = ROOT / "results" / "published"
NAMING = ("scratch", "finetune", "throughput", "method_grid")  # studies whose methods are all named by the profile
QUICK = [run for run in load_plans("quick")[0].runs if run.study in (*NAMING, "slimming")]


# --- which code


def write_package(folder: Path, **files: str) -> Closure:
    """A package "common"; "a__b" is common/a/b.py, and every folder has an __init__.py."""
    for name, text in {"__init__": "", **files}.items():
        path = folder / "common" / f"{name.replace('__', '/') if name != '__init__' else name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        (path.parent / "__init__.py").touch()
    return Closure(folder, folder / "published")


def reached(folder: Path, notebook: str, closure: Closure, **options) -> list[str]:
    (folder / "notebook.py").write_text(notebook)
    names = closure.fingerprints(folder / "notebook.py", options)
    return [name.removeprefix("common.") for name in names if name != "notebook"]


def test_imports_are_followed_to_where_a_name_is_defined(tmp_path):
    closure = write_package(
        tmp_path,
        a="from common.b import f",
        b="def f():\n    from common import late",
        late="import common.e as e",
        e="",
        unused="from common import a",
    )
    assert reached(tmp_path, "from common.a import g", closure) == ["a", "b", "e", "late"]


def test_package_hands_on_names_and_reaches_nothing_else(tmp_path):
    files = {"p__one": "", "p__two": "", "p__three": ""}
    closure = write_package(tmp_path, **files)
    (tmp_path / "common/p/__init__.py").write_text("from common.p import three\nfrom common.p.one import f as g\n")
    (tmp_path / "common/__init__.py").write_text("if TYPE_CHECKING:\n    from common.p import g\n")
    closure = Closure(tmp_path, PUBLISHED)
    assert reached(tmp_path, "from common import g", closure) == ["p.one"]
    assert reached(tmp_path, "from common.p import two", closure) == ["p.two"]
    assert reached(tmp_path, "import common.p", closure) == ["p", "p.one", "p.three"]


METHODS = {
    "base": "",
    "methods__base": "def find(name): ...",
    "methods__fast": "@register_method('fast')\nclass Fast: ...",
    "methods__slow": "from common.base import x\n@register_method('slow')\nclass Slow: ...",
}


@pytest.mark.parametrize(
    ("notebook", "options", "expected"),
    [
        ("method = 'slow'", {"method": "fast:k=1"}, ["methods.base", "methods.fast"]),
        ("method = 'slow'", {"methods": [["fast"]]}, ["base", "methods.base", "methods.fast", "methods.slow"]),
        ("find('fast')", {}, ["methods.base", "methods.fast"]),
        ("x == 'fast'; {'fast': 1}; protocol('fast')", {}, ["methods.base"]),
    ],
)
def test_method_is_reached_by_the_runs_that_name_it(tmp_path, notebook, options, expected):
    closure = write_package(tmp_path, **METHODS)
    assert reached(tmp_path, f"from common.methods.base import find\n{notebook}", closure, **options) == expected


def test_method_of_a_package_that_is_not_reached_does_not_count(tmp_path):
    assert reached(tmp_path, "from common.base import x", write_package(tmp_path, **METHODS), method="fast") == ["base"]


STUDY = """
from common.numbers import mean
from common.words import title
LINES = 3
def rows(): return mean()
def _cell(): return title(LINES)
def _table(): return _cell()
class Speed(Study):
    columns = {"fps": 1}
    captions = {"": title("speed")}
    def summarise(self): return _table()
"""


def test_what_a_study_presents_is_no_dependency(tmp_path):
    files = {"numbers": "", "words": "", "plots__bar": "", "report__page": ""}
    notebook = "from common import plots\nfrom common.speed import Speed\nfrom common.report.page import x"
    assert reached(tmp_path, notebook, write_package(tmp_path, speed=STUDY, **files)) == ["numbers", "speed"]


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("LINES = 3", "LINES = 4", True),
        ("return _table()", "return _table() + 1", True),
        ("return title(LINES)", "return title(LINES + 1)", True),
        ("def rows():", "# first\ndef rows():\n    'All rows.'\n   ", True),
        ('{"fps": 1}', "{'fps':1}", True),
        ('{"fps": 1}', '{"fps": 2}', False),
        ("return mean()", "return mean() + 1", False),
    ],
)
def test_fingerprint_is_of_what_numbers_depend_on(tmp_path, old, new, same):
    before = write_package(tmp_path / "a", speed=STUDY)
    after = write_package(tmp_path / "b", speed=STUDY.replace(old, new))
    notebook = tmp_path / "notebook.py"
    notebook.write_text("from common.speed import Speed")
    assert (before.fingerprints(notebook, {}) == after.fingerprints(notebook, {})) is same


def test_notebook_counts_without_its_text_and_the_defaults_that_a_run_replaces(tmp_path):
    closure = write_package(tmp_path)
    texts = [
        "# # Title\nseed = 0\nx = seed",
        "# # Other\nseed = 1\nx = seed",
        "# # Other\nif 'google.colab' in sys.modules:\n    pass\nseed = 1\nx = seed",
        "# # Title\nseed = 0\nx = seed + 1",
    ]
    found = []
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.py").write_text(text)
        found.append(closure.fingerprints(tmp_path / f"{number}.py", {"seed": 7})["notebook"])
    assert found[0] == found[1] == found[2] != found[3]


def test_published_numbers_that_a_notebook_reads_count(tmp_path):
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "table.csv").write_text("a")
    (tmp_path / "published" / "other.csv").write_text("a")
    assert reached(tmp_path, "read_published('table')", write_package(tmp_path)) == ["table.csv"]


# --- which code, for the package itself


def fingerprints(closure: Closure) -> dict[str, dict[str, str]]:
    return {run.name: closure.fingerprints(ROOT / run.notebook, run.options) for run in QUICK}


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> tuple[Path, dict[str, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("Code")
    shutil.copytree(ROOT / "Code" / "common", folder / "common", ignore=shutil.ignore_patterns("__pycache__"))
    return folder, fingerprints(Closure(folder, PUBLISHED))


@pytest.mark.parametrize(
    ("file", "stale"),
    [
        ("tokens.py", lambda run: True),
        ("reducers/tram.py", lambda run: "tram" in json.dumps(run.options)),
        ("reducers/sit.py", lambda run: '"sit"' in json.dumps(run.options)),
        ("slimming/top_down.py", lambda run: run.study == "slimming" and "limits" not in run.notebook),
        ("plots/style.py", lambda run: False),
        ("report/tables.py", lambda run: False),
    ],
)
def test_edit_makes_stale_what_depends_on_it(copied, file, stale):
    folder, before = copied
    path, text = folder / "common" / file, (folder / "common" / file).read_text()
    path.write_text(f"{text}\nEDITED = True\n")
    after = fingerprints(Closure(folder, PUBLISHED))
    path.write_text(text)
    runs = [run for run in QUICK if run.study in NAMING]
    assert {run.name for run in runs if after[run.name] != before[run.name]} == {run.name for run in runs if stale(run)}
    slimming = [run for run in QUICK if run.study == "slimming"]
    assert all((after[run.name] != before[run.name]) is stale(run) for run in slimming if file.startswith("slimming"))


def with_other_docstrings(source):
    """``source`` with a word and a blank line more behind every docstring."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node)
        if documented:
            end = node.body[0].end_lineno - 1
            head, _, tail = lines[end].rpartition('"""')
            lines[end] = f'{head} Edited."""{tail}\n'
    return "".join(lines)


def test_docstrings_comments_and_blank_lines_make_nothing_stale(copied, tmp_path):
    folder, before = copied
    edited = tmp_path / "Code"
    shutil.copytree(folder, edited)
    for path in edited.rglob("*.py"):
        path.write_text("# edited\n\n" + with_other_docstrings(path.read_text()))
    assert fingerprints(Closure(edited, PUBLISHED)) == before


def test_public_calls_are_found_where_they_are_defined(tmp_path):
    """Lazily loaded ones too."""
    closure = Closure(ROOT / "Code", PUBLISHED)
    calls = [name for name in common.__all__ if callable(getattr(common, name))]
    assert len(calls) >= 5
    for name in calls:
        defined = getattr(common, name).__module__
        found = reached(tmp_path, f"from common import {name}", closure)
        assert defined.removeprefix("common.") in found or name.startswith("list_"), name
        assert "" not in found and len(found) < 60


PROFILED = """
import json, sys
import jupytext, matplotlib.pyplot, pandas, scipy.stats, timm  # no call in these is of interest, and there are many

folder, notebook, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
used = set()

def note(frame, event, argument):
    file = frame.f_code.co_filename
    if event == "call" and file.startswith(folder) and file not in used:
        while frame and (frame.f_code.co_name != "<module>" or not frame.f_code.co_filename.startswith(folder)):
            frame = frame.f_back
        if not frame:  # nothing of the package is being imported
            used.add(file)

sys.setprofile(note)
names = {"display": print}
for cell in jupytext.read(notebook).cells:
    if cell.cell_type == "code":
        exec(cell.source, names)
        names.update(options if "parameters" in cell.metadata.get("tags", []) else {})
sys.setprofile(None)
print(json.dumps(sorted(used)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("notebook", "options"),
    [
        ("Scratch/train_test", {"reducer": "topk", "epochs": 1, "limit_train": 32, "limit_val": 32}),
        ("Benchmark/throughput", {"backbones": ["vit_digits"], "reducers": ["evit"], "keep_rates": [0.5], "rounds": 2}),
    ],
)
def test_every_function_that_runs_is_in_a_module_that_is_reached(tmp_path, notebook, options):
    source, package = ROOT / "Code" / f"{notebook}.py", f"{ROOT / 'Code' / 'common'}/"
    options = {**options, "csv": f"{tmp_path}/run.csv", "figure": f"{tmp_path}/run.png"}
    command = [sys.executable, "-c", PROFILED, package, source, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    ran = {file.removeprefix(package).removesuffix(".py") for file in json.loads(done.stdout.splitlines()[-1])}
    presenting = {name for name in ran if name.split("/")[0] in ("plots", "report")}
    found = Closure(ROOT / "Code", PUBLISHED).fingerprints(source, options)
    assert len(ran) > 15
    assert ran - presenting - {name.removeprefix("common.").replace(".", "/") for name in found} <= {"__init__"}


# --- what runs, what is accepted

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
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


class Study:
    """Two runs, with seeds 1 and 2, of a notebook that can be edited."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.results = folder, folder / "some results"
        self.edit(NOTEBOOK)
        run = {"notebook": str(folder / "toy"), "study": "scratch", "threads": 1, "grid": {"seed": [1, 2]}}
        self.profile = folder / "toy.yaml"
        self.profile.write_text(yaml.safe_dump({"profile": "toy", "runs": [run]}))
        self.csvs = [run.csv for run in load_plans(str(self.profile), str(self.results))[0].runs]

    def edit(self, notebook: str) -> None:
        (self.folder / "toy.py").write_text(notebook)

    def launch(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Without tables and report: the rows are none of a study."""
        return run_script(Path(launch.__file__), self.profile, "--results", self.results, *self.csvs, *options)

    def launch_in_a_process_that_reports_imports(self) -> str:
        command = [sys.executable, launch.__file__, self.profile, "--results", self.results, *self.csvs]
        told = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=told).stderr

    def texts(self) -> list[str]:
        return [Path(csv).read_text() for csv in self.csvs]


def test_run_is_repeated_when_its_code_changes_and_only_then(study, results):
    study.csvs = study.csvs[:1]
    assert study.launch().returncode == 0
    study.edit(NOTEBOOK.replace("# %%\n", "# %%\n# a comment\n"))
    nothing = study.launch_in_a_process_that_reports_imports()
    assert "Nothing to be done" in nothing
    assert re.search(r"^import time:.* snakemake$", nothing, re.MULTILINE)
    assert not re.search(r"^import time:.* (torch|timm|common.models.*)$", nothing, re.MULTILINE)
    study.edit(NOTEBOOK.replace("seed {seed}", "seed: {seed}"))
    again = study.launch()
    assert "changed, and what depends on it is stale: notebook" in again.stdout
    assert study.texts() == ["seed: 1"]


def test_accepted_results_stand_and_are_recorded(study, results):
    assert study.launch().returncode == 0
    study.edit(NOTEBOOK.replace("seed {seed}", "seed: {seed}"))
    accepted = study.launch("--accept", "scratch--s2")
    assert (accepted.returncode, accepted.stdout.splitlines()[-1].split(";")[0]) == (0, "accepted 1 stale results")
    assert study.texts() == ["seed 1", "seed 2"]
    assert study.launch().returncode == 0
    assert study.texts() == ["seed: 1", "seed 2"]
    rows = accepted_runs(results)
    assert rows[["study", "run_id"]].values.tolist() == [["scratch", "s2"]]
    (sentence,) = accepted_sentences(results)
    assert sentence.startswith("Runs made by earlier code and accepted as they are (20")
    assert sentence.endswith("): scratch (1).")
    assert "Nothing to be done" in study.launch().stderr
    study.edit(NOTEBOOK.replace("seed {seed}", "seed is {seed}"))
    assert "scratch--s2" in study.launch("--dry-run").stdout
    Path(study.csvs[1]).write_text("made again")
    assert accepted_sentences(results) == []


def test_results_from_elsewhere_are_accepted(study, results):
    """As in a fresh clone, which has no executed notebooks."""
    for csv in study.csvs:
        for path in (Path(csv), Path(csv.replace("runs", "figures")).with_suffix(".png")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("from elsewhere")
    assert "accepted 2 stale results" in study.launch("--accept").stdout
    assert "Nothing to be done" in study.launch().stderr
    assert study.texts() == ["from elsewhere", "from elsewhere"]


def test_results_of_other_parameters_are_not_accepted(study, results):
    study.csvs = study.csvs[:1]
    assert study.launch().returncode == 0
    executed = results / "notebooks" / "scratch" / "s1.ipynb"
    executed.write_text(executed.read_text().replace('"seed": 1', '"seed": 3'))
    refused = study.launch("--accept")
    line = f"error: {study.csvs[0]} was made with other values of seed; make it again first\n"
    assert (refused.returncode, refused.stderr) == (2, line)
    assert pd.DataFrame(accepted_runs(results)).empty


def test_pattern_without_a_result_is_refused(study, results):
    refused = study.launch("--accept", "finetune--*")
    assert (refused.returncode, refused.stderr) == (2, f"error: {results} has no result of a run finetune--*\n")
