"""Slim models of several seeds as one row: the search, the calibration images and the training differ between seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

from common.report.paired import mean_interval
from common.report.sections import NONE, Section, percent, setting_title, spread

KEY = ["mac_budget", "lengths", "score", "training"]
NOTE = (
    "± the standard deviation over seeds, which decide the images to calibrate, search and train on. Gain: mean over "
    "seeds of the difference to uniform lengths at the same stage, on the same images, with the 95 % interval of that "
    "mean (Student's t over seeds)."
)


def over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of part ``stages`` of one setting and several seeds, a row for each plan's goal and stage.

    Columns: KEY, n seeds, mean and standard deviation (``_sd``) of accuracy, accuracy_full, mac_cut and gain, and the
    interval ``gain_low``, ``gain_high`` of the mean gain.
    """
    found = []
    for key, cells in rows[rows["method"] != "none"].groupby(KEY, sort=False):
        row = dict(zip(KEY, key, strict=True)) | {"n": cells["seed"].nunique()}
        for name in ("accuracy", "accuracy_full", "mac_cut", "gain"):
            row |= {name: cells[name].mean(), f"{name}_sd": cells[name].std(ddof=1)}
        _, low, high = mean_interval(cells["gain"])
        found.append({**row, "gain_low": low, "gain_high": high})
    return pd.DataFrame(found)


def seeds_section(rows: pd.DataFrame, trainings: dict[str, str]) -> Iterator[Section]:
    """The table of :func:`over_seeds`, where there are several seeds."""
    if rows["seed"].nunique() < 2:
        return
    table = over_seeds(rows)
    frame = pd.DataFrame(
        {
            "Budget": table["mac_budget"].map(percent),
            "Lengths": table["lengths"],
            "Score": table["score"].replace("", NONE),
            "Stage": table["training"].map(trainings),
            "Seeds": table["n"].astype(str),
            "Accuracy (%)": _spreads(table, "accuracy"),
            "All classes (%)": _spreads(table, "accuracy_full"),
            "Gain [95 %]": [gain_text(row) for row in table.to_dict("records")],
            "Cut": table["mac_cut"].round(3).map(percent),
        }
    )
    yield Section(f"{setting_title(rows)}: plans of {rows['seed'].nunique()} seeds", frame, (NOTE,))


def _spreads(table: pd.DataFrame, name: str) -> list[str]:
    return [spread(mean, sd) for mean, sd in zip(table[name], table[f"{name}_sd"], strict=True)]


def gain_text(row: dict[str, object]) -> str:
    """The gain with its interval; none of uniform lengths, which it is the gain over."""
    if row["lengths"] == "uniform":
        return NONE
    if math.isnan(row["gain_low"]):
        return f"{row['gain']:+.2f}"
    return f"{row['gain']:+.2f} [{row['gain_low']:+.2f}, {row['gain_high']:+.2f}]"


def seeds_point(cells: pd.DataFrame, baseline: float, trainings: dict[str, str]) -> str:
    """A sentence on one goal and one way to share out tokens, over seeds: what is lost, and whether lengths pay."""
    lost = [f"{baseline - row.accuracy_full:.2f} {trainings[row.training]}" for row in cells.itertuples()]
    last = cells.iloc[-1]
    name = last["lengths"] if last["score"] == "significance" else f"{last['lengths']}, {last['score']}"
    cut = percent(round(last["mac_cut"], 3))
    said = f"{name} tokens, {cut} of the multiplications saved: points lost {', '.join(lost)}"
    if last["lengths"] == "uniform" or math.isnan(last["gain_low"]):
        return said
    sure = last["gain_low"] > 0 or last["gain_high"] < 0
    verdict = "told apart from" if sure else "not told apart from"
    return f"{said}; {verdict} uniform lengths at the last stage ({gain_text(last)})"
