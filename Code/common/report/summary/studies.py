"""Studies of patch slimming and of idle patches: all their rows, in the order in which they were measured."""

from __future__ import annotations

import pandas as pd

from common.report.summary.rows import SETTING, VARIANT, over_seeds, refuse_repeats


def slimming(runs: pd.DataFrame) -> pd.DataFrame:
    """Plans before and after tuning, single blocks and compared scores, in the order in which they were measured."""
    key = [*SETTING["slimming"], "study", "schedule", "stage", "layer", "tolerance", "share"]
    refuse_repeats(runs, [*key, "cut"])
    metrics = list(runs.columns[runs.columns.get_loc("share") + 1 : runs.columns.get_loc("run_id")])
    return runs[[*key, *metrics]].reset_index(drop=True)


def idling(runs: pd.DataFrame) -> pd.DataFrame:
    """Every row of the studies of idle patches, mean over seeds where patches are drawn, in the order of the runs."""
    key = [
        *SETTING["idling"],
        "study",
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
    metrics = ["patches_idle", "came_back", "similarity", "within_similarity", "pruner_accuracy", "balanced_accuracy"]
    metrics += ["divergence", "auroc", "accuracy", "accuracy_full", "gmac", "macs_cut", "speedup"]
    return over_seeds(runs, key, metrics)
