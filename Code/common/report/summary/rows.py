"""What all summaries share: the columns of a condition, means over seeds, the order of rows."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from common.errors import UsageError
from common.plots import METHODS

VARIANT = ["method", "options", "keep_rate"]
SETTING = {
    "throughput": ["dtype", "batch", "device", "threads", "backbone", "img_size"],
    "sizing": ["source"],
    "finetune": ["dataset", "backbone", "img_size", "epochs", "dtype", "batch"],
    "scratch": ["dataset", "backbone", "img_size", "epochs", "dtype", "batch"],
    "off_the_shelf": ["dataset", "backbone", "img_size", "dtype"],
    "method_grid": ["dataset", "backbone", "img_size", "epochs", "n_train", "n_val", "dtype", "batch"],
    "visualize": ["dataset", "backbone", "img_size"],
    "gallery": ["dataset", "backbone", "img_size", "image", "class_name"],
    "slimming": ["dataset", "backbone", "img_size", "seed"],
    "explain": ["dataset", "backbone", "img_size", "reducer", "keep_rate", "seed"],
    "explain_benchmark": ["dataset", "backbone", "img_size", "baseline", "n_images", "seed"],
    "explain_agreement": ["dataset", "backbone", "img_size", "keep_rate", "n_images", "seed"],
    "idling": ["dataset", "backbone", "img_size"],
}
# In these tables ``method`` is an explainer.
EXPLANATIONS = ("explain", "explain_benchmark", "explain_agreement")


def architecture(backbone: str) -> str:
    """timm name without the tag of its weights: ``vit_small_patch16_224.augreg_in1k`` -> ``vit_small_patch16_224``."""
    return backbone.partition(".")[0]


def in_order(frame: pd.DataFrame, first: list[str], methods: Iterable[str] = METHODS) -> pd.DataFrame:
    """Rows by ``first`` (float32 before the shorter formats), ``methods`` as in the figures, keep rates falling."""
    place = {method: number for number, method in enumerate(methods)}
    ranked = frame.assign(_rank=frame["method"].map(place).fillna(len(place)))
    by = [*first, "_rank", *VARIANT]
    ranked = ranked.sort_values(by, ascending=[name not in ("keep_rate", "dtype") for name in by], kind="stable")
    return ranked.drop(columns="_rank").reset_index(drop=True)


def refuse_repeats(runs: pd.DataFrame, key: list[str]) -> None:
    """Raise UsageError when two rows are the same condition: a mean would count one of them twice."""
    twice = runs[runs.duplicated(key, keep=False)]
    if len(twice):
        condition = ", ".join(f"{name}={twice.iloc[0][name]}" for name in key)
        files = ", ".join(sorted(set(twice["run_id"])))
        raise UsageError(f"the same condition ({condition}) was run more than once: {files}; keep one of the CSVs")


def over_seeds(runs: pd.DataFrame, key: list[str], metrics: list[str]) -> pd.DataFrame:
    """``key``, n, and per metric its mean (``metric``) and sample standard deviation (``metric_sd``; NaN for n = 1)."""
    refuse_repeats(runs, [*key, "seed"])
    groups = runs.groupby(key, dropna=False, sort=False)
    table = {"n": groups.size()}
    for metric in metrics:
        table[metric], table[f"{metric}_sd"] = groups[metric].mean(), groups[metric].std(ddof=1)
    return pd.DataFrame(table).reset_index()
