"""Explanations of single images."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from common.plots import EXPLAINERS
from common.plots.frames import backbone_name
from common.report.explained import (
    AREAS,
    OPEN_ROWS,
    digits_note,
    explained_models,
    explainer_labels,
    numbers,
    seed_title,
    times,
)
from common.report.rows import in_order, refuse_repeats
from common.report.sections import Answer, Section, number, setting_title
from common.schema import FLOAT, TEXT, columns
from common.studies.base import REQUIRED, Study, register_study

SETTING = ["dataset", "backbone", "img_size", "reducer", "keep_rate", "seed"]


@register_study
class Explain(Study):
    """Which patches of a picture speak for what the model says of it."""

    name, title = "explain", "Explanations of single images"
    question = "Which patches of a picture speak for what the model says of it?"
    place = 100
    columns = {
        **columns(TEXT, "reducer", "image", "class_name", "predicted"),
        **columns(FLOAT, "probability", "insertion_auc", "deletion_auc", "seconds"),
    }
    required = (*REQUIRED, "dataset")
    setting = SETTING
    captions = {
        "": "The image, its heat, and the probability of the explained class while patches are shown or removed, the "
        "hottest first; or the same images under several explainers.",
    }
    run_figures = "**/*.png"
    explains = True

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """One row per image and explainer: what the model says, areas under insertion and deletion, seconds."""
        first = [*SETTING, "image"]
        key = [*first, "method", "options"]
        refuse_repeats(runs, key)
        measures = ["class_name", "predicted", "probability", "insertion_auc", "deletion_auc", "seconds"]
        return in_order(runs[[*key, *measures]], first, EXPLAINERS)

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            unit, seconds = times(rows["seconds"])
            columns = {
                "Image": [f"{name} ({image})" for name, image in zip(rows["class_name"], rows["image"], strict=True)],
                "Explainer": explainer_labels(rows),
                "Predicted": rows["predicted"].tolist(),
                "Probability": numbers(rows["probability"]),
                "Insertion AUC": numbers(rows["insertion_auc"]),
                "Deletion AUC": numbers(rows["deletion_auc"]),
                unit: seconds,
            }
            model = explained_models(rows.head(1))[0] if rows["reducer"].iloc[0] != "none" else ""
            title = ", ".join(filter(None, (setting_title(rows), model, seed_title(rows, data))))
            yield Section(title, pd.DataFrame(columns), (AREAS, *digits_note(rows)), folded=len(rows) > OPEN_ROWS)

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        for _, rows in data.groupby([*SETTING, "image"], sort=False, dropna=False):
            row = rows.iloc[0]
            said = f"{backbone_name(row['backbone'])} says {row['predicted']} ({100 * row['probability']:.1f} %)"
            areas = zip(explainer_labels(rows), rows["insertion_auc"], rows["deletion_auc"], strict=True)
            points = [
                f"{name}: insertion AUC {number(up, 3)}, deletion AUC {number(down, 3)}" for name, up, down in areas
            ]
            yield Answer(f"{row['image']} ({row['class_name']}): {said}.", tuple(points))
