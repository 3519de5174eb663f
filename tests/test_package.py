"""The package from outside: what ``import common`` offers, and what it costs."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from textwrap import dedent

import pytest

import common

SOURCE = ast.parse(Path(common.__file__).read_text(encoding="utf-8"))


def test_import_common_loads_nothing_until_it_is_used():
    """Also that timm knows this package's backbones once its models are loaded, and that loading prints nothing."""
    code = """
        import sys, common
        print({'torch', 'timm', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules))
        print(common.explain.Mutex.__name__, common.explain.metrics.insertion_deletion.__name__)
        print(common.slimming.search.__name__, common.idling.solve_thresholds.__name__)
        import timm, common.benchmark
        print(timm.is_model('vit_digits'))
    """
    run = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, check=True)
    printed = ["set()", "Mutex insertion_deletion", "search solve_thresholds", "True"]
    assert run.stdout.splitlines() == printed and run.stderr == ""


def test_every_name_is_found():
    assert (
        {"analysis", "explain", "slimming", "create_model", "reduce_tokens"} <= set(common.__all__) <= set(dir(common))
    )
    for name in common.__all__:
        module = import_module(common.CALLS.get(name, f"common.{name}"))
        assert getattr(common, name) in (module, getattr(module, name, module))
    with pytest.raises(AttributeError, match="module 'common' has no attribute 'mutex'"):
        common.mutex  # noqa: B018


def test_what_reads_the_source_sees_the_same_names():
    """Type checkers, and the workflow, which asks what code a run reaches."""
    (checked,) = (node for node in SOURCE.body if isinstance(node, ast.If) and node.test.id == "TYPE_CHECKING")
    seen = {alias.name: imported.module for imported in checked.body for alias in imported.names}
    assert seen == {name: common.CALLS.get(name, "common") for name in common.__all__}
