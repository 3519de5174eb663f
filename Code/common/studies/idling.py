"""Patches that idle and come back."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from common.plots.frames import backbone_name
from common.report.rows import VARIANT, over_seeds
from common.report.sections import (
    NONE,
    WHOLE,
    Answer,
    Section,
    counted,
    method_label,
    number,
    percent,
    setting_title,
    spread,
)
from common.schema import FLOAT, INT, TEXT, columns
from common.studies.base import REQUIRED, Study, register_study

SETTING = ["dataset", "backbone", "img_size"]


_STUDIES = {
    "similarity": "how alike patches are",
    "thresholds": "thresholds on the frozen backbone",
    "tuning": "frozen and tuned backbone",
    "bounds": "oracle, predictor and random at equal counts",
    "rates": "learning rates of the distillation, on training images that are not trained on",
    "context": "context for the predictor",
    "re_entry": "with and without the way back",
    "idlevit": "IdleViT, distilled with and without its token cut loss",
}


_NOTE = (
    "Idle: patches that skip a block, mean over blocks and images. Back: share of them that the next block computes. "
    "MAC saved: against the unreduced model, predictors paid for, image by image; aim: that of the thresholds. "
    "Top-1 in percent, with the head restricted to the dataset's classes and in full. Tuned: distilled from the "
    "unreduced model, no labels."
)


_SIMILARITY_NOTE = (
    "Across: cosine of the same patch before and after the block. Within: mean cosine of different patches of one "
    "image after it. Means over images."
)


@register_study
class Idling(Study):
    """Which patches may skip a block, and what it costs to let them."""

    name, title = "idling", "Patches that idle and come back"
    question = "Which patches may skip a block, and what does it cost to let them?"
    place = 130
    columns = {
        **columns(TEXT, "part", "attention", "stage"),
        **columns(FLOAT, "tau", "divergence", optional=True),
        **columns(INT, "layer", optional=True),
        **columns(
            FLOAT,
            "patches_idle",
            "came_back",
            "similarity",
            "within_similarity",
            "pruner_accuracy",
            "balanced_accuracy",
            "auroc",
            "accuracy",
            "accuracy_full",
            "gmac",
            "target_cut",
            "macs_cut",
            "speedup",
            optional=True,
        ),
        **columns(INT, "n_val"),
    }
    required = (*REQUIRED, "dataset", "seed", "epochs")
    parts = tuple(_STUDIES)
    setting = SETTING
    captions = {
        "": "Patches that each block computes, idle ones black; or accuracy against the arithmetic saved, hollow: "
        "idle patches are not seen.",
    }

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Every row in the order of the runs, mean over seeds where patches are drawn."""
        key = [
            *SETTING,
            "part",
            *VARIANT,
            "attention",
            "stage",
            "tau",
            "target_cut",
            "lr",
            "layer",
            "n_train",
            "n_val",
            "epochs",
        ]
        metrics = [
            "patches_idle",
            "came_back",
            "similarity",
            "within_similarity",
            "pruner_accuracy",
            "balanced_accuracy",
        ]
        metrics += ["divergence", "auroc", "accuracy", "accuracy_full", "gmac", "macs_cut", "speedup"]
        return over_seeds(runs, key, metrics)

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        """One table for each study of each setting."""
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            for study, what in _STUDIES.items():
                found = rows[rows["part"] == study].reset_index(drop=True)
                if len(found):
                    title = f"{setting_title(found)}: {what}, {found['n_val'].iloc[0]} images"
                    yield _similarity(title, found) if study == "similarity" else _models(title, found)

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        """What the models of each setting lose, in the studies of thresholds, tuning and bounds."""
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            value = "accuracy_full" if rows["accuracy_full"].notna().any() else "accuracy"
            points = [
                point for study in ("thresholds", "tuning") for point in _losses(rows[rows["part"] == study], value)
            ]
            points += _order(rows[rows["part"] == "bounds"], value)
            row = rows.iloc[0]
            where = f"On {row['dataset']} at {row['img_size']} px with {backbone_name(row['backbone'])}"
            yield Answer(
                f"{where} ({'all classes of the head' if value == 'accuracy_full' else 'its own head'}):", tuple(points)
            )


def _similarity(title: str, rows: pd.DataFrame) -> Section:
    columns = {
        "Block": ["input" if layer == 0 else str(layer) for layer in rows["layer"]],
        "Across": [number(value, 3) for value in rows["similarity"]],
        "Within": [number(value, 3) for value in rows["within_similarity"]],
    }
    return Section(title, pd.DataFrame(columns), (_SIMILARITY_NOTE,), folded=True)


def _models(title: str, rows: pd.DataFrame) -> Section:
    """All that the rows hold; columns that are empty in all of them are left out."""
    columns = {
        "Model": [method_label(*pair) for pair in zip(rows["method"], rows["options"], strict=True)],
        "Attention": rows["attention"].tolist(),
        "Backbone": rows["stage"].tolist(),
        "Keep": [percent(rate) if rate != WHOLE else NONE for rate in rows["keep_rate"]],
        "Tau": _numbers(rows, "tau", 3),
        "Learning rate": [NONE if pd.isna(rate) else f"{rate:g}" for rate in rows["lr"]],
        "Idle": _numbers(rows, "patches_idle", 1),
        "Back": _numbers(rows, "came_back", 3),
        "Aim (%)": _numbers(rows, "target_cut", 0),
        "MAC saved (%)": _numbers(rows, "macs_cut", 1),
        "Top-1": _spreads(rows, "accuracy"),
        "Top-1, all classes": _spreads(rows, "accuracy_full"),
        "Divergence": _numbers(rows, "divergence", 4),
        "Balanced accuracy": _numbers(rows, "balanced_accuracy", 3),
        "AUROC": _numbers(rows, "auroc", 3),
        "Speed-up": _numbers(rows, "speedup", 2),
        "Trained on": [f"{count:,}" if count else NONE for count in rows["n_train"]],
    }
    shown = {name: cells for name, cells in columns.items() if set(cells) != {NONE}}
    return Section(title, pd.DataFrame(shown), (_NOTE,))


def _numbers(rows: pd.DataFrame, name: str, digits: int) -> list[str]:
    return [number(value, digits) for value in rows[name]]


def _spreads(rows: pd.DataFrame, name: str) -> list[str]:
    return [spread(value, sd) for value, sd in zip(rows[name], rows[f"{name}_sd"], strict=True)]


def _losses(rows: pd.DataFrame, value: str) -> Iterator[str]:
    dense = rows.loc[rows["method"] == "none", value]
    for _, row in rows[rows["method"] != "none"].iterrows():
        lost = f", {row[value] - dense.iloc[0]:+.2f} points" if len(dense) else ""
        yield (
            f"{_labels(row)}, {row['attention']} attention, {row['stage']}, {row['macs_cut']:.0f} % of the MAC saved: "
            f"{number(row[value])} %{lost}"
        )


def _labels(row: pd.Series) -> str:
    """What the predictor of a model learnt."""
    return "by influence" if "influence=rollout" in str(row["options"]) else "by change"


def _order(rows: pd.DataFrame, value: str) -> Iterator[str]:
    """Oracle, predictor and random side by side, for each predictor."""
    starts = (rows["method"] == "idle_oracle").cumsum()
    for _, group in rows.groupby(starts):
        means = [f"{method_label(row['method'])} {number(row[value])}" for _, row in group.iterrows()]
        count = counted(int(group["n_val"].iloc[0]), "image")
        yield f"equal numbers of patches in every block, {_labels(group.iloc[0])}, {count}: {', '.join(means)}"
