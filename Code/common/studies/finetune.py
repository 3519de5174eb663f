"""Accuracy after training: TRAM's fine-tuning, and the same from random weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict

import pandas as pd
from matplotlib.figure import Figure

from common import plots
from common.models.reduced import ReducedVisionTransformer
from common.report import sections as show
from common.report.grids import best_answer, lead_of
from common.report.published import beside
from common.report.rows import SAMPLES, VARIANT, add_speedup, architecture, holes, in_order, over_seeds
from common.report.sections import Answer, Section
from common.results import read_published
from common.schedule import keep_rate_text
from common.schema import REQUIRED, count, number, text
from common.studies.base import Study, register_study
from common.training.distillation import Data
from common.training.experiment import Experiment

SETTING = ["dataset", "backbone", "weights", "head", "start", "recipe", "img_size"]
SETTING += ["epochs", "lr", "n_train", "dtype", "batch"]
# A published accuracy is that of this model on these data, trained under these conditions.
IDENTITY = ["architecture", "dataset", "img_size", "method", "keep_rate"]
STATED = ["options", "weights", "head", "start", "recipe", "epochs", "lr", "batch", "n_train", "dtype"]


@register_study
class Finetune(Study):
    """How much accuracy comes back after a few epochs of fine-tuning."""

    name, title = "finetune", "Accuracy after fine-tuning"
    question = "How much of it comes back after a few epochs of fine-tuning?"
    place = 40
    columns = {
        "head": text("at the start: fresh, or dataset, the rows of the weights' own head"),
        "start": text("of the network: timm, or published, as the code of TRAM's authors does it", before="timm"),
        "epoch": count("0 = before training"),
        "train_loss": number("mean over the images of the epoch, as they were augmented", optional=True),
        "train_loss_last_batch": number("of its last batch, which the published CSVs hold", optional=True),
        "val_loss": number("mean over the validation images, cross-entropy or binary cross-entropy"),
        "val_accuracy": number("top-1, or mAP where images have several labels", "percent"),
        "ema_val_loss": number("the same of the averaged weights", optional=True),
        "ema_val_accuracy": number("the same of the averaged weights", "percent", optional=True),
        "epoch_lr": number("learning rate at the end of the epoch", optional=True),
        "epoch_seconds": number("of the epoch, evaluation included", "s", optional=True),
        "loading_seconds": number("of these, the training waited for its images", "s", optional=True, before=""),
        "n_val": count("validation images"),
    }
    required = (*REQUIRED, "dataset", "seed", "epochs")
    setting = SETTING
    protocol = "pretrained"  # of the published trainings that are such ones
    captions = {
        "": "Accuracy after fine-tuning. Points: mean over seeds; bars: one standard deviation.",
        "speed": "Accuracy after fine-tuning against measured speed-up. Labels: keep rate in percent.",
    }

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """:func:`training` with ``published_accuracy`` (percent) where the published experiment is the same one."""
        found = training(runs)
        found = found.assign(architecture=found["backbone"].map(architecture))
        return beside(found, self.printed(), IDENTITY, STATED, "accuracy").drop(columns="architecture")

    def printed(self) -> pd.DataFrame:
        """The authors' accuracies after such trainings: those of the README, and those left in notebooks."""
        outputs = read_published("tram_training").query("status == 'complete'")
        tables = [read_published("tram_accuracy").assign(protocol="pretrained"), outputs]
        printed = pd.concat(tables).query(f"protocol == {self.protocol!r}").fillna({"options": ""})
        printed["keep_rate"] = printed["keep_rate"].map(keep_rate_text)
        return printed.rename(columns={"backbone": "architecture"})

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            baseline, reduced = rows[rows["method"] == "none"], rows[rows["method"] != "none"]
            for keep_rate in show.falling(reduced["keep_rate"]) or [show.WHOLE]:
                cells = pd.concat([baseline, reduced[reduced["keep_rate"] == keep_rate]]).reset_index(drop=True)
                yield _training_section(cells, keep_rate)

    def figures(self, runs: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Figure]]:
        yield "", plots.accuracy_vs_keep_rate(runs)
        with_speed = add_speedup(runs, others["throughput"])
        if (with_speed["speedup"].notna() & (with_speed["method"] != "none")).any():
            yield "speed", plots.accuracy_mac_pareto(with_speed, value="val_accuracy")

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            yield best_answer(rows, "last", f"On {show.where_text(rows)}, after {_training(rows)}")

    def missing(self, runs: pd.DataFrame) -> list[str]:
        return holes(runs, SETTING, trained=True)


