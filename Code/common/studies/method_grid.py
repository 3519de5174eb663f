"""Ten methods under one training protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from common import plots
from common.budget import cost_images
from common.cost.counter import gmac_of
from common.data import make_loader
from common.data.base import LabelledDataset
from common.data.on_device import on_device
from common.errors import UsageError
from common.evaluation import evaluate_model
from common.evaluation.evaluate import stage_blocks
from common.evaluation.names import run_key, slug, unique_key
from common.evaluation.record import TRAINING
from common.evaluation.runner import DECISIONS
from common.models.observe import untouched
from common.models.reduced import ReducedVisionTransformer
from common.reducers import Method, reducer_class
from common.report import sections as show
from common.report.grids import at_equal_cost, best_answer, mean_ranks, pivot, ranked, seeds_text
from common.report.rows import VARIANT, add_speedup, holes, in_order, over_seeds
from common.report.sections import Answer, Section
from common.results import resolve
from common.schedule import keep_rate_text
from common.schema import REQUIRED, accuracy_name, count, number, text
from common.studies import _accuracy_claims
from common.studies.base import Study, register_study
from common.training import Epoch, TrainConfig, predict
from common.training.accelerator import make_accelerator, seed_everything
from common.training.engine import EVALUATION
from common.training.experiment import Experiment
from common.training.metrics import hits_by_image
from common.weights import save_state

SETTING = ["dataset", "backbone", "weights", "recipe", "img_size", "epochs", "lr", "n_train", "n_val", "dtype", "batch"]
UNTRAINED = {"epochs": 0, "lr": None, "n_train": 0}  # conditions of a model that was not trained
_COST_NOTE = (
    "Patch tokens left after each reduction, mean over images, and 10⁹ multiply-accumulates of one image, attention "
    "included. The same keep rate is not the same cost: methods reduce before a block, in it or after its attention."
)


@register_study
class MethodGrid(Study):
    """Which method loses least at the same keep rate, before and after the same training."""

    name, title = "method_grid", "Ten methods, one protocol"
    question = "Which method loses least at the same keep rate, before and after the same training?"
    place = 50
    columns = {
        "accuracy": number("top-1, or mAP where images have several labels, after the last epoch", "percent"),
        "accuracy_best": number("of the best epoch, raw or averaged weights; chosen on these images", "percent"),
        "ema_accuracy": number("of the averaged weights after the last epoch", "percent", optional=True),
        "loss": number("mean on the validation images after the last epoch"),
        "tokens": text("patch tokens left after each reduction, mean over images"),
        "gmac": number("multiply-accumulates of an image, attention included", "GMAC"),
        "params": count("parameters, the method's own included"),
        "n_val": count("validation images"),
    }
    required = (*REQUIRED, "dataset", "seed", "epochs")
    setting = SETTING
    claims = _accuracy_claims.CLAIMS
    captions = {
        "cost": "Accuracy (mAP where images have several labels) against the cost of one image and, where it was "
        "measured, the speed-up. Each line runs through the keep rates of a method. Rings: no other model is as "
        "accurate at the same or lower cost.",
    }

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Accuracies (percent), loss, GMAC per image and tokens left of every method, as given and after training."""
        key = [*SETTING, *VARIANT]
        metrics = ["accuracy", "accuracy_best", "ema_accuracy", "loss", "gmac"]
        found = over_seeds(runs, key, metrics, compared=metrics[:3])
        groups = runs.groupby(key, dropna=False, sort=False)
        models = groups.agg(params=("params", "first"), tokens=("tokens", _mean_tokens)).reset_index()
        return in_order(found.merge(models, on=key), SETTING)

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        others = {"ema_accuracy": "running average of the weights, last epoch", "accuracy_best": "best epoch"}
        for rows, apart in _settings(data):
            title, note = f"{show.setting_title(rows)}, {_measured(rows)}{apart}", _grid_note(rows)
            yield ranked(title, rows, "accuracy", note)
            pairs = zip(rows["tokens"], show.numbers(rows["gmac"]), strict=True)
            cost = [f"{tokens} · {gmac}" for tokens, gmac in pairs]
            yield Section(f"{title}: tokens left and GMAC per image", pivot(rows, cost), (_COST_NOTE,))
            for name, what in others.items() if rows["epochs"].iloc[0] else ():
                if rows[name].notna().any():
                    yield replace(ranked(f"{title}: {what}", rows, name, note), folded=True)

    def figures(self, runs: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Figure]]:
        yield "cost", plots.accuracy_mac_pareto(add_speedup(runs, others["throughput"]))

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        for rows, apart in _settings(data):
            context = f"On {show.where_text(rows)}, {_measured(rows)}{apart}"
            answer = best_answer(rows, "accuracy", context, cost=True)
            order = mean_ranks(at_equal_cost(rows, "accuracy")).dropna().sort_values(kind="stable")
            first = "; ".join(f"{show.method_label(*model)} {rank:.2f}" for model, rank in order.head(3).items())
            yield Answer(
                answer.text, (*answer.points, f"lowest mean ranks: {first}") if len(order) > 1 else answer.points
            )

    def measured_on(self, rows: pd.DataFrame) -> str:
        if not rows["epochs"].iloc[0]:
            return show.measured_text(rows, "n_val")
        seeds = show.counted(int(rows["n"].max()), "seed")
        return f"{show.where_text(rows)}, {_measured(rows)}, {seeds}, {rows['n_val'].iloc[0]:,} images"

    def missing(self, runs: pd.DataFrame) -> list[str]:
        return holes(runs, SETTING, trained=(runs["epochs"] > 0).any())


