"""Tables that the reference makes of its other tables: everything about a pair in one row, and rank correlations.

They ask for tables as :mod:`common.analysis.reference` makes them, or as they are read from a file of the reference or
of :func:`common.analysis.export_tables` (``pandas.read_csv(path, sep=";")``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np
import pandas as pd

from common.analysis.correlate import kendall, spearman
from common.analysis.maps import compare_maps
from common.analysis.reference import ReferenceAxis
from common.errors import UsageError

PAIR = ["Model A", "Model B"]
ACCURACIES = ["Acc A", "Acc B", "Acc Diff"]
FEATURES = ("CKA", "PWCCA", "Procrustes", "mean_cca_corr", "mean_sq_cca_corr")
GROUPINGS = ("Completeness", "Homogeneity", "NMI")
STATISTICS = {"Spearman": spearman, "Kendall": kendall}
HEATMAP_COLUMNS = (
    *("Dataset1", "Dataset2", "Model1", "Model2"),
    *("KLD12", "KLD21", "JSD", "PCC", "SCC", "EMD", "SIM"),
)
NOT_MAPPED = ("sinkhorn", "patchmerger", "heuristic", "sit", "tome", "deit")  # first parts of names of models
Statistics = Mapping[str, Mapping[str, object]]


def collate(
    features: pd.DataFrame, clusters: pd.DataFrame, pruning: pd.DataFrame, statistics: Statistics, axis: ReferenceAxis
) -> pd.DataFrame:
    """All similarities of each pair of runs in one row, beside the difference of their accuracies.

    Args:
        features, clusters, pruning: the three tables of one ``axis`` and dataset; the last two may be empty.
        statistics: token statistics by run key, of which ``Acc-Top1`` is taken.

    Returns:
        One row per row of ``features``, sorted by models: ``Model A``, ``Model B``, ``Ratio A``, ``Ratio B`` (over
        capacities ``Ratio``), ``Acc A``, ``Acc B``, ``Acc Diff`` (signed, A - B); ``<block>-<distance>``,
        ``<similarity>-Stage-<block>-Mean``, ``Stage-<block>-Mean-IoA`` and ``-IoU`` (methods: IoU only). What a pair
        does not have is NaN.

    Raises:
        UsageError: a run without statistics.
    """
    missing = {*features["Model A"], *features["Model B"]} - statistics.keys()
    if missing:
        raise UsageError(f"no token statistics of run {min(missing)!r}, which has CLS features")
    if axis == "methods":
        pruning = pruning.rename(columns=lambda name: re.sub(r"^(Stage-\d+-Mean)$", r"\1-IoU", name))
    table = features.copy()
    for other in (clusters, pruning):
        if len(other):
            table = table.merge(other[[*PAIR, *(set(other) - set(table))]], how="left", on=PAIR)
    for side in "AB":
        table[f"Acc {side}"] = [_number(statistics[key]["Acc-Top1"]) for key in table[f"Model {side}"]]
    table["Acc Diff"] = table["Acc A"] - table["Acc B"]
    rates = ["Ratio"] if axis == "capacity" else ["Ratio A", "Ratio B"]
    columns = [*PAIR, *rates, *ACCURACIES, *_similarities(table, axis)]
    return table.reindex(columns=columns).sort_values(PAIR, kind="stable", ignore_index=True)


def rank_correlations(
    collated: pd.DataFrame, axis: ReferenceAxis, methods: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Spearman's correlation and Kendall's tau-b of the signed accuracy difference with every similarity, by group.

    Groups, of which ``Model`` is the name: over rates all pairs of one method and backbone (the run key without its
    rate); over capacities all pairs of one method; over methods all pairs of one run A with others of its rate, where
    an unreduced A has a group for each rate of the others (its key with the rate behind it) and is in no other group.
    The reference takes 0.9 for 1.0 there; here they are two.

    Args:
        collated: of :func:`collate`.
        methods: run key -> its method, over capacities; None = as the names of the reference have it.

    Returns:
        ``Model``, then ``<column>-Spearman`` and ``<column>-Kendall``; NaN where fewer than two pairs have both
        numbers, or one does not vary. :func:`common.analysis.correlate` tells how sure such numbers are.
    """
    similarities = [name for name in collated if name not in (*PAIR, "Ratio", "Ratio A", "Ratio B", *ACCURACIES)]
    rows = []
    for label, pairs in _groups(collated, axis, methods or {}):
        row = {"Model": label}
        for name in similarities:
            known = pairs[["Acc Diff", name]].dropna().to_numpy(float).T
            for statistic, measure in STATISTICS.items():
                row[f"{name}-{statistic}"] = float(measure(*known)) if known.shape[1] > 1 else np.nan
        rows.append(row)
    columns = [f"{name}-{statistic}" for name in similarities for statistic in STATISTICS]
    return pd.DataFrame(rows, columns=["Model", *columns])


