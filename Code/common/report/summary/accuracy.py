"""Accuracies: before any training, after fine-tuning, from scratch, and all methods under one protocol."""

from __future__ import annotations

import pandas as pd

from common.report.summary.rows import SETTING, VARIANT, architecture, in_order, over_seeds
from common.results import read_published

# The published fine-tuning tables are this experiment, on these sets, and no other.
PUBLISHED_FINETUNE = {"img_size": 224, "epochs": 5}


def training(runs: pd.DataFrame, table: str) -> pd.DataFrame:
    """Accuracy (percent) before training, after the last and at the best trained epoch; loss, seconds per epoch."""
    key = [*SETTING[table], *VARIANT]
    runs = runs.sort_values(["run_id", "epoch"], kind="stable")
    trained = runs[(runs["epoch"] > 0) | (runs["epochs"] == 0)].groupby("run_id")
    per_run = runs.drop_duplicates("run_id").set_index("run_id")[[*key, "seed"]]
    per_run = per_run.assign(
        before=runs[runs["epoch"] == 0].groupby("run_id")["val_accuracy"].first(),
        last=trained["val_accuracy"].last(),
        best=trained["val_accuracy"].max(),
        val_loss=trained["val_loss"].last(),
        epoch_seconds=trained["epoch_seconds"].mean(),
    )
    metrics = ["before", "last", "best", "val_loss", "epoch_seconds"]
    return in_order(over_seeds(per_run.reset_index(), key, metrics), SETTING[table])


def finetune(runs: pd.DataFrame) -> pd.DataFrame:
    """:func:`training` with ``published_accuracy`` (percent) where the published experiment is the same one."""
    found = training(runs, "finetune")
    published = read_published("tram_accuracy").rename(columns={"accuracy": "published_accuracy"})
    same = ["architecture", "dataset", "img_size", "method", "keep_rate"]
    published = published.rename(columns={"backbone": "architecture"}).drop_duplicates(same)
    published = published.assign(epochs=PUBLISHED_FINETUNE["epochs"])
    joined = found.assign(architecture=found["backbone"].map(architecture)).merge(
        published[[*same, "epochs", "published_accuracy"]], how="left", on=[*same, "epochs"]
    )
    return joined.drop(columns="architecture")


def scratch(runs: pd.DataFrame) -> pd.DataFrame:
    """:func:`training` of models that start from random weights."""
    return training(runs, "scratch")


def off_the_shelf(runs: pd.DataFrame) -> pd.DataFrame:
    """Accuracy (percent), loss and GMAC per image of models that were reduced and not trained."""
    key = [*SETTING["off_the_shelf"], "n_val", *VARIANT]
    metrics = ["accuracy", "accuracy_full", "loss", "gmac", "images_per_second"]
    return in_order(over_seeds(runs, key, metrics), SETTING["off_the_shelf"])


def method_grid(runs: pd.DataFrame) -> pd.DataFrame:
    """Accuracies (percent), loss, GMAC per image and tokens left of every method, as given and after training."""
    key = [*SETTING["method_grid"], *VARIANT]
    found = over_seeds(runs, key, ["accuracy", "accuracy_best", "ema_accuracy", "loss", "gmac"])
    groups = runs.groupby(key, dropna=False, sort=False)
    models = groups.agg(params=("params", "first"), tokens=("tokens", _mean_tokens)).reset_index()
    return in_order(found.merge(models, on=key), SETTING["method_grid"])


def _mean_tokens(counts: pd.Series) -> str:
    """Mean of texts like "137 96 67", number by number, to one decimal."""
    means = counts.str.split(expand=True).astype(float).mean()
    return " ".join(f"{round(mean, 1):g}" for mean in means)
