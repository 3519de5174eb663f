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

PRUNING = ("topk", "evit", "dynamicvit", "ats")
STEADY = ("topk", "evit", "dynamicvit")  # the pruning methods that the paper calls consistent over keep rates
HARD, CENTRED, SOFT = ("tome", "kmedoids", "dpcknn"), ("kmedoids", "dpcknn"), ("patchmerger", "sinkhorn", "sit")
# Landis and Koch, "The Measurement of Observer Agreement for Categorical Data", Biometrics 1977: agreement beyond
# chance is moderate from 0.4 on, and at most slight up to 0.2.
MODERATE, SLIGHT = 0.4, 0.2
HIGH_CORRELATION, MODERATE_CORRELATION = 0.7, 0.4
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
    return _verdict(_over_rates(rows, methods, measure), **{"least" if consistent else "most": limit})


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


PATTERN_CLAIMS = {
    "pruning_over_rates": pruning_over_rates,
    "hard_clusters_over_rates": partial(over_rates, methods=HARD, measure="ami", consistent=True),
    "hard_centres_over_rates": partial(over_rates, methods=CENTRED, measure="iou_excess", consistent=False),
    "soft_over_rates": partial(over_rates, methods=SOFT, measure="ami", consistent=False),
    "fixed_patterns_overlap": fixed_patterns,
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
    known = rows[(rows["part"] == "rates") & rows["method"].isin(methods) & rows[measure].notna()]
    return _means(known.assign(label=show.labels(known)), measure)


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
