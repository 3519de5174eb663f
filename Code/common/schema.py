"""The columns of results tables: what a column is, those that all rows carry, and what a table of runs must say.

Conventions of all tables: blocks count from 0, as timm's ``blocks.N``; shares lie in [0, 1], and only what is called an
accuracy is in percent; a mean has its standard error beside it, under its name and ``_sem``; a column means the same in
every row. :func:`common.results.write_run` checks them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf

TEXT, INT, FLOAT = "str", "Int64", "float64"
# What the values of a column lie in, by its unit.
UNITS = {
    "": (-inf, inf),
    "percent": (0, 100),
    "points": (-100, 100),  # differences of percent
    "share": (0, 1),
    "difference": (-1, 1),  # of shares
    "correlation": (-1, 1),
    "block": (0, inf),
    "count": (0, inf),
    "GMAC": (0, inf),
    "MB": (0, inf),
    "s": (0, inf),
    "ms": (0, inf),
    "1/s": (0, inf),
    "ratio": (0, inf),
}
SEVERAL_LABELS = ("coco", "nuswide")  # data sets whose images have several labels
REQUIRED = ("study", "profile", "method", "backbone", "img_size", "keep_rate")
SEM = "_sem"  # behind the name of a mean: its standard error


@dataclass(frozen=True)
class Column:
    """One column of a results table.

    Attributes:
        kind: TEXT, INT or FLOAT.
        meaning: what it holds, in words; the same for every row.
        unit: of ``UNITS``.
        optional: may be empty.
        parts: those parts of a study whose rows have it, () = all; it is empty in the others.
        before: what it is in rows that were written before there was this column; None = such a CSV is refused.
        was: its name in CSVs that were written before it was called as it is now.
    """

    kind: str
    meaning: str = ""
    unit: str = ""
    optional: bool = False
    parts: tuple[str, ...] = ()
    before: str | None = None
    was: str = ""

    def only(self, *parts: str) -> Column:
        """The same column, for the rows of these parts of the study."""
        return replace(self, parts=parts)


class Table:
    """What runs are written to and read from; a study says the rest, see :class:`common.studies.base.Study`.

    Attributes:
        name: of the table, and of the folder of its runs.
        columns: what its rows hold besides the conditions (:data:`CONDITIONS`).
        required: conditions that every row must give.
        parts: what the column ``part`` may hold, where rows measure different things.
    """

    name: str
    columns: Mapping[str, Column]
    required: Sequence[str] = REQUIRED
    parts: Sequence[str] = ()


text = partial(Column, TEXT)  # a column of words
number = partial(Column, FLOAT)  # a column of numbers


def count(meaning: str, unit: str = "count", *, optional: bool = False) -> Column:
    """A column of whole numbers."""
    return Column(INT, meaning, unit, optional)


def means(**columns: Column) -> dict[str, Column]:
    """Each of ``columns``, and behind it that of its standard error, which may be empty: one value has none."""
    found = {}
    for name, column in columns.items():
        found[name] = column
        found[name + SEM] = replace(column, meaning=f"standard error of {name}", optional=True)
    return found


def intervals(**columns: Column) -> dict[str, Column]:
    """Each of ``columns``, and behind it the ends of its 95 % interval, which may be empty."""
    found = {}
    for name, column in columns.items():
        found[name] = column
        for end, where in (("low", "lower"), ("high", "upper")):
            meaning = f"{where} end of the interval of {name}"
            found[f"{name}_{end}"] = replace(column, meaning=meaning, unit="", optional=True)
    return found


def accuracy_name(*datasets: str) -> str:
    """What columns called accuracy hold on ``datasets``, for readers.

    >>> accuracy_name("imagenet"), accuracy_name("coco"), accuracy_name("imagenet", "coco")
    ('top-1', 'mAP', 'top-1 or mAP')
    """
    found = {name in SEVERAL_LABELS: "mAP" if name in SEVERAL_LABELS else "top-1" for name in datasets}
    return " or ".join(found[several] for several in sorted(found))


CONDITIONS: Mapping[str, Column] = {
    "study": text("what was measured, and the folder of the run", optional=True),
    "profile": text("the list of runs that this one belongs to", optional=True),
    "method": text("reducer, or in studies of explanations the explainer", optional=True),
    "options": text("its options as key=value,key=value", optional=True),
    "backbone": text("timm's name", optional=True),
    "weights": text("where they are from: random, timm and the tag, or a file", optional=True),
    "dataset": text("name", optional=True),
    "recipe": text("how its images were cut, resized and augmented", optional=True),
    "img_size": count("side of the images in pixels", optional=True),
    "keep_rate": text("one ratio that compounds over the stages, or one ratio or count per stage", optional=True),
    "seed": count("of all that is drawn", optional=True),
    "epochs": count("of training in all", optional=True),
    "lr": number("learning rate of that training", optional=True),
    "n_train": count("images that were trained on", optional=True),
    "dtype": text("number format of the model", optional=True),
    "batch": count("images at once", optional=True),
    "device": text("kind and name of the hardware", optional=True),
    "threads": count("of the CPU", optional=True),
    "torch": text("version", optional=True),
    "timm": text("version", optional=True),
    "commit": text("of the sources", optional=True),
    "date": text("UTC", optional=True),
}
