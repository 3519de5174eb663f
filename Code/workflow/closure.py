"""Which code the numbers of a run can depend on: the modules of ``common`` that its notebook reaches by imports.

Nothing is imported here, only read. What counts as reached:

* ``from common.training import train`` reaches the file that defines train. A package hands on names; what else it
  imports is not reached, unless the package is imported whole (``import common.training``).
* A class that a decorator ``register_...("name")`` makes available by name, a method or an explainer, is reached when
  its package is and the run names it: in a parameter such as "topk:head_fusion=mean", or in a text of the code.
* A CSV of published numbers is read by what names it.
* What only presents numbers is not reached: the packages in PRESENTATION, and of a study (the class Study and what
  inherits from it) what PRESENTING lists, with the imports and functions of its file that nothing else uses.

The fingerprint of a file is that of its syntax tree without docstrings, so comments and formatting do not count.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

PACKAGE = "common"
PRESENTATION = (f"{PACKAGE}.plots", f"{PACKAGE}.report")
PRESENTING = {"title", "question", "place", "setting", "captions", "run_figures"}
PRESENTING |= {"summarise", "sections", "figures", "answers", "missing", "claims", "measured_on"}
PRESENTING |= {"parameters"}  # only checks profiles
NO_METHODS = {"protocol"}  # functions with an argument that may be called like a method and is none


class Source:
    """The text of one file, without its docstrings and without what only presents numbers; ``name`` is for errors."""

    def __init__(self, text: str, name: str) -> None:
        self.tree = ast.parse(text, name)
        _drop_presentation(self.tree)
        for node in ast.walk(self.tree):
            if isinstance(getattr(node, "body", None), list):
                node.body = [statement for statement in node.body if not _is_text(statement)]

    @cached_property
    def fingerprint(self) -> str:
        return _digest(ast.dump(self.tree).encode())

    @cached_property
    def imports(self) -> list[tuple[str, str, str]]:
        """(name here, module, name in the module or "" for the module itself) of what is imported from the package."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [(alias.asname or alias.name, alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found += [(alias.asname or alias.name, str(node.module), alias.name) for alias in node.names]
        return [entry for entry in found if entry[1].split(".")[0] == PACKAGE]

    @cached_property
    def registered(self) -> set[str]:
        """The names under which decorators ``register_...("name")`` make classes of this file available."""
        classes = (node for node in self.tree.body if isinstance(node, ast.ClassDef))
        calls = (call for node in classes for call in node.decorator_list if isinstance(call, ast.Call))
        named = (call for call in calls if ast.unparse(call.func).startswith("register") and call.args)
        return {ast.literal_eval(call.args[0]) for call in named}

    @cached_property
    def texts(self) -> set[str]:
        """The texts that could name a method, without its options."""
        return set(_texts(self.tree))


class Closure:
    """What runs reach of the package that lies in ``folder``, and of the published numbers in ``published``."""

    def __init__(self, folder: Path, published: Path) -> None:
        paths = sorted((folder / PACKAGE).rglob("*.py"))
        texts = {path.relative_to(folder): path.read_text(encoding="utf-8") for path in paths}
        self._sources = {_module(path): _read_once(text, str(path)) for path, text in texts.items()}
        self._published = {path.stem: path for path in sorted(published.glob("*.csv"))}

    def fingerprints(self, notebook: Path, options: Mapping[str, Any]) -> dict[str, str]:
        """Of the notebook, of the modules that it reaches when it runs with ``options``, and of CSVs that it names."""
        run = Source(notebook.read_text(encoding="utf-8"), str(notebook))
        run.tree.body = [node for node in run.tree.body if not (_is_replaced(node, options) or _is_for_colab(node))]
        reached, named, waiting = set(), {*run.texts, *_strings(options)}, self._imported_by(run)
        while waiting:
            reached |= waiting
            sources = [self._sources[module] for module in waiting]
            named = named.union(*(source.texts for source in sources))
            imported = set().union(*(self._imported_by(source) for source in sources))
            waiting = (imported | self._registered(named, reached)) - reached
        modules = {module: self._sources[module].fingerprint for module in sorted(reached)}
        read = {path.name: _digest(path.read_bytes()) for name, path in self._published.items() if name in named}
        return {"notebook": run.fingerprint, **modules, **read}

    def _imported_by(self, source: Source) -> set[str]:
        found = (self._definer(module, name) for _, module, name in source.imports)
        return {module for module in found if module in self._sources and not _presents(module)}

    def _definer(self, module: str, name: str) -> str:
        """The module that defines ``name``, which ``module`` may only hand on."""
        if f"{module}.{name}" in self._sources:
            return f"{module}.{name}"
        source = self._sources.get(module)
        for here, origin, there in source.imports if source else []:
            if here == name:
                return self._definer(origin, there)
        return module

    def _registered(self, named: set[str], reached: set[str]) -> set[str]:
        """The modules, in packages that are reached, with a class that is available under one of the names."""
        packages = {_package(module) for module in reached}
        return {
            module
            for module, source in self._sources.items()
            if _package(module) in packages and source.registered & named
        }


@cache
def _read_once(text: str, name: str) -> Source:
    """A file of the package, which no run changes."""
    return Source(text, name)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _module(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _package(module: str) -> str:
    return module.rpartition(".")[0]


def _presents(module: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in PRESENTATION)


def _drop_presentation(tree: ast.Module) -> None:
    """Leave out what a study says and draws, then again and again what only the dropped parts used."""
    studies = [node for node in tree.body if isinstance(node, ast.ClassDef) and _is_study(node)]
    dropped = [statement for study in studies for statement in study.body if _bound(statement) & PRESENTING]
    for study in studies:
        study.body = [statement for statement in study.body if statement not in dropped]
    shown: set[str] = set()
    while dropped:
        shown = shown.union(*(_used(statement) for statement in dropped))
        used = [(statement, _used(statement)) for statement in tree.body]
        dropped = [
            statement
            for statement in tree.body
            if (bound := _bound(statement))
            and bound <= shown
            and not any(bound & names for other, names in used if other is not statement)
        ]
        tree.body = [statement for statement in tree.body if statement not in dropped]


def _is_study(node: ast.ClassDef) -> bool:
    return any(name.endswith("Study") for name in [node.name, *map(ast.unparse, node.bases)])


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a definition, an assignment or an import binds."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in statement.names}
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        return _names(statement, ast.Store)
    return set()


def _used(statement: ast.stmt) -> set[str]:
    return _names(statement, ast.Load)


def _names(statement: ast.stmt, context: type[ast.expr_context]) -> set[str]:
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, context)}


def _is_text(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _is_replaced(statement: ast.stmt, options: Mapping[str, Any]) -> bool:
    """Whether the statement gives parameters values of which the run uses none."""
    names = _bound(statement) if isinstance(statement, ast.Assign | ast.AnnAssign) else set()
    return bool(names) and names <= options.keys()


def _is_for_colab(statement: ast.stmt) -> bool:
    """Whether it is what colab.py writes into each notebook: it does nothing where runs are made."""
    return isinstance(statement, ast.If) and "google.colab" in ast.unparse(statement.test)


def _texts(node: ast.AST) -> Iterator[str]:
    """The beginning, up to a colon, of each text that is not compared, looked up or no method's by NO_METHODS."""
    if isinstance(node, ast.Compare) or (isinstance(node, ast.Call) and getattr(node.func, "id", "") in NO_METHODS):
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value.partition(":")[0]
    for child in node.values if isinstance(node, ast.Dict) else ast.iter_child_nodes(node):
        yield from _texts(child)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value.partition(":")[0]
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(item)
