"""Runs to numbers: one row per condition, mean and sample standard deviation over seeds, published values joined.

Every function takes the frame of :func:`common.results.read_runs` for its table and returns plain numbers; how they
are worded is the matter of :mod:`common.report.tables`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import pandas as pd

from common.errors import UsageError, require_choice
from common.plots import EXPLAINERS, METHODS
from common.plots.mutex_studies import MASK_PARTS, PARAMETERS, parameter_value
from common.results import read_published

VARIANT = ["method", "options", "keep_rate"]
SETTING = {
    "throughput": ["dtype", "batch", "device", "threads", "backbone", "img_size"],
    "sizing": ["source"],
    "finetune": ["dataset", "backbone", "img_size", "epochs", "dtype", "batch"],
    "scratch": ["dataset", "backbone", "img_size", "epochs", "dtype", "batch"],
    "off_the_shelf": ["dataset", "backbone", "img_size", "dtype"],
    "method_grid": ["dataset", "backbone", "img_size", "epochs", "n_train", "n_val", "dtype", "batch"],
    "visualize": ["dataset", "backbone", "img_size"],
    "gallery": ["dataset", "backbone", "img_size", "image", "class_name"],
    "slimming": ["dataset", "backbone", "img_size", "seed"],
    "explain": ["dataset", "backbone", "img_size", "reducer", "keep_rate", "seed"],
    "explain_benchmark": ["dataset", "backbone", "img_size", "baseline", "n_images", "seed"],
    "explain_agreement": ["dataset", "backbone", "img_size", "keep_rate", "n_images", "seed"],
    "idling": ["dataset", "backbone", "img_size"],
}
# In these tables ``method`` is an explainer.
EXPLANATIONS = ("explain", "explain_benchmark", "explain_agreement")
STUDIES = ("explainers", *PARAMETERS, "masks", "reduced")
NOT_RUN = "not run here"
EFFICIENCY_KEY = ["backbone", "img_size", "method", "keep_rate"]
# The published fine-tuning tables are this experiment, on these sets, and no other.
PUBLISHED_FINETUNE = {"img_size": 224, "epochs": 5}


def architecture(backbone: str) -> str:
    """timm name without the tag of its weights: ``vit_small_patch16_224.augreg_in1k`` -> ``vit_small_patch16_224``."""
    return backbone.partition(".")[0]


def in_order(frame: pd.DataFrame, first: list[str], methods: Iterable[str] = METHODS) -> pd.DataFrame:
    """Rows by ``first`` (float32 before the shorter formats), ``methods`` as in the figures, keep rates falling."""
    place = {method: number for number, method in enumerate(methods)}
    ranked = frame.assign(_rank=frame["method"].map(place).fillna(len(place)))
    by = [*first, "_rank", *VARIANT]
    ranked = ranked.sort_values(by, ascending=[name not in ("keep_rate", "dtype") for name in by], kind="stable")
    return ranked.drop(columns="_rank").reset_index(drop=True)


def refuse_repeats(runs: pd.DataFrame, key: list[str]) -> None:
    """Raise UsageError when two rows are the same condition: a mean would count one of them twice."""
    twice = runs[runs.duplicated(key, keep=False)]
    if len(twice):
        condition = ", ".join(f"{name}={twice.iloc[0][name]}" for name in key)
        files = ", ".join(sorted(set(twice["run_id"])))
        raise UsageError(f"the same condition ({condition}) was run more than once: {files}; keep one of the CSVs")


def over_seeds(runs: pd.DataFrame, key: list[str], metrics: list[str]) -> pd.DataFrame:
    """``key``, n, and per metric its mean (``metric``) and sample standard deviation (``metric_sd``; NaN for n = 1)."""
    refuse_repeats(runs, [*key, "seed"])
    groups = runs.groupby(key, dropna=False, sort=False)
    table = {"n": groups.size()}
    for metric in metrics:
        table[metric], table[f"{metric}_sd"] = groups[metric].mean(), groups[metric].std(ddof=1)
    return pd.DataFrame(table).reset_index()


def training(runs: pd.DataFrame, table: str) -> pd.DataFrame:
    """Accuracy (percent) before training, after the last and at the best trained epoch; loss, seconds per epoch."""
    key = [*SETTING[table], *VARIANT]
    runs = runs.sort_values(["run_id", "epoch"], kind="stable")
    trained = runs[(runs["epoch"] > 0) | (runs["epochs"] == 0)].groupby("run_id")
    per_run = runs.drop_duplicates("run_id").set_index("run_id")[[*key, "seed"]]
    per_run = per_run.assign(
        before=runs[runs["epoch"] == 0].groupby("run_id")["val_accuracy"].first(),
        last=trained["val_accuracy"].last(),
        best=trained["val_accuracy"].max(),
        val_loss=trained["val_loss"].last(),
        epoch_seconds=trained["epoch_seconds"].mean(),
    )
    metrics = ["before", "last", "best", "val_loss", "epoch_seconds"]
    return in_order(over_seeds(per_run.reset_index(), key, metrics), SETTING[table])


def finetune(runs: pd.DataFrame) -> pd.DataFrame:
    """:func:`training` with ``published_accuracy`` (percent) where the published experiment is the same one."""
    found = training(runs, "finetune")
    published = read_published("tram_accuracy").rename(columns={"accuracy": "published_accuracy"})
    same = ["architecture", "dataset", "img_size", "method", "keep_rate"]
    published = published.rename(columns={"backbone": "architecture"}).drop_duplicates(same)
    published = published.assign(epochs=PUBLISHED_FINETUNE["epochs"])
    joined = found.assign(architecture=found["backbone"].map(architecture)).merge(
        published[[*same, "epochs", "published_accuracy"]], how="left", on=[*same, "epochs"]
    )
    return joined.drop(columns="architecture")


def scratch(runs: pd.DataFrame) -> pd.DataFrame:
    """:func:`training` of models that start from random weights."""
    return training(runs, "scratch")


def off_the_shelf(runs: pd.DataFrame) -> pd.DataFrame:
    """Accuracy (percent), loss and GMAC per image of models that were reduced and not trained."""
    key = [*SETTING["off_the_shelf"], "n_val", *VARIANT]
    metrics = ["accuracy", "accuracy_full", "loss", "gmac", "images_per_second"]
    return in_order(over_seeds(runs, key, metrics), SETTING["off_the_shelf"])


def method_grid(runs: pd.DataFrame) -> pd.DataFrame:
    """Accuracies (percent), loss, GMAC per image and tokens left of every method, as given and after training."""
    key = [*SETTING["method_grid"], *VARIANT]
    found = over_seeds(runs, key, ["accuracy", "accuracy_best", "ema_accuracy", "loss", "gmac"])
    groups = runs.groupby(key, dropna=False, sort=False)
    models = groups.agg(params=("params", "first"), tokens=("tokens", _mean_tokens)).reset_index()
    return in_order(found.merge(models, on=key), SETTING["method_grid"])


def _mean_tokens(counts: pd.Series) -> str:
    """Mean of texts like "137 96 67", number by number, to one decimal."""
    means = counts.str.split(expand=True).astype(float).mean()
    return " ".join(f"{round(mean, 1):g}" for mean in means)


def published_efficiency() -> pd.DataFrame:
    """Printed FPS and GFlops per condition; several printed values of one condition are joined by " / "."""
    tables = ["tram_accuracy", "tram_throughput_vit", "tram_throughput_simple_vit", "trewa_efficiency"]
    rows = pd.concat([read_published(name, as_printed=True).assign(published_in=name) for name in tables])
    rows = rows.astype({"img_size": "Int64", "keep_rate": float})
    rows = rows.rename(columns={"fps": "published_fps", "gflops": "published_gflops"})
    groups = rows.groupby(EFFICIENCY_KEY, sort=False)
    printed = ["published_fps", "published_gflops", "published_in"]
    return groups[printed].agg(lambda values: " / ".join(dict.fromkeys(values))).reset_index()


def throughput(runs: pd.DataFrame) -> pd.DataFrame:
    """Measured speed and MACs beside the published ones; published conditions that were not measured come last."""
    key = [*SETTING["throughput"], *VARIANT]
    refuse_repeats(runs, key)
    measures = ["fps", "fps_q1", "fps_q3", "speedup", "speedup_q1", "speedup_q3", "rounds"]
    measured = runs[[*key, *measures, "gmac", "gmac_thop_compat", "params"]]
    measured = in_order(measured, SETTING["throughput"]).assign(status="measured")
    published = published_efficiency().rename(columns={"backbone": "architecture"})
    key = ["architecture", *EFFICIENCY_KEY[1:]]
    measured = measured.assign(architecture=measured["backbone"].map(architecture))
    beside = measured.merge(published, how="left", on=key)
    index, ours = pd.MultiIndex.from_frame(published[key]), pd.MultiIndex.from_frame(measured[key])
    rest = published[~index.isin(ours)].assign(status=NOT_RUN, backbone=lambda rows: rows["architecture"])
    return pd.concat([beside, rest], ignore_index=True).drop(columns="architecture")


def sizing(runs: pd.DataFrame) -> pd.DataFrame:
    """Counted MACs beside the published GFlops; ``relative_error`` compares like with like (both thop's way)."""
    metrics = list(runs.columns[runs.columns.get_loc("source") : runs.columns.get_loc("run_id")])
    table = runs[["source", "model", "backbone", "img_size", *VARIANT, *metrics[2:]]]
    return table.assign(
        closed_form_error=table["gmac"] / table["gmac_closed_form"] - 1,
        relative_error=table["gmac_thop_compat"] / table["published_gflops"] - 1,
    )


def visualize(runs: pd.DataFrame) -> pd.DataFrame:
    """Per condition: images, patches left at the end, mean probability before and after, share of equal predictions."""
    key = [*SETTING["visualize"], *VARIANT]
    last = runs.sort_values("layer", kind="stable").drop_duplicates([*key, "seed", "image"], keep="last")
    last = last.assign(agreement=100.0 * (last["predicted"] == last["predicted_full_model"]))
    groups = last.groupby(key, dropna=False, sort=False)
    table = pd.DataFrame(
        {
            "images": groups["image"].nunique(),
            "kept": groups["num_kept"].mean().astype(float),
            "probability_full_model": groups["probability_full_model"].mean(),
            "probability": groups["probability"].mean(),
            "agreement": groups["agreement"].mean(),
        }
    )
    return in_order(table.reset_index(), SETTING["visualize"])


def gallery(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per image and method: tokens left and what the model says."""
    columns = [*SETTING["gallery"], *VARIANT, "epochs", "layer", "num_tokens", "predicted", "probability"]
    return in_order(runs[columns], SETTING["gallery"])


def slimming(runs: pd.DataFrame) -> pd.DataFrame:
    """Plans before and after tuning, single blocks and compared scores, in the order in which they were measured."""
    key = [*SETTING["slimming"], "study", "schedule", "stage", "layer", "share"]
    refuse_repeats(runs, [*key, "cut"])
    metrics = list(runs.columns[runs.columns.get_loc("share") + 1 : runs.columns.get_loc("run_id")])
    return runs[[*key, *metrics]].reset_index(drop=True)


def explain(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per image and explainer: what the model says, areas under insertion and deletion, seconds."""
    first = [*SETTING["explain"], "image"]
    key = [*first, "method", "options"]
    refuse_repeats(runs, key)
    measures = ["class_name", "predicted", "probability", "insertion_auc", "deletion_auc", "seconds"]
    return in_order(runs[[*key, *measures]], first, EXPLAINERS)


def explain_benchmark(runs: pd.DataFrame) -> pd.DataFrame:
    """All measures of every explainer, and of every value of the studies of MUTEX, in the order of ``STUDIES``."""
    setting = SETTING["explain_benchmark"]
    key = [*setting, "study", "reducer", *VARIANT, "part"]
    refuse_repeats(runs, key)
    measures = list(runs.columns[runs.columns.get_loc("insertion_auc") : runs.columns.get_loc("run_id")])
    table = in_order(runs[[*key, *measures, "batch", "device", "threads"]], setting, EXPLAINERS)
    places = [_place(*row) for row in zip(table["study"], table["options"], table["part"], strict=True)]
    table = table.assign(
        _study=table["study"].map(_study_place), _model=table["reducer"].map(_model_place), _place=places
    )
    by = [*setting, "_study", "_model", "keep_rate", "_place"]
    rising = [name not in ("n_images", "keep_rate") for name in by]  # studies on fewer images come later
    table = table.sort_values(by, ascending=rising, kind="stable", ignore_index=True)
    return table.drop(columns=["_study", "_model", "_place"])


def _study_place(study: str) -> int:
    return STUDIES.index(require_choice(study, STUDIES, "study of explanations"))


def _model_place(reducer: str) -> int:
    """Place of a reducer, written ``name:key=value``, among the methods."""
    name = reducer.partition(":")[0]
    return list(METHODS).index(name) if name in METHODS else len(METHODS)


def _place(study: str, options: str, part: str) -> float:
    """Place of a row within its study; explainers are in order already."""
    if study in PARAMETERS:
        return parameter_value(study, options)
    parts = ["all", *(f"{group}={kind}" for group, (_, kinds) in MASK_PARTS.items() for kind in kinds)]
    return parts.index(part) if part in parts else len(parts)


def explain_agreement(runs: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation and IoU of every explainer with every reducer; ``above_chance`` = IoU minus that of chance."""
    key = [*SETTING["explain_agreement"], "reducer", "layer", "method", "options"]
    refuse_repeats(runs, key)
    measures = ["rank_correlation", "rank_correlation_sem", "iou", "iou_sem", "iou_chance"]
    table = in_order(runs[[*key, *measures]], SETTING["explain_agreement"], EXPLAINERS)
    table = table.assign(above_chance=table["iou"] - table["iou_chance"], _model=table["reducer"].map(_model_place))
    by = [*SETTING["explain_agreement"], "_model", "reducer", "layer"]
    return table.sort_values(by, kind="stable", ignore_index=True).drop(columns="_model")


def idling(runs: pd.DataFrame) -> pd.DataFrame:
    """Every row of the studies of idle patches, mean over seeds where patches are drawn, in the order of the runs."""
    key = [
        *SETTING["idling"],
        "study",
        *VARIANT,
        "attention",
        "stage",
        "tau",
        "target_cut",
        "layer",
        "n_train",
        "n_val",
        "epochs",
    ]
    metrics = ["patches_idle", "came_back", "similarity", "within_similarity", "pruner_accuracy", "balanced_accuracy"]
    metrics += ["auroc", "accuracy", "accuracy_full", "gmac", "macs_cut", "speedup"]
    return over_seeds(runs, key, metrics)


SUMMARIES = {
    "throughput": throughput,
    "sizing": sizing,
    "finetune": finetune,
    "scratch": scratch,
    "off_the_shelf": off_the_shelf,
    "method_grid": method_grid,
    "visualize": visualize,
    "gallery": gallery,
    "slimming": slimming,
    "explain": explain,
    "explain_benchmark": explain_benchmark,
    "explain_agreement": explain_agreement,
    "idling": idling,
}


def holes(runs: pd.DataFrame, table: str) -> list[str]:
    """Conditions missing from the full grid of methods x keep rates x seeds that the runs of one setting span."""
    if table in ("sizing", "visualize", "gallery", "idling", "slimming", *EXPLANATIONS):
        return []
    found = []
    for setting, group in runs.groupby(SETTING[table], dropna=False):
        reduced = group[group["method"] != "none"]
        variants = sorted(set(zip(reduced["method"], reduced["options"], strict=True)))
        rates = sorted({rate for rate in reduced["keep_rate"] if rate < 1}, reverse=True)
        # Only training is repeated for every method; elsewhere a deterministic method needs one seed.
        trained = table in ("finetune", "scratch") or (table == "method_grid" and (group["epochs"] > 0).any())
        seed_of = group["seed"] if trained else pd.Series("", index=group.index)
        seeds = sorted(seed_of.unique())
        present = set(zip(*(group[name] for name in VARIANT), seed_of, strict=True))
        for (method, options), rate, seed in product(variants, rates, seeds):
            if (method, options, rate, seed) not in present:
                where = ", ".join(f"{name} {value}" for name, value in zip(SETTING[table], setting, strict=True))
                what = f"{method} {options}".strip() + f" at keep rate {rate:g}"
                found.append(f"{what}{f', seed {seed}' if seed != '' else ''} ({where})")
    return found
