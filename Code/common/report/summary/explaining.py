"""Explanations: of single images, their quality over a dataset, their agreement with what reducers keep."""

from __future__ import annotations

import pandas as pd

from common.errors import require_choice
from common.plots import EXPLAINERS, METHODS
from common.plots.mutex_studies import MASK_PARTS, PARAMETERS, parameter_value
from common.report.summary.rows import SETTING, VARIANT, in_order, refuse_repeats

STUDIES = ("explainers", *PARAMETERS, "masks", "reduced")


def explain(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per image and explainer: what the model says, areas under insertion and deletion, seconds."""
    first = [*SETTING["explain"], "image"]
    key = [*first, "method", "options"]
    refuse_repeats(runs, key)
    measures = ["class_name", "predicted", "probability", "insertion_auc", "deletion_auc", "seconds"]
    return in_order(runs[[*key, *measures]], first, EXPLAINERS)


def explain_benchmark(runs: pd.DataFrame) -> pd.DataFrame:
    """All measures of every explainer, and of every value of the studies of MUTEX, in the order of ``STUDIES``."""
    setting = SETTING["explain_benchmark"]
    key = [*setting, "study", "reducer", *VARIANT, "part"]
    refuse_repeats(runs, key)
    measures = list(runs.columns[runs.columns.get_loc("insertion_auc") : runs.columns.get_loc("run_id")])
    table = in_order(runs[[*key, *measures, "batch", "device", "threads"]], setting, EXPLAINERS)
    places = [_place(*row) for row in zip(table["study"], table["options"], table["part"], strict=True)]
    table = table.assign(
        _study=table["study"].map(_study_place), _model=table["reducer"].map(_model_place), _place=places
    )
    by = [*setting, "_study", "_model", "keep_rate", "_place"]
    rising = [name not in ("n_images", "keep_rate") for name in by]  # studies on fewer images come later
    table = table.sort_values(by, ascending=rising, kind="stable", ignore_index=True)
    return table.drop(columns=["_study", "_model", "_place"])


def _study_place(study: str) -> int:
    return STUDIES.index(require_choice(study, STUDIES, "study of explanations"))


def _model_place(reducer: str) -> int:
    """Place of a reducer, written ``name:key=value``, among the methods."""
    name = reducer.partition(":")[0]
    return list(METHODS).index(name) if name in METHODS else len(METHODS)


def _place(study: str, options: str, part: str) -> float:
    """Place of a row within its study; explainers are in order already."""
    if study in PARAMETERS:
        return parameter_value(study, options)
    parts = ["all", *(f"{group}={kind}" for group, (_, kinds) in MASK_PARTS.items() for kind in kinds)]
    return parts.index(part) if part in parts else len(parts)


def explain_agreement(runs: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation and IoU of every explainer with every reducer; ``above_chance`` = IoU minus that of chance."""
    key = [*SETTING["explain_agreement"], "reducer", "layer", "method", "options"]
    refuse_repeats(runs, key)
    measures = ["rank_correlation", "rank_correlation_sem", "iou", "iou_sem", "iou_chance"]
    table = in_order(runs[[*key, *measures]], SETTING["explain_agreement"], EXPLAINERS)
    table = table.assign(above_chance=table["iou"] - table["iou_chance"], _model=table["reducer"].map(_model_place))
    by = [*SETTING["explain_agreement"], "_model", "reducer", "layer"]
    return table.sort_values(by, kind="stable", ignore_index=True).drop(columns="_model")
