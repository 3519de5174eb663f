"""One update of the weights: loss, gradients of several passes, clipping, optimizer, moving average."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from common.training.accelerator import seed_everything
from common.training.config import TrainConfig
from common.training.losses import Objective, teach
from common.training.optim import base_rate, learning_rate, make_optimizers, trains

Batch = tuple[Tensor, Tensor]


class Updater:
    """Everything that changes the weights of a model, and its state from one update to the next.

    Args:
        objective: the model with its loss, on the accelerator's device.
        teacher: in eval mode on the same device, or None.
        num_classes: of the labels, for mixup.
        updates_per_epoch: for the schedule.
    """

    def __init__(
        self,
        objective: Objective,
        config: TrainConfig,
        accelerator: Accelerator,
        *,
        teacher: nn.Module | None,
        num_classes: int,
        updates_per_epoch: int,
    ) -> None:
        self.model, self._config, self._accelerator, self._teacher = objective.model, config, accelerator, teacher
        self._updates_per_epoch = updates_per_epoch
        self._base_rate = base_rate(config, accelerator.num_processes)
        self._mixup = _mixup(config, num_classes)
        self._hold_constant()
        self.average = None if config.ema_decay is None else ModelEmaV3(self.model, decay=config.ema_decay)
        self._optimizers = [
            accelerator.prepare_optimizer(optimizer, device_placement=False)
            for optimizer in make_optimizers(self.model, config)
        ]
        self._sums = objective.sums
        self._objective = accelerator.prepare_model(objective)

    def update(self, batches: list[Batch], epoch: int, step: int) -> list[float]:
        """One update from the gradients of ``batches``, every image of all processes weighing the same.

        Args:
            epoch, step: number of the epoch from 1, and of the update in it from 0.

        Returns:
            The loss of each batch of this process, per image.

        Raises:
            FloatingPointError: a loss of any process is not finite; the weights are those of the update before.
        """
        self._set_rates(epoch, step)
        sizes = [len(inputs) for inputs, _ in batches]
        # a loss that is a sum over the images of a pass weighs them alike already
        weights = [1] * len(sizes) if self._sums else sizes
        whole = int(self._accelerator.reduce(torch.tensor(sum(weights), device=self._accelerator.device)))
        losses = []
        for number, (inputs, labels) in enumerate(batches):
            waits = number < len(batches) - 1
            with self._accelerator.no_sync(self._objective) if waits else nullcontext():
                loss = self._loss(inputs, labels, epoch, step * self._config.grad_accum_steps + number)
                losses.append(loss.detach() / (sizes[number] if self._sums else 1))
                # DDP takes the mean over processes
                self._accelerator.backward(loss * (weights[number] * self._accelerator.num_processes / whole))
        everywhere = self._accelerator.gather(torch.stack(losses)).tolist()
        for loss in everywhere:
            if not math.isfinite(loss):
                self._zero_grad()
                raise FloatingPointError(f"the loss is {loss} in epoch {epoch}, step {step}")
        self._apply()
        first = self._accelerator.process_index * len(batches)
        return everywhere[first : first + len(batches)]

    def rate(self, epoch: int, step: int, scale: float = 1.0) -> float:
        """Learning rate of an update, for parameters whose rate has the factor ``scale``."""
        return learning_rate(
            (epoch - 1) * self._updates_per_epoch + step,
            base=scale * self._base_rate,
            updates_per_epoch=self._updates_per_epoch,
            config=self._config,
        )

    def train_mode(self) -> None:
        self._objective.train()

    def state(self) -> dict[str, Any]:
        """What the next update depends on besides the weights: nested tensors and plain values."""
        scaler = self._accelerator.scaler
        return {
            "average": None if self.average is None else self.average.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        for optimizer, kept in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])

    def release(self) -> None:
        """Give the model back as it was taken, apart from its weights."""
        for parameter in self._held:
            parameter.requires_grad_(True)
        if hasattr(self.model, "set_distilled_training"):
            self.model.set_distilled_training(False)

    def _hold_constant(self) -> None:
        named = self.model.named_parameters()
        self._held = [p for name, p in named if p.requires_grad and not trains(name, self._config)]
        for parameter in self._held:
            parameter.requires_grad_(False)
        if hasattr(self.model, "set_distilled_training"):
            self.model.set_distilled_training(self._config.distillation != "none")

    def _loss(self, images: Tensor, labels: Tensor, epoch: int, number: int) -> Tensor:
        """The loss of this process's pass ``number`` of the epoch."""
        among_all = number * self._accelerator.num_processes + self._accelerator.process_index
        seed_everything(self._config.seed, epoch, among_all)
        images, labels = (tensor.to(self._accelerator.device, non_blocking=True) for tensor in (images, labels))
        if self._mixup is not None:
            images, labels = self._mixup(images, labels)
        if self._teacher is None:
            return self._objective(images, labels)
        with self._accelerator.autocast():
            taught = teach(self._teacher, images)
        return self._objective(images, labels, taught)

    def _set_rates(self, epoch: int, step: int) -> None:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                frozen = epoch <= group["freeze_epochs"]
                group["lr"] = 0.0 if frozen else self.rate(epoch, step, group["lr_scale"])

    def _apply(self) -> None:
        if self._config.clip_grad is not None:
            self._accelerator.clip_grad_norm_(self.model.parameters(), self._config.clip_grad)
        for optimizer in self._optimizers:
            optimizer.step()
        self._zero_grad()
        if self.average is not None and not self._accelerator.optimizer_step_was_skipped:
            self.average.update(self.model)

    def _zero_grad(self) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad()


def _mixup(config: TrainConfig, num_classes: int) -> Mixup | None:
    if not config.mixes:
        return None
    return Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        cutmix_minmax=config.cutmix_minmax,
        prob=config.mixup_prob,
        switch_prob=config.mixup_switch_prob,
        mode=config.mixup_mode,
        label_smoothing=config.smoothing,
        num_classes=num_classes,
    )
