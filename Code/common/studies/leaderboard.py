"""Which method for which budget: what each loses at the same cost, beside what chance and a smaller image lose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from common import plots
from common.budget import BudgetSolver, Solution, met
from common.cost.counter import count_macs
from common.reducers import Method, reducer_class
from common.reducers.base import divergence
from common.report import sections as show
from common.report.grids import lead_of, models_of, on_line, pivot
from common.report.paired import PAIRED, lead_text, paired_difference
from common.report.rows import SAMPLED, over_seeds
from common.report.sections import Answer, Section
from common.schema import REQUIRED, count, number, text
from common.setup import Setup
from common.studies.base import Study, register_study
from common.training import accuracies, predict
from common.training.metrics import hits_by_image

SETTING = ["dataset", "backbone", "weights", "recipe", "img_size", "dtype", "n_val"]
MODEL = ["method", "options"]
NULL_ROWS = ("random", "downsample")  # what a method has to beat
_MISSED = 0.005  # of the MAC: token counts are whole, so the last point of a line may lie a little off its budget
_EQUAL = "Read off the straight line between a method's two nearest measured points: token counts come in steps."
_GAIN = (
    "Points of accuracy above random patches at the same budget, mean paired difference over the images, ± half of its "
    "95 % interval (Student's t; of random the mean of its seeds). Stressed where the whole interval is above 0."
)


@register_study
class Leaderboard(Study):
    """Methods without training at equal multiply-accumulates, against the unreduced model and two null rows."""

    name, title = "leaderboard", "Which method for which budget"
    question = "At a given cost, which method loses least, and does it beat random patches and a smaller image?"
    place = 5
    columns = {
        "mac_cut": number("share of the unreduced model's multiply-accumulates to be saved", "share"),
        "saved": number("share that is saved, mean over images; token counts are whole", "share"),
        "counts": text("patch tokens left after each stage, by the schedule", optional=True),
        "gmac": number("multiply-accumulates of an image, attention and scoring included", "GMAC"),
        "accuracy": number("top-1 with the head restricted to the classes of the dataset", "percent"),
        "accuracy_full": number("top-1 among all classes of the head, where it has others", "percent", optional=True),
        "agreement": number("share of images with the unreduced model's first class among all of the head", "share"),
        "divergence": number("Kullback-Leibler divergence from the unreduced model over all classes, mean, nats"),
        "n_val": count("validation images"),
    }
    required = (*REQUIRED, "dataset", "seed")
    setting = SETTING
    own_page = "leaderboard.html"
    captions = {
        "": "Accuracy against the share of multiply-accumulates that is saved. Dotted: random patches, the range of "
        "their seeds shaded, and a smaller image."
    }

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Accuracies (percent) at each budget with paired differences (points) from the unreduced model and random.

        ``equal`` is the accuracy among all classes of the head, where there are others, read off the line through the
        points of a method where it saves what the budget says, NaN beyond them; ``lost`` and ``gain`` are of it.
        """
        key = [*SETTING, *MODEL, "mac_cut"]
        metrics = ["accuracy", "accuracy_full", "agreement", "divergence", "saved", "gmac"]
        found = over_seeds(runs, key, metrics, compared=metrics[:2])
        first = runs.groupby(key, dropna=False, sort=False)[["keep_rate", "counts"]].first().reset_index()
        found = found.merge(first, on=key)
        parts = [self._compared(rows) for _, rows in found.groupby(SETTING, sort=False, dropna=False)]
        return pd.concat(parts, ignore_index=True)

    def _compared(self, rows: pd.DataFrame) -> pd.DataFrame:
        name = judged(rows)
        rows = _at_budgets(rows, name)
        whole = rows[rows["method"] == "none"]
        differences = []
        for _, row in rows.iterrows():
            chance = rows[(rows["method"] == "random") & (rows["mac_cut"] == row["mac_cut"])]
            lost = _difference(row, whole) if row["method"] != "none" else (None,) * 3
            gain = _difference(row, chance) if row["method"] != "random" else (None,) * 3
            family = reducer_class(row["method"]).family if row["method"] != "none" else ""
            differences.append([judged_name(name), *lost, *gain, family])
        columns = ["judged", "lost", "lost_low", "lost_high", "gain", "gain_low", "gain_high", "family"]
        rows = rows.assign(**pd.DataFrame(differences, columns=columns, index=rows.index))
        behind = rows.groupby("mac_cut")["equal"].transform("max") - rows["equal"]
        order = behind.groupby([rows[each] for each in MODEL]).transform("mean")
        rows = rows.assign(_order=order.where(rows["method"] != "none", -1.0))
        return rows.sort_values(["_order", *MODEL, "mac_cut"], kind="stable").drop(columns="_order")

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            title, reduced = show.setting_title(rows), rows[rows["method"] != "none"].reset_index(drop=True)
            if reduced.empty:
                continue
            yield _accuracy_section(title, rows, reduced)
            if reduced["gain"].notna().any():
                yield _gain_section(f"{title}: above random patches", reduced[reduced["gain"].notna()])
            apart, costs = show.numbers(reduced["divergence"]), show.numbers(reduced["gmac"], 4)
            note = "Kullback-Leibler divergence from the unreduced model over all classes of its head, nats; no labels."
            yield Section(f"{title}: divergence", pivot(reduced, apart, "mac_cut"), (note,), folded=True)
            pairs = [f"{rate} · {cost}" for rate, cost in zip(reduced["keep_rate"], costs, strict=True)]
            note = "The keep rate that a budget means for each method, and 10⁹ multiply-accumulates of an image."
            yield Section(f"{title}: keep rates and GMAC", pivot(reduced, pairs, "mac_cut"), (note,), folded=True)

    def figures(self, runs: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Figure]]:
        yield "", plots.accuracy_at_budget(runs, value=judged(runs))

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            name, points = judged(rows), []
            reduced = rows[rows["method"] != "none"]
            if reduced.empty:
                continue
            for cut, cells in reduced[reduced["equal"].notna()].groupby("mac_cut"):
                points.append(f"{100 * cut:g} % saved: {_leader(cells, name)}; {_against_nulls(cells)}")
            images = f"{rows['n_val'].iloc[0]:,} images, {rows['judged'].iloc[0]}"
            yield Answer(f"On {show.where_text(rows)}, off the shelf, {images}:", tuple(points))

    def measured_on(self, rows: pd.DataFrame) -> str:
        return f"{show.where_text(rows)}, off the shelf, {rows['n_val'].iloc[0]:,} images"

    def missing(self, runs: pd.DataFrame) -> list[str]:
        found = []
        for _, rows in runs.groupby(SETTING, dropna=False):
            reduced = rows[rows["method"] != "none"]
            there = set(zip(*(reduced[name] for name in (*MODEL, "mac_cut")), strict=True))
            cuts = sorted(reduced["mac_cut"].unique())
            for model in models_of(reduced):
                gone = [f"{100 * cut:g} %" for cut in cuts if (*model, cut) not in there]
                found += [f"{show.method_label(*model)} at {', '.join(gone)} of the MAC saved"] if gone else []
        return found


