"""Every import inside the package points down: from what uses to what is used."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

COMMON = Path(__file__).parents[1] / "Code" / "common"
# From the bottom to the top; a part imports itself and those before it.
LAYERS = (
    *("errors", "processes", "precision", "rows", "options", "devices", "yaml_files", "registry", "schedule", "schema"),
    *(
        "provenance",
        "results",
        "tokens",
        "attention",
        "weights",
        "images",
        "data",
        "reducers",
        "models",
        "cost",
        "budget",
    ),
    *("training", "onnx_operators", "onnx_int8", "onnx_sessions", "exporting"),
    *("benchmark", "serving", "setup", "evaluation", "idling", "slimming", "explain"),
    *("plots", "analysis"),
    *("report", "schedule_search", "parameters", "studies", "leaderboard"),
)
MODULES = sorted(path for path in COMMON.rglob("*.py") if path != COMMON / "__init__.py")


def imported(tree: ast.Module) -> Iterator[str]:
    """Modules of the package that a file imports, wherever in it; not what only type checkers read."""
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "common":
            whole = node.module == "common"
            yield from (f"common.{name.name}" for name in node.names) if whole else [node.module]
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("common."))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(COMMON).as_posix())
def test_imports_point_down(path: Path) -> None:
    own = LAYERS.index(path.relative_to(COMMON).with_suffix("").parts[0])
    parts = {name.split(".")[1] for name in imported(ast.parse(path.read_text()))}
    assert not {part for part in parts if LAYERS.index(part) > own}


def test_an_import_that_points_up_is_seen() -> None:
    text = "from common.plots import style\nimport common.report.page\nfrom common import studies\n"
    text += "if TYPE_CHECKING:\n    from common.explain import base\n"
    assert [name.split(".")[1] for name in imported(ast.parse(text))] == ["plots", "report", "studies"]
