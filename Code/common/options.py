"""What the options of this package may be, declared where each one stands and checked in one way.

An option is a field of a dataclass or a keyword-only parameter, and its annotation says what is allowed: ``bool``,
``Literal["max", "mean"]``, :data:`Count`, ``Share | None``, ``Many[Count]`` ... Nothing is converted, but for a list,
which becomes a tuple, and a whole number where any number is allowed.

>>> check("head_fusion", "max", Literal["max", "mean"])
'max'
>>> check("epochs", 0, Count)
Traceback (most recent call last):
    ...
common.errors.UsageError: epochs=0 is not allowed; give a whole number >= 1
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from functools import cache, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, ConfigDict, Strict, TypeAdapter, ValidationError

from common.errors import UsageError, nearest, require_choice

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])

# Text in an annotation is what a message says is allowed.
Whole = Annotated[int, Ge(0), "a whole number >= 0"]
Count = Annotated[int, Ge(1), "a whole number >= 1"]
NonNegative = Annotated[float, Ge(0), "a number >= 0"]
Positive = Annotated[float, Gt(0), "a number > 0"]
Share = Annotated[float, Ge(0), Le(1), "a number from 0 to 1"]
AtLeast1 = Annotated[float, Ge(1), "a number >= 1"]
ShareBelow1 = Annotated[float, Ge(0), Lt(1), "a number from 0 to below 1"]
Many = Annotated[tuple[T, ...], Strict(False)]

_CONFIG = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def accepted_by(read: Callable[[Any], object]) -> AfterValidator:
    """For the annotation of a kind: whatever ``read`` takes without a UsageError, which is the message otherwise."""

    def unchanged(value: Any) -> Any:
        read(value)
        return value

    return AfterValidator(unchanged)


def check(name: str, value: object, kind: Any) -> Any:
    """Return ``value`` as a ``kind`` of option holds it.

    Raises:
        UsageError: it is none; the message names ``name``, the value and what is allowed. A validator of the kind that
            raises one has its own message.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        reasons = [problem.get("ctx", {}).get("error") for problem in error.errors(include_url=False)]
    for reason in reasons:
        if isinstance(reason, UsageError):
            raise reason
    choices = _bare(kind)
    if get_origin(choices) is Literal:
        require_choice(value, get_args(choices), name)
    raise UsageError(f"{name}={value!r} is not allowed; give {_described(kind)}")


def check_fields(instance: Any) -> None:
    """Check, and set, all fields of a dataclass; to call in its ``__post_init__``."""
    kinds = field_kinds(type(instance))
    for field in fields(instance):
        value = check(field.name, getattr(instance, field.name), kinds[field.name])
        object.__setattr__(instance, field.name, value)


def check_names(given: Iterable[str], allowed: Iterable[str], what: str) -> None:
    """Refuse an unknown name; the message lists what is allowed."""
    allowed = list(allowed)
    for name in given:
        require_choice(name, allowed, what)


def checked(function: Function) -> Function:
    """Decorator: the keyword-only arguments of ``function`` are checked before it runs, and others are refused."""
    parameters = inspect.signature(function).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        for key in () if takes_any else options.keys() - parameters.keys():
            name, allowed = function.__name__, ", ".join(parameters)
            raise UsageError(f"{name} takes no {key!r}; allowed: {allowed}{nearest(key, parameters)}")
        for key in keywords(function).keys() & options:
            options[key] = check(key, options[key], keywords(function)[key].annotation)
        return function(*args, **options)

    return call


@cache
def field_kinds(cls: type) -> dict[str, Any]:
    """Name -> kind of the fields of a dataclass."""
    return get_type_hints(cls, include_extras=True)


@cache
def keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Name -> keyword-only parameter of ``function``, with the kind as its annotation."""
    function = inspect.unwrap(function)
    found = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            kind = Any if parameter.annotation is parameter.empty else parameter.annotation
            kind = eval(kind, function.__globals__) if isinstance(kind, str) else kind
            found[parameter.name] = parameter.replace(annotation=kind)
    return found


@cache
def _adapter(kind: Any) -> TypeAdapter:
    own_rules = is_dataclass(_bare(kind))  # pydantic then refuses others
    return TypeAdapter(kind, config=None if own_rules else _CONFIG)


def _bare(kind: Any) -> Any:
    """``kind`` without what is annotated to it and without None."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _bare(parts[0])
    if origin in (Union, UnionType):
        others = [part for part in parts if part is not NoneType]
        return _bare(others[0]) if len(others) == 1 else kind
    return kind


def _described(kind: Any) -> str:
    """What ``kind`` allows, in words."""
    origin, parts = get_origin(kind), get_args(kind)
    words = [part for part in parts[1:] if isinstance(part, str)] if origin is Annotated else []
    if words:
        return words[-1]
    if origin is Annotated:
        return _described(parts[0])
    if origin in (Union, UnionType):
        return " or ".join(_described(part) for part in parts if part is not NoneType)
    if origin is Literal:
        return ", ".join(sorted(map(str, parts)))
    if origin is tuple:
        between = " of " if get_origin(_bare(parts[0])) is Literal else ", each "
        return f"a list{between}{_described(parts[0])}"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))
