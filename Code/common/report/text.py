"""Sentences of the report, computed from the summaries of :mod:`common.report.summary`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from common.plots.frames import backbone_name
from common.plots.style import explainer_label
from common.report import explanation_text, idling
from common.report.grids import grid_errors, image_errors, mean_ranks, seed_errors, training_text
from common.report.sections import counted, leader, method_label, number, percent, spread
from common.report.slimming import slimming_answers
from common.report.summary.rows import EXPLANATIONS, SETTING
from common.report.summary.speed import NOT_RUN

QUESTIONS = {
    "throughput": "How much faster is a model that keeps fewer tokens?",
    "sizing": "Is the arithmetic saved what the authors say?",
    "off_the_shelf": "How much accuracy survives in a trained model that is reduced without further training?",
    "finetune": "How much of it comes back after a few epochs of fine-tuning?",
    "method_grid": "Which method loses least at the same keep rate, before and after the same training?",
    "scratch": "Can a reduced model be trained from random weights?",
    "visualize": "Which parts of a picture are kept, and does the model still say the same?",
    "gallery": "Given one picture and one keep rate, what does each method hold on to?",
    "slimming": "How many tokens can each block do without, the same in every image, after tuning on images alone?",
    "explain": "Which patches of a picture speak for what the model says of it?",
    "explain_benchmark": "Does what the model says hang on the patches that an explainer calls hot?",
    "explain_agreement": "Do reducers keep the patches that an explanation calls important?",
    "idling": "Which patches may skip a block, and what does it cost to let them?",
}
CAPTIONS = {
    "throughput": "Measured speed-up over the unreduced model. Bars: quartiles over rounds. Dotted: what the "
    "arithmetic alone would give.",
    "off_the_shelf": "Accuracy without training against keep rate. Dashed: the unreduced model.",
    "off_the_shelf_cost": "The same accuracy against the cost of one image. Labels: keep rate in percent. Rings: no "
    "other model is as accurate at the same or lower cost.",
    "method_grid_cost": "Accuracy against the cost of one image and, where it was measured, the speed-up. Each line "
    "runs through the keep rates of a method. Rings: no other model is as accurate at the same or lower cost.",
    "finetune": "Accuracy after fine-tuning. Points: mean over seeds; bars: one standard deviation.",
    "finetune_speed": "Accuracy after fine-tuning against measured speed-up. Labels: keep rate in percent.",
    "scratch": "Accuracy after training from random weights. Points: mean over seeds; bars: one standard deviation.",
    "scratch_speed": "Accuracy when trained from scratch against measured speed-up. Labels: keep rate in percent.",
    "sizing": "Counted arithmetic beside the published numbers.",
    "visualize": "Patches that are still there after each reduction, and how long each place survives on average.",
    "gallery": "Faded patches are gone; patches outlined in one colour share a token; dots mark centres of clusters.",
    "slimming": "Tokens that each block computes, the same in every image; accuracy against multiplications; and what "
    "is left, or gained over chance, when one block alone computes fewer patches.",
    "explain": "The image, its heat, and the probability of the explained class while patches are shown or removed, "
    "the hottest first; or the same images under several explainers.",
    "explain_benchmark": "Means over the images while patches are shown or removed, the hottest first. Bands: one "
    "standard error.",
    "explain_benchmark_plane": "Every explainer by its areas under deletion and insertion, means over images. Bars: "
    "one standard error. Shaded: better than random heat in both.",
    "explain_benchmark_parameters": "MUTEX with one parameter changed at a time, means over images. Bars: one "
    "standard error.",
    "explain_benchmark_masks": "MUTEX with only the masks of one kind. Bars: one standard error over images. Band: "
    "all 54 masks.",
    "idling": "Patches that each block computes, idle ones black; or accuracy against the arithmetic saved, hollow: "
    "idle patches are not seen.",
    "explain_agreement": "Explainers (rows) against reducers (columns): rank correlation of the heat with the scores "
    "of the reducer's first stage, and how far the hottest patches overlap with those left, above chance.",
}


@dataclass(frozen=True)
class Answer:
    """A sentence, and the points that belong to it."""

    text: str
    points: tuple[str, ...] = ()


def answers(name: str, data: pd.DataFrame) -> list[Answer]:
    """What the numbers of one study say, one answer for each setting."""
    tell = {
        "throughput": _speed,
        "sizing": _arithmetic,
        "off_the_shelf": _off_the_shelf,
        "finetune": _trained,
        "method_grid": _grid,
        "scratch": _trained,
        "visualize": _kept,
        "gallery": _shown,
    }
    if name == "slimming":
        return [Answer(*each) for each in slimming_answers(data)]
    if name in EXPLANATIONS:
        return [Answer(*each) for each in explanation_text.answers(name, data)]
    if name == "idling":
        return [Answer(*each) for each in idling.answers(data)]
    return list(tell[name](data))


def model_name(row: pd.Series) -> str:
    return method_label(row["method"], row["options"])


def _speed(data: pd.DataFrame) -> Iterator[Answer]:
    reduced = data[(data["status"] != NOT_RUN) & (data["method"] != "none") & (data["keep_rate"] < 1)]
    for dtype, rows in reduced.groupby("dtype", sort=False):
        points = []
        for keep_rate, cells in rows.groupby("keep_rate", sort=False):
            best, worst = cells.loc[cells["speedup"].idxmax()], cells.loc[cells["speedup"].idxmin()]
            points.append(
                f"keep {percent(keep_rate)}: {worst['speedup']:.2f} to {best['speedup']:.2f} times as fast "
                f"(least: {_place(worst)}; most: {_place(best)})"
            )
        yield Answer(f"In {dtype}, compared with the same model without reduction:", tuple(points))


def _place(row: pd.Series) -> str:
    return f"{model_name(row)} on {backbone_name(row['backbone'])}, {row['img_size']} px, batch {row['batch']}"


def _arithmetic(data: pd.DataFrame) -> Iterator[Answer]:
    compared = data[data["relative_error"].notna()]
    fixed, random = compared[compared["method"] != "ats"], compared[compared["method"] == "ats"]
    if len(fixed):
        largest = 100 * fixed["relative_error"].abs().max()
        yield Answer(
            f"{len(fixed)} published GFlops of deterministic models were counted again, the same way; "
            f"the largest difference is {largest:.3f} %."
        )
    if len(random):
        largest = 100 * random["relative_error"].abs().max()
        yield Answer(
            f"ATS draws its tokens at random, so its published counts are one draw each: our counts for its "
            f"{len(random)} rows differ by up to {largest:.1f} %."
        )
    exact = data["closed_form_error"].dropna().abs()
    if len(exact):
        agree = int((exact < 1e-9).sum())
        yield Answer(f"Our total equals the sum derived by hand from the schedule in {agree} of {len(exact)} rows.")


def _off_the_shelf(data: pd.DataFrame) -> Iterator[Answer]:
    for _, rows in data.groupby(SETTING["off_the_shelf"], sort=False, dropna=False):
        for value, head in (("accuracy", "classes of the dataset only"), ("accuracy_full", "all classes of the head")):
            if rows[value].notna().any():
                errors = image_errors(rows, value)
                context = f"On {_where(rows)}, {rows['n_val'].iloc[0]} images, {head}"
                yield _best(rows.assign(value=rows[value], sd=rows[f"{value}_sd"], error=errors), context)


def _trained(data: pd.DataFrame) -> Iterator[Answer]:
    for _, rows in data.groupby(SETTING["finetune"], sort=False, dropna=False):
        epochs = rows["epochs"].iloc[0]
        errors = seed_errors(rows, "last")
        context = f"On {_where(rows)}, after {counted(epochs, 'epoch')}"
        yield _best(rows.assign(value=rows["last"], sd=rows["last_sd"], error=errors), context)


def _grid(data: pd.DataFrame) -> Iterator[Answer]:
    for _, rows in data.groupby(SETTING["method_grid"], sort=False, dropna=False):
        context = f"On {_where(rows)}, {training_text(rows)}"
        answer = _best(rows.assign(value=rows["accuracy"], sd=rows["accuracy_sd"], error=grid_errors(rows)), context)
        order = mean_ranks(rows, "accuracy").dropna().sort_values(kind="stable")
        first = "; ".join(f"{method_label(*model)} {number(rank)}" for model, rank in order.head(3).items())
        yield Answer(answer.text, (*answer.points, f"lowest mean ranks: {first}") if len(order) > 1 else answer.points)


def _where(rows: pd.DataFrame) -> str:
    row = rows.iloc[0]
    return f"{row['dataset']} at {row['img_size']} px with {backbone_name(row['backbone'])}"


def _best(rows: pd.DataFrame, context: str) -> Answer:
    """The accuracy of the unreduced model, and at each keep rate the best method and its distance."""
    baseline = rows[rows["method"] == "none"]
    reference = baseline["value"].iloc[0] if len(baseline) else float("nan")
    start = f"{_value(baseline.iloc[0])} without reduction" if len(baseline) else "the unreduced model was not run"
    reduced = rows[(rows["method"] != "none") & (rows["keep_rate"] < 1)]
    points = []
    for keep_rate, cells in reduced.groupby("keep_rate", sort=False):
        best = cells.loc[cells["value"].idxmax()]
        lost = "" if pd.isna(reference) else f", {_difference(best['value'] - reference)}"
        certain = len(cells) == 1 or leader(cells["value"], cells["error"]) is not None
        doubt = "" if certain else " (not certainly ahead of the next)"
        points.append(f"keep {percent(keep_rate)}: {model_name(best)} is highest, {_value(best)}{lost}{doubt}")
    return Answer(f"{context}: {start}.", tuple(points))


def _value(row: pd.Series) -> str:
    return f"{spread(row['value'], row['sd'])} % ({counted(row['n'], 'seed')})"


def _difference(points: float) -> str:
    if abs(points) < 0.005:  # as printed
        return "no difference"
    return f"{number(abs(points), 2)} points {'lower' if points < 0 else 'higher'}"


def _kept(data: pd.DataFrame) -> Iterator[Answer]:
    for _, row in data.iterrows():
        yield Answer(
            f"{model_name(row)} on {backbone_name(row['backbone'])}, keep rate {percent(row['keep_rate'])}: "
            f"{row['kept']:.0f} patches are left at the end; the prediction is the same as the full model's on "
            f"{row['agreement']:.0f} % of {row['images']} images; mean probability {row['probability']:.2f} "
            f"(full model {row['probability_full_model']:.2f})."
        )


def _shown(data: pd.DataFrame) -> Iterator[Answer]:
    for (*_, image, name), rows in data.groupby(SETTING["gallery"], sort=False):
        right = (rows["predicted"] == name).sum()
        tokens = f"{rows['num_tokens'].min()} to {rows['num_tokens'].max()} tokens"
        yield Answer(f"{image} ({name}): {right} of {counted(len(rows), 'method')} see what it is, from {tokens}.")


def facts(runs: pd.DataFrame) -> dict[str, str]:
    """What was run, for the head of the report: name -> text. ``runs`` are those of all tables."""
    explained = runs["table"].isin(EXPLANATIONS)
    reduced = runs[(runs["method"] != "none") & ~explained]
    explainers = dict.fromkeys(explainer_label(method) for method in runs.loc[explained, "method"])
    found = {
        "Profile": _several(runs["profile"]),
        "Runs": f"{runs['run_id'].groupby(runs['table']).nunique().sum()}",
        "Datasets": _several(runs["dataset"]),
        "Backbones": _several(runs["backbone"].map(backbone_name)),
        "Methods": ", ".join(dict.fromkeys(method_label(method) for method in reduced["method"])),
        "Explainers": ", ".join(explainers),
        "Keep rates": ", ".join(percent(rate) for rate in sorted(reduced["keep_rate"].unique(), reverse=True)),
        "Seeds": f"{runs['seed'].nunique()} ({_several(runs['seed'])})",
        "Number formats": _several(runs["dtype"]),
        "Device": _several(runs["device"]),
        "Threads": _several(runs["threads"]),
        "Versions": f"torch {_several(runs['torch'])}, timm {_several(runs['timm'])}",
        "Commit": _several(runs["commit"]),
        "Dates": " to ".join(dict.fromkeys([runs["date"].min(), runs["date"].max()])),
    }
    return {name: text for name, text in found.items() if text}


def _several(values: pd.Series) -> str:
    found = sorted(value for value in values.dropna().unique() if value != "")
    return ", ".join(str(value) for value in found) or "not recorded"
