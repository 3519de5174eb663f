"""Numbers to printed tables: the sections of text cells that the Markdown files and the report share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import isnan

import pandas as pd

from common.plots import METHODS
from common.plots.frames import backbone_name
from common.schedule import ratio_of, read_keep_rate
from common.schema import SEM

NONE = "-"
WHOLE = "1"  # the keep rate that keeps everything
NOT_RUN = "not run here"


@dataclass(frozen=True)
class Section:
    """One printed table: text cells; ``best`` are (row, column) of cells to stress; ``folded`` ones start closed."""

    title: str
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()
    best: frozenset[tuple[int, str]] = frozenset()
    folded: bool = False

    @cached_property
    def sides(self) -> dict[str, str]:
        """Column -> where its cells stand: "left" if most of them begin with a letter, else "right"."""
        words = {column: cells.astype(str).str.match(r"[^\W\d_]").mean() for column, cells in self.frame.items()}
        return {column: "left" if share > 0.5 else "right" for column, share in words.items()}


def method_label(method: str, options: str = "") -> str:
    """Name for readers; a method that has none keeps its own."""
    label = METHODS.get(method, method)
    return f"{label} ({options})" if options else label


def written_label(written: str) -> str:
    """Name for readers of a method written ``name:key=value``."""
    return method_label(*written.partition(":")[::2])


def percent(share: float | str) -> str:
    """``50 %`` of a share or one rate; ``90, 70, 50 %`` or ``147, 98, 49 patches`` of one per stage; a rule itself."""
    rates = read_keep_rate(share) if isinstance(share, str) else share
    if isinstance(rates, str):
        return rates
    if not isinstance(rates, tuple):
        return f"{100 * rates:g} %"
    counts = rates[0] > 1
    return ", ".join(f"{rate if counts else 100 * rate:g}" for rate in rates) + (" patches" if counts else " %")


def counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def number(value: float, digits: int = 2) -> str:
    return NONE if pd.isna(value) else f"{round(value, digits) + 0.0:,.{digits}f}"  # no minus before a zero


def numbers(values: pd.Series, digits: int = 3) -> list[str]:
    """:func:`number` of each of ``values``."""
    return [number(value, digits) for value in values]


def spread(mean: float, sd: float, digits: int = 2) -> str:
    """``mean ± sd``; the mean alone when there is one seed."""
    return number(mean, digits) + ("" if pd.isna(sd) or pd.isna(mean) else f" ± {sd:.{digits}f}")


def with_errors(rows: pd.DataFrame, name: str, digits: int = 3) -> list[str]:
    """The means ``name`` of ``rows``, each with its standard error."""
    return [spread(mean, error, digits) for mean, error in zip(rows[name], rows[name + SEM], strict=True)]


def quartiles(row: pd.Series, name: str, digits: int) -> str:
    return f"{number(row[name], digits)} [{number(row[f'{name}_q1'], digits)}, {number(row[f'{name}_q3'], digits)}]"


def filled(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` without the columns that have no value at all."""
    return frame.loc[:, (frame != NONE).any()]


def is_reduced(rows: pd.DataFrame) -> pd.Series:
    """Rows of models that really drop something."""
    return (rows["method"] != "none") & (rows["keep_rate"] != WHOLE)


def falling(keep_rates: Iterable[str]) -> list[str]:
    """Different keep rates, the one that keeps most first; those that are no ratio at the end.

    >>> falling(["r=8", "0.5", "mac_cut=0.4", "1", "0.9 0.7 0.5"])
    ['1', '0.9 0.7 0.5', '0.5', 'mac_cut=0.4', 'r=8']
    """
    ratios = {text: ratio_of(text) for text in keep_rates}
    return sorted(ratios, key=lambda text: (isnan(ratios[text]), 0 if isnan(ratios[text]) else -ratios[text], text))


def labels(rows: pd.DataFrame) -> list[str]:
    return [method_label(*pair) for pair in zip(rows["method"], rows["options"], strict=True)]


def setting_title(rows: pd.DataFrame) -> str:
    """Dataset, backbone and image size of ``rows``, which share them."""
    row = rows.iloc[0]
    return f"{row['dataset']}, {backbone_name(row['backbone'])}, {row['img_size']} px"


@dataclass(frozen=True)
class Answer:
    """A sentence, and the points that belong to it."""

    text: str
    points: tuple[str, ...] = ()


def training_text(rows: pd.DataFrame) -> str:
    """Whether the models of one setting were trained after they were reduced, and how much.

    Rows without ``epochs`` are of a study that trains nothing.
    """
    epochs = rows["epochs"].iloc[0] if "epochs" in rows else 0
    if pd.isna(epochs) or not epochs:
        return "off the shelf"
    images = rows["n_train"].iloc[0]
    return f"after {counted(epochs, 'epoch')}" + ("" if pd.isna(images) else f" on {images:,} images")


def trained_text(rows: pd.DataFrame) -> str:
    """:func:`training_text` behind a comma, or nothing where there was none."""
    training = training_text(rows)
    return "" if training == "off the shelf" else f", {training}"


def model_name(row: pd.Series) -> str:
    return method_label(row["method"], row["options"])


def measured_text(rows: pd.DataFrame, images: str) -> str:
    """On what models were measured, trained or not; ``images`` is the column of how many.

    Of rows of one setting, which have one or several numbers of images.
    """
    counts = ", ".join(f"{count:,}" for count in sorted(rows[images].unique()))
    return f"{where_text(rows)} ({rows['weights'].iloc[0]}), {training_text(rows)}, {counts} images"


def where_text(rows: pd.DataFrame) -> str:
    row = rows.iloc[0]
    return f"{row['dataset']} at {row['img_size']} px with {backbone_name(row['backbone'])}"
