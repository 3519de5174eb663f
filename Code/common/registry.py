"""Classes by name, and one short text for a class with its options: ``name`` or ``name:key=value,key=value``."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from importlib import import_module
from typing import Any, Generic, TypeVar

from common.errors import UsageError, nearest, require_choice
from common.options import check, keywords
from common.yaml_files import parse_yaml

Class = TypeVar("Class", bound=type)
Options = tuple[tuple[str, object], ...]
MODULES = "METHOD_MODULES"  # environment: modules, with spaces between, that register classes of the user's own
ASKED = "_asked"  # where an instance keeps the name that its class was chosen by, and its options


class Registry(Generic[Class]):
    """Classes that can be chosen by name. The options of one are the keyword-only parameters of its constructor.

    >>> SHAPES = Registry("shape")
    >>> @SHAPES.register("circle")
    ... class Circle:
    ...     def __init__(self, *, radius: float = 1.0) -> None:
    ...         self.radius = radius
    >>> SHAPES.names(), SHAPES.options("circle"), SHAPES.read("circle:radius=2.5"), SHAPES.name_of(Circle)
    (['circle'], ['radius'], ('circle', (('radius', 2.5),)), 'circle')

    Their annotations say what is allowed, see :mod:`common.options`; a registered class refuses anything else before
    its constructor runs. One that takes ``**`` others hands them to the class that it inherits from.

    Modules that the environment variable ``METHOD_MODULES`` names are imported before a name is looked up, so that
    every program, notebook and worker finds the classes that they register.

    Args:
        what: what the classes are, as messages call it: "reducer".
        shared: its keyword-only parameters are options of every class, after its own; called with a new instance and
            those of them that were given.
        beside: what calls take next to these options; messages know that it may be meant.
    """

    def __init__(self, what: str, shared: Callable[..., None] | None = None, *, beside: Sequence[str] = ()) -> None:
        self._what, self._beside = what, tuple(beside)
        self._shared = shared
        self._classes: dict[str, Class] = {}

    def register(self, name: str) -> Callable[[Class], Class]:
        """Class decorator that makes a class available under ``name``; a name can be taken once."""

        def register(cls: Class) -> Class:
            if name in self._classes:
                taken_by = self._classes[name].__qualname__
                raise UsageError(f"{self._what} {name!r} is registered already, by {taken_by}")
            self._classes[name] = cls
            build = cls.__init__

            @wraps(build)
            def checking(instance: object, *args: object, **options: object) -> None:
                found = self.checked(name, options)
                shared = {option: found[option] for option in self._shared_options() & found.keys()}
                build(instance, *args, **{option: found[option] for option in found.keys() - shared.keys()})
                if shared:
                    self._shared(instance, **shared)
                # last, so that of a class and the one that it inherits from the name of the former stays
                object.__setattr__(instance, ASKED, (name, found))

            cls.__init__ = checking
            return cls

        return register

    def asked(self, instance: object) -> tuple[str, dict[str, Any]]:
        """The name that the class of ``instance`` was chosen by, and the options that were given.

        Raises:
            UsageError: its class has no name here.
        """
        name, options = getattr(instance, ASKED, (None, {}))
        if self._classes.get(name) is not type(instance):
            raise UsageError(
                f"{type(instance).__name__} is no registered {self._what}; allowed: {', '.join(self.names())}"
            )
        return name, dict(options)

    def name_of(self, cls: type) -> str:
        """What messages call ``cls``: the name that it is registered under; its own if there is none."""
        return next((name for name, registered in self._classes.items() if registered is cls), cls.__name__)

    def names(self) -> list[str]:
        """All names, sorted."""
        import_own_modules()
        return sorted(self._classes)

    def get(self, name: str) -> Class:
        """The class registered under ``name``; :class:`UsageError` lists what there is."""
        import_own_modules()
        return self._classes[require_choice(name, self._classes, self._what)]

    def options(self, name: str) -> list[str]:
        """Names of the options that ``name`` takes."""
        return list(self._options(name))

    def check_options(self, name: str, options: Mapping[str, object]) -> None:
        """Refuse what :meth:`checked` does, and that ``name`` lacks an option it cannot do without."""
        self.checked(name, options)
        for option, parameter in self._options(name).items():
            if parameter.default is parameter.empty and option not in options:
                raise UsageError(f"{self._what} {name!r} needs the option {option!r}: {name}:{option}=VALUE")

    def checked(self, name: str, options: Mapping[str, object]) -> dict[str, Any]:
        """``options`` as the constructor of ``name`` takes them.

        Raises:
            UsageError: it does not have one of them, or not with this value.
        """
        known, found = self._options(name), {}
        for option, value in options.items():
            if option not in known:
                allowed = ", ".join(known) or "none"
                more = nearest(option, [*known, *self._beside])
                if option in self._beside:
                    more = f"; {option} is no option of a {self._what}, it is given beside one"
                raise UsageError(f"{self._what} {name!r} has no option {option!r}; allowed: {allowed}{more}")
            try:
                found[option] = check(option, value, known[option].annotation)
            except UsageError as error:
                raise UsageError(f"{self._what} {name!r}: {error}") from error
        return found

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
            options.append((key, parse_yaml(value, part)))
        self.checked(name, dict(options))
        return name, tuple(options)

    def _options(self, name: str) -> dict[str, inspect.Parameter]:
        return {**_options(self.get(name)), **self._shared_options()}

    def _shared_options(self) -> dict[str, inspect.Parameter]:
        return {} if self._shared is None else keywords(self._shared)


@cache
def import_own_modules() -> None:
    """Import, once, the modules that the environment variable ``METHOD_MODULES`` names."""
    for name in os.environ.get(MODULES, "").split():
        import_own_module(name, MODULES)


def import_own_module(name: str, given_by: str) -> None:
    """Import a module that registers classes of the user's own.

    Raises:
        UsageError: Python does not find it; ``given_by`` says in the message where its name comes from.
    """
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, something that it imports is not
        raise UsageError(
            f"{given_by} names the module {name!r}, which is not there; is its folder in PYTHONPATH?"
        ) from error


def _options(cls: type) -> dict[str, inspect.Parameter]:
    """The options of a class, those first that it hands to the class it inherits from."""
    hands_on = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(cls).parameters.values())
    return {**(_options(cls.__base__) if hands_on else {}), **keywords(cls.__init__)}


def options_text(options: Options | Mapping[str, object] | str) -> str:
    """The options as they stand in tables: ``key=value,key=value`` in alphabetical order, empty without any.

    >>> options_text({"parity": True, "head_fusion": "mean"})
    'head_fusion=mean,parity=true'
    """
    if isinstance(options, str):
        return ",".join(sorted(filter(None, options.split(","))))
    written = [
        f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in dict(options).items()
    ]
    return ",".join(sorted(written))
