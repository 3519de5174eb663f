"""The text notebooks under Code/: reading them and knowing which parameters they declare."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from profile_file import ROOT

if TYPE_CHECKING:
    from nbformat import NotebookNode


def read_notebook(source: Path) -> NotebookNode:
    """Read a jupytext py:percent file as a notebook that papermill can run."""
    import jupytext

    notebook = jupytext.read(source, fmt="py:percent")
    for cell in notebook.cells:
        cell.metadata.setdefault("tags", [])
    return notebook


def declared_parameters(source: Path) -> list[str]:
    """Names that the notebook's one cell tagged "parameters" assigns, in order.

    Raises ValueError when there is not exactly one such cell.
    """
    return [name for statement in ast.parse(_parameters_cell(source)).body for name in _assigned_names(statement)]


@cache
def declared_by(notebook: str) -> list[str]:
    """:func:`declared_parameters` of a file relative to the repository, read once."""
    return declared_parameters(ROOT / notebook)


@cache
def defaults_of(notebook: str) -> Mapping[str, Any]:
    """The values of that cell, of a file relative to the repository, read once; not to be changed."""
    values: dict[str, Any] = {}
    exec(_parameters_cell(ROOT / notebook), {}, values)
    return MappingProxyType(values)


def _parameters_cell(source: Path) -> str:
    cells = [cell for cell in read_notebook(source).cells if "parameters" in cell.metadata["tags"]]
    if len(cells) != 1:
        raise ValueError(f"{source.name} must have one cell tagged 'parameters', it has {len(cells)}")
    return cells[0].source


def _assigned_names(statement: ast.stmt) -> list[str]:
    stored = (node for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    return [node.id for node in stored]


def undeclared(given: Iterable[str], source: Path, declared: Sequence[str]) -> Iterator[str]:
    """One line about each parameter that the notebook does not know."""
    for name in given:
        if name not in declared:
            yield f"unknown parameter {name!r} for {source.name}; allowed: {', '.join(sorted(declared))}"