def heatmap_table(
    statistics: Mapping[str, Statistics], grids: Mapping[str, tuple[int, int]] | None = None
) -> pd.DataFrame:
    """Maps of mean token depth of the same run key on two datasets, by :func:`compare_maps` with ``parity``.

    Args:
        statistics: token statistics by the dataset's tag and then by run key. Runs without a map are left out, and as
            in the reference, fixed patterns and unreduced models.
        grids: of run keys, patches (rows, columns); a square where it is not given.

    Returns:
        ``Dataset1``, ``Dataset2``, ``Model1``, ``Model2``, ``KLD12``, ``KLD21``, ``JSD``, ``PCC``, ``SCC``, ``EMD``,
        ``SIM``.
    """
    rows = []
    for first, second in combinations(statistics, 2):
        maps = [_maps(statistics[tag], grids or {}) for tag in (first, second)]
        for key in (key for key in maps[0] if key in maps[1]):
            found = compare_maps(maps[0][key], maps[1][key], parity=True)
            rows.append({"Dataset1": first, "Dataset2": second, "Model1": key, "Model2": key, **found})
    return pd.DataFrame(rows, columns=list(HEATMAP_COLUMNS))


def _similarities(table: pd.DataFrame, axis: ReferenceAxis) -> list[str]:
    """Columns of similarities, from the first block to the last."""
    overlaps = ("IoU",) if axis == "methods" else ("IoA", "IoU")
    forms = [
        (r"(\d+)-CKA", [f"{{}}-{name}" for name in FEATURES]),
        (r"NMI-Stage-(\d+)-Mean", [f"{name}-Stage-{{}}-Mean" for name in GROUPINGS]),
        (r"Stage-(\d+)-Mean-IoU", [f"Stage-{{}}-Mean-{name}" for name in overlaps]),
    ]
    found = []
    for pattern, names in forms:
        blocks = sorted(int(match[1]) for match in map(re.compile(pattern).fullmatch, table) if match)
        found += [name.format(block) for block in blocks for name in names]
    return found


def _groups(
    collated: pd.DataFrame, axis: ReferenceAxis, methods: Mapping[str, str]
) -> Iterator[tuple[str, pd.DataFrame]]:
    if axis == "methods":
        yield from _groups_of_runs(collated)
        return
    label = _without_rate if axis == "rates" else lambda key: methods.get(key) or _method(key)
    yield from collated.groupby(collated["Model A"].map(label), sort=False)


def _groups_of_runs(collated: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    others = collated[collated["Model B"].map(_reduces)]
    for key, pairs in others.groupby("Model A", sort=False):
        if _reduces(key):
            same = pairs[pairs["Ratio A"] == pairs["Ratio B"]]
            if len(same):
                yield key, same
        else:
            yield from ((f"{key}{rate}", some) for rate, some in pairs.groupby("Ratio B"))


def _reduces(key: str) -> bool:
    """A run key with blocks and a rate."""
    return not key.endswith("--_")


def _without_rate(key: str) -> str:
    return key.rpartition("-_")[0]


def _method(key: str) -> str:
    """``topk`` of ``topk_small_patch16_224-3_6_9-_0.9``, ``heuristic-l1`` of ``heuristic_small_patch16_224-l1-...``."""
    model, *pattern = _without_rate(key).split("-")[:-1]
    return "-".join([model.partition("_")[0], *pattern])


def _maps(statistics: Statistics, grids: Mapping[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    found = {}
    for key, run in statistics.items():
        values = np.array(run.get("Mean-Token-Depth-Spatial", ()), float)
        if values.size and _reduces(key) and key.partition("_")[0] not in NOT_MAPPED:
            found[key] = values.reshape(grids.get(key) or _square(values.size, key))
    return found


def _square(patches: int, key: str) -> tuple[int, int]:
    side = round(patches**0.5)
    if side**2 != patches:
        raise UsageError(f"the {patches} patches of {key!r} are no square; give the grid")
    return side, side


def _number(value: object) -> float:
    return np.nan if value is None else float(value)
