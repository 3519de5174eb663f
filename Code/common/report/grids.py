"""Tables of accuracies with methods down and keep rates across, compared at equal cost."""

from __future__ import annotations

import numpy as np
import pandas as pd

from common.report import sections as show
from common.report.paired import NOT_PAIRED, ONE_SEED, PAIRED, Lead, lead_text, paired_leader
from common.report.rows import SAMPLED, SAMPLES
from common.report.sections import Answer, Section

RANK_NOTE = (
    "In brackets the rank at equal cost, 1 = best; equal as printed, equal in rank. At equal cost: accuracies are read "
    "off a line through a model's own points and the unreduced model, at the GMAC of the dearest model that is at most "
    "a quarter above the column's median; \u2020 is dearer and not ranked. Mean rank: over the keep rates."
)
_DEARER = 1.25  # times the median cost of a keep rate: what costs more is not compared there
_DIGITS = 2
_MODEL = ["method", "options"]


def at_equal_cost(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """``rows`` with ``equal``, what ``name`` is at a cost that the reduced models of a keep rate share.

    A model's line goes through its own points and that of the unreduced model. The cost is that of the dearest model
    that is at most a quarter above the median, so that every model up to there has points on both sides; ``equal`` is
    NaN for dearer ones and for the unreduced model. ``equal_samples`` are its values one by one, mixed alike.
    """
    reduced = rows[show.is_reduced(rows)]
    targets = reduced.groupby("keep_rate")["gmac"].agg(lambda costs: costs[costs <= _DEARER * costs.median()].max())
    lines = {
        model: pd.concat([rows[rows["method"] == "none"], points]).sort_values("gmac", kind="stable")
        for model, points in reduced.groupby(_MODEL)
    }
    found = [on_line(lines[tuple(row[_MODEL])], targets[row["keep_rate"]], name) for _, row in reduced.iterrows()]
    equal = pd.Series([value for value, _ in found], index=reduced.index, dtype=float)
    samples = pd.Series([values for _, values in found], index=reduced.index, dtype=object)
    return rows.assign(equal=equal, equal_samples=samples)


def on_line(points: pd.DataFrame, gmac: float, name: str, missed: float = 0.0) -> tuple[float, np.ndarray | None]:
    """Value, and its samples, of the line through ``points``, in the order of their cost, at ``gmac``.

    NaN beyond its ends, off which ``gmac`` may lie by ``missed``.
    """
    costs = points["gmac"].to_numpy(float)
    nearest = min(max(gmac, costs[0]), costs[-1])
    gmac = nearest if abs(nearest - gmac) <= missed else gmac
    above = int(np.searchsorted(costs, gmac * (1 - 1e-9)))
    if above == len(costs) or (above == 0 and costs[0] > gmac * (1 + 1e-9)):
        return float("nan"), None
    below = max(above - 1, 0)
    span = costs[above] - costs[below]
    weight = 1.0 if span == 0 else min((gmac - costs[below]) / span, 1.0)
    pair = points.iloc[[below, above]]
    mixed = np.array([1 - weight, weight])
    samples = pair.get(name + SAMPLES)
    alike = samples is not None and samples.notna().all() and pair[SAMPLED].nunique() == 1
    return float(mixed @ pair[name].to_numpy(float)), mixed @ np.stack(list(samples)) if alike else None


def lead_of(rows: pd.DataFrame) -> Lead | None:
    """The leader by ``equal`` among models that have it; ``place`` is among ``rows``. None without paired samples."""
    known = np.flatnonzero(rows["equal"].notna())
    samples = [rows["equal_samples"].iloc[place] for place in known]
    if len(known) < 2 or any(values is None for values in samples) or rows[SAMPLED].iloc[known].nunique() != 1:
        return None
    lead = paired_leader(samples)
    return lead and Lead(int(known[lead.place]), int(known[lead.other]), lead.difference, lead.low, lead.high)


def ranks(rows: pd.DataFrame) -> pd.Series:
    """Place by ``equal`` of every reduced model among those of its keep rate, 1 = best; equal as printed share one.

    NaN for the unreduced model, for keep rate 1 and where ``equal`` is empty.
    """
    reduced = rows[show.is_reduced(rows)]
    places = reduced["equal"].round(_DIGITS).groupby(reduced["keep_rate"]).rank(method="min", ascending=False)
    return places.reindex(rows.index)


def mean_ranks(rows: pd.DataFrame) -> pd.Series:
    """Mean over keep rates of :func:`ranks` by (method, options); NaN for a model that one of them does not rank."""
    table = rows.assign(rank=ranks(rows))[show.is_reduced(rows)]
    return table.pivot(index=_MODEL, columns="keep_rate", values="rank").mean(axis=1, skipna=False)


def ranked(title: str, rows: pd.DataFrame, name: str, note: str) -> Section:
    """Accuracies by method and keep rate with their ranks at equal cost; a certain leader of a keep rate stands out."""
    rows = at_equal_cost(rows, name).reset_index(drop=True)
    rows = rows.assign(rank=ranks(rows))
    frame = pivot(rows, [_accuracy(row, name) for _, row in rows.iterrows()])
    models = models_of(rows)
    columns = dict(list(rows[show.is_reduced(rows)].groupby("keep_rate")))
    leads = {rate: lead for rate, cells in columns.items() if (lead := lead_of(cells)) is not None}
    best = {
        (models.index(tuple(columns[rate].iloc[lead.place][_MODEL])), show.percent(rate))
        for rate, lead in leads.items()
        if lead.certain
    }
    means = mean_ranks(rows)
    frame["Mean rank"] = show.numbers(pd.Series([means.get(model, float("nan")) for model in models]), 2)
    if rows["n"].max() > 1:
        frame["Seeds"] = [seeds_text(cells) for _, cells in rows.groupby(_MODEL, sort=False)]
    return Section(title, frame, (note, RANK_NOTE, PAIRED if leads else _why_no_lead(rows)), frozenset(best))


def _why_no_lead(rows: pd.DataFrame) -> str:
    by_seeds = rows[SAMPLED].fillna("").str.startswith("seeds ").any()
    return ONE_SEED if by_seeds and rows["n"].max() == 1 else NOT_PAIRED


def _accuracy(row: pd.Series, name: str) -> str:
    text = show.spread(row[name], row[f"{name}_sd"], _DIGITS)
    if pd.notna(row["rank"]):
        return f"{text} ({row['rank']:.0f})"
    unranked = show.is_reduced(row.to_frame().T).item() and pd.notna(row[name])
    return f"{text} \u2020" if unranked else text


def best_answer(rows: pd.DataFrame, name: str, context: str, *, cost: bool = False) -> Answer:
    """The accuracy ``name`` of the unreduced model, and at each keep rate the best method and its distance.

    Args:
        cost: compare at equal cost; otherwise as measured.
    """
    rows = at_equal_cost(rows, name) if cost else rows.assign(equal=rows[name], equal_samples=rows[name + SAMPLES])
    baseline = rows[rows["method"] == "none"]
    reference = baseline[name].iloc[0] if len(baseline) else float("nan")
    start = "the unreduced model was not run"
    if len(baseline):
        start = f"{_value(baseline.iloc[0], name)} without reduction"
    points = []
    for keep_rate, cells in rows[show.is_reduced(rows) & rows["equal"].notna()].groupby("keep_rate", sort=False):
        best = cells.loc[cells["equal"].idxmax()]
        lost = "" if pd.isna(reference) else f", {_difference(best[name] - reference)}"
        where = f"highest at equal cost, {_value(best, name)}" if cost else f"highest, {_value(best, name)}"
        sure = lead_text(lead_of(cells), show.labels(cells)) if len(cells) > 1 else ""
        points.append(f"keep {show.percent(keep_rate)}: {show.model_name(best)} is {where}{lost}{sure}")
    return Answer(f"{context}: {start}.", tuple(points))


def _value(row: pd.Series, name: str) -> str:
    return f"{show.spread(row[name], row[f'{name}_sd'])} % ({show.counted(row['n'], 'seed')})"


def _difference(points: float) -> str:
    if abs(points) < 0.005:  # as printed
        return "no difference"
    return f"{show.number(abs(points), 2)} points {'lower' if points < 0 else 'higher'}"


def seeds_text(rows: pd.DataFrame) -> str:
    return "-".join(dict.fromkeys(str(count) for count in (rows["n"].min(), rows["n"].max())))


def pivot(rows: pd.DataFrame, cells: list[str], across: str = "keep_rate") -> pd.DataFrame:
    """``cells``, one for each of ``rows``, with methods down and keep rates, or other shares, across."""
    models = models_of(rows)
    wide = rows.assign(cell=cells).pivot(index=_MODEL, columns=across, values="cell")
    wide = wide.reindex(pd.MultiIndex.from_tuples(models)).fillna(show.NONE)
    values = show.falling(rows[across]) if across == "keep_rate" else sorted(rows[across].unique())
    columns = {show.percent(value): wide[value].tolist() for value in values}
    return pd.DataFrame({"Model": [show.method_label(*model) for model in models], **columns})


def models_of(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """(method, options) of ``rows``, each once, in their order."""
    return list(dict.fromkeys(zip(rows["method"], rows["options"], strict=True)))
