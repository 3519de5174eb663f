"""Speed and arithmetic, beside what was published."""

from __future__ import annotations

import pandas as pd

from common.report.summary.rows import SETTING, VARIANT, architecture, in_order, refuse_repeats
from common.results import read_published

NOT_RUN = "not run here"
EFFICIENCY_KEY = ["backbone", "img_size", "method", "keep_rate"]


def published_efficiency() -> pd.DataFrame:
    """Printed FPS and GFlops per condition; several printed values of one condition are joined by " / "."""
    tables = ["tram_accuracy", "tram_throughput_vit", "tram_throughput_simple_vit", "trewa_efficiency"]
    rows = pd.concat([read_published(name, as_printed=True).assign(published_in=name) for name in tables])
    rows = rows.astype({"img_size": "Int64", "keep_rate": float})
    rows = rows.rename(columns={"fps": "published_fps", "gflops": "published_gflops"})
    groups = rows.groupby(EFFICIENCY_KEY, sort=False)
    printed = ["published_fps", "published_gflops", "published_in"]
    return groups[printed].agg(lambda values: " / ".join(dict.fromkeys(values))).reset_index()


def throughput(runs: pd.DataFrame) -> pd.DataFrame:
    """Measured speed and MACs beside the published ones; published conditions that were not measured come last."""
    key = [*SETTING["throughput"], *VARIANT]
    refuse_repeats(runs, key)
    measures = ["fps", "fps_q1", "fps_q3", "speedup", "speedup_q1", "speedup_q3", "rounds"]
    measured = runs[[*key, *measures, "gmac", "gmac_thop_compat", "params"]]
    measured = in_order(measured, SETTING["throughput"]).assign(status="measured")
    published = published_efficiency().rename(columns={"backbone": "architecture"})
    key = ["architecture", *EFFICIENCY_KEY[1:]]
    measured = measured.assign(architecture=measured["backbone"].map(architecture))
    beside = measured.merge(published, how="left", on=key)
    index, ours = pd.MultiIndex.from_frame(published[key]), pd.MultiIndex.from_frame(measured[key])
    rest = published[~index.isin(ours)].assign(status=NOT_RUN, backbone=lambda rows: rows["architecture"])
    return pd.concat([beside, rest], ignore_index=True).drop(columns="architecture")


def sizing(runs: pd.DataFrame) -> pd.DataFrame:
    """Counted MACs beside the published GFlops; ``relative_error`` compares like with like (both thop's way)."""
    metrics = list(runs.columns[runs.columns.get_loc("source") : runs.columns.get_loc("run_id")])
    table = runs[["source", "model", "backbone", "img_size", *VARIANT, *metrics[2:]]]
    return table.assign(
        closed_form_error=table["gmac"] / table["gmac_closed_form"] - 1,
        relative_error=table["gmac_thop_compat"] / table["published_gflops"] - 1,
    )