def _mean_tokens(counts: pd.Series) -> str:
    """Mean of texts like "137 96 67", number by number, to one decimal."""
    means = counts.str.split(expand=True).astype(float).mean()
    return " ".join(f"{round(mean, 1):g}" for mean in means)


def _settings(data: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, str]]:
    """Rows of each setting, with what tells it from others of the same training: number format and images."""
    settings = [rows for _, rows in data.groupby(SETTING, sort=False, dropna=False)]
    named = [(show.setting_title(rows), _measured(rows)) for rows in settings]
    for rows, name in zip(settings, named, strict=True):
        row, several = rows.iloc[0], named.count(name) > 1
        yield rows, f", {row['dtype']}, {row['n_val']:,} validation images" if several else ""


def _measured(rows: pd.DataFrame) -> str:
    """How the models of one setting were trained, and what was measured where that is not top-1."""
    name = accuracy_name(rows["dataset"].iloc[0])
    return show.training_text(rows) if name == "top-1" else f"{name} {show.training_text(rows)}"


def _grid_note(rows: pd.DataFrame) -> str:
    row, seeds = rows.iloc[0], seeds_text(rows)
    trained = f"{show.counted(row['epochs'], 'epoch')} of training on {row['n_train']:,} images, batch {row['batch']}"
    start = trained if row["epochs"] else "no training"
    spread_note = f"mean ± standard deviation over {seeds} seeds" if rows["n"].max() > 1 else "1 seed"
    measure = {"top-1": "Top-1 accuracy", "mAP": "mAP"}[accuracy_name(row["dataset"])]
    return f"{measure} in percent on {row['n_val']:,} images, classes of the dataset only; {start}; {spread_note}."


@dataclass(frozen=True)
class Kept:
    """What is kept of trained models, by paths that start from the repository; "" = it is not.

    Attributes:
        checkpoints: folder with one of each training below it, from which a stopped one goes on.
        checkpoint: file for the weights (.safetensors) after the last epoch, of one model.
        records: folder for what each model decides on every validation image after the last epoch, see
            :class:`common.evaluation.Record`; below it as :func:`common.evaluation.unique_key` has it, by data set,
            seed and model.
        cls_at: blocks after which records have the CLS token.
    """

    checkpoints: str = ""
    checkpoint: str = ""
    records: str = ""
    cls_at: Sequence[int] = ()

    def training(self, cell: Experiment) -> str:
        """The folder of the training ``cell``: no other data set, method, keep rate or seed has it."""
        if not self.checkpoints:
            return ""
        name = f"{cell.backbone}-{cell.reducer}-{keep_rate_text(cell.keep_rate)}-s{cell.config.seed}"
        return "/".join([self.checkpoints, slug(cell.dataset), slug(name)])


NOTHING = Kept()


def measure(
    start: Experiment, reducers: Sequence[str], keep_rates: Sequence[float], kept: Kept = NOTHING
) -> list[dict[str, object]]:
    """Rows of every method at every keep rate, "none" once, each trained as ``start`` is.

    Raises:
        UsageError: one ``checkpoint`` for several models.
    """
    pairs = [(name, rate) for name in reducers for rate in ([1.0] if name == "none" else keep_rates)]
    if kept.checkpoint and len(pairs) != 1:
        raise UsageError(f"checkpoint {kept.checkpoint!r} of {len(pairs)} models; give one method and one keep rate")
    cells = [with_teacher(replace(start, reducer=reducer, keep_rate=rate)) for reducer, rate in pairs]
    return [row for cell in tqdm(cells, "models") for row in run_cell(cell, kept)]


