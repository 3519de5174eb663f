"""Slim models of several seeds as one row: the search, the calibration images and the training differ between seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import pandas as pd

from common.report.paired import mean_interval
from common.report.sections import NONE, Section, percent, setting_title, spread

# Part -> what its rows are told apart by, but for the seed: all of it is given, nothing is found.
KEYS = {
    "stages": ["mac_budget", "lengths", "score", "training"],
    "tolerances": ["tolerance", "score", "training"],
    "budgets": ["mac_budget", "lengths", "score", "keys"],
    "dynamic": ["gates"],
    "sensitivity": ["pruning", "block", "kept_share"],
    "single_block": ["pruning", "block", "kept_share", "score"],
    "heads": ["score", "block"],
}
CONDITIONS = ["n_calibration", "n_val"]
MEASURES = ("accuracy", "accuracy_full", "mac_cut", "gain", "rank_correlation")
NOTE = (
    "± the standard deviation over seeds, which decide the images to calibrate, search and train on. Gain: mean over "
    "seeds of the difference on the same images to what the rows of each seed name, with the 95 % interval of that "
    "mean (Student's t over seeds)."
)
HEADINGS = {"mac_budget": "Budget", "training": "Stage", "pruning": "Others", "kept_share": "Computed"}
HEADINGS |= {"gates": "Chosen by"}


def over_seeds(rows: pd.DataFrame, part: str = "stages") -> pd.DataFrame:
    """Rows of one ``part`` of one setting and several seeds, a row for whatever was measured with each of them.

    Columns: the part's key (:data:`KEYS`), n seeds, mean and standard deviation (``_sd``) of all :data:`MEASURES` that
    the rows have, and the interval ``gain_low``, ``gain_high`` of the mean gain.
    """
    key, found = KEYS[part], []
    measured = [name for name in MEASURES if name in rows and rows[name].notna().any()]
    by = [*key, *(name for name in CONDITIONS if name in rows)]
    for values, cells in rows[rows["method"] != "none"].groupby(by, sort=False, dropna=False):
        row = dict(zip(key, values, strict=False)) | {"n": cells["seed"].nunique()}
        for name in measured:
            row |= {name: cells[name].mean(), f"{name}_sd": cells[name].std(ddof=1)}
        gain, low, high = mean_interval(cells["gain"]) if "gain" in rows else (math.nan,) * 3
        found.append({**row, "gain": gain, "gain_low": low, "gain_high": high})
    return pd.DataFrame(found)


Words = Mapping[str, Mapping[str, str]]  # column -> value -> what it is called


def seeds_sections(rows: pd.DataFrame, titles: Mapping[str, str], words: Words) -> Iterator[Section]:
    """Tables of :func:`over_seeds` of one setting, of the parts that have several seeds.

    Args:
        titles: part -> what it is called.
        words: of the key.
    """
    for part, what in titles.items():
        cells = rows[rows["part"] == part]
        if cells["seed"].nunique() > 1:
            frame = _frame(over_seeds(cells, part), KEYS[part], words)
            yield Section(f"{setting_title(cells)}: {what} of {cells['seed'].nunique()} seeds", frame, (NOTE,))


def _frame(table: pd.DataFrame, key: list[str], words: Words) -> pd.DataFrame:
    columns = {
        HEADINGS.get(name, name.capitalize()): [_word(name, each, words) for each in table[name]] for name in key
    }
    columns["Seeds"] = table["n"].astype(str)
    spreads = {"accuracy": "Accuracy (%)", "accuracy_full": "All classes (%)", "rank_correlation": "Correlation"}
    columns |= {heading: _spreads(table, name) for name, heading in spreads.items() if name in table}
    if table["gain"].notna().any():
        columns["Gain [95 %]"] = [gain_text(row) for row in table.to_dict("records")]
    if "mac_cut" in table:
        columns["Cut"] = table["mac_cut"].round(3).map(percent)
    return pd.DataFrame(columns)


def _word(name: str, value: object, words: Words) -> str:
    if name in ("mac_budget", "kept_share"):
        return percent(value)
    return f"{value:g}" if name in ("tolerance", "block") else words.get(name, {}).get(value, value) or NONE


def _spreads(table: pd.DataFrame, name: str) -> list[str]:
    return [spread(mean, sd) for mean, sd in zip(table[name], table[f"{name}_sd"], strict=True)]


def gain_text(row: dict[str, object]) -> str:
    """The gain with its interval; none of the uniform lengths of a stage, which it is the gain over."""
    if row.get("lengths") == "uniform" and "keys" not in row:
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
