"""What is kept of single images."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from common.plots.frames import backbone_name
from common.report.rows import VARIANT, in_order
from common.report.sections import Answer, Section, labels, model_name, number, percent, setting_title
from common.schema import FLOAT, INT, TEXT, columns
from common.studies.base import REQUIRED, Study, register_study

SETTING = ["dataset", "backbone", "img_size"]


@register_study
class Visualize(Study):
    """Which parts of a picture are kept."""

    name, title = "visualize", "What is kept"
    question = "Which parts of a picture are kept, and does the model still say the same?"
    place = 70
    columns = {
        **columns(TEXT, "image", "class_name"),
        **columns(INT, "layer", "num_kept"),
        **columns(TEXT, "predicted"),
        **columns(FLOAT, "probability"),
        **columns(TEXT, "predicted_full_model"),
        **columns(FLOAT, "probability_full_model"),
    }
    required = (*REQUIRED, "dataset")
    setting = SETTING
    captions = {
        "": "Patches that are still there after each reduction, and how long each place survives on average.",
    }
    run_figures = "**/*.png"

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Per condition: images, patches left at the end, mean probabilities, share of equal predictions."""
        key = [*SETTING, *VARIANT]
        last = runs.sort_values("layer", kind="stable").drop_duplicates([*key, "seed", "image"], keep="last")
        last = last.assign(agreement=100.0 * (last["predicted"] == last["predicted_full_model"]))
        groups = last.groupby(key, dropna=False, sort=False)
        table = pd.DataFrame(
            {
                "images": groups["image"].nunique(),
                "kept": groups["num_kept"].mean().astype(float),
                "probability_full_model": groups["probability_full_model"].mean(),
                "probability": groups["probability"].mean(),
                "agreement": groups["agreement"].mean(),
            }
        )
        return in_order(table.reset_index(), SETTING)

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            frame = pd.DataFrame(
                {
                    "Model": labels(rows),
                    "Keep": rows["keep_rate"].map(percent),
                    "Images": rows["images"].astype(str),
                    "Patches at the end": rows["kept"].map(lambda value: number(value, 1)),
                    "Probability, full model": rows["probability_full_model"].map(lambda value: number(value, 3)),
                    "Probability, reduced": rows["probability"].map(lambda value: number(value, 3)),
                    "Same prediction": rows["agreement"].map(lambda value: f"{value:.1f} %"),
                }
            )
            note = "Probability: mean over the images of what each model gives its own predicted class."
            yield Section(setting_title(rows), frame, (note,))

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        for _, row in data.iterrows():
            yield Answer(
                f"{model_name(row)} on {backbone_name(row['backbone'])}, keep rate {percent(row['keep_rate'])}: "
                f"{row['kept']:.0f} patches are left at the end; the prediction is the same as the full model's on "
                f"{row['agreement']:.0f} % of {row['images']} images; mean probability {row['probability']:.2f} "
                f"(full model {row['probability_full_model']:.2f})."
            )
