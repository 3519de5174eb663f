"""Google Colab: what a notebook's first code cell runs there, and what puts that cell into the notebooks.

    python Code/workflow/colab.py [NOTEBOOK.py ...]

writes the cell and the "Open in Colab" link into the named text notebooks, or into all, and into their .ipynb, whose
outputs stay. The repository's public address comes from ``Repository`` in ``[project.urls]`` of pyproject.toml; run it
again when the address changes. In Colab this file runs before anything is installed, so what it imports at its top is
the standard library.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ("Benchmark", "Pretrained", "Scratch")
FOLDER = "/content/token-reduction"  # /content is where Colab starts
TAG = "colab"
LAST_LINES = 15  # of pip's output, where it says what it could not do

# A whole clone, no --depth: pip clones it again, and does not come to an end with a shallow one.
CELL = """\
import runpy
import subprocess
import sys

if "google.colab" in sys.modules:  # fetches and installs the repository in Google Colab; does nothing elsewhere
    repository, folder = "{address}", "{folder}"
    assert repository, "set repository to the public address of this repository, here or in pyproject.toml"
    subprocess.run(f"test -d {{folder}} || git clone --quiet {{repository}} {{folder}}", shell=True, check=True)
    runpy.run_path(f"{{folder}}/Code/workflow/colab.py")["set_up"]()"""

BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
COLAB = "https://colab.research.google.com/github"  # Colab opens notebooks by address from GitHub only
GITHUB = re.compile(r"https://github\.com/(?P<name>[\w.-]+/[\w.-]+?)(?:\.git)?/?")


def set_up() -> None:
    """Install this clone beside the torch that is there, and make it the working directory.

    The install is not editable, so that the running kernel can import ``common`` at once. It is made from the clone's
    commit, which ``common`` then writes into its results. Published numbers and results are looked for in the working
    directory. Raises RuntimeError when pip cannot install, and when torch or torchvision would have to be replaced:
    that is a download of gigabytes, and a torch that does not fit Colab's other packages.
    """
    kept = [f"{name}=={found}" for name in ("torch", "torchvision") if (found := _installed(name))]
    # Two requirements for one package: pip before 24.1 takes no name and extra together with a git+file: address.
    command = [sys.executable, "-m", "pip", "install", *kept, f"git+{ROOT.as_uri()}", "token-reduction[explain]"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        reasons = "\n".join(done.stdout.splitlines()[-LAST_LINES:])
        raise RuntimeError(
            f"pip could not install token-reduction beside {' and '.join(kept) or 'no torch'}:\n{reasons}\n"
            "Where torch or torchvision is too old: %pip install -U torch torchvision, restart the session, run again"
        )
    importlib.invalidate_caches()
    os.chdir(ROOT)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def public_address() -> str:
    """The repository's address in pyproject.toml, "" while there is none."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project.get("urls", {}).get("Repository", "")


def cell_source(address: str, folder: str = FOLDER) -> str:
    """The cell that fetches the repository from ``address`` into ``folder`` in Colab and does nothing elsewhere."""
    return CELL.format(address=address, folder=folder)


def link(address: str, name: str) -> str:
    """Markdown that opens the notebook ``name`` ("Benchmark/sizing") in Colab; "" for an address not on GitHub."""
    found = GITHUB.fullmatch(address)
    return f"{BADGE}({COLAB}/{found['name']}/blob/main/notebooks/{name}.ipynb)" if found else ""


def put_into(notebook: NotebookNode, name: str, address: str) -> None:
    """Give ``notebook``, in place, the link below its heading and the cell after it, or replace those it has."""
    opening, second = notebook.cells[:2]
    text = re.sub(r"\n\n" + re.escape(BADGE) + r"[^\n]*", "", opening.source)
    heading, _, rest = text.partition("\n")
    badge = link(address, name)
    opening.source = f"{heading}\n\n{badge}\n{rest}" if badge else text
    if TAG in second.metadata.get("tags", []):
        second.source = cell_source(address)
        return
    executed = _count_from_two(notebook)
    notebook.cells.insert(1, _new_cell(address, execution_count=1 if executed else None))


def _new_cell(address: str, **more: Any) -> NotebookNode:
    from nbformat.v4 import new_code_cell

    return new_code_cell(cell_source(address), id=TAG, metadata={"tags": [TAG]}, **more)


def _count_from_two(notebook: NotebookNode) -> bool:
    """Number executed cells and their results one higher, for a new first cell; False when none was executed."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counted = [each for cell in code for each in (cell, *cell.outputs) if each.get("execution_count")]
    for each in counted:
        each.execution_count += 1
    return bool(counted)


def main() -> None:
    import jupytext
    import nbformat

    everything = [path for section in SECTIONS for path in sorted((ROOT / "Code" / section).glob("*.py"))]
    for source in [Path(name).resolve() for name in sys.argv[1:]] or everything:
        name = f"{source.parent.name}/{source.stem}"
        pair = ROOT / "notebooks" / f"{name}.ipynb"
        text, executed = jupytext.read(source, fmt="py:percent"), nbformat.read(pair, as_version=4)
        for notebook in (text, executed):
            put_into(notebook, name, public_address())
        jupytext.write(text, source, fmt="py:percent")
        nbformat.write(executed, pair)
        print(name)


if __name__ == "__main__":
    main()