def judged(rows: pd.DataFrame) -> str:
    """The accuracy that tells methods apart: among all classes of the head where there are others."""
    return "accuracy_full" if rows["accuracy_full"].notna().any() else "accuracy"


def judged_name(name: str) -> str:
    return {"accuracy": "classes of the dataset", "accuracy_full": "all classes of the head"}[name]


def _at_budgets(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """``rows`` with ``equal``, ``name`` at what the budgets say, and ``equal_samples``, its values image by image."""
    whole, found = rows[rows["method"] == "none"], []
    for _, row in rows.iterrows():
        points = rows[(rows["method"] == row["method"]) & (rows["options"] == row["options"])]
        begins = Method.of_table(row["method"], row["options"]).begins_whole and row["method"] != "none"
        points = (pd.concat([whole, points]) if begins else points).sort_values("gmac", kind="stable")
        unreduced = row["gmac"] / (1 - row["saved"])
        found.append(on_line(points, unreduced * (1 - row["mac_cut"]), name, _MISSED * unreduced))
    samples = pd.Series([values for _, values in found], index=rows.index, dtype=object)
    return rows.assign(equal=[value for value, _ in found], equal_samples=samples)


def _difference(row: pd.Series, other: pd.DataFrame) -> tuple[float | None, ...]:
    """Points of ``row`` above the one row of ``other`` over the same images, with its interval; Nones where none is."""
    if len(other) != 1 or row[SAMPLED] != other[SAMPLED].iloc[0]:
        return None, None, None
    if row["equal_samples"] is None or other["equal_samples"].iloc[0] is None:
        return None, None, None
    return paired_difference(row["equal_samples"], other["equal_samples"].iloc[0])


def _accuracy_section(title: str, rows: pd.DataFrame, reduced: pd.DataFrame) -> Section:
    """Accuracies by method and budget; a certain leader of a budget stands out."""
    name, whole = judged(rows), rows[rows["method"] == "none"]
    note = f"Top-1 accuracy in percent on {rows['n_val'].iloc[0]:,} images, no training; {rows['judged'].iloc[0]}"
    note += f"; the unreduced model: {whole[name].iloc[0]:.2f}" if len(whole) else ""
    leads = [(cells, lead_of(cells)) for _, cells in reduced.groupby("mac_cut")]
    best = [cells.iloc[lead.place] for cells, lead in leads if lead is not None and lead.certain]
    texts = [show.spread(row["equal"], row[f"{name}_sd"]) for _, row in reduced.iterrows()]
    notes = (f"{note}. Columns: share of the multiply-accumulates saved. {_EQUAL}", PAIRED)
    return Section(title, pivot(reduced, texts, "mac_cut"), notes, _places(reduced, best))


def _gain_section(title: str, rows: pd.DataFrame) -> Section:
    """Gains over random patches; those that are certain stand out."""
    sure = [row for _, row in rows[rows["gain_low"] > 0].iterrows()]
    texts = [_gain(row) for _, row in rows.iterrows()]
    return Section(title, pivot(rows, texts, "mac_cut"), (_GAIN,), _places(rows, sure))


def _places(rows: pd.DataFrame, chosen: Sequence[pd.Series]) -> frozenset[tuple[int, str]]:
    """Where the ``chosen`` of ``rows`` stand in their table."""
    models = models_of(rows)
    return frozenset((models.index(tuple(row[MODEL])), show.percent(row["mac_cut"])) for row in chosen)


def _gain(row: pd.Series) -> str:
    if pd.isna(row["gain_low"]):
        return f"{row['gain']:+.1f}"
    return f"{row['gain']:+.1f} ± {(row['gain_high'] - row['gain_low']) / 2:.1f}"


def _leader(cells: pd.DataFrame, name: str) -> str:
    """The best method that chooses, and how sure that is."""
    best = cells.loc[cells["equal"].idxmax()]
    lead = lead_of(cells)
    sure = "" if lead is None else lead_text(lead, show.labels(cells))
    return f"{show.model_name(best)} {show.spread(best['equal'], best[f'{name}_sd'])}{sure}"


def _against_nulls(cells: pd.DataFrame) -> str:
    """How many methods are surely better than each of the null rows."""
    texts = []
    for null in NULL_ROWS:
        other = cells[cells["method"] == null]
        if len(other) != 1:
            continue
        methods = cells[~cells["method"].isin(NULL_ROWS)]
        found = [_difference(row, other) for _, row in methods.iterrows()]
        better = sum(low is not None and low > 0 for _, low, _ in found)
        texts.append(f"{better} of {len(found)} surely above {show.method_label(null)} ({other['equal'].iloc[0]:.2f})")
    return ", ".join(texts) or "neither null row was run"


def measure(
    setup: Setup, reducers: Sequence[str], mac_cuts: Sequence[float], seeds: Sequence[int] = (0,)
) -> Iterator[dict[str, object]]:
    """A row for every method at every budget, on the weights of one backbone; "none" is the unreduced model, once.

    Each method takes one pass over the images with all its budgets. A budget that a method cannot meet has no row, and
    a line on stderr says so.

    Args:
        reducers: methods in their written form.
        mac_cuts: shares of the multiply-accumulates to save.
        seeds: of methods that draw by an option ``seed`` which their written form leaves open.

    Example:
        >>> setup = Setup("vit_digits", "", "digits", img_size=32, limit_val=20)
        >>> [(row["method"], row["keep_rate"], row["counts"]) for row in measure(setup, ["none", "topk"], [0.2])]
        [('none', 1.0, None), ('topk', 0.8749, '55 48 42')]
    """
    loader, constant = setup.loader(setup.val_set), {"epochs": 0, "n_train": 0, "n_val": len(setup.val_set)}
    predictions, labels = predict({"none": setup.reduced("none")}, loader)
    whole = predictions["none"].logits
    if "none" in reducers:
        yield {**_unreduced(setup), **constant, "seed": setup.seed, **_measures(whole, whole, labels, setup)}
    for method, seed in _drawn(reducers, setup.seed, seeds):
        solutions = dict(_solutions(setup, method.seeded(seed), mac_cuts))
        if not solutions:
            continue
        text = str(method.seeded(seed))
        models = {cut: setup.reduced(text, keep_rate=found.keep_rate) for cut, found in solutions.items()}
        predictions, _ = predict(models, loader)
        for cut, found in solutions.items():
            row = {"method": method.name, "options": method.options_text, "keep_rate": found.keep_rate, "mac_cut": cut}
            row |= {"saved": found.mac_cut, "gmac": found.gmac, "counts": " ".join(map(str, found.counts))}
            yield {**row, **constant, "seed": seed, **_measures(predictions[cut].logits, whole, labels, setup)}


def _unreduced(setup: Setup) -> dict[str, object]:
    cost = count_macs(setup.vit, setup.vit.patch_embed.img_size).total / 1e9
    first = {"method": "none", "options": "", "keep_rate": 1.0, "counts": None}
    return {**first, "mac_cut": 0.0, "saved": 0.0, "gmac": cost}


def _drawn(reducers: Sequence[str], seed: int, seeds: Sequence[int]) -> Iterator[tuple[Method, int]]:
    """The methods that reduce, those that draw once for each of ``seeds``."""
    for method in map(Method.parse, (written for written in reducers if written != "none")):
        yield from ((method, each) for each in (seeds if method.leaves_seed else [seed]))


def _solutions(setup: Setup, method: Method, mac_cuts: Sequence[float]) -> list[tuple[float, Solution]]:
    adaptive = reducer_class(method.name).adaptive
    images = setup.cost_images() if adaptive else None
    solver = BudgetSolver(setup.vit, method.name, images=images, **dict(method.options))
    return met(mac_cuts, lambda cut: solver.solve(mac_cut=cut))


def _measures(logits: Tensor, whole: Tensor, labels: Tensor, setup: Setup) -> dict[str, object]:
    """What the rows of a model say about its ``logits`` (n, classes) beside those of the unreduced model."""
    same = (logits.argmax(1) == whole.argmax(1)).double().mean().item()
    found = accuracies(logits, labels, setup.val_set) | hits_by_image(logits, labels, setup.val_set)
    return {**found, "agreement": same, "divergence": divergence(logits, whole).item()}
