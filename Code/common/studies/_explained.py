"""What the studies of explanations share: names of explainers and models, how areas are read, times."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from common.plots import EXPLAINERS, METHODS
from common.plots.style import explainer_label
from common.report.rows import in_order, refuse_repeats
from common.report.sections import WHOLE, numbers, percent, setting_title, written_label
from common.results import BY_IMAGE
from common.schema import text

SETTING = ["dataset", "backbone", "weights", "recipe", "img_size"]
REDUCER = text("of the explained model, as name:key=value; none where it is not reduced")
BASELINE = text("what stands in place of what is not shown")
_BASELINES = {
    "black": "black",
    "zero": "the mean colour of the training images (0 after normalisation)",
    "mean": "the mean colour of the image",
    "blur": "a blurred copy of the image",
    "noise": "noise",
}


def in_table(runs: pd.DataFrame, setting: list[str], key: list[str], measures: Iterable[str]) -> pd.DataFrame:
    """``key`` and ``measures`` of ``runs``, with their values by image, in the order of ``setting`` and explainers."""
    refuse_repeats(runs, key)
    by_image = [name for name in runs if name.endswith(BY_IMAGE) or name == "images"]
    columns = dict.fromkeys([*key, *measures, *by_image])
    return in_order(runs[list(columns)], setting, EXPLAINERS)


def areas_note(rows: pd.DataFrame) -> str:
    """What the areas under the curves of insertion and deletion are."""
    baseline = rows["baseline"].iloc[0]
    if "areas" in rows and rows["areas"].iloc[0] == "published":
        return (
            "Areas as MUTEX's authors measure them, over percent: pixels are ranked one by one, insertion starts at "
            f"1 % and deletion is given 0 at 0 %. What is hidden is replaced by {_BASELINES.get(baseline, baseline)}."
        )
    return (
        "Insertion: area under the probability of the explained class while patches are shown, the hottest first; "
        "higher is better. Deletion: the same while they are removed; lower is better. Areas lie in [0, 1]; heat is "
        f"ranked by whole patches. What is hidden is replaced by {_BASELINES.get(baseline, baseline)}."
    )


def labels(rows: pd.DataFrame) -> list[str]:
    return [explainer_label(*pair) for pair in zip(rows["method"], rows["options"], strict=True)]


def models(rows: pd.DataFrame) -> list[str]:
    """Names of the explained models, with their keep rate where they are reduced."""
    rates = zip(rows["reducer"].map(written_label), rows["keep_rate"], strict=True)
    return [f"{name}, {percent(rate)}" if rate != WHOLE else name for name, rate in rates]


def reducer_place(reducer: str) -> int:
    """Place of a reducer, written ``name:key=value``, among the methods."""
    name = reducer.partition(":")[0]
    return list(METHODS).index(name) if name in METHODS else len(METHODS)


def times(seconds: pd.Series) -> tuple[str, list[str]]:
    """Heading and cells of seconds per image, in ms where all are below a second."""
    if seconds.max() < 1:
        return "ms per image", numbers(1000 * seconds, 1)
    return "s per image", numbers(seconds, 2)


def title_of(rows: pd.DataFrame, data: pd.DataFrame, *more: str) -> str:
    """Title of a table of ``rows``, with what tells it from the others of ``data``."""
    row = rows.iloc[0]
    same = data[(data["dataset"] == row["dataset"]) & (data["backbone"] == row["backbone"])]
    apart = [f"{name} {row[name]}" for name in ("weights", "recipe", "seed") if same[name].nunique(dropna=False) > 1]
    return ", ".join(filter(None, (setting_title(rows), *more, *apart)))


def digits_note(rows: pd.DataFrame) -> tuple[str, ...]:
    on_digits = rows["dataset"].iloc[0] == "digits"
    return ("Embedded default: digits, not comparable with the paper.",) if on_digits else ()
