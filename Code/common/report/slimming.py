"""Tables and sentences of patch slimming: plans before and after tuning, and single blocks."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from common.report.sections import NONE, Section, number, percent, setting_title
from common.report.summary.rows import SETTING

_STAGES = {"unreduced": "unreduced", "searched": "before tuning", "tuned": "after block tuning"}
_COUNTERS = (
    "GMAC is what the slim model executes; GMAC, paper counts as the authors do: keys and values for all tokens. "
    "Cut: share saved."
)
_ACCURACY = (
    "Accuracy: among the classes of the dataset; all classes: among all of the head, ± one standard error over images. "
    "Tuned on images only."
)
_GAIN = (
    "One block drops patches for good, nothing is tuned. Gain: difference to random masks on the same images, ± its "
    "standard error. Accuracy among all classes of the head. Blocks are counted from 1."
)
_HEADS = "Spearman's correlation with the exact significance, by block, counted from 1."


def slimming_sections(data: pd.DataFrame) -> Iterator[Section]:
    for _, rows in data.groupby(SETTING["slimming"], sort=False, dropna=False):
        title, studies = setting_title(rows), dict(list(rows.groupby("study", sort=False)))
        if "stages" in studies:
            yield Section(f"{title}: plans", _plans(studies["stages"]), (_ACCURACY, _COUNTERS))
        if "single_block" in studies:
            yield Section(f"{title}: one block alone", _single(studies["single_block"]), (_GAIN,))
        if "heads" in studies:
            wide = studies["heads"].pivot(index="schedule", columns="layer", values="rank_correlation")
            frame = wide.map(number).rename(columns=lambda layer: f"{layer + 1}").rename_axis(columns=None)
            yield Section(f"{title}: scores compared", frame.reset_index(names="Score"), (_HEADS,), folded=True)


def _plans(rows: pd.DataFrame) -> pd.DataFrame:
    full = [
        NONE if pd.isna(value) else f"{value:.1f} ± {error:.1f}"
        for value, error in zip(rows["accuracy_full"], rows["accuracy_sem"], strict=True)
    ]
    return pd.DataFrame(
        {
            "Schedule": rows["schedule"].replace("", NONE),
            "Stage": rows["stage"].map(_STAGES),
            "Accuracy (%)": rows["accuracy"].map(lambda value: number(value, 1)),
            "All classes (%)": full,
            "GMAC": rows["gmac"].map(lambda value: number(value, 3)),
            "Cut": rows["cut"].map(lambda value: percent(round(value, 3))),
            "GMAC, paper": rows["gmac_paper"].map(lambda value: number(value, 3)),
            "Cut, paper": rows["cut_paper"].map(lambda value: percent(round(value, 3))),
            "Tokens by block": rows["tokens"],
            "Images": rows["n_val"].astype(str),
        }
    )


def _single(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Block": (rows["layer"] + 1).astype(str),
            "Stays": rows["share"].map(percent),
            "Chosen by": rows["schedule"],
            "Accuracy (%)": [_with_error(*pair) for pair in zip(rows["accuracy"], rows["accuracy_sem"], strict=True)],
            "Gain": [_with_error(*pair) for pair in zip(rows["gain"], rows["gain_sem"], strict=True)],
            "Images": rows["n_val"].astype(str),
        }
    )


def _with_error(value: float, error: float) -> str:
    return f"{number(value)} ± {number(error)}"


def slimming_answers(data: pd.DataFrame) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Per setting: what every schedule costs and loses, before and after tuning."""
    for _, rows in data[data["study"] == "stages"].groupby(SETTING["slimming"], sort=False, dropna=False):
        value = "accuracy_full" if rows["accuracy_full"].notna().all() else "accuracy"
        baseline = rows.loc[rows["stage"] == "unreduced", value].iloc[0]
        points = []
        for schedule, cells in rows[rows["schedule"] != ""].groupby("schedule", sort=False):
            found = cells.set_index("stage")
            lost = {stage: baseline - found.loc[stage, value] for stage in ("searched", "tuned")}
            points.append(
                f"{schedule} tokens, {percent(round(found['cut'].iloc[0], 3))} of the multiplications saved: "
                f"{number(lost['searched'])} points lost before and {number(lost['tuned'])} after tuning on images only"
            )
        head = "all classes of the head" if value == "accuracy_full" else "the classes of the dataset"
        yield f"{setting_title(rows)}: {number(baseline)} % without reduction, among {head}.", tuple(points)