def training(runs: pd.DataFrame) -> pd.DataFrame:
    """Accuracy (percent) before training, after the last and at the best trained epoch; loss, seconds per epoch."""
    key = [*SETTING, *VARIANT]
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
    return in_order(over_seeds(per_run.reset_index(), key, metrics, compared=["last", "best"]), SETTING)


def _training_section(cells: pd.DataFrame, keep_rate: str) -> Section:
    columns = {
        "Model": show.labels(cells),
        "Seeds": cells["n"].astype(str),
        "Before training": _accuracy(cells, "before"),
        "Last epoch": _accuracy(cells, "last"),
        "Best epoch": _accuracy(cells, "best"),
        "Seconds per epoch": show.numbers(cells["epoch_seconds"], 1),
    }
    comparable = cells["published_accuracy"].notna().any()
    if comparable:
        columns["Published"] = show.numbers(cells["published_accuracy"], 2)
    reduced = cells[cells["method"] != "none"]
    best = set()
    for column, name in (("Last epoch", "last"), ("Best epoch", "best")):
        lead = lead_of(reduced.assign(equal=reduced[name], equal_samples=reduced[name + SAMPLES]))
        best |= {(int(reduced.index[lead.place]), column)} if lead is not None and lead.certain else set()
    title = f"{show.setting_title(cells)}, {_training(cells)}, keep rate {show.percent(keep_rate)}"
    return Section(title, show.filled(pd.DataFrame(columns)), _comparability(cells, comparable), frozenset(best))


def _training(rows: pd.DataFrame) -> str:
    row = rows.iloc[0]
    return show.counted(row["epochs"], "epoch") + (" from the published start" if row["start"] == "published" else "")


def _accuracy(cells: pd.DataFrame, name: str) -> list[str]:
    return [show.spread(mean, sd) for mean, sd in zip(cells[name], cells[f"{name}_sd"], strict=True)]


def _comparability(cells: pd.DataFrame, comparable: bool) -> tuple[str, ...]:
    """Whether published values stand here, and what keeps the others from it."""
    if cells["dataset"].iloc[0] == "digits":
        return ("Embedded default: digits, not comparable with the paper.",)
    if not cells["differs"].any() and not comparable:
        return ("The paper prints no value for this experiment: not comparable with its tables.",)
    notes = ["Published: by the reference repository, the same experiment in all that it states; one seed."]
    others = [f"{name}: {what}" for name, what in zip(show.labels(cells), cells["differs"], strict=True) if what]
    told = f"The paper's values for other models here are of another experiment. {'. '.join(others)}."
    return (*(notes if comparable else ()), *([told] if others else ()))


def measure(experiment: Experiment, model: ReducedVisionTransformer, datasets: Data) -> list[dict[str, object]]:
    """Train ``model`` on ``datasets``; a row for every epoch, from epoch 0, which is before training."""
    train_set, val_set = datasets
    sizes = {"n_train": len(train_set), "n_val": len(val_set)}
    same = experiment.conditions() | {"head": experiment.with_head(val_set).head, "start": experiment.start, **sizes}
    if not same["epochs"]:
        same |= {"lr": None, "n_train": 0}
    rows = []
    for epoch in experiment.run(model, datasets):
        row = asdict(epoch)
        rows.append({**same, "epoch_lr": row.pop("lr"), **row})
    return rows
