"""Tables of accuracies with methods down and keep rates across, and the ranks of the methods in them."""

from __future__ import annotations

import pandas as pd

from common.report.sections import NONE, Section, falling, is_reduced, leader, method_label, number, percent, spread

_RANK_NOTE = (
    "In brackets the rank among the reduced models of the column, 1 = best; models equal as printed share one. "
    "Mean rank: over the keep rates, for models that were run at all of them."
)
_DIGITS = 2
_MODEL = ["method", "options"]


def image_errors(rows: pd.DataFrame, name: str) -> pd.Series:
    """Standard error of an accuracy (percent) that comes from counting right answers on ``n_val`` images."""
    return (rows[name] * (100 - rows[name]) / rows["n_val"].astype(float)) ** 0.5


def seed_errors(rows: pd.DataFrame, name: str) -> pd.Series:
    """Standard error of a mean over seeds; NaN for one seed."""
    return rows[f"{name}_sd"] / rows["n"] ** 0.5


def ranks(rows: pd.DataFrame, name: str) -> pd.Series:
    """Place of every reduced model among those of its keep rate, 1 = best; equal as printed, equal in rank.

    NaN for the unreduced model, for keep rate 1 and where ``name`` is empty.
    """
    reduced = rows[is_reduced(rows)]
    places = reduced[name].round(_DIGITS).groupby(reduced["keep_rate"]).rank(method="min", ascending=False)
    return places.reindex(rows.index)


def mean_ranks(rows: pd.DataFrame, name: str) -> pd.Series:
    """Mean over keep rates of :func:`ranks` by (method, options); NaN for a model without a value at one of them."""
    table = rows.assign(rank=ranks(rows, name))[is_reduced(rows)]
    return table.pivot(index=_MODEL, columns="keep_rate", values="rank").mean(axis=1, skipna=False)


def ranked(title: str, rows: pd.DataFrame, name: str, errors: pd.Series, note: str) -> Section:
    """Accuracies by method and keep rate with their ranks; the leader of each keep rate stands out."""
    rows = rows.assign(rank=ranks(rows, name), error=errors)
    frame = pivot(rows, [_accuracy(row, name) for _, row in rows.iterrows()])
    place = {model: number for number, model in enumerate(_models(rows))}
    best = set()
    for rate, cells in rows[is_reduced(rows)].groupby("keep_rate"):
        first = leader(cells[name], cells["error"])
        if first is not None:
            best.add((place[tuple(cells.iloc[first][_MODEL])], percent(rate)))
    means = mean_ranks(rows, name)
    frame["Mean rank"] = [number(means.get(model, float("nan"))) for model in place]
    if rows["n"].max() > 1:
        frame["Seeds"] = [seeds_text(cells) for _, cells in rows.groupby(_MODEL, sort=False)]
    return Section(title, frame, (note, _RANK_NOTE), frozenset(best))


def _accuracy(row: pd.Series, name: str) -> str:
    text = spread(row[name], row[f"{name}_sd"], _DIGITS)
    return text if pd.isna(row["rank"]) else f"{text} ({row['rank']:.0f})"


def seeds_text(rows: pd.DataFrame) -> str:
    return "-".join(dict.fromkeys(str(count) for count in (rows["n"].min(), rows["n"].max())))


def pivot(rows: pd.DataFrame, cells: list[str]) -> pd.DataFrame:
    """``cells``, one for each of ``rows``, with methods down and keep rates across."""
    models = _models(rows)
    wide = rows.assign(cell=cells).pivot(index=_MODEL, columns="keep_rate", values="cell")
    wide = wide.reindex(pd.MultiIndex.from_tuples(models)).fillna(NONE)
    rates = falling(rows["keep_rate"])
    columns = {percent(rate): wide[rate].tolist() for rate in rates}
    return pd.DataFrame({"Model": [method_label(*model) for model in models], **columns})


def _models(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return list(dict.fromkeys(zip(rows["method"], rows["options"], strict=True)))
