"""Classes by name, and one short text for a class with its options: ``name`` or ``name:key=value,key=value``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from common.errors import UsageError, require_choice

Class = TypeVar("Class", bound=type)
Options = tuple[tuple[str, object], ...]


class Registry(Generic[Class]):
    """Classes that can be chosen by name. The options of one are the keyword-only parameters of its constructor.

    A constructor that takes ``**`` others hands them to the class it inherits from, whose options then count too.

    Args:
        what: what the classes are, as messages call it: "reducer".
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._classes: dict[str, Class] = {}

    def register(self, name: str) -> Callable[[Class], Class]:
        """Class decorator that makes a class available under ``name``; a name can be taken once."""

        def register(cls: Class) -> Class:
            if name in self._classes:
                taken_by = self._classes[name].__qualname__
                raise UsageError(f"{self._what} {name!r} is registered already, by {taken_by}")
            self._classes[name] = cls
            return cls

        return register

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._classes)

    def get(self, name: str) -> Class:
        """The class registered under ``name``; :class:`UsageError` lists what there is."""
        return self._classes[require_choice(name, self._classes, self._what)]

    def options(self, name: str) -> list[str]:
        """Names of the options that ``name`` takes."""
        return list(self._parameters(name))

    def check_options(self, name: str, options: Mapping[str, object]) -> None:
        """Refuse what :meth:`check_given` does, and that ``name`` lacks an option it cannot do without."""
        self.check_given(name, options)
        for option, parameter in self._parameters(name).items():
            if parameter.default is parameter.empty and option not in options:
                raise UsageError(f"{self._what} {name!r} needs the option {option!r}: {name}:{option}=VALUE")

    def check_given(self, name: str, options: Mapping[str, object]) -> None:
        """Refuse an option that ``name`` does not have, or a switch that is neither true nor false."""
        parameters = self._parameters(name)
        for option, value in options.items():
            if option not in parameters:
                allowed = ", ".join(parameters) or "none"
                raise UsageError(f"{self._what} {name!r} has no option {option!r}; allowed: {allowed}")
            if isinstance(parameters[option].default, bool) and not isinstance(value, bool):
                raise UsageError(
                    f"option {option}={value!r} of {self._what} {name!r} is not allowed; allowed: true, false"
                )

    def read(self, text: str) -> tuple[str, Options]:
        """Name and options of the written form.

        Raises:
            UsageError: unknown name or option, or an option without a value.
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
        self.check_given(name, dict(options))
        return name, tuple(options)

    def _parameters(self, name: str) -> dict[str, inspect.Parameter]:
        return _keywords(self.get(name))


def _keywords(cls: type) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a constructor, those it inherits first."""
    parameters = inspect.signature(cls).parameters.values()
    hands_on = any(p.kind is p.VAR_KEYWORD for p in parameters)
    inherited = _keywords(cls.__base__) if hands_on else {}
    return {**inherited, **{p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}}


def options_text(options: Options) -> str:
    """The options as they stand in tables: ``key=value,key=value``, empty without any."""
    return ",".join(f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in options)


def _literal(text: str) -> object:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
