"""The columns of results tables: what a column is, those that all rows carry, and what a table of runs must say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

TEXT, INT, FLOAT = "str", "Int64", "float64"


@dataclass(frozen=True)
class Column:
    """One column of a results table.

    Attributes:
        kind: TEXT, INT or FLOAT.
        optional: may be empty.
    """

    kind: str
    optional: bool = False


class Table(Protocol):
    """What is written and read as runs: a study.

    Attributes:
        name: of the table, and of the folder of its runs.
        columns: what its rows hold besides the conditions.
        required: conditions that every row must give.
    """

    name: str
    columns: Mapping[str, Column]
    required: Sequence[str]


def columns(kind: str, *names: str, optional: bool = False) -> dict[str, Column]:
    """Several columns of one kind."""
    return {name: Column(kind, optional) for name in names}


CONDITIONS: Mapping[str, Column] = {
    **columns(TEXT, "table", "profile", "method", "options", "backbone", "dataset", optional=True),
    **columns(INT, "img_size", optional=True),
    **columns(FLOAT, "keep_rate", optional=True),
    **columns(INT, "seed", "epochs", optional=True),
    **columns(TEXT, "dtype", optional=True),
    **columns(INT, "batch", optional=True),
    **columns(TEXT, "device", optional=True),
    **columns(INT, "threads", optional=True),
    **columns(TEXT, "torch", "timm", "commit", "date", optional=True),
}
