"""One kind of error for everything a user can get wrong, always one line long."""

from __future__ import annotations

from collections.abc import Iterable


class UsageError(ValueError):
    """Bad input. The message is one line that says what was given and what is allowed."""


def require_choice(value: str, allowed: Iterable[str], what: str) -> str:
    """Return ``value`` if it is one of ``allowed``; otherwise raise :class:`UsageError` naming both."""
    allowed = sorted(allowed)
    if value not in allowed:
        raise UsageError(f"unknown {what} {value!r}; allowed: {', '.join(allowed)}")
    return value