def with_teacher(experiment: Experiment) -> Experiment:
    """``experiment`` with a teacher only if its method learns from one: that given, or its own unreduced backbone."""
    if not reducer_class(Method.parse(experiment.reducer).name).wants_teacher:
        return replace(experiment, teacher="", teacher_weights="")
    if experiment.teacher:
        return experiment
    return replace(experiment, teacher=experiment.backbone, teacher_weights=experiment.weights)


def run_cell(experiment: Experiment, kept: Kept = NOTHING) -> list[dict[str, object]]:
    """Rows of one method at one keep rate: off the shelf, where the head is the dataset's, and after training.

    Raises:
        UsageError: a fresh head that is not trained.
    """
    experiment = replace(experiment, output_dir=kept.training(experiment))
    train_set, val_set = experiment.datasets()
    known = experiment.with_head(val_set).head == "dataset"
    if not known and not experiment.config.total_epochs:
        raise UsageError("epochs=0 with a fresh head measures chance; give head='dataset', or epochs")
    model = experiment.model(val_set)
    model.check_cls_at(kept.cls_at)
    before = {**_cost(model, val_set), **_hits(model, val_set, experiment.config, 0)}
    history = list(experiment.run(model, (train_set, val_set)))
    if kept.checkpoint:
        save_state(model, resolve(kept.checkpoint))
    rows = [{**UNTRAINED, **_accuracy(history[:1]), **before}] if known else []
    if len(history) > 1:
        epochs = history[-1].epoch
        after = {**_cost(model, val_set), **_hits(model, val_set, experiment.config, epochs)}
        rows.append({"epochs": epochs, "n_train": len(train_set), **_accuracy(history), **after})
    rows = [{**experiment.conditions(), "n_val": len(val_set), **row} for row in rows]
    if kept.records:
        _leave_record(model, val_set, experiment, rows[-1], kept)
    return rows


def _leave_record(
    model: ReducedVisionTransformer, val_set: LabelledDataset, cell: Experiment, row: Mapping[str, object], kept: Kept
) -> None:
    """Write what ``model`` decides, with the training that the last ``row`` of its ``cell`` tells of."""
    config = cell.config
    key = run_key(cell.reducer, cell.backbone, model.reducer.schedule.keep_rate, stage_blocks(model.reducer))
    record = evaluate_model(
        model,
        val_set,
        batch_size=config.batch_size,
        method=cell.reducer,
        backbone=cell.backbone,
        name=key,
        weights=row["weights"],
        seed=config.seed,
        details={name: row[name] for name in TRAINING},
        cls_at=kept.cls_at,
        device=config.device,
        workers=config.workers,
        mixed_precision=config.mixed_precision,
    )
    record.save(resolve(kept.records) / unique_key(key, cell.dataset, config.seed) / DECISIONS)


def _hits(
    model: ReducedVisionTransformer, val_set: LabelledDataset, config: TrainConfig, epoch: int
) -> dict[str, object]:
    """Which images are right, evaluated as a training does after ``epoch``; {} where images have several labels."""
    if val_set.multi_label:
        return {}
    accelerator = make_accelerator(config.device, config.mixed_precision, (), None, unused_parameters=False)
    loader = make_loader(val_set, config.batch_size, shuffle=False, seed=config.seed, workers=config.workers)
    loader = on_device(loader, accelerator.device)
    seed_everything(config.seed, epoch, EVALUATION)
    with accelerator.autocast():
        predictions, labels = predict({"model": model.to(accelerator.device)}, loader)
    return hits_by_image(predictions["model"].logits, labels, val_set)


def _accuracy(history: Sequence[Epoch]) -> dict[str, float | None]:
    """The last epoch, and the best one, of raw or averaged weights, since training began."""
    last = history[-1]
    trained = history[1:] or history
    values = [value for epoch in trained for value in (epoch.val_accuracy, epoch.ema_val_accuracy) if value is not None]
    return {
        "accuracy": last.val_accuracy,
        "accuracy_best": max(values),
        "ema_accuracy": last.ema_val_accuracy if last.epoch else None,
        "loss": last.val_loss,
    }


def _cost(model: ReducedVisionTransformer, val_set: LabelledDataset) -> dict[str, object]:
    images = cost_images(val_set)
    with untouched(model):
        _, trace = model.trace(images.to(next(model.parameters()).device))
    counts = [trace.num_tokens[layer].double().mean().item() for layer in model.reducer.blocks]
    return {
        "tokens": " ".join(f"{count:.4g}" for count in counts),
        "gmac": gmac_of(model, lambda: images),
        "params": sum(parameter.numel() for parameter in model.parameters()),
    }
