"""A method with its options as one short text, the same in notebooks, profiles, tables and command lines."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import UsageError
from common.reducers.base import check_options


@dataclass(frozen=True)
class Method:
    """A reducer and its options; written ``topk`` or ``topk:head_fusion=mean`` or ``name:key=value,key=value``."""

    name: str
    options: tuple[tuple[str, object], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Method:
        """Read the written form.

        Raises:
            UsageError: unknown method or option, or an option without a value.
        """
        name, _, tail = text.partition(":")
        options = []
        for part in filter(None, tail.split(",")):
            key, equals, value = part.partition("=")
            if not equals:
                raise UsageError(f"option {part!r} of {text!r} has no value; write name:key=value,key=value")
            if key in dict(options):
                raise UsageError(f"option {key!r} stands twice in {text!r}")
            options.append((key, _literal(value)))
        check_options(name, dict(options))
        return cls(name, tuple(options))

    @property
    def options_text(self) -> str:
        """The options as they stand in tables: ``key=value,key=value``, empty without any."""
        return ",".join(
            f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in self.options
        )

    def __str__(self) -> str:
        return f"{self.name}:{self.options_text}" if self.options else self.name


def _literal(text: str) -> object:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
