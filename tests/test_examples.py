"""Every public call has an example in its docstring, and all examples in docstrings run."""

import doctest
import inspect
from importlib import import_module
from pathlib import Path

import pytest

import common

ROOT = Path(common.__file__).parent
WITH_EXAMPLES = sorted(
    ".".join(("common", *file.relative_to(ROOT).with_suffix("").parts))
    for file in ROOT.rglob("*.py")
    if ">>> " in file.read_text(encoding="utf-8")
)


def public(package):
    """Names that a package gives to its users: what it imports or declares, without an underscore."""
    names = getattr(package, "__all__", dir(package))
    return [name for name in names if not name.startswith("_") and callable(getattr(package, name))]


PACKAGES = ("common", *(f"common.{name}" for name in ("analysis", "evaluation", "explain", "idling", "slimming")))
CALLS = [
    (package, name)
    for package in PACKAGES
    for name in public(import_module(package))
    if name not in ("Explanation", "Interval", "Setting", "Stage")  # what calls return
]
CALLS += [("common.reducers", name) for name in ("Method", "Reducer", "Schedule", "register_reducer")]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_run(module):
    result = doctest.testmod(import_module(module))
    assert result.failed == 0 < result.attempted


@pytest.mark.parametrize(("package", "name"), CALLS)
def test_a_public_call_has_an_example(package, name):
    call = getattr(import_module(package), name)
    owner = type(call.__self__) if inspect.ismethod(call) else call  # a method of a registry: that of the registry
    assert ">>> " in owner.__doc__
