"""Tests of what "Which Tokens to Use?" says of reduction patterns, by the studies that measure them (``Study.claims``).

Each takes the rows of a table in one setting and gives a verdict, or None where what the claim is about is not there. A
mean of several numbers has the mean of the ends of their intervals as its own, which is wider than need be.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import pandas as pd

from common.evaluation.names import PATTERNS
from common.report import sections as show
from common.report.claims import Verdict, all_of, judge, span_text
from common.schedule import ratio_of
from common.studies._patterns import with_measure

PRUNING = ("topk", "evit", "dynamicvit", "ats")
STEADY = ("topk", "evit", "dynamicvit")  # the pruning methods that the paper calls consistent over keep rates
HARD, CENTRED, SOFT = ("tome", "kmedoids", "dpcknn"), ("kmedoids", "dpcknn"), ("patchmerger", "sinkhorn", "sit")
# Landis and Koch, "The Measurement of Observer Agreement for Categorical Data", Biometrics 1977: agreement beyond
# chance is moderate from 0.4 on, and at most slight up to 0.2.
MODERATE, SLIGHT = 0.4, 0.2
HIGH_CORRELATION, MODERATE_CORRELATION = 0.7, 0.4
STRONG, WEAK = ("topk", "evit", "ats"), ("dpcknn", "kmedoids", "dynamicvit")  # over data sets
_END = {True: "least", False: "most"}  # of what is consistent, and of what is not
Spans = dict[str, tuple[float, float, float]]  # by the name of a method: a mean and the ends of its interval


def pruning_over_rates(rows: pd.DataFrame) -> Verdict | None:
    """Top-K, EViT and DynamicViT keep the same patches at two keep rates, and ATS does not."""
    steady, ats = _over_rates(rows, STEADY, "iou_excess"), _over_rates(rows, ("ats",), "iou_excess")
    if not steady or not ats:
        return None
    outcomes = [*_outcomes(steady, least=MODERATE), *_outcomes(ats, most=MODERATE)]
    return Verdict(all_of(outcomes), _told(steady | ats))


def over_rates(
    rows: pd.DataFrame, *, methods: tuple[str, ...], measure: str, consistent: bool, limit: float = MODERATE
) -> Verdict | None:
    """Each of ``methods`` agrees with itself at two keep rates by at least (``consistent``) or at most ``limit``."""
    return _verdict(_over_rates(rows, methods, measure), **{_END[consistent]: limit})


def fixed_patterns(rows: pd.DataFrame) -> Verdict | None:
    """Each pruning method shares at most slightly more with the fixed patterns than chance."""
    pairs = rows[(rows["part"] == "methods") & rows["iou_excess"].notna()]
    other = pairs["other"].str.partition(":")[0]
    first = pairs[pairs["method"].isin(PRUNING) & other.isin(PATTERNS)]
    second = pairs[pairs["method"].isin(PATTERNS) & other.isin(PRUNING)]
    names = [*show.labels(first), *second["other"].map(show.written_label)]
    both = pd.concat([first, second]).assign(label=names)
    return _verdict(_means(both, "iou_excess"), most=SLIGHT)


def proxy(rows: pd.DataFrame, *, measure: str, least: float) -> Verdict | None:
    """After the last block, ``measure`` goes with the difference in accuracy, over methods and over keep rates."""
    known = rows[(rows["part"] == "correlation") & (rows["measure"] == measure) & rows["correlation"].notna()]
    spans: Spans = {}
    for pairs in ("of methods", "of keep rates"):
        cells = known[known["pairs"] == pairs]
        if len(cells):
            cell = cells.loc[cells["block"].astype(float).idxmax()]
            name = f"pairs {pairs}, block {cell['block']:.0f}, {show.counted(cell['n_models'], 'model')}:"
            spans[name] = _size(*(cell[f"correlation{end}"] for end in ("", "_low", "_high")))
    return _verdict(spans, least=least) if len(spans) == 2 else None


def over_capacity(
    rows: pd.DataFrame, *, methods: tuple[str, ...], measure: str, consistent: bool, above: float = 0.0
) -> Verdict | None:
    """Each of ``methods`` agrees with itself in another backbone at keep rates ``above``, by at least or most 0.4."""
    some = rows[(rows["part"] == "capacity") & (rows["keep_rate"].map(ratio_of) > above)]
    return _verdict(_of_methods(with_measure(some, measure), methods, measure), **{_END[consistent]: MODERATE})


def over_data(rows: pd.DataFrame) -> Verdict | None:
    """The maps of depth of Top-K, EViT and ATS correlate moderately over two data sets."""
    return _verdict(_correlations(rows, STRONG), least=MODERATE_CORRELATION)


def weaker_over_data(rows: pd.DataFrame) -> Verdict | None:
    """At no keep rate do those of DPC-KNN, K-Medoids and DynamicViT correlate as strongly as any of the others."""
    weak, strong = _correlations(rows, WEAK), _correlations(rows, STRONG)
    if not weak or not strong:
        return None
    behind = [_behind(one, other) for one in weak.values() for other in strong.values()]
    return Verdict(all_of(behind), _told(weak | strong))


PATTERN_CLAIMS = {
    "pruning_over_rates": pruning_over_rates,
    "hard_clusters_over_rates": partial(over_rates, methods=HARD, measure="ami", consistent=True),
    "hard_centres_over_rates": partial(over_rates, methods=CENTRED, measure="iou_excess", consistent=False),
    "soft_over_rates": partial(over_rates, methods=SOFT, measure="ami", consistent=False),
    "fixed_patterns_overlap": fixed_patterns,
}
ACROSS_CLAIMS = {
    "pruning_over_capacity": partial(over_capacity, methods=PRUNING, measure="iou_excess", consistent=False),
    "hard_clusters_over_capacity": partial(over_capacity, methods=HARD, measure="ami", consistent=True, above=0.25),
    "patchmerger_over_capacity": partial(
        over_capacity, methods=("patchmerger",), measure="ami", consistent=True, above=0.5
    ),
    "pruning_over_data": over_data,
    "others_weaker_over_data": weaker_over_data,
}
PROXY_CLAIMS = {
    "procrustes_and_accuracy": partial(proxy, measure="procrustes", least=HIGH_CORRELATION),
    "nmi_and_accuracy": partial(proxy, measure="nmi", least=HIGH_CORRELATION),
    "iou_and_accuracy": partial(proxy, measure="iou", least=MODERATE_CORRELATION),
}


def _size(value: float, low: float, high: float) -> tuple[float, float, float]:
    """The same without its sign: a similarity falls where a distance grows."""
    return (value, low, high) if value >= 0 else (-value, -high, -low)


def _over_rates(rows: pd.DataFrame, methods: Iterable[str], measure: str) -> Spans:
    """Agreement of each of ``methods`` with itself at another keep rate, mean over pairs of rates and blocks."""
    return _of_methods(rows[rows["part"] == "rates"], methods, measure)


def _correlations(rows: pd.DataFrame, methods: Iterable[str]) -> Spans:
    """Correlation of the maps of each of ``methods`` over two data sets, mean over keep rates."""
    return _of_methods(rows[rows["part"] == "datasets"], methods, "PCC")


def _of_methods(rows: pd.DataFrame, methods: Iterable[str], measure: str) -> Spans:
    known = rows[rows["method"].isin(methods) & rows[measure].notna()]
    return _means(known.assign(label=show.labels(known)), measure)


def _behind(one: tuple[float, float, float], other: tuple[float, float, float]) -> str:
    """Whether ``one`` is certainly less than ``other``: the difference of independent intervals, at its widest."""
    return judge(other[1] - one[2], other[2] - one[1], least=0.0)


def _means(rows: pd.DataFrame, measure: str) -> Spans:
    names = [measure, f"{measure}_low", f"{measure}_high"]
    means = rows.groupby("label", sort=False)[names].mean()
    return dict(zip(means.index, means.itertuples(index=False, name=None), strict=True))


def _verdict(spans: Spans, **limits: float) -> Verdict | None:
    return Verdict(all_of(_outcomes(spans, **limits)), _told(spans)) if spans else None


def _outcomes(spans: Spans, **limits: float) -> list[str]:
    return [judge(low, high, **limits) for _, low, high in spans.values()]


def _told(spans: Spans) -> str:
    return "; ".join(f"{name} {span_text(*span)}" for name, span in spans.items())
