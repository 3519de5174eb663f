"""What the studies of explanations share: names of explainers and models, areas, times."""

from __future__ import annotations

import pandas as pd

from common.plots import METHODS
from common.plots.style import explainer_label
from common.report.sections import WHOLE, method_label, numbers, percent, spread

AREAS = (
    "Insertion: area under the probability of the explained class while patches are shown, the hottest first; higher "
    "is better. Deletion: the same while they are removed; lower is better. Areas lie in [0, 1]; heat is ranked by "
    "whole patches."
)


DIGITS = "Embedded default: digits, not comparable with the paper."


# More rows than this start closed.
OPEN_ROWS = 30


def explainer_labels(rows: pd.DataFrame) -> list[str]:
    return [explainer_label(*pair) for pair in zip(rows["method"], rows["options"], strict=True)]


def explained_models(rows: pd.DataFrame) -> list[str]:
    """Names of the explained models, with their keep rate where they are reduced."""
    names = [method_label(*reducer.partition(":")[::2]) for reducer in rows["reducer"]]
    rates = zip(names, rows["keep_rate"], strict=True)
    return [f"{name}, {percent(rate)}" if rate != WHOLE else name for name, rate in rates]


def with_errors(rows: pd.DataFrame, name: str, digits: int = 3) -> list[str]:
    return [spread(mean, sem, digits) for mean, sem in zip(rows[name], rows[f"{name}_sem"], strict=True)]


def times(seconds: pd.Series) -> tuple[str, list[str]]:
    """Heading and cells of seconds per image, in ms where all are below a second."""
    if seconds.max() < 1:
        return "ms per image", numbers(1000 * seconds, 1)
    return "s per image", numbers(seconds, 2)


def seed_title(rows: pd.DataFrame, data: pd.DataFrame) -> str:
    """The seed, where there are several."""
    return f"seed {rows['seed'].iloc[0]}" if data["seed"].nunique(dropna=False) > 1 else ""


def digits_note(rows: pd.DataFrame) -> tuple[str, ...]:
    return (DIGITS,) if rows["dataset"].iloc[0] == "digits" else ()


def model_place(reducer: str) -> int:
    """Place of a reducer, written ``name:key=value``, among the methods."""
    name = reducer.partition(":")[0]
    return list(METHODS).index(name) if name in METHODS else len(METHODS)
