"""Patch slimming: plans before and after tuning, and what they could be chosen by."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from common.report.rows import refuse_repeats
from common.report.sections import NONE, Answer, Section, number, percent, setting_title, spread
from common.schema import FLOAT, INT, TEXT, columns
from common.studies.base import REQUIRED, Study, register_study

SETTING = ["dataset", "backbone", "img_size", "seed"]


_STAGES = {
    "unreduced": "unreduced",
    "searched": "before tuning",
    "tuned": "after block tuning",
    "distilled": "after distillation",
}


_PRUNED = {"idle": "idle", "zero": "zero", "dropped": "dropped for good"}


_COUNTERS = (
    "GMAC is what the slim model executes; GMAC, paper counts as the authors do: keys and values for all tokens. "
    "Cut: share saved."
)


_ACCURACY = (
    "Accuracy: among the classes of the dataset; all classes: among all of the head, ± one standard error over images. "
    "Gain: difference to uniform lengths at the same stage, with patches by the same score, among all classes and on "
    "the same images, ± its standard error. Coverage: patches that carry what others carry do not count. Tuned on "
    "images only."
)


_GAIN = (
    "One block computes a part of its patches, nothing is tuned. The others idle: they pass it unchanged, and the next "
    "computes them again; or they are dropped for good. Gain: difference to random masks on the same images, ± its "
    "standard error. Accuracy among all classes of the head. Blocks are counted from 1."
)


_SENSITIVITY = (
    "Accuracy (%) among all classes of the head when the most significant patches of one block are computed and the "
    "others pass it unchanged, by block, counted from 1. No head reads the patches of the last one."
)


_BUDGETS = (
    "Nothing is tuned. Budget: share of the multiplications that may be spent. Gain: difference to uniform lengths "
    "with patches by significance, on the same images, ± its standard error. Accuracy among all classes of the head. "
    "Square: patches that a block does not compute are not seen in it either."
)


_TOLERANCES = (
    "Each block keeps the fewest patches with which the output of the next one errs by no more than the tolerance, a "
    "share of its squared norm (mean over tokens). Gain: difference to the unreduced network on the same images, ± its "
    "standard error. Accuracy among all classes of the head."
)


_DYNAMIC = (
    "Nothing but the gates is trained. Fixed: as many patches in every image; threshold: as many on average, ± the "
    "standard deviation over images. Gain: difference to the plan, the same in all images, ± its standard error."
)


_HEADS = "Spearman's correlation with the exact significance, by block, counted from 1."


@register_study
class Slimming(Study):
    """How many tokens each block can do without, the same in every image."""

    name, title = "slimming", "Patch slimming"
    question = "How many tokens can each block do without, the same in every image, after tuning on images alone?"
    place = 90
    columns = {
        **columns(TEXT, "part"),
        **columns(TEXT, "schedule", optional=True),
        **columns(TEXT, "stage"),
        **columns(INT, "layer", optional=True),
        **columns(
            FLOAT, "tolerance", "share", "accuracy", "accuracy_full", "accuracy_sem", "gain", "gain_sem", optional=True
        ),
        **columns(TEXT, "pruned", optional=True),
        **columns(FLOAT, "rank_correlation", "gmac", "gmac_paper", "cut", "cut_paper", optional=True),
        **columns(TEXT, "tokens", optional=True),
        **columns(INT, "n_val", optional=True),
        **columns(INT, "n_calibration"),
    }
    required = (*REQUIRED, "dataset", "seed")
    parts = ("stages", "tolerances", "budgets", "dynamic", "sensitivity", "single_block", "heads")
    setting = SETTING
    captions = {
        "": "Tokens that each block computes, the same in every image; accuracy against multiplications; and what is "
        "left, or gained over chance, when one block alone computes fewer patches.",
    }
    run_figures = "**/*.png"

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """All rows, in the order in which they were measured."""
        key = [*SETTING, "part", "schedule", "stage", "layer", "tolerance", "share"]
        refuse_repeats(runs, [*key, "cut"])
        metrics = list(runs.columns[runs.columns.get_loc("share") + 1 : runs.columns.get_loc("run_id")])
        return runs[[*key, *metrics]].reset_index(drop=True)

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            title, studies = setting_title(rows), dict(list(rows.groupby("part", sort=False)))
            if "stages" in studies:
                yield Section(f"{title}: plans", _plans(studies["stages"]), (_ACCURACY, _COUNTERS))
            for study, (what, frame_of, note) in _STUDIES.items():
                if study in studies:
                    yield Section(f"{title}: {what}", frame_of(studies[study]), (note,), folded=study == "heads")

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        """Per setting: what every schedule costs and loses, before and after tuning."""
        for _, rows in data[data["part"] == "stages"].groupby(SETTING, sort=False, dropna=False):
            value = "accuracy_full" if rows["accuracy_full"].notna().all() else "accuracy"
            baseline = rows.loc[rows["stage"] == "unreduced", value].iloc[0]
            points = []
            for (schedule, cut), cells in rows[rows["schedule"] != ""].groupby(["schedule", "cut"], sort=False):
                stages = cells.set_index("stage")[value]
                lost = [f"{number(baseline - stages[stage])} {_STAGES[stage]}" for stage in _STAGES if stage in stages]
                points.append(
                    f"{schedule} tokens, {percent(round(cut, 3))} of the multiplications saved: points lost "
                    f"{', '.join(lost)}; on images only"
                )
            head = "all classes of the head" if value == "accuracy_full" else "the classes of the dataset"
            yield Answer(f"{setting_title(rows)}: {number(baseline)} % without reduction, among {head}.", tuple(points))


def _plans(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows[(rows["stage"] != "unreduced") | ~rows.duplicated(["stage", "n_val"])]
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
            "Gain": [spread(*pair, digits=1) for pair in zip(rows["gain"], rows["gain_sem"], strict=True)],
            "GMAC": rows["gmac"].map(lambda value: number(value, 3)),
            "Cut": rows["cut"].map(lambda value: percent(round(value, 3))),
            "GMAC, paper": rows["gmac_paper"].map(lambda value: number(value, 3)),
            "Cut, paper": rows["cut_paper"].map(lambda value: percent(round(value, 3))),
            "Tokens by block": rows["tokens"],
            "Images": rows["n_val"].astype(str),
        }
    )


def _sensitivity(rows: pd.DataFrame) -> pd.DataFrame:
    wide = rows.pivot(index="share", columns="layer", values="accuracy").sort_index(ascending=False)
    frame = wide.map(number).rename(index=lambda share: percent(1 - share), columns=lambda layer: f"{layer + 1}")
    return frame.rename_axis(columns=None).reset_index(names="Pruned")


def _single(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Block": (rows["layer"] + 1).map("{:.0f}".format),
            "Computed": rows["share"].map(percent),
            "Others": rows["pruned"].map(_PRUNED),
            "Chosen by": rows["schedule"],
            **_measured(rows),
        }
    )


def _budgets(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.sort_values("share", ascending=False, kind="stable")
    return pd.DataFrame(
        {
            "Budget": rows["share"].map(percent),
            "Schedule": rows["schedule"],
            **_measured(rows),
            "Cut": rows["cut"].map(lambda value: percent(round(value, 3))),
            "Tokens by block": rows["tokens"],
        }
    )


def _tolerances(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Tolerance": rows["tolerance"].map("{:g}".format),
            **_measured(rows),
            "Cut": rows["cut"].map(lambda value: percent(round(value, 3))),
            "Cut, paper": rows["cut_paper"].map(lambda value: percent(round(value, 3))),
            "Tokens by block": rows["tokens"],
        }
    )


def _dynamic(rows: pd.DataFrame) -> pd.DataFrame:
    chosen = rows["schedule"].replace("static", "plan")
    return pd.DataFrame({"Patches chosen by": chosen, **_measured(rows), "Tokens by block": rows["tokens"]})


def _measured(rows: pd.DataFrame) -> dict[str, object]:
    return {
        "Accuracy (%)": [_with_error(*pair) for pair in zip(rows["accuracy"], rows["accuracy_sem"], strict=True)],
        "Gain": [_with_error(*pair) for pair in zip(rows["gain"], rows["gain_sem"], strict=True)],
        "Images": rows["n_val"].map("{:.0f}".format),
    }


def _heads(rows: pd.DataFrame) -> pd.DataFrame:
    wide = rows.pivot(index="schedule", columns="layer", values="rank_correlation")
    frame = wide.map(number).rename(columns=lambda layer: f"{layer + 1:.0f}").rename_axis(columns=None)
    return frame.reset_index(names="Score")


_STUDIES = {
    "tolerances": ("tolerances", _tolerances, _TOLERANCES),
    "budgets": ("budgets, scores and keys", _budgets, _BUDGETS),
    "dynamic": ("patches for each image", _dynamic, _DYNAMIC),
    "sensitivity": ("how fragile each block is", _sensitivity, _SENSITIVITY),
    "single_block": ("one block alone", _single, _GAIN),
    "heads": ("scores compared", _heads, _HEADS),
}


def _with_error(value: float, error: float) -> str:
    return f"{number(value)} ± {number(error)}"
