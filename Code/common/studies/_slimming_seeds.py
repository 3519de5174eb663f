"""Slim models of several seeds as one row: the search, the calibration images and the training differ between seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import pandas as pd

from common.report.paired import mean_interval
from common.report.sections import NONE, Section, percent, setting_title, spread

SEEDLESS = ["dataset", "backbone", "img_size"]
# Part -> what its rows are told apart by, but for the seed: all of it is given, nothing is found.
KEYS = {
    "stages": ["mac_budget", "lengths", "score", "training"],
    "tolerances": ["tolerance", "score", "training"],
    "budgets": ["mac_budget", "lengths", "score", "keys"],
    "dynamic": ["mac_budget", "gates"],
    "equal_cost": ["mac_budget", "taper", "floor", "score", "order", "scored_on"],
    "similarity": ["block"],
    "sensitivity": ["pruning", "block", "kept_share"],
    "single_block": ["pruning", "block", "kept_share", "score"],
    "heads": ["score", "block"],
}
CONDITIONS = ["n_calibration", "n_val"]
DIFFERENCES = ("gain", "divergence_change")
MEASURES = ("accuracy", "accuracy_full", "mac_cut", *DIFFERENCES, "rank_correlation", "similarity")
NOTE = (
    "± the standard deviation over seeds, which decide the images to calibrate, search and train on. Gain, and change "
    "of the divergence from the unreduced network in nats: mean over seeds of the difference on the same images to "
    "what the rows of each seed name, with the 95 % interval of that mean (Student's t over seeds)."
)
HEADINGS = {"mac_budget": "Cut, at least", "training": "Stage", "pruning": "Others", "kept_share": "Computed"}
HEADINGS |= {"gates": "Chosen by", "floor": "Last", "scored_on": "Scored on"}


def of_several(data: pd.DataFrame, rows: pd.DataFrame) -> bool:
    """Whether the setting of ``rows`` has other seeds in ``data``."""
    same = (data[SEEDLESS] == rows[SEEDLESS].iloc[0]).all(axis=1)
    return data.loc[same, "seed"].nunique() > 1


def over_seeds(rows: pd.DataFrame, part: str = "stages") -> pd.DataFrame:
    """Rows of one ``part`` of one setting and several seeds, a row for whatever was measured with each of them.

    Columns: the part's key (:data:`KEYS`), n seeds, mean and standard deviation (``_sd``) of all :data:`MEASURES` that
    the rows have, and the intervals of the mean differences, ``gain_low``, ``gain_high`` and those of
    ``divergence_change``.
    """
    key, found = KEYS[part], []
    measured = [name for name in MEASURES if name in rows and rows[name].notna().any()]
    by = [*key, *(name for name in CONDITIONS if name in rows)]
    for values, cells in rows[rows["method"] != "none"].groupby(by, sort=False, dropna=False):
        row = dict(zip(key, values, strict=False)) | {"n": cells["seed"].nunique()}
        for name in measured:
            row |= {name: cells[name].mean(), f"{name}_sd": cells[name].std(ddof=1)}
        for name in DIFFERENCES:
            middle, low, high = mean_interval(cells[name]) if name in rows else (math.nan,) * 3
            row |= {name: middle, f"{name}_low": low, f"{name}_high": high}
        found.append(row)
    return pd.DataFrame(found)


def at_least_cut(budget: float) -> str:
    """What a ``budget``, the share of the multiplications that may be spent, saves at least."""
    return percent(round(1 - budget, 4))


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
        HEADINGS.get(name, name.capitalize()): [_word(name, each, words) for each in table[name]]
        for name in key
        if table[name].notna().any()
    }
    columns["Seeds"] = table["n"].astype(str)
    spreads = {
        "accuracy": "Accuracy (%)",
        "accuracy_full": "All classes (%)",
        "rank_correlation": "Correlation",
        "similarity": "Cosine",
    }
    columns |= {heading: _spreads(table, name) for name, heading in spreads.items() if name in table}
    for name, heading, digits in (("gain", "Gain [95 %]", 2), ("divergence_change", "Change [95 %]", 4)):
        if table[name].notna().any():
            columns[heading] = [difference_text(row, name, digits) for row in table.to_dict("records")]
    if "mac_cut" in table:
        columns["Cut"] = table["mac_cut"].round(3).map(percent)
    return pd.DataFrame(columns)


def _word(name: str, value: object, words: Words) -> str:
    if name == "mac_budget":
        return at_least_cut(value)
    if name in ("kept_share", "taper", "floor"):
        return percent(value)
    if name in ("tolerance", "block", "scored_on"):
        return f"{value:g}"
    return words.get(name, {}).get(value, value) or NONE


def _spreads(table: pd.DataFrame, name: str) -> list[str]:
    return [spread(mean, sd) for mean, sd in zip(table[name], table[f"{name}_sd"], strict=True)]


def difference_text(row: Mapping[str, object], name: str = "gain", digits: int = 2) -> str:
    """The difference ``name`` with its interval; none of the uniform lengths of a stage, to which it is."""
    if (row.get("lengths") == "uniform" and "keys" not in row) or math.isnan(row[name]):
        return NONE
    value, low, high = (f"{row[name + end]:+.{digits}f}" for end in ("", "_low", "_high"))
    return value if math.isnan(row[f"{name}_low"]) else f"{value} [{low}, {high}]"


def seeds_point(cells: pd.DataFrame, baseline: float, trainings: dict[str, str]) -> str:
    """A sentence on one goal and one way to share out tokens, over seeds: what it costs, and whether lengths pay."""
    changes = [f"{row.accuracy_full - baseline:+.2f} {trainings[row.training]}" for row in cells.itertuples()]
    last = cells.iloc[-1]
    name = last["lengths"] if last["score"] == "significance" else f"{last['lengths']}, {last['score']}"
    cut = percent(round(last["mac_cut"], 3))
    said = f"{name} tokens, {cut} of the multiplications saved: change in points {', '.join(changes)}"
    if last["lengths"] == "uniform" or math.isnan(last["gain_low"]):
        return said
    sure = last["gain_low"] > 0 or last["gain_high"] < 0
    verdict = "told apart from" if sure else "not told apart from"
    return f"{said}; {verdict} uniform lengths at the last stage ({difference_text(last)})"
