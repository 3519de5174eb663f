"""One image under every method."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from common.report.rows import VARIANT, in_order
from common.report.sections import Answer, Section, counted, labels, number, percent, setting_title
from common.schema import FLOAT, INT, TEXT, columns
from common.studies.base import REQUIRED, Study, register_study

SETTING = ["dataset", "backbone", "img_size", "image", "class_name"]


@register_study
class Gallery(Study):
    """What every method holds on to of one picture."""

    name, title = "gallery", "What every method keeps or merges"
    question = "Given one picture and one keep rate, what does each method hold on to?"
    place = 80
    columns = {
        **columns(TEXT, "image", "class_name"),
        **columns(INT, "layer", "num_tokens"),
        **columns(TEXT, "predicted"),
        **columns(FLOAT, "probability"),
    }
    required = (*REQUIRED, "dataset", "seed", "epochs")
    setting = SETTING
    captions = {
        "": "Faded patches are gone; patches outlined in one colour share a token; dots mark centres of clusters.",
    }
    run_figures = "**/*.png"

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """One row per image and method: tokens left and what the model says."""
        columns = [*SETTING, *VARIANT, "epochs", "layer", "num_tokens", "predicted", "probability"]
        return in_order(runs[columns], SETTING)

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            row = rows.iloc[0]
            frame = pd.DataFrame(
                {
                    "Model": labels(rows),
                    "Keep": rows["keep_rate"].map(percent),
                    "Tokens": rows["num_tokens"].astype(str),
                    "Predicted": rows["predicted"],
                    "Probability": rows["probability"].map(lambda value: number(value, 3)),
                    "Epochs trained": rows["epochs"].astype(str),
                }
            )
            note = f"Tokens after layer {row['layer']}, CLS not counted. Only methods with parameters were trained."
            yield Section(f"{setting_title(rows)}: {row['class_name']} ({row['image']})", frame, (note,))

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        for (*_, image, name), rows in data.groupby(SETTING, sort=False):
            right = (rows["predicted"] == name).sum()
            tokens = f"{rows['num_tokens'].min()} to {rows['num_tokens'].max()} tokens"
            yield Answer(f"{image} ({name}): {right} of {counted(len(rows), 'method')} see what it is, from {tokens}.")
