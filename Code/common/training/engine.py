"""The training loop: any model and config, one process or several, whole or stopped and taken up again.

Every pass (micro-batch) is seeded by (seed, epoch, its number among those of all processes), and the images of an
update weigh the same wherever they are computed. So W processes do what one does with W times the accumulation steps,
and a run that was killed goes on as if nothing had happened: on a CPU bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch import nn

from common.data import make_loader, set_epoch
from common.data.base import LabelledDataset
from common.data.on_device import on_device
from common.errors import UsageError
from common.models.reduced import uncautioned
from common.training.accelerator import make_accelerator, progress, seed_everything
from common.training.checkpoint import Best, RunFolder
from common.training.config import TrainConfig
from common.training.losses import Objective, check_labels, check_teacher
from common.training.prediction import evaluate
from common.training.updates import Batch, Updater

EVALUATION = 2**31  # in place of the number of a pass, which never gets that far
ANYWHERE = ("device", "workers", "trackers")  # settings that a run may change when it goes on


@dataclass(frozen=True)
class Epoch:
    """What is known after one epoch; epoch 0 is before training, without training losses, average and rate.

    Attributes:
        train_loss: mean over the epoch's images.
        train_loss_last_batch: the last batch's, which the reference repository of TRAM records.
        val_loss: mean over the validation images: cross-entropy, or binary cross-entropy for several labels per image.
        val_accuracy: percent of the images, or mean average precision in percent for several labels per image.
        ema_val_loss, ema_val_accuracy: the same of the averaged weights.
        lr: rate of the epoch's last update, of parameters that are not scaled.
        epoch_seconds: training and validation.
        loading_seconds: of these, how long the training waited for its images.
    """

    epoch: int
    train_loss: float | None
    train_loss_last_batch: float | None
    val_loss: float
    val_accuracy: float
    ema_val_loss: float | None
    ema_val_accuracy: float | None
    lr: float | None
    epoch_seconds: float
    loading_seconds: float | None = None


def train(
    model: nn.Module,
    train_set: LabelledDataset,
    val_set: LabelledDataset,
    config: TrainConfig,
    *,
    teacher: nn.Module | None = None,
    output_dir: str | Path | None = None,
    on_resume: Callable[[list[Epoch]], None] | None = None,
) -> Iterator[Epoch]:
    """Train ``model`` in place; yields epoch 0 (before training) and then every epoch.

    Args:
        teacher: an unreduced model of the same classes, for distillation or for a reducer that learns from one.
        output_dir: the run's folder, see :mod:`common.training.checkpoint`. Where it holds a stopped run, its epochs
            are yielded again and it goes on from there; ``model`` then gets its weights.
        on_resume: is given the epochs of a stopped run, which then are not yielded again.

    Raises:
        UsageError: settings, data, model and folder do not fit together.
        FloatingPointError: the loss is no longer finite; the message names epoch, step and the last good checkpoint.
    """
    trainer = Trainer(model, train_set, val_set, config, teacher, output_dir)
    try:
        with uncautioned(model):
            history = trainer.resume()
            if history and on_resume is not None:
                on_resume(history)
            else:
                yield from history
            for number in range(len(history), config.total_epochs + 1):
                yield trainer.epoch(number)
    finally:
        trainer.close()


def goes_on(history: list[Epoch], config: TrainConfig) -> str:
    """One line about a stopped run of the epochs ``history``: where it goes on, or that nothing is left to train."""
    done, total = history[-1].epoch, config.total_epochs
    return f"goes on after epoch {done} of {total}" if done < total else f"was trained already: epoch {done} of {total}"


class Trainer:
    """One training: its data, its evaluation and what is kept of it; :func:`train` is its use."""

    def __init__(
        self,
        model: nn.Module,
        train_set: LabelledDataset,
        val_set: LabelledDataset,
        config: TrainConfig,
        teacher: nn.Module | None,
        output_dir: str | Path | None,
    ) -> None:
        check_labels(model, train_set, val_set)
        check_teacher(model, teacher, config)
        folder = None if output_dir is None else Path(output_dir).absolute()
        if config.trackers and folder is None:
            raise UsageError(f"trackers {', '.join(config.trackers)} need an output_dir to write to")
        objective = Objective(model, config, multi_label=train_set.multi_label)
        # then there is a class token that no pass uses, and DDP must not wait for its gradient
        unused = hasattr(model, "reducer") and model.reducer.pools_mean
        self.accelerator = make_accelerator(
            config.device, config.mixed_precision, config.trackers, folder, unused_parameters=unused
        )
        self.config, self.model = config, model
        # what is saved says what the weights were trained on
        model.pretrained_cfg = getattr(model, "pretrained_cfg", {}) | {"mean": train_set.mean, "std": train_set.std}
        self._load_data(train_set, val_set)
        self.updates_per_epoch = math.ceil(len(self.train_loader) / config.grad_accum_steps)
        self.updater = Updater(
            objective.to(self.accelerator.device),
            config,
            self.accelerator,
            teacher=None if teacher is None else teacher.to(self.accelerator.device).eval(),
            num_classes=train_set.num_classes,
            updates_per_epoch=self.updates_per_epoch,
        )
        self.history: list[Epoch] = []
        self.best: Best | None = None
        self.folder = None if folder is None else RunFolder(folder, self._settings(train_set, val_set))
        if config.trackers:
            self.accelerator.init_trackers("token_reduction", {key: str(v) for key, v in asdict(config).items()})

    def _load_data(self, train_set: LabelledDataset, val_set: LabelledDataset) -> None:
        place = {"rank": self.accelerator.process_index, "world_size": self.accelerator.num_processes}
        shared = {"seed": self.config.seed, "workers": self.config.workers, **place}
        training = {"shuffle": True, "drop_last": self.config.mixes, "repeats": self.config.repeats}
        device = self.accelerator.device
        self.train_loader = on_device(make_loader(train_set, self.config.batch_size, **training, **shared), device)
        self.val_loader = on_device(make_loader(val_set, self.config.batch_size, shuffle=False, **shared), device)

    def _settings(self, train_set: LabelledDataset, val_set: LabelledDataset) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        settings = {key: value for key, value in asdict(self.config).items() if key not in ANYWHERE}
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        data = {"train_set": f"{train_set.name} ({len(train_set)})", "val_set": f"{val_set.name} ({len(val_set)})"}
        model = {"reducer": _describe_reducer(self.model), "parameters": parameters}
        return {**settings, **data, **model, "processes": self.accelerator.num_processes}

    def close(self) -> None:
        """Finish the trackers and give the model back."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.updater.release()

    def epoch(self, number: int) -> Epoch:
        """Train (not epoch 0), evaluate, and keep the result."""
        start = time.perf_counter()
        *losses, waited = self._train_epoch(number) if number else (None, None, None)
        raw = self._evaluate(self.model, number)
        average = self.updater.average
        averaged = (None, None) if average is None or number == 0 else self._evaluate(average.module, number)
        rate = self.updater.rate(number, self.updates_per_epoch - 1) if number else None
        epoch = Epoch(number, *losses, *raw, *averaged, rate, time.perf_counter() - start, waited)
        self.history.append(epoch)
        if self.config.trackers:
            values = {key: value for key, value in asdict(epoch).items() if value is not None}
            self.accelerator.log(values, step=number)
        self._save(epoch)
        return epoch

    def _evaluate(self, model: nn.Module, epoch: int) -> tuple[float, float]:
        set_epoch(self.val_loader, 0)
        seed_everything(self.config.seed, epoch, EVALUATION)
        return evaluate(model.eval(), self.val_loader, self.accelerator)  # after an epoch the model is ready for use

    def _train_epoch(self, epoch: int) -> tuple[float, float, float]:
        """Mean loss over the images of the epoch, and that of its last pass; seconds without images."""
        self.updater.train_mode()
        set_epoch(self.train_loader, epoch - 1)
        quiet = not self.accelerator.is_main_process
        total, seen, waited, losses = 0.0, 0, 0.0, []
        with progress(self.train_loader, f"epoch {epoch}", quiet) as bar:
            passes = iter(bar)
            for step in range(self.updates_per_epoch):
                asked = time.perf_counter()
                batches = list(islice(passes, self.config.grad_accum_steps))
                waited += time.perf_counter() - asked
                losses = self._update(batches, epoch, step)
                sizes = [len(images) for images, _ in batches]
                total += sum(loss * size for loss, size in zip(losses, sizes, strict=True))
                seen += sum(sizes)
                bar.set_postfix(loss=f"{losses[-1]:.3f}")
        totals, images, last = zip(*gather_object([(total, seen, losses[-1])]), strict=True)
        return sum(totals) / sum(images), last[-1], waited

    def _update(self, batches: list[Batch], epoch: int, step: int) -> list[float]:
        try:
            return self.updater.update(batches, epoch, step)
        except FloatingPointError as error:
            good = f"; the last good checkpoint, of epoch {epoch - 1}, is in {self.folder.path}" if self.folder else ""
            raise FloatingPointError(f"{error}; try a smaller lr{good}") from error

    def _save(self, epoch: Epoch) -> None:
        candidates = [(epoch.val_accuracy, False)]
        if epoch.ema_val_accuracy is not None:
            candidates.append((epoch.ema_val_accuracy, True))
        accuracy, averaged = max(candidates, key=lambda candidate: candidate[0])
        # an epoch of training beats epoch 0 whatever its accuracy: "best" is a result of this training
        improves = self.best is None or self.best.epoch == 0 or accuracy > self.best.accuracy
        if improves:
            self.best = Best(epoch.epoch, accuracy, averaged)
        if self.folder is None or not self.accelerator.is_main_process:
            return
        if improves:
            self.folder.write_best(self.updater.average.module if averaged else self.model, self.best)
        state = {"model": self.model.state_dict(), "best": asdict(self.best), **self.updater.state()}
        rows = [asdict(each) for each in self.history]
        self.folder.save(state, rows)
        self.folder.write_readable(self.model, rows)

    def resume(self) -> list[Epoch]:
        """Take up the run in the folder, if there is one, and return its epochs."""
        found = None if self.folder is None else self.folder.load()
        self.accelerator.wait_for_everyone()  # nobody writes before all have read
        if found is None:
            return []
        state, history = found
        self.model.load_state_dict(state["model"])
        self.updater.load_state(state)
        self.best, self.history = Best(**state["best"]), [Epoch(**row) for row in history]
        if self.accelerator.is_main_process:
            self.folder.write_readable(self.model, history)
        return list(self.history)


def _describe_reducer(model: nn.Module) -> str:
    """Name, schedule and options, without the modules in it."""
    reducer = getattr(model, "reducer", None)
    if reducer is None:
        return "none"
    plain = {key: value for key, value in vars(reducer).items() if isinstance(value, (bool, int, float, str))}
    options = ", ".join(f"{key}={plain[key]}" for key in sorted(plain) if key not in ("training", "call_super_init"))
    return f"{type(reducer).__name__}({reducer.extra_repr()}; {options})"
