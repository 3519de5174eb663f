"""Runs to numbers: one row per condition, mean and sample standard deviation over seeds, published values joined.

Every summary takes the frame of :func:`common.results.read_runs` for its table and returns plain numbers; how they
are worded is the matter of :mod:`common.report.tables`.
"""

from __future__ import annotations

from itertools import product

import pandas as pd

from common.report.summary.accuracy import finetune, method_grid, off_the_shelf, scratch
from common.report.summary.explaining import explain, explain_agreement, explain_benchmark
from common.report.summary.pictures import gallery, visualize
from common.report.summary.rows import EXPLANATIONS, SETTING, VARIANT
from common.report.summary.speed import sizing, throughput
from common.report.summary.studies import idling, slimming

SUMMARIES = {
    "throughput": throughput,
    "sizing": sizing,
    "finetune": finetune,
    "scratch": scratch,
    "off_the_shelf": off_the_shelf,
    "method_grid": method_grid,
    "visualize": visualize,
    "gallery": gallery,
    "slimming": slimming,
    "explain": explain,
    "explain_benchmark": explain_benchmark,
    "explain_agreement": explain_agreement,
    "idling": idling,
}


def holes(runs: pd.DataFrame, table: str) -> list[str]:
    """Conditions missing from the full grid of methods x keep rates x seeds that the runs of one setting span."""
    if table in ("sizing", "visualize", "gallery", "idling", "slimming", *EXPLANATIONS):
        return []
    found = []
    for setting, group in runs.groupby(SETTING[table], dropna=False):
        reduced = group[group["method"] != "none"]
        variants = sorted(set(zip(reduced["method"], reduced["options"], strict=True)))
        rates = sorted({rate for rate in reduced["keep_rate"] if rate < 1}, reverse=True)
        # Only training is repeated for every method; elsewhere a deterministic method needs one seed.
        trained = table in ("finetune", "scratch") or (table == "method_grid" and (group["epochs"] > 0).any())
        seed_of = group["seed"] if trained else pd.Series("", index=group.index)
        seeds = sorted(seed_of.unique())
        present = set(zip(*(group[name] for name in VARIANT), seed_of, strict=True))
        for (method, options), rate, seed in product(variants, rates, seeds):
            if (method, options, rate, seed) not in present:
                where = ", ".join(f"{name} {value}" for name, value in zip(SETTING[table], setting, strict=True))
                what = f"{method} {options}".strip() + f" at keep rate {rate:g}"
                found.append(f"{what}{f', seed {seed}' if seed != '' else ''} ({where})")
    return found
