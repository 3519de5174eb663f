"""Accuracy of reduced models without any training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd
from matplotlib.figure import Figure

from common import plots
from common.report.grids import image_errors, pivot, ranked
from common.report.rows import VARIANT, holes, in_order, over_seeds
from common.report.sections import Answer, Section, best_answer, number, setting_title, where_text
from common.schema import FLOAT, INT, columns
from common.studies.base import REQUIRED, Study, register_study

SETTING = ["dataset", "backbone", "img_size", "dtype"]


@register_study
class OffTheShelf(Study):
    """How much accuracy survives in a trained model that is reduced."""

    name, title = "off_the_shelf", "Accuracy without training"
    question = "How much accuracy survives in a trained model that is reduced without further training?"
    place = 30
    columns = {
        **columns(FLOAT, "accuracy"),
        **columns(FLOAT, "accuracy_full", optional=True),
        **columns(FLOAT, "loss"),
        **columns(INT, "n_val"),
        **columns(FLOAT, "gmac", "images_per_second"),
    }
    required = (*REQUIRED, "dataset")
    setting = SETTING
    captions = {
        "": "Accuracy without training against keep rate. Dashed: the unreduced model.",
        "cost": "The same accuracy against the cost of one image. Labels: keep rate in percent. Rings: no other model "
        "is as accurate at the same or lower cost.",
    }

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Accuracy (percent), loss and GMAC per image of models that were reduced and not trained."""
        key = [*SETTING, "n_val", *VARIANT]
        metrics = ["accuracy", "accuracy_full", "loss", "gmac", "images_per_second"]
        return in_order(over_seeds(runs, key, metrics), SETTING)

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        heads = (("accuracy", "classes of the dataset only"), ("accuracy_full", "all classes of the head"))
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            title, images = setting_title(rows), rows["n_val"].iloc[0]
            for name, head in heads:
                if rows[name].notna().any():
                    note = f"Top-1 accuracy in percent on {images} images, no training; {head}."
                    yield ranked(f"{title}: {head}", rows, name, image_errors(rows, name), note)
            gmac = [number(value, 3) for value in rows["gmac"]]
            yield Section(f"{title}: GMAC per image, attention included", pivot(rows, gmac))

    def figures(self, runs: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Figure]]:
        heads = [name for name in ("accuracy", "accuracy_full") if runs[name].notna().any()]
        yield "", plots.accuracy_vs_keep_rate(runs, value=heads)
        yield "cost", plots.accuracy_mac_pareto(runs, value=heads[-1])

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            for value, head in (
                ("accuracy", "classes of the dataset only"),
                ("accuracy_full", "all classes of the head"),
            ):
                if rows[value].notna().any():
                    errors = image_errors(rows, value)
                    context = f"On {where_text(rows)}, {rows['n_val'].iloc[0]} images, {head}"
                    yield best_answer(rows.assign(value=rows[value], sd=rows[f"{value}_sd"], error=errors), context)

    def missing(self, runs: pd.DataFrame) -> list[str]:
        return holes(runs, SETTING)
