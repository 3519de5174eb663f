"""Google Colab: the notebooks' first cell, and a whole notebook after it in one fresh kernel of a fresh environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import types
from importlib.metadata import version
from pathlib import Path

import jupytext
import nbformat
import pandas as pd
import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from colab import ROOT, SECTIONS, cell_source, link, public_address, put_into

ADDRESS = "https://github.com/someone/token-reduction"
SOURCES = [path for section in SECTIONS for path in sorted((ROOT / "Code" / section).glob("*.py"))]
WITH_CELL = SOURCES


def first_code_cell(notebook):
    return next(cell for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", WITH_CELL, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_notebook_has_the_cell_and_the_link_of_the_address_in_pyproject(path: Path) -> None:
    name = f"{path.parent.name}/{path.stem}"
    for notebook in (jupytext.read(path), nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)):
        cell, before = first_code_cell(notebook), notebook.cells[0].source
        put_into(notebook, name, public_address())
        assert (cell.source, before) == (cell_source(public_address()), notebook.cells[0].source)
        assert cell.metadata["tags"] == ["colab"]


def test_links_open_the_notebook_from_github() -> None:
    at = "(https://colab.research.google.com/github/someone/token-reduction/blob/main/notebooks/Scratch/train_test.ipynb)"
    assert link(ADDRESS, "Scratch/train_test").endswith(at)
    assert link(f"{ADDRESS}.git", "Scratch/train_test").endswith(at)
    assert link("https://gitlab.com/someone/token-reduction", "Scratch/train_test") == ""
    assert link("", "Scratch/train_test") == ""


def test_what_is_put_in_leaves_the_rest_and_its_outputs_alone() -> None:
    notebook = nbformat.read(ROOT / "notebooks" / "Scratch" / "train_test.ipynb", as_version=4)
    put_into(notebook, "Scratch/train_test", "")
    untouched = nbformat.from_dict(notebook)
    put_into(notebook, "Scratch/train_test", ADDRESS)
    assert notebook.cells[0].source.splitlines()[2] == link(ADDRESS, "Scratch/train_test")
    assert ADDRESS in notebook.cells[1].source
    assert notebook.cells[2:] == untouched.cells[2:]
    put_into(notebook, "Scratch/train_test", "")
    assert notebook == untouched


def test_a_new_first_cell_counts_as_executed_where_the_others_are() -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title\n\nText")])
    result = nbformat.v4.new_output("execute_result", execution_count=1)
    notebook.cells += [nbformat.v4.new_code_cell("1", execution_count=1, outputs=[result])]
    put_into(notebook, "Scratch/train_test", ADDRESS)
    _, new, old = notebook.cells
    assert (new.execution_count, old.execution_count, old.outputs[0].execution_count) == (1, 2, 2)
    assert notebook.cells[0].source == f"# Title\n\n{link(ADDRESS, 'Scratch/train_test')}\n\nText"
    nbformat.validate(notebook)


def test_cell_does_nothing_outside_colab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    monkeypatch.setattr(subprocess, "run", None)
    exec(cell_source(""), {})


def test_cell_says_what_to_set_while_there_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    with pytest.raises(AssertionError, match=r"set repository to the public address .* pyproject\.toml"):
        exec(cell_source(""), {})


def git(*arguments: str | Path) -> str:
    identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with these sources as its one commit: what the public address would give."""
    folder = tmp_path_factory.mktemp("published")
    shutil.copytree(ROOT / "Code", folder / "Code", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(ROOT / "results" / "published", folder / "results" / "published")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    git("init", "--quiet", folder)
    git("-C", folder, "add", "--all")
    git("-C", folder, "commit", "--quiet", "--message", "Published")
    return folder


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new environment that has this one's packages but not ours, and in which Colab's module is loaded."""
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    packages = folder / "packages"
    packages.mkdir()
    ours = ("common", "token_reduction", "__editable__", "__pycache__")
    for installed in {Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}:
        for path in installed.iterdir():
            if not path.name.startswith(ours):
                (packages / path.name).symlink_to(path)
    python = folder / "venv" / "bin" / "python"
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    (site / "google" / "colab").mkdir(parents=True)
    (site / "google" / "colab" / "__init__.py").touch()
    (site / "colab.pth").write_text(f"import site; site.addsitedir({str(packages)!r})\nimport google.colab\n")
    return python


@pytest.fixture
def offline() -> dict[str, str]:
    """Environment of a kernel: no index, and setuptools from the environment (pip reads the 0 as "no isolation")."""
    pip = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | pip


def execute(notebook: nbformat.NotebookNode, python: Path, folder: Path, env: dict[str, str]) -> None:
    """Run all cells in one kernel of ``python``, started in ``folder``; outputs are in the notebook."""

    class Fresh(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            return KernelSpec(argv=[str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"])

    manager = AsyncKernelManager(kernel_spec_manager=Fresh(), transport="ipc", connection_file=str(folder / "k.json"))
    NotebookClient(notebook, km=manager, timeout=600, resources={"metadata": {"path": folder}}).execute(env=env)


@pytest.mark.slow
def test_whole_notebook_in_a_fresh_kernel(
    published: Path, fresh: Path, offline: dict[str, str], tmp_path: Path
) -> None:
    clone = tmp_path / "token-reduction"
    notebook = jupytext.read(ROOT / "Code" / "Benchmark" / "sizing.py")  # reads published numbers; no data, no weights
    put_into(notebook, "Benchmark/sizing", "")
    notebook.cells[1].source = cell_source(published.as_uri(), str(clone))
    where = nbformat.v4.new_code_cell("import os, common\nprint(common.__file__, os.getcwd(), sep='\\n')")
    again = nbformat.v4.new_code_cell(notebook.cells[1].source)
    notebook.cells += [where, again]
    execute(notebook, fresh, tmp_path, offline)
    imported, working = where.outputs[0].text.split()
    assert Path(imported).is_relative_to(fresh.parents[1]), "not editable"
    assert Path(working) == clone, "the second run of the cell finds the clone of the first"
    written = pd.read_csv(clone / "results" / "notebook" / "sizing.csv", dtype=str)
    assert set(written["commit"]) == {git("-C", published, "rev-parse", "--short=7", "HEAD")}
    assert written["published_gflops"].notna().any()
    assert not (Path(imported).parents[1] / "torch").exists(), "torch stays the one that was there"
    for path in (ROOT / "Code" / "common").rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(ROOT).parts)
        if path.is_file() and path.suffix not in (".pyc", ".md") and not hidden:
            assert (Path(imported).parents[1] / path.relative_to(ROOT / "Code")).is_file()


@pytest.mark.slow
def test_torch_that_is_too_old_is_named_and_kept(
    published: Path, fresh: Path, offline: dict[str, str], tmp_path: Path
) -> None:
    clone = tmp_path / "token-reduction"
    git("clone", "--quiet", published, clone)
    project = clone / "pyproject.toml"
    project.write_text(project.read_text().replace('"torch>=', '"torch>=99'))
    git("-C", clone, "commit", "--quiet", "--all", "--message", "Needs a torch of the future")
    call = f"import runpy; runpy.run_path({str(clone / 'Code/workflow/colab.py')!r})['set_up']()"
    done = subprocess.run([fresh, "-c", call], env=offline, capture_output=True, text=True, check=False)
    assert done.returncode
    assert f"beside torch=={version('torch')} and torchvision=={version('torchvision')}" in done.stderr
    assert "torch>=99" in done.stderr and "%pip install -U torch torchvision" in done.stderr
