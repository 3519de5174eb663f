"""One cell of the method grid: a method at one keep rate, off the shelf and after the training that all others get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from common.cost.counter import count_macs
from common.data import subset
from common.data.base import LabelledDataset
from common.models.reduced import ReducedVisionTransformer
from common.reducers import Method, reducer_class
from common.training import Epoch
from common.training.experiment import Experiment

TRACED_IMAGES = 64  # only ATS keeps a number of tokens that differs from image to image


def with_teacher(experiment: Experiment) -> Experiment:
    """``experiment`` with its own unreduced backbone as the teacher, if its method learns from one."""
    if not reducer_class(Method.parse(experiment.reducer).name).wants_teacher:
        return experiment
    return replace(experiment, teacher=experiment.backbone, teacher_weights=experiment.weights)


def run_cell(experiment: Experiment) -> list[dict[str, object]]:
    """Rows of the table ``method_grid``: one before training and, with ``epochs`` > 0, one after it.

    With an ``output_dir`` the cell keeps its checkpoints there, and a stopped one goes on.
    """
    train_set, val_set = experiment.datasets()
    model = experiment.model(val_set)
    off_the_shelf = _cost(model, val_set)
    history = list(experiment.run(model, (train_set, val_set)))
    rows = [{"epochs": 0, "lr": None, "n_train": 0, **_accuracy(history[:1]), **off_the_shelf}]
    if len(history) > 1:
        trained = {"epochs": history[-1].epoch, "n_train": len(train_set)}
        rows.append({**trained, **_accuracy(history), **_cost(model, val_set)})
    return [{**experiment.conditions(), "n_val": len(val_set), **row} for row in rows]


def learns(model: ReducedVisionTransformer) -> bool:
    """The method has parameters of its own."""
    return any(True for _ in model.reducer.parameters())


def trained_if_it_learns(experiment: Experiment) -> ReducedVisionTransformer:
    """The model of ``experiment``, trained as it says only where the method has something to learn."""
    datasets = experiment.datasets()
    model = experiment.model(datasets[1])
    if learns(model):
        for _ in with_teacher(experiment).run(model, datasets):
            pass
    return model


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
    some = subset(val_set, min(TRACED_IMAGES, len(val_set)), seed=0)
    images = some.stack()
    _, trace = model.eval().trace(images.to(next(model.parameters()).device))
    counts = [trace.num_tokens[layer].double().mean().item() for layer in model.reducer.blocks]
    return {
        "tokens": " ".join(f"{count:.4g}" for count in counts),
        "gmac": count_macs(model, model.patch_embed.img_size).total / 1e9,
        "params": sum(parameter.numel() for parameter in model.parameters()),
    }
