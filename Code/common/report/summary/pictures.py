"""What is kept of single images."""

from __future__ import annotations

import pandas as pd

from common.report.summary.rows import SETTING, VARIANT, in_order


def visualize(runs: pd.DataFrame) -> pd.DataFrame:
    """Per condition: images, patches left at the end, mean probability before and after, share of equal predictions."""
    key = [*SETTING["visualize"], *VARIANT]
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
    return in_order(table.reset_index(), SETTING["visualize"])


def gallery(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per image and method: tokens left and what the model says."""
    columns = [*SETTING["gallery"], *VARIANT, "epochs", "layer", "num_tokens", "predicted", "probability"]
    return in_order(runs[columns], SETTING["gallery"])
