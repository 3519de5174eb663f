"""Tables of accuracies with methods down and keep rates across, and the ranks of the methods in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from common.report.sections import NONE, Section, counted, leader, method_label, number, percent, setting_title, spread
from common.report.summary.rows import SETTING

_COST_NOTE = (
    "Patch tokens left after each reduction, mean over images, and 10⁹ multiply-accumulates of one image, attention "
    "included. The same keep rate is not the same cost: methods reduce before a block, in it or after its attention."
)
_RANK_NOTE = (
    "In brackets the rank among the reduced models of the column, 1 = best; models equal as printed share one. "
    "Mean rank: over the keep rates, for models that were run at all of them."
)
_DIGITS = 2
_MODEL = ["method", "options"]


def off_the_shelf_sections(data: pd.DataFrame) -> Iterator[Section]:
    heads = (("accuracy", "classes of the dataset only"), ("accuracy_full", "all classes of the head"))
    for _, rows in data.groupby(SETTING["off_the_shelf"], sort=False, dropna=False):
        title, images = setting_title(rows), rows["n_val"].iloc[0]
        for name, head in heads:
            if rows[name].notna().any():
                note = f"Top-1 accuracy in percent on {images} images, no training; {head}."
                yield _ranked(f"{title}: {head}", rows, name, image_errors(rows, name), note)
        gmac = [number(value, 3) for value in rows["gmac"]]
        yield Section(f"{title}: GMAC per image, attention included", _pivot(rows, gmac))


def method_grid_sections(data: pd.DataFrame) -> Iterator[Section]:
    others = {"ema_accuracy": "running average of the weights, last epoch", "accuracy_best": "best epoch"}
    for _, rows in data.groupby(SETTING["method_grid"], sort=False, dropna=False):
        title, note = f"{setting_title(rows)}, {training_text(rows)}", _grid_note(rows)
        yield _ranked(title, rows, "accuracy", grid_errors(rows), note)
        cost = [f"{tokens} · {number(gmac, 3)}" for tokens, gmac in zip(rows["tokens"], rows["gmac"], strict=True)]
        yield Section(f"{title}: tokens left and GMAC per image", _pivot(rows, cost), (_COST_NOTE,))
        for name, what in others.items() if rows["epochs"].iloc[0] else ():
            if rows[name].notna().any():
                yield replace(_ranked(f"{title}: {what}", rows, name, seed_errors(rows, name), note), folded=True)


def training_text(rows: pd.DataFrame) -> str:
    """Whether the models of one setting of the grid were trained, and how much."""
    epochs, images = rows["epochs"].iloc[0], rows["n_train"].iloc[0]
    return f"after {counted(epochs, 'epoch')} on {images:,} images" if epochs else "off the shelf"


def image_errors(rows: pd.DataFrame, name: str) -> pd.Series:
    """Standard error of an accuracy (percent) that comes from counting right answers on ``n_val`` images."""
    return (rows[name] * (100 - rows[name]) / rows["n_val"].astype(float)) ** 0.5


def seed_errors(rows: pd.DataFrame, name: str) -> pd.Series:
    """Standard error of a mean over seeds; NaN for one seed."""
    return rows[f"{name}_sd"] / rows["n"] ** 0.5


def grid_errors(rows: pd.DataFrame) -> pd.Series:
    """Standard errors of ``accuracy`` in one setting of the grid: over seeds where it was trained, else over images."""
    return seed_errors(rows, "accuracy") if rows["epochs"].iloc[0] else image_errors(rows, "accuracy")


def ranks(rows: pd.DataFrame, name: str) -> pd.Series:
    """Place of every reduced model among those of its keep rate, 1 = best; equal as printed, equal in rank.

    NaN for the unreduced model, for keep rate 1 and where ``name`` is empty.
    """
    reduced = _reduced(rows)
    places = reduced[name].round(_DIGITS).groupby(reduced["keep_rate"]).rank(method="min", ascending=False)
    return places.reindex(rows.index)


def mean_ranks(rows: pd.DataFrame, name: str) -> pd.Series:
    """Mean over keep rates of :func:`ranks` by (method, options); NaN for a model without a value at one of them."""
    table = _reduced(rows.assign(rank=ranks(rows, name)))
    return table.pivot(index=_MODEL, columns="keep_rate", values="rank").mean(axis=1, skipna=False)


def _grid_note(rows: pd.DataFrame) -> str:
    row, seeds = rows.iloc[0], _seeds(rows)
    trained = f"{counted(row['epochs'], 'epoch')} of training on {row['n_train']:,} images, batch {row['batch']}"
    start = trained if row["epochs"] else "no training"
    spread_note = f"mean ± standard deviation over {seeds} seeds" if rows["n"].max() > 1 else "1 seed"
    return f"Top-1 accuracy in percent on {row['n_val']:,} images, classes of the dataset only; {start}; {spread_note}."


def _ranked(title: str, rows: pd.DataFrame, name: str, errors: pd.Series, note: str) -> Section:
    """Accuracies by method and keep rate with their ranks; the leader of each keep rate stands out."""
    rows = rows.assign(rank=ranks(rows, name), error=errors)
    frame = _pivot(rows, [_accuracy(row, name) for _, row in rows.iterrows()])
    place = {model: number for number, model in enumerate(_models(rows))}
    best = set()
    for rate, cells in _reduced(rows).groupby("keep_rate"):
        first = leader(cells[name], cells["error"])
        if first is not None:
            best.add((place[tuple(cells.iloc[first][_MODEL])], percent(rate)))
    means = mean_ranks(rows, name)
    frame["Mean rank"] = [number(means.get(model, float("nan"))) for model in place]
    if rows["n"].max() > 1:
        frame["Seeds"] = [_seeds(cells) for _, cells in rows.groupby(_MODEL, sort=False)]
    return Section(title, frame, (note, _RANK_NOTE), frozenset(best))


def _accuracy(row: pd.Series, name: str) -> str:
    text = spread(row[name], row[f"{name}_sd"], _DIGITS)
    return text if pd.isna(row["rank"]) else f"{text} ({row['rank']:.0f})"


def _seeds(rows: pd.DataFrame) -> str:
    return "-".join(dict.fromkeys(str(count) for count in (rows["n"].min(), rows["n"].max())))


def _pivot(rows: pd.DataFrame, cells: list[str]) -> pd.DataFrame:
    """``cells``, one for each of ``rows``, with methods down and keep rates across."""
    models = _models(rows)
    wide = rows.assign(cell=cells).pivot(index=_MODEL, columns="keep_rate", values="cell")
    wide = wide.reindex(pd.MultiIndex.from_tuples(models)).fillna(NONE)
    rates = sorted(rows["keep_rate"].unique(), reverse=True)
    columns = {percent(rate): wide[rate].tolist() for rate in rates}
    return pd.DataFrame({"Model": [method_label(*model) for model in models], **columns})


def _models(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return list(dict.fromkeys(zip(rows["method"], rows["options"], strict=True)))


def _reduced(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[(rows["method"] != "none") & (rows["keep_rate"] < 1)]
