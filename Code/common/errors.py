"""One kind of error for everything a user can get wrong, always one line long."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


class UsageError(ValueError):
    """Bad input. The message is one line that says what was given and what is allowed."""


def require_choice(value: str, allowed: Iterable[str], what: str) -> str:
    """Return ``value`` if it is one of ``allowed``; otherwise raise :class:`UsageError` naming both."""
    allowed = sorted(allowed)
    if value not in allowed:
        raise UsageError(f"unknown {what} {value!r}; allowed: {', '.join(allowed)}")
    return value


def require_package(name: str, extra: str, what: str) -> ModuleType:
    """Import package ``name``, which ``what`` needs and which comes with ``pip install -e '.[EXTRA]'``."""
    if find_spec(name.partition(".")[0]) is None:
        raise UsageError(f"{what} needs the package {name!r}, which is not installed: pip install -e '.[{extra}]'")
    return import_module(name)
