"""The package from outside: what ``import common`` offers, and what it costs."""

import ast
import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path
from textwrap import dedent

import pytest

import common

SOURCE = ast.parse(Path(common.__file__).read_text(encoding="utf-8"))


def test_import_common_loads_nothing_until_it_is_used():
    """Also that timm knows this package's backbones once its models are loaded."""
    code = """
        import sys, common
        print({'torch', 'timm', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules))
        print(common.explain.Mutex.__name__, common.explain.metrics.insertion_deletion.__name__)
        print(common.slimming.search.__name__, common.idling.solve_thresholds.__name__)
        import timm
        print(timm.is_model('vit_digits'))
    """
    run = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, check=True)
    printed = ["set()", "Mutex insertion_deletion", "search solve_thresholds", "True"]
    assert run.stdout.splitlines() == printed


def test_every_name_is_found_and_every_subpackage_has_one():
    packages = {module.name for module in pkgutil.iter_modules(common.__path__) if module.ispkg}
    assert packages <= set(common.__all__) <= set(dir(common)) and common.__all__ == list(common.MODULES)
    for name in common.__all__:
        module = import_module(common.MODULES[name])
        assert getattr(common, name) in (module, getattr(module, name, module))
    with pytest.raises(AttributeError, match="module 'common' has no attribute 'mutex'"):
        common.mutex  # noqa: B018


def test_the_table_can_be_read_without_an_import_and_type_checkers_see_the_same():
    tables = [node.value for node in SOURCE.body if isinstance(node, ast.Assign) and node.targets[0].id == "MODULES"]
    assert [ast.literal_eval(table) for table in tables] == [common.MODULES]
    (checked,) = (node for node in SOURCE.body if isinstance(node, ast.If) and node.test.id == "TYPE_CHECKING")
    seen = {alias.name: imported.module for imported in checked.body for alias in imported.names}
    expected = {name: "common" if where == f"common.{name}" else where for name, where in common.MODULES.items()}
    assert seen == expected


def test_every_dependency_is_imported():
    """Of those without which nothing runs; each by its module, as pyyaml by yaml."""
    tomllib, root = pytest.importorskip("tomllib"), Path(common.__file__).parents[2]
    required = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    names = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in required}
    nodes = [
        node for path in root.glob("Code/**/*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    ]
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    used = {module.partition(".")[0] for module in modules}
    found = {name.lower() for module, owners in packages_distributions().items() if module in used for name in owners}
    assert names - found == set()
