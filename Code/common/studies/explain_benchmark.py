"""How good explanations are, by insertion and deletion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from common import plots
from common.explain.base import create_explainer, explainer_columns
from common.explain.explanations import Explanations, Quality
from common.explain.mutex import MASKS, only_masks
from common.explain.quality import max_sensitivity, sparseness
from common.plots.mutex_studies import MASK_KINDS, MASK_NAMES, PARAMETERS, masks_of_kind
from common.plots.style import explainer_label
from common.report.paired import NOT_PAIRED, PAIRED, Lead, lead_text, leader_of
from common.report.rows import VARIANT
from common.report.sections import NONE, Answer, Section, counted, numbers, spread, where_text, with_errors
from common.results import BY_IMAGE
from common.schedule import ratio_of
from common.schema import REQUIRED, SEM, count, means, number, text
from common.studies import _explained as explained
from common.studies.base import Study, register_study
from common.training.metrics import means_with_errors

REFERENCE = "random"  # what gains are over
_TABLE = [*explained.SETTING, "baseline", "n_images", "seed"]
_MASKS = [f"{group}={kind}" for group, kinds in MASK_KINDS.items() for kind in kinds]
_SIGNIFICANT = 0.05
_NOTES = {
    "Insertion gain": "Gain: mean difference to random heat on the same images, positive = better, for insertion and "
    "for deletion; p: two-sided paired t test, not corrected for the number of rows.",
    "Pointing game": "Pointing game: share of images whose hottest patch lies in the box around the object; mass in "
    "box: share of the positive heat inside it. Higher is better in both.",
    "Sparseness": "Sparseness: Gini index of the heat, higher = on fewer patches; that is no merit by itself.",
    "Max-sensitivity": "Max-sensitivity: largest relative move of the heat under small noise in the image, mean over a "
    "few of the images; lower = steadier.",
}
# What leads where, by the largest or the smallest mean.
_LEADING = {"insertion_auc": ("Insertion AUC", "highest"), "deletion_auc": ("Deletion AUC", "lowest")}
Row = dict[str, object]


def quality_row(found: Explanations, part: str, explainer: str, quality: Quality) -> Row:
    """A row of the table "explain_benchmark"."""
    columns = explainer_columns(explainer)
    gains = {} if columns["method"] == REFERENCE else quality.gain_over(found.quality(REFERENCE))
    return {
        "part": part,
        **columns,
        "reducer": found.reducer,
        "keep_rate": found.keep_rate,
        "baseline": found.baseline,
        **quality.summary(),
        **gains,
        "insertion_auc" + BY_IMAGE: quality.insertion_auc.numpy(),
        "deletion_auc" + BY_IMAGE: quality.deletion_auc.numpy(),
    }


def explainer_rows(
    found: Explanations, explainers: Sequence[str], part: str = "explainers", *, num_sensitive: int = 0
) -> Iterator[Row]:
    """All explainers on the same images.

    Args:
        num_sensitive: for how many images, from the first on, max-sensitivity is measured.
    """
    for explainer in tqdm(explainers, part):
        row = quality_row(found, part, explainer, found.quality(explainer)) | {"seconds": found.seconds(explainer)}
        row |= means_with_errors(sparseness=sparseness(found.explain(explainer).heatmaps))
        if num_sensitive:
            row |= means_with_errors(max_sensitivity=_sensitivity(found, explainer, num_sensitive))
        yield row


def _sensitivity(found: Explanations, explainer: str, images: int) -> Tensor:
    made = create_explainer(explainer, found.model, batch_size=found.setup.batch_size)
    pixels = found.dataset.stack(range(min(images, len(found.dataset))))
    return max_sensitivity(made, pixels, found.labels[: len(pixels)], seed=found.setup.seed)


def parameter_rows(found: Explanations, values: Mapping[str, Sequence[float]]) -> Iterator[Row]:
    """MUTEX with one parameter changed at a time: name -> values."""
    for name, choices in values.items():
        for value in choices:
            (row,) = explainer_rows(found, [f"mutex:{name}={value}"], "parameters")
            yield row | {"parameter": name, "value": value}


def mask_rows(found: Explanations) -> Iterator[Row]:
    """MUTEX with all masks, and with only those of one aggregation, one degree or one statistic.

    The masks, and what the model says to each, are those of one run.
    """
    explanation = found.explain("mutex")
    yield quality_row(found, "masks", "mutex", found.quality("mutex")) | {"masks": "all"}
    for masks in _MASKS:
        group, _, kind = masks.partition("=")
        chosen = [number for number, mask in enumerate(MASKS) if mask[list(MASK_KINDS).index(group)] == kind]
        quality = found.measure(only_masks(explanation, chosen))
        yield quality_row(found, "masks", "mutex", quality) | {"masks": masks}


def reduced_rows(
    found: Explanations, reducers: Sequence[str], keep_rate: float, explainers: Sequence[str]
) -> Iterator[Row]:
    """The backbone reduced in several ways, each explained and measured by itself."""
    for reducer in reducers:
        yield from explainer_rows(found.reduced(reducer, keep_rate), explainers, "reduced")


@register_study
class ExplainBenchmark(Study):
    """Whether what a model says hangs on the patches that an explainer calls hot."""

    name, title = "explain_benchmark", "How good are the explanations?"
    question = "Does what the model says hang on the patches that an explainer calls hot?"
    place = 110
    columns = {
        "part": text("what is compared"),
        "reducer": explained.REDUCER,
        "parameter": text("of MUTEX that is changed").only("parameters"),
        "value": number("of this parameter").only("parameters"),
        "masks": text("of MUTEX that are used: all, or those of one group=kind").only("masks"),
        "baseline": explained.BASELINE,
        "n_images": count("that are explained"),
        **means(
            insertion_auc=number("area under the curve of insertion", "share"),
            deletion_auc=number("area under the curve of deletion", "share"),
            insertion_gain=number("insertion_auc minus that of random heat", "difference", optional=True),
            deletion_gain=number("deletion_auc of random heat minus this", "difference", optional=True),
        ),
        "insertion_p": number("two-sided p of the paired t test of insertion_gain", "share", optional=True),
        "deletion_p": number("two-sided p of the paired t test of deletion_gain", "share", optional=True),
        **means(
            pointing=number("hottest patches inside the box of the object", "share", optional=True),
            mass=number("positive heat inside the box", "share", optional=True),
            sparseness=number("Gini index of the heat", "share", optional=True),
            max_sensitivity=number("largest relative move of the heat under noise", "ratio", optional=True),
        ),
        "seconds": number("that explaining takes per image", "s", optional=True),
    }
    required = (*REQUIRED, "dataset")
    parts = ("explainers", "parameters", "masks", "reduced")
    setting = _TABLE
    captions = {
        "": "Means over the images while patches are shown or removed, the hottest first. Bands: one standard error.",
        "plane": "Every explainer by its areas under deletion and insertion, means over images. Bars: one standard "
        "error. Shaded: better than random heat in both.",
        "parameters": "MUTEX with one parameter changed at a time, means over images. Bars: one standard error.",
        "masks": "MUTEX with only the masks of one kind. Bars: one standard error over images. Band: all 54 masks.",
    }
    run_figures = "*/curves.png"
    explains = True

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """All measures of every explainer, and of MUTEX with other parameters and masks, in the order of ``parts``."""
        key = [*_TABLE, "part", "reducer", *VARIANT, "parameter", "value", "masks"]
        table = explained.in_table(runs, _TABLE, key, [*self.columns, "batch", "device", "threads"])
        place = {
            "_part": table["part"].map(self.parts.index),
            "_parameter": _places(table["parameter"], PARAMETERS),
            "_model": table["reducer"].map(explained.reducer_place),
            "_rate": table["keep_rate"].map(ratio_of),
            "_masks": _places(table["masks"], ["all", *_MASKS]),
        }
        by = [*_TABLE, *list(place)[:4], "value", "_masks"]
        rising = [name not in ("n_images", "_rate") for name in by]  # studies on fewer images come later
        table = table.assign(**place).sort_values(by, ascending=rising, kind="stable", ignore_index=True)
        return table.drop(columns=list(place))

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        """The comparison of all explainers of each setting, then the other parts, which start closed."""
        for _, rows in data.groupby(_TABLE, sort=False, dropna=False):
            row = rows.iloc[0]
            title = explained.title_of(rows, data, f"baseline {row['baseline']}", f"{row['n_images']:,} images")
            for (part, parameter), found in rows.groupby(["part", "parameter"], sort=False):
                what, first = _first_columns(part, parameter, found)
                yield _scores(f"{title}{what}", found.reset_index(drop=True), first, folded=bool(what))

    def figures(self, runs: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Figure]]:
        for figure, draw, part in (
            ("plane", plots.insertion_deletion_plane, "explainers"),
            ("parameters", plots.parameter_study, "parameters"),
            ("masks", plots.mask_ablation, "masks"),
        ):
            if (runs["part"] == part).any():
                yield figure, draw(runs)

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        compared = data[data["part"] == "explainers"]
        for _, rows in compared.groupby(_TABLE, sort=False, dropna=False):
            points = [*(_best(rows, name) for name in _LEADING), *_beyond_chance(rows)]
            where = f"{where_text(rows)}, baseline {rows['baseline'].iloc[0]}, {counted(len(rows), 'explainer')}"
            yield Answer(f"On {rows['n_images'].iloc[0]:,} images of {where}:", tuple(points))


def _places(values: pd.Series, known: Iterable[str]) -> pd.Series:
    return values.map({name: place for place, name in enumerate(known)})


def _first_columns(part: str, parameter: str, rows: pd.DataFrame) -> tuple[str, dict[str, list[str]]]:
    """What a table of ``rows`` adds to the title, and the columns that tell its rows apart."""
    explainers = {"Explainer": explained.labels(rows)}
    if part == "parameters":
        others = [_without(parameter, options) for options in rows["options"]]
        explainers["Explainer"] = [explainer_label("mutex", options) for options in others]
        return f": {parameter} of MUTEX", {**explainers, parameter: [f"{value:g}" for value in rows["value"]]}
    if part == "masks":
        return ": MUTEX with some of its masks", {**explainers, "Masks used": rows["masks"].map(_masks).tolist()}
    if part == "reduced":
        return ": models with fewer tokens", {"Explained model": explained.models(rows), **explainers}
    return "", explainers


def _scores(title: str, rows: pd.DataFrame, first: dict[str, list[str]], *, folded: bool) -> Section:
    """``first`` columns, then all measures; those that are empty in all ``rows`` are left out."""
    unit, seconds = explained.times(rows["seconds"])
    columns = {
        **first,
        "Insertion AUC": with_errors(rows, "insertion_auc"),
        "Deletion AUC": with_errors(rows, "deletion_auc"),
        "Insertion gain": _gains(rows, "insertion"),
        "Deletion gain": _gains(rows, "deletion"),
        "Pointing game": with_errors(rows, "pointing"),
        "Mass in box": with_errors(rows, "mass"),
        "Sparseness": numbers(rows["sparseness"]),
        "Max-sensitivity": numbers(rows["max_sensitivity"]),
        unit: seconds,
    }
    shown = {name: cells for name, cells in columns.items() if name in first or set(cells) != {NONE}}
    groups = [same for _, same in rows.groupby(["reducer", "keep_rate"], sort=False)]
    leads = [(same, name, _lead(same, name)) for same in groups if len(same) > 1 for name in _LEADING]
    best = {(int(same.index[lead.place]), _LEADING[name][0]) for same, name, lead in leads if lead and lead.certain}
    tested = [PAIRED if all(lead for *_, lead in leads) else NOT_PAIRED] if leads else []
    notes = (*_notes(rows, shown), *tested, *explained.digits_note(rows))
    return Section(title, pd.DataFrame(shown), notes, frozenset(best), folded)


def _lead(rows: pd.DataFrame, name: str) -> Lead | None:
    return leader_of(rows, name, highest=_LEADING[name][1] == "highest")


def _notes(rows: pd.DataFrame, shown: Mapping[str, list[str]]) -> Iterator[str]:
    row = rows.iloc[0]
    yield f"{explained.areas_note(rows)} Mean ± standard error over {row['n_images']:,} images."
    yield from (note for column, note in _NOTES.items() if column in shown)
    if any(name.endswith("per image") for name in shown):
        yield f"Time of explaining alone: {row['device']}, threads: {row['threads']}, batch {row['batch']}."


def _masks(masks: str) -> str:
    """Readable name of the masks that a row used: ``degree=in`` -> ``centrality: in-degree (27)``."""
    group, _, kind = masks.partition("=")
    if not kind:
        return f"all {len(MASKS)}"
    what = {"aggregation": "heads", "degree": "centrality", "statistic": "layers"}[group]
    return f"{what}: {MASK_NAMES.get(kind, kind)} ({masks_of_kind(group)})"


def _without(parameter: str, options: str) -> str:
    return ",".join(option for option in options.split(",") if option.partition("=")[0] != parameter)


def _gains(rows: pd.DataFrame, name: str) -> list[str]:
    return [_gain(*pair) for pair in zip(rows[f"{name}_gain"], rows[f"{name}_p"], strict=True)]


def _gain(gain: float, p: float) -> str:
    if pd.isna(gain):
        return NONE
    chance = "" if pd.isna(p) else " (p < 0.001)" if p < 0.001 else f" (p = {p:.3f})"
    return f"{gain:+.3f}{chance}"


def _best(rows: pd.DataFrame, name: str) -> str:
    """Which explainer has the best area, and how far it is ahead on the same images."""
    extreme = _LEADING[name][1]
    place = int(rows[name].argmax() if extreme == "highest" else rows[name].argmin())
    area, names = spread(rows[name].iloc[place], rows[name + SEM].iloc[place], 3), explained.labels(rows)
    ahead = lead_text(_lead(rows, name), names, 3) if len(rows) > 1 else ""
    return f"{name.partition('_')[0]} AUC: {names[place]} is {extreme}, {area}{ahead}"


def _beyond_chance(rows: pd.DataFrame) -> Iterator[str]:
    """Which explainers beat random heat in both areas, by the paired tests."""
    tested = rows[rows["insertion_gain"].notna() & rows["deletion_gain"].notna()]
    gains, chances = tested[["insertion_gain", "deletion_gain"]], tested[["insertion_p", "deletion_p"]]
    better = (gains > 0).all(axis=1) & (chances < _SIGNIFICANT).all(axis=1)
    if better.any():
        names = ", ".join(explained.labels(tested[better]))
        yield f"better than random heat in both, each with p < {_SIGNIFICANT:g}: {names}"
    if not better.all():
        yield f"not certainly better than random heat in both: {', '.join(explained.labels(tested[~better]))}"
