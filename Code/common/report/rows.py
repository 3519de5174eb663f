"""What the summaries of all studies share: the columns of a condition, means over seeds, the order of rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
import pandas as pd

from common.errors import UsageError
from common.plots import METHODS
from common.plots.frames import PLACES
from common.report.sections import falling, is_reduced
from common.results import BY_IMAGE
from common.schedule import ratio_of

SAMPLES, SAMPLED = "_samples", "sampled_on"
VARIANT = ["method", "options", "keep_rate"]


def architecture(backbone: str) -> str:
    """timm name without the tag of its weights: ``vit_small_patch16_224.augreg_in1k`` -> ``vit_small_patch16_224``."""
    return backbone.partition(".")[0]


def in_order(frame: pd.DataFrame, first: list[str], methods: Iterable[str] = METHODS) -> pd.DataFrame:
    """Rows by ``first``, ``methods`` as in the figures, keep rates falling.

    float32 stands before the shorter formats, eager models before compiled ones and those on onnxruntime.
    """
    place = {method: number for number, method in enumerate(methods)}
    ranked = frame.assign(_rank=frame["method"].map(place).fillna(len(place)))
    by = [*first, "_rank", *VARIANT]
    ranks = {name: ranked[name].map(values.index) for name, values in PLACES.items() if name in by}
    order = ranked.assign(keep_rate=ranked["keep_rate"].map(ratio_of), **ranks).sort_values(
        by, ascending=[name != "keep_rate" for name in by], kind="stable"
    )
    return ranked.loc[order.index].drop(columns="_rank").reset_index(drop=True)


def refuse_repeats(runs: pd.DataFrame, key: list[str]) -> None:
    """Raise UsageError when two rows are the same condition: a mean would count one of them twice."""
    twice = runs[runs.duplicated(key, keep=False)]
    if len(twice):
        condition = ", ".join(f"{name}={twice.iloc[0][name]}" for name in key)
        files = ", ".join(sorted(set(twice["run_id"])))
        raise UsageError(f"the same condition ({condition}) was run more than once: {files}; keep one of the CSVs")


def over_seeds(runs: pd.DataFrame, key: list[str], metrics: list[str], compared: Sequence[str] = ()) -> pd.DataFrame:
    """``key``, n, and per metric its mean (``metric``) and sample standard deviation (``metric_sd``; NaN for n = 1).

    Args:
        compared: metrics of which models are compared: ``<metric>_samples`` are their values one by one (see
            :func:`_samples`), and ``sampled_on`` says of what, so that only what belongs together is paired.
    """
    refuse_repeats(runs, [*key, "seed"])
    groups = runs.groupby(key, dropna=False, sort=False)
    table = {"n": groups.size()}
    for metric in metrics:
        table[metric], table[f"{metric}_sd"] = groups[metric].mean(), groups[metric].std(ddof=1)
    for metric in compared:
        found = [_samples(group.sort_values("seed"), metric) for _, group in groups]
        table[metric + SAMPLES] = pd.Series([values for values, _ in found], index=table["n"].index, dtype=object)
        table[SAMPLED] = pd.Series([on for _, on in found], index=table["n"].index)
    return pd.DataFrame(table).reset_index()


def _samples(seeds: pd.DataFrame, metric: str) -> tuple[np.ndarray | None, str]:
    """Values (n,) of one condition that can be paired with those of others: of trained models one for each seed, else
    one for each image, mean over the seeds. None where there is none."""
    if (seeds["epochs"].fillna(0) > 0).any():
        return seeds[metric].to_numpy(float), f"seeds {seeds['seed'].tolist()}"
    values = seeds.get(metric + BY_IMAGE)
    if values is None or values.isna().any() or seeds["images"].nunique() != 1:
        return None, ""
    return 100 * np.mean([np.asarray(each, float) for each in values], axis=0), seeds["images"].iloc[0]


def add_speedup(runs: pd.DataFrame, throughput: pd.DataFrame) -> pd.DataFrame:
    """``runs`` with the float32 ``speedup`` at the largest batch measured for the same model, else NaN.

    Of eager models, as no others were trained or evaluated.
    """
    speed = throughput[(throughput["dtype"] == "float32") & (throughput["runtime"] == "eager")]
    speed = speed.sort_values("batch", kind="stable")
    speed = speed.assign(architecture=speed["backbone"].map(architecture))
    key = ["architecture", "img_size", *VARIANT]
    speed = speed.drop_duplicates(key, keep="last")[[*key, "speedup"]]
    return runs.assign(architecture=runs["backbone"].map(architecture)).merge(speed, on=key, how="left")


def shared_rates(reduced: pd.DataFrame) -> list[str]:
    """Keep rates, falling, at which at least half of the ``reduced`` models of one setting were run.

    Others belong to few models: above all those that were solved, method by method, for a budget.

    >>> rates = ["0.5", "0.5", "0.3127", "0.2953"]
    >>> shared_rates(pd.DataFrame({"method": ["tram", "tome", "evit", "ats"], "options": "", "keep_rate": rates}))
    ['0.5']
    """
    models = reduced.drop_duplicates(VARIANT)
    counts = models["keep_rate"].value_counts()
    return falling(counts[2 * counts >= len(models[VARIANT[:2]].drop_duplicates())].index)


def holes(runs: pd.DataFrame, setting: Sequence[str], *, trained: bool = False) -> list[str]:
    """Conditions missing from the full grid of methods x keep rates x seeds that the runs of one setting span.

    Keep rates are those that methods share (:func:`shared_rates`).

    Args:
        trained: every method is repeated for every seed; elsewhere a deterministic method needs one.
    """
    found = []
    for values, group in runs.groupby(list(setting), dropna=False):
        reduced = group[is_reduced(group)]
        variants = sorted(set(zip(reduced["method"], reduced["options"], strict=True)))
        rates = shared_rates(reduced)
        seed_of = group["seed"] if trained else pd.Series("", index=group.index)
        present = set(zip(*(group[name] for name in VARIANT), seed_of, strict=True))
        for (method, options), rate, seed in product(variants, rates, sorted(seed_of.unique())):
            if (method, options, rate, seed) not in present:
                named = zip(setting, values, strict=True)
                where = ", ".join(f"{name} {value}" for name, value in named if pd.notna(value) and value != "")
                what = f"{method} {options}".strip() + f" at keep rate {rate}"
                found.append(f"{what}{f', seed {seed}' if seed != '' else ''} ({where})")
    return found
