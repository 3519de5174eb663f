"""The authors' printed numbers, as they print them and apart from ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd

from common.plots.frames import backbone_name
from common.report.sections import NONE, Section, percent
from common.results import read_published

_DATASETS = {"cifar10": "CIFAR10", "imagenette": "Imagenette", "fashion-mnist": "FMNIST"}
_SPEED = {"fps": "FPS", "gflops": "GFlops"}
_EFFICIENCY_NOTE = (
    "FPS: one CUDA GPU, type not recorded. GFlops: multiply-accumulates as thop counts them, attention's matrix "
    "products left out."
)
_SLIMMING_NOTE = (
    "ImageNet-1k; GFLOPs by the authors' counter; their whole networks were fine-tuned on labels after the search. The "
    "reproduction is of a student project on ImageNet-mini."
)
_FIGURES_NOTE = (
    "ImageNet-1k, read by eye. Tolerances are of an error whose norm the paper does not state. One block alone "
    "computes the share of its patches; blocks count from 0. Of figure 6 the first two blocks; later ones rise to "
    "about 79 in blocks 9 and 10."
)
_MUTEX_NOTE = (
    "Areas over percent, so up to 100; pixels are ranked one by one, insertion starts at 1 % and deletion is given 0 "
    "at 0 %. Its black is 0 after normalisation. None of it is comparable with the areas measured here."
)


def beside(
    ours: pd.DataFrame, published: pd.DataFrame, identity: Sequence[str], stated: Sequence[str], value: str
) -> pd.DataFrame:
    """``ours`` with ``published_<value>`` where the published experiment is the same one, and ``differs`` where not.

    Args:
        identity: columns that say which model on which data: rows that agree in them are counterparts.
        stated: conditions that the source states, columns of both; all must agree, or ``differs`` names those that do
            not, in the counterpart with the fewest. It is "" where there is no counterpart. An empty cell of
            ``published`` states nothing.
    """
    counterparts = dict(list(published.groupby(list(identity), sort=False)))
    values, differs = [], []
    for _, row in ours.iterrows():
        theirs = counterparts.get(tuple(row[name] for name in identity))
        found, same = ("", float("nan")) if theirs is None else _nearest(row, theirs, stated, value)
        differs.append(found)
        values.append(same)
    return ours.assign(**{f"published_{value}": values, "differs": differs})


def _nearest(row: pd.Series, theirs: pd.DataFrame, stated: Sequence[str], value: str) -> tuple[str, float]:
    """In words what ``row`` differs in from the most similar of ``theirs``; its ``value``, NaN if there is anything."""
    found = [(list(_differences(row, each, stated)), each[value]) for _, each in theirs.iterrows()]
    differs, printed = min(found, key=lambda pair: len(pair[0]))
    return "; ".join(differs), float("nan") if differs else printed


def _differences(row: pd.Series, theirs: pd.Series, stated: Sequence[str]) -> Iterator[str]:
    for name in stated:
        if pd.notna(theirs[name]) and (pd.isna(row[name]) or row[name] != theirs[name]):
            ours = "not recorded" if pd.isna(row[name]) else _value(row[name])
            yield f"{name} {ours} instead of {_value(theirs[name])}"


def _value(value: object) -> str:
    if isinstance(value, str):
        return value or "none"
    return f"{int(value):,}" if float(value).is_integer() else f"{value:g}"


def published_sections() -> tuple[Section, ...]:
    """Accuracies, benchmark runs, training outputs, plans, explanations and idle patches."""
    return (*_accuracy(), *_benchmarks(), _training(), *published_slimming(), _mutex(), *_idling())


def _printed(rows: pd.DataFrame, title: str, names: Mapping[str, str], notes: Iterable[str] = (), **kw) -> Section:
    """The columns ``names`` of ``rows`` under their readable names, and where they come from."""
    known = {name: label for name, label in names.items() if name in rows}
    source = f"Source: {'; '.join(dict.fromkeys(rows['source']))}."
    frame = rows[list(known)].replace("", NONE).rename(columns=known).reset_index(drop=True)
    return Section(title, frame, (*notes, source), **kw)


def _accuracy() -> Iterator[Section]:
    rows = read_published("tram_accuracy", as_printed=True)
    names = {"model": "Model", **_SPEED, **_DATASETS}
    for source, table in rows.groupby("source", sort=False):
        row = ["model", *_SPEED]
        wide = table.pivot(index=row, columns="dataset", values="accuracy")
        wide = wide.reindex(pd.MultiIndex.from_frame(table[row].drop_duplicates()))[list(_DATASETS)]
        wide = wide.reset_index().rename_axis(columns=None).assign(source=source)
        title = f"Accuracy (%) after 5 epochs of fine-tuning, 224 px: {source.partition(', table ')[2]}"
        yield _printed(wide, title, names, (_EFFICIENCY_NOTE,))


def _benchmarks() -> Iterator[Section]:
    tables = {
        "tram_throughput_vit": "ViT, 160 px, batch 64, keep rate 50 %",
        "tram_throughput_simple_vit": "SimpleViT, 160 px, batch 64, keep rate 50 %",
        "trewa_efficiency": "ViT, 160 px, batch 64, keep rate 75 % (TREWA)",
    }
    names = {"model": "Model", "backbone": "Backbone", "run": "Run", **_SPEED, "params": "Params"}
    for table, title in tables.items():
        rows = read_published(table, as_printed=True)
        rows["backbone"] = rows["backbone"].map(backbone_name)
        yield _printed(rows, title, names, (_EFFICIENCY_NOTE,), folded=True)


def _training() -> Section:
    rows = read_published("tram_training", as_printed=True)
    names = {
        "model": "Model",
        "backbone": "Backbone",
        "img_size": "px",
        "keep_rate": "Keep",
        "weights": "Weights",
        "status": "Status",
        "accuracy": "Accuracy (%)",
        "correct": "Correct of 3925",
        "val_loss": "Validation loss",
        "seconds": "Seconds",
        "loss_batch_0": "Loss, batch 0",
        "loss_batch_100": "Loss, batch 100",
    }
    rows["backbone"] = rows["backbone"].map(backbone_name)
    rows["keep_rate"] = rows["keep_rate"].astype(float).map(percent)
    return _printed(rows, "Training outputs left in notebooks", names, ("Imagenette, one epoch.",), folded=True)


def published_slimming() -> tuple[Section, Section]:
    """Tables 1 to 3 of Patch Slimming's paper with the student reproduction, and its figures 4 to 7.

    The source is a column.
    """
    network = {"model": "Model", "variant": "Method", "dataset": "Dataset"}
    found = {"accuracy": "Top-1", "top5": "Top-5", "drop": "Difference", "gflops": "GFLOPs", "cut": "Cut (%)"}
    tables = {**network, **found, "fps": "Images/s", "throughput_gain": "Faster by (%)", "source": "Source"}
    chosen = {"tolerance": "Tolerance", "block": "Block", "kept_share": "Computed", "score": "Score"}
    figures = {
        "model": "Model",
        **chosen,
        "accuracy": "Top-1",
        "cut": "Cut (%)",
        "tokens": "Tokens",
        "source": "Source",
    }
    return (
        _sourced("patch_slimming", "Patch slimming", tables, _SLIMMING_NOTE),
        _sourced("patch_slimming_figures", "Patch slimming: figures", figures, _FIGURES_NOTE),
    )


def _sourced(table: str, title: str, names: Mapping[str, str], note: str) -> Section:
    rows = read_published(table, as_printed=True).replace("", NONE)
    return Section(title, rows[list(names)].rename(columns=names), (note,), folded=True)


def _mutex() -> Section:
    rows = read_published("mutex_auc", as_printed=True)
    areas = {"insertion_auc": "Insertion AUC (0 to 100)", "deletion_auc": "Deletion AUC (0 to 100)"}
    names = {"model": "Model", "image": "Image", "predicted": "Predicted", **areas}
    first = rows.iloc[0]
    given = ", ".join(f"{name} {first[name]}" for name in ("min_cut", "token_ratio", "starting_layer", "baseline"))
    return _printed(rows, "Insertion and deletion of MUTEX on single images", names, (f"{given}. {_MUTEX_NOTE}",))


def _idling() -> Iterator[Section]:
    """The two threshold tables of the report, and accuracies that its authors left in training logs."""
    rows = read_published("patch_idling", as_printed=True)
    model = {"model": "Model", "dataset": "Dataset"}
    setting = {**model, "attention": "Attention", "epochs": "Epochs"}
    found = {"patches_idle": "Idle", "tau": "Tau", "mac_cut_percent": "FLOPs cut (about, %)", "accuracy": "Top-1"}
    logged = {"idle_percent": "Idle (%)", "predictor_accuracy": "Predictor accuracy", "accuracy": "Top-1"}
    yield _printed(rows[rows["table"] == "thresholds"], "Idling MLP: thresholds", {**setting, **found}, folded=True)
    title = "Idling MLP: training logs"
    yield _printed(rows[rows["table"] == "logs"], title, {**model, **logged}, folded=True)
