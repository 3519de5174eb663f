"""A method with its options as one short text, the same in notebooks, profiles, tables and command lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from common.errors import UsageError
from common.options import accepted_by
from common.reducers.base import REDUCERS
from common.registry import Options, options_text


@dataclass(frozen=True)
class Method:
    """A reducer and its options; written ``topk`` or ``topk:head_fusion=mean`` or ``name:key=value,key=value``.

    >>> Method.parse("topk:head_fusion=mean")
    Method(name='topk', options=(('head_fusion', 'mean'),))
    >>> str(Method("tome").having(parity=True))
    'tome:parity=true'
    """

    name: str
    options: Options = ()

    @classmethod
    def parse(cls, text: str) -> Method:
        """Read the written form.

        Raises:
            UsageError: unknown method or option, or an option without a value.
        """
        return cls(*REDUCERS.read(text))

    @classmethod
    def of_table(cls, name: str, options: str) -> Method:
        """The method that tables call ``name``, with its ``options`` as they stand there, "" without any."""
        return cls.parse(f"{name}:{options}" if options else name)

    def having(self, **options: object) -> Method:
        """This method with ``options`` in place of its own, or beside them."""
        return Method(self.name, tuple({**dict(self.options), **options}.items()))

    @property
    def leaves_seed(self) -> bool:
        """It draws by an option ``seed`` that is not given: the seed of a run decides."""
        return "seed" in REDUCERS.options(self.name) and "seed" not in dict(self.options)

    def seeded(self, seed: int) -> Method:
        """This method drawing by ``seed``, if it draws by an option ``seed`` and leaves that open; else as it is.

        >>> str(Method("random").seeded(3)), str(Method.parse("random:seed=1").seeded(3)), str(Method("tome").seeded(3))
        ('random:seed=3', 'random:seed=1', 'tome')
        """
        return self.having(seed=seed) if self.leaves_seed else self

    @property
    def begins_whole(self) -> bool:
        """With nothing dropped it is the unreduced model, as images are not resized.

        >>> Method.parse("tome").begins_whole, Method.parse("tome:resize=176").begins_whole
        (True, False)
        """
        return "resize" not in dict(self.options)

    @property
    def options_text(self) -> str:
        """The options as they stand in tables: ``key=value,key=value``, empty without any."""
        return options_text(self.options)

    def __str__(self) -> str:
        return f"{self.name}:{self.options_text}" if self.options else self.name


def named(reducer: str, options: Mapping[str, object]) -> tuple[str, dict[str, object]]:
    """Name and options of a method that is given by its name, or in its written form, and by ``options`` beside it.

    >>> named("topk:head_fusion=mean", {"last_block": "cls"})
    ('topk', {'head_fusion': 'mean', 'last_block': 'cls'})

    Raises:
        UsageError: of a written form as :meth:`Method.parse`; an option that stands in both.
    """
    if not isinstance(reducer, str) or ":" not in reducer:
        return reducer, dict(options)
    method = Method.parse(reducer)
    for option in dict(method.options).keys() & options.keys():
        raise UsageError(f"option {option!r} is given twice: in {reducer!r} and as {option}={options[option]!r}")
    return method.name, {**dict(method.options), **options}


MethodText = Annotated[str, accepted_by(Method.parse)]
