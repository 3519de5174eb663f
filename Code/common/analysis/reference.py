"""Runs compared pair by pair in the tables of "Which Tokens to Use?" (Haurum et al., 2023), with its numbers.

Three tables, one row per pair and for each block a few columns, means and population standard deviations over images:

    pruning         IoA and IoU of the kept patches
    cluster         homogeneity, completeness and NMI of the groups of patches
    cls_features    distances and canonical correlations of the CLS tokens

The reference names the axis "methods" "models"; there each pair stands in both orders. Runs are paired by the fields of
their settings: the reference's own filter finds keep rates as parts of names, takes 0.9 for 1.0, and mixes fixed
patterns over capacities, which is not repeated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd
from tqdm import tqdm

from common.analysis.clusters import agreement
from common.analysis.compare import Decisions, require_same_images
from common.analysis.features import cka, mean_cca, procrustes, pwcca
from common.analysis.pairs import differing, pairs
from common.analysis.sets import ioa, iou
from common.evaluation import Setting
from common.evaluation.names import PATTERNS, ratios
from common.reducers import Method

ReferenceAxis = Literal["rates", "capacity", "methods"]
NAMES = {"rates": "rates", "capacity": "capacity", "methods": "models"}  # of the axes, in the names of files
ANY_RATE = {"ats", *PATTERNS}  # methods that go with all others at whatever rate
# What changes places when the runs of a pair do.
_PARTNERS = {"Model A": "Model B", "Ratio A": "Ratio B", "Loc A": "Loc B", "Homogeneity": "Completeness"}
_PARTNERS |= {other: one for one, other in _PARTNERS.items()}

Values = tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """One of the tables.

    Attributes:
        part: of :class:`Decisions`, block by block.
        columns: of one block, which stands in the place of {}.
        measure: two runs and a block -> values of these columns.
    """

    part: str
    columns: tuple[str, ...]
    measure: Callable[[Decisions, Decisions, int], Values]


def _overlap(a: Decisions, b: Decisions, block: int) -> Values:
    masks = a.mask(block), b.mask(block)
    return (*_mean_and_sd(ioa(*masks)), *_mean_and_sd(iou(*masks)))


def _overlap_of_models(a: Decisions, b: Decisions, block: int) -> Values:
    return _mean_and_sd(iou(a.mask(block), b.mask(block)))


def _grouping(a: Decisions, b: Decisions, block: int) -> Values:
    found = agreement(a.groups[block], b.groups[block])
    return tuple(value for name in ("homogeneity", "completeness", "nmi") for value in _mean_and_sd(found[name]))


def _grouping_of_rates(a: Decisions, b: Decisions, block: int) -> Values:
    return _grouping(b, a, block)  # true groups are those of the lower rate


def _features(a: Decisions, b: Decisions, block: int) -> Values:
    x, y = a.cls[block].astype(np.float64), b.cls[block].astype(np.float64)
    return (
        pwcca(x, y, parity=True, few_images=True),
        mean_cca(x, y, squared=True, few_images=True),
        mean_cca(x, y, few_images=True),
        cka(x, y, debiased=False),
        procrustes(x, y),
    )


def _mean_and_sd(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std())


_OVERLAP = ("Stage-{}-Mean-IoA", "Stage-{}-std-IoA", "Stage-{}-Mean-IoU", "Stage-{}-std-IoU")
_GROUPING = tuple(
    f"{name}-Stage-{{}}-{of}" for name in ("Homogeneity", "Completeness", "NMI") for of in ("Mean", "std")
)
_FEATURES = ("{}-PWCCA", "{}-mean_sq_cca_corr", "{}-mean_cca_corr", "{}-CKA", "{}-Procrustes")
_SHARED = {
    "pruning": Comparison("kept", _OVERLAP, _overlap),
    "cluster": Comparison("groups", _GROUPING, _grouping),
    "cls_features": Comparison("cls", _FEATURES, _features),
}
COMPARISONS: Mapping[str, Mapping[str, Comparison]] = {
    "rates": {**_SHARED, "cluster": Comparison("groups", _GROUPING, _grouping_of_rates)},
    "capacity": _SHARED,
    "methods": {**_SHARED, "pruning": Comparison("kept", ("Stage-{}-Mean", "Stage-{}-std"), _overlap_of_models)},
}


def comparison_table(runs: Sequence[Decisions], axis: ReferenceAxis, kind: str) -> pd.DataFrame:
    """The table ``kind`` ("pruning", "cluster" or "cls_features") of all pairs along ``axis``; empty = no pair has it.

    Columns: ``Model A``, ``Model B`` (run keys); ``Ratio A``, ``Loc A``, ``Ratio B``, ``Loc B``, over capacities
    ``Ratio``, ``Loc``; then those of the table for every block that a pair shares, empty where a pair does not.

    Args:
        runs: of the same images.
    """
    table, rows = COMPARISONS[axis][kind], []
    for a, b in _pairs_with(runs, axis, table.part):
        row = _about(a.setting, b.setting, axis)
        blocks = sorted(getattr(a, table.part).keys() & getattr(b, table.part).keys())
        for block in blocks:
            names = [name.format(block) for name in table.columns]
            row |= dict(zip(names, table.measure(a, b, block), strict=True))
        rows += [row, exchanged(row)] if axis == "methods" else [row]
    return _in_order(rows, table.columns)


def reference_pairs(settings: Sequence[Setting], axis: ReferenceAxis) -> list[tuple[int, int]]:
    """Places (a, b) among ``settings`` of the runs that stand in the reference's tables along ``axis``.

    They are those of :func:`common.analysis.pairs`. Between methods ATS and fixed patterns also go with all others at
    other keep rates and blocks, where both reduce in one block or both in several.
    """
    found = pairs(settings, axis)
    if axis == "methods":
        found += [(a, b) for a, b in combinations(range(len(settings)), 2) if _at_any_rate(settings[a], settings[b])]
    return found


def _at_any_rate(a: Setting, b: Setting) -> bool:
    """Different methods at different rates or blocks, one of them among those that are compared all the same."""
    differs = differing(a, b)
    return (
        a.reduces
        and b.reduces
        and not ANY_RATE.isdisjoint(Method.parse(each.method).name for each in (a, b))
        and {"method"} < differs <= {"method", "keep_rate", "reduction_loc"}
        and (len(a.reduction_loc) > 1) == (len(b.reduction_loc) > 1)
    )


def exchanged(row: Mapping[str, object]) -> dict[str, object]:
    """The same pair with its runs in the other order; PWCCA stays what it was, as in the reference."""
    names = re.compile("|".join(_PARTNERS))
    return {names.sub(lambda found: _PARTNERS[found[0]], name, count=1): value for name, value in row.items()}


def ratio(setting: Setting) -> float | str:
    """The keep rate of a run, 1.0 without reduction; several, which the reference cannot read, joined as in its key."""
    rates = ratios(setting.keep_rate) if setting.reduces else [1.0]
    return rates[0] if len(rates) == 1 else "_".join(map(str, rates))


def location(setting: Setting) -> str:
    """The blocks of a run, as in its key."""
    return "_".join(map(str, setting.reduction_loc))


def _pairs_with(runs: Sequence[Decisions], axis: ReferenceAxis, part: str) -> Iterator[tuple[Decisions, Decisions]]:
    found = reference_pairs([run.setting for run in runs], axis)
    for first, second in tqdm(found, f"reference: {part}", leave=False):
        a, b = runs[first], runs[second]
        if getattr(a, part).keys() & getattr(b, part).keys():
            require_same_images(a, b)
            yield a, b


def _about(a: Setting, b: Setting, axis: ReferenceAxis) -> dict[str, object]:
    models = {"Model A": a.run_key, "Model B": b.run_key}
    if axis == "capacity":
        return {**models, "Ratio": ratio(a), "Loc": location(a)}
    return {**models, "Ratio A": ratio(a), "Loc A": location(a), "Ratio B": ratio(b), "Loc B": location(b)}


def _in_order(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> pd.DataFrame:
    """A table whose columns of blocks go from the first block to the last."""
    table = pd.DataFrame(list(rows))
    of_block = "|".join(re.escape(name).replace(r"\{\}", r"(?:\d+)") for name in columns)
    blocks = sorted({int(re.search(r"\d+", name)[0]) for name in table if re.fullmatch(of_block, name)})
    leading = [name for name in table if not re.fullmatch(of_block, name)]
    return table.reindex(columns=leading + [name.format(block) for block in blocks for name in columns])
