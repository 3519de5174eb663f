"""One kind of error for everything a user can get wrong, always one line long."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

STOPPED = 130  # the exit code of what Ctrl-C ended, as shells have it


class UsageError(ValueError):
    """Bad input. The message is one line that says what was given and what is allowed."""


def require_choice(value: str, allowed: Iterable[str], what: str) -> str:
    """Return ``value`` if it is one of ``allowed``; otherwise raise :class:`UsageError` naming both."""
    allowed = sorted(allowed)
    if value not in allowed:
        raise UsageError(f"unknown {what} {value!r}; allowed: {', '.join(allowed)}{nearest(value, allowed)}")
    return value


def nearest(word: object, allowed: Iterable[str]) -> str:
    """The end of a message about a ``word`` that is none of ``allowed``: the one that may be meant, "" if none is near.

    >>> nearest("mac_cutt", ["mac_cut", "gmac"]), nearest("watts", ["mac_cut", "gmac"])
    ("; did you mean 'mac_cut'?", '')
    """
    close = difflib.get_close_matches(word, list(map(str, allowed)), n=1) if isinstance(word, str) else []
    return f"; did you mean {close[0]!r}?" if close else ""


def require_package(name: str, extra: str, what: str) -> ModuleType:
    """Import package ``name``, which ``what`` needs and which comes with ``pip install -e '.[EXTRA]'``."""
    if find_spec(name.partition(".")[0]) is None:
        raise UsageError(f"{what} needs the package {name!r}, which is not installed: pip install -e '.[{extra}]'")
    return import_module(name)


def command(main: Callable[[Sequence[str] | None], int | None]) -> Callable[..., int]:
    """Decorator of a command line ``main(arguments)``: what is wrong is printed in one line and gives exit code 2.

    Ctrl-C ends it without a traceback.
    """

    @wraps(main)
    def run(arguments: Sequence[str] | None = None) -> int:
        try:
            return main(arguments) or 0
        except (UsageError, FloatingPointError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return STOPPED

    return run
