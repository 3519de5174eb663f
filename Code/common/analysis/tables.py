"""The tables that ``python -m common.analysis`` writes: of runs, of pairs of runs, of patches, and correlations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from tqdm import tqdm

from common.analysis.compare import COLUMNS, compare_all
from common.analysis.correlate import COLUMNS as CORRELATIONS
from common.analysis.correlate import DIFFERENCES, STATISTICS, correlate
from common.analysis.maps import compare_maps
from common.analysis.pairs import Axis, pairs
from common.analysis.runs import RunData
from common.evaluation import Setting
from common.evaluation.names import unique_key
from common.schedule import keep_rate_text

GROUPED = ("rates", "capacity", "methods")  # axes along which similarity is correlated with accuracy
SAME_BOTH_WAYS = {"homogeneity": "completeness", "completeness": "homogeneity"}  # of a pair in the other order
ONE_WAY = ("ioa", "pwcca")  # measures that the other order does not tell


def runs_table(runs: Iterable[RunData]) -> pd.DataFrame:
    """One row per run: its key, what it is, and its accuracy (percent), cost and tokens after the last stage."""
    rows = []
    for run in runs:
        setting = run.setting
        what = {name: getattr(setting, name) for name in ("method", "backbone", "weights", "dataset", "seed", "width")}
        row = {"key": setting.key, "run_key": setting.run_key, **what, "keep_rate": keep_rate_text(setting.keep_rate)}
        places = {"reduction_loc": " ".join(map(str, setting.reduction_loc)), "depth": setting.depth}
        rows.append({**row, **places, "n_images": run.images, "top1": run.top1, "gmac": run.gmac, "tokens": run.tokens})
    return pd.DataFrame(rows)


def comparison_rows(runs: Sequence[RunData], axis: Axis) -> pd.DataFrame:
    """:func:`common.analysis.compare_all`, and over datasets :func:`common.analysis.compare_maps` of depth maps.

    The rows of maps have the same columns: no block, the measure in ``mean``, and in ``n`` the images of the run with
    fewer.
    """
    if axis != "datasets":
        return compare_all([run.decisions for run in runs], axis)
    rows = []
    for first, second in tqdm(pairs([run.setting for run in runs], axis), "pairs of datasets", leave=False):
        a, b = runs[first], runs[second]
        if a.depth_map is not None and b.depth_map is not None:
            same = {"axis": axis, "a": a.setting.key, "b": b.setting.key, "n": min(a.images, b.images)}
            found = compare_maps(a.depth_map, b.depth_map)
            rows += [{**same, "metric": name, "mean": value} for name, value in found.items()]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def depth_table(runs: Iterable[RunData]) -> pd.DataFrame:
    """The mean depth of every patch: run, row and column of the patch, mean and standard deviation over the images."""
    found = [pd.DataFrame(columns=["run", "row", "column", "mean", "sd"])]
    for run in runs:
        if run.depth_map is not None:
            rows, columns = np.indices(run.depth_map.shape).reshape(2, -1)
            patches = {"row": rows, "column": columns, "mean": run.depth, "sd": run.depth_sd}
            found.append(pd.DataFrame({"run": run.setting.key, **patches}))
    return pd.concat(found[1:] or found, ignore_index=True)


def correlation_rows(comparisons: pd.DataFrame, runs: Sequence[RunData], axis: Axis) -> pd.DataFrame:
    """:func:`common.analysis.correlate` of the pairs whose accuracies are known; no rows along other axes.

    Groups as in "Which Tokens to Use?": over rates the runs of one method and backbone, over capacities those of one
    method, over methods each run with all others of its rate, in which an unreduced model has a group for each rate.
    """
    known = {run.setting.key: run for run in runs if run.top1 is not None}
    pairs = comparisons[comparisons["a"].isin(known) & comparisons["b"].isin(known)]
    if axis not in GROUPED or pairs.empty:
        return pd.DataFrame(columns=list(CORRELATIONS))
    if axis == "methods":
        pairs, known = _each_with_others(pairs, known)
    accuracies = {key: run.top1 for key, run in known.items()}
    tokens = {key: run.tokens for key, run in known.items()}
    groups = {key: _group(key, run.setting, axis) for key, run in known.items()}
    return correlate(pairs, accuracies, tokens, groups=groups, differences=DIFFERENCES, statistics=STATISTICS)


def _group(key: str, setting: Setting, axis: Axis) -> str:
    if axis == "rates":
        return key.rpartition("-_")[0]  # all but the rate
    return unique_key(setting.method, setting.dataset, setting.seed) if axis == "capacity" else key


def _each_with_others(comparisons: pd.DataFrame, runs: dict[str, RunData]) -> tuple[pd.DataFrame, dict[str, RunData]]:
    """Pairs in both orders, so that every run is ``a`` of all of its pairs; an unreduced run is one run per rate.

    What depends on the order and is known in one only is left out.
    """
    one_way = comparisons[~comparisons["metric"].isin(ONE_WAY)]
    other = one_way.rename(columns={"a": "b", "b": "a"}).assign(metric=one_way["metric"].replace(SAME_BOTH_WAYS))
    both = pd.concat([one_way, other], ignore_index=True)
    both = both[[runs[key].setting.reduces for key in both["b"]]]
    runs, names = dict(runs), []
    for a, b in zip(both["a"], both["b"], strict=True):
        name = a if runs[a].setting.reduces else a + keep_rate_text(runs[b].setting.keep_rate)
        runs[name] = runs[a]
        names.append(name)
    return both.assign(a=names), runs
