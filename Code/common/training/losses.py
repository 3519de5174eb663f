"""Training losses, all scalars of logits (B, C)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from common.cost.closed_form import Shape
from common.data.base import LabelledDataset
from common.errors import UsageError
from common.reducers.base import Teaching, divergence
from common.reducers.none import NoReduction
from common.training.config import TrainConfig


def asymmetric_loss(logits: Tensor, targets: Tensor, *, gamma: float = 4.0, margin: float = 0.05) -> Tensor:
    """Asymmetric loss for several labels per image (Ridnik et al., ICCV 2021), with no focusing of the positives::

        p = sigmoid(logits),  q = min(1 - p + margin, 1)
        L = - sum over batch and classes of  y log p + (1 - y) (1 - q)^gamma log q

    Gradients flow through the focusing factor too. It is a sum, so it grows with the batch.

    Args:
        logits, targets: (B, C), targets 0 or 1.
    """
    p = logits.sigmoid()
    q = (1 - p + margin).clamp(max=1)
    positive = targets * p.clamp(min=1e-8).log()
    negative = (1 - targets) * (1 - q).pow(gamma) * q.clamp(min=1e-8).log()
    return -(positive + negative).sum()


def distillation_loss(logits: Tensor, teacher_logits: Tensor, kind: str, tau: float = 1.0) -> Tensor:
    """DeiT's distillation (Touvron et al., 2021, eq. 2 and 3), of the distillation token's logits.

    ``soft``: tau^2 times the Kullback-Leibler divergence at temperature ``tau``, mean over the batch, as in the paper
    (DeiT's code also divides by the number of classes). ``hard``: cross-entropy with the teacher's decision.
    """
    if kind == "hard":
        return F.cross_entropy(logits, teacher_logits.argmax(1))
    return tau**2 * divergence(logits / tau, teacher_logits / tau)


def make_criterion(config: TrainConfig, *, multi_label: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of logits against labels: (B,) class indices, (B, C) soft after mixup, or (B, C) with several labels.

    Raises:
        UsageError: the config's loss or mixup does not fit the kind of labels.
    """
    if multi_label:
        if config.mixes:
            raise UsageError("mixup and cutmix need one label per image; for several labels give mixup=0 and cutmix=0")
        if config.loss == "cross_entropy":
            raise UsageError("loss 'cross_entropy' needs one label per image; allowed: asymmetric, auto, bce")
        if config.distillation != "none":
            raise UsageError("distillation needs one label per image; for several labels give distillation='none'")
        return F.binary_cross_entropy_with_logits if config.loss == "bce" else asymmetric_loss
    if config.loss == "asymmetric":
        raise UsageError("loss 'asymmetric' needs several labels per image; allowed: auto, bce, cross_entropy")
    if config.loss == "bce":
        return BinaryCrossEntropy(smoothing=0.0 if config.mixes else config.smoothing)
    if config.mixes:
        return SoftTargetCrossEntropy()  # the smoothing is in the targets
    return nn.CrossEntropyLoss(label_smoothing=config.smoothing)


class Objective(nn.Module):
    """A model together with its loss: one module whose forward pass is all that is differentiated.

    The loss of the labels, mixed with DeiT's distillation when the config asks for it, times ``label_weight``, plus
    what the reducer adds.

    Attributes:
        sums: the loss is a sum over the images, not their mean.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, *, multi_label: bool) -> None:
        super().__init__()
        self.model = model
        self._config = config
        self._criterion = make_criterion(config, multi_label=multi_label)
        self.sums = self._criterion is asymmetric_loss

    def forward(self, images: Tensor, targets: Tensor, teacher: Teaching | None = None) -> Tensor:
        """Scalar float32 loss of ``images`` (B, 3, H, W)."""
        reducer = getattr(self.model, "reducer", None)
        outputs, tokens = (self.model(images), None) if reducer is None else self.model(images, return_tokens=True)
        if self._config.distillation == "none":
            logits = outputs.float()
            loss = self._criterion(logits, targets)
        else:
            logits, distilled = (output.float() for output in outputs)
            alpha, tau = self._config.distillation_alpha, self._config.distillation_tau
            taught = distillation_loss(distilled, teacher.logits, self._config.distillation, tau)
            loss = (1 - alpha) * self._criterion(logits, targets) + alpha * taught
        loss = loss * self._config.label_weight
        return loss if reducer is None else loss + reducer.training_loss(tokens, logits, teacher)


@torch.no_grad()
def teach(teacher: nn.Module, images: Tensor) -> Teaching:
    """What a teacher in eval mode makes of ``images``, in float32."""
    logits, tokens = teacher(images, return_tokens=True)
    return Teaching(logits.float(), tokens.patches.float(), tokens.prefix.float())


def check_teacher(model: nn.Module, teacher: nn.Module | None, config: TrainConfig) -> None:
    """Refuse a teacher that nothing learns from, one that is reduced or of another shape than the model where a
    reducer compares their patches, and distillation without teacher or token."""
    distils = config.distillation != "none"
    if distils and not hasattr(model, "set_distilled_training"):
        raise UsageError(f"distillation {config.distillation!r} needs a backbone with a distillation token (deit_*)")
    if distils and teacher is None:
        raise UsageError(f"distillation {config.distillation!r} needs a teacher")
    if teacher is None:
        return
    compares = getattr(getattr(model, "reducer", None), "wants_teacher", False)
    if not distils and not compares:
        raise UsageError("nothing learns from the teacher; give distillation, a reducer that wants one, or no teacher")
    if not isinstance(getattr(teacher, "reducer", None), NoReduction):
        raise UsageError("a teacher must come from create_model and be unreduced (reducer='none')")
    if getattr(teacher, "num_classes", None) != getattr(model, "num_classes", None):
        raise UsageError(f"the teacher has {teacher.num_classes} classes, the model {model.num_classes}")
    if compares and _patches(teacher) != _patches(model):
        raise UsageError(
            f"the teacher has patches (number, width) {_patches(teacher)}, the model {_patches(model)}; the reducer "
            f"compares them one by one: give a teacher of the model's patch size, image size and width"
        )


def _patches(model: nn.Module) -> tuple[int, int]:
    shape = Shape.of(model)
    return shape.num_patches, shape.dim


def check_labels(model: nn.Module, train_set: LabelledDataset, val_set: LabelledDataset) -> None:
    """Refuse a model or a validation set whose classes are not those of the training set."""
    if (val_set.num_classes, val_set.multi_label) != (train_set.num_classes, train_set.multi_label):
        raise UsageError(
            f"training set {train_set.name!r} ({_labels(train_set)}) and validation set {val_set.name!r} "
            f"({_labels(val_set)}) do not have the same labels"
        )
    outputs = getattr(model, "num_classes", train_set.num_classes)
    if outputs != train_set.num_classes:
        raise UsageError(
            f"the model has {outputs} outputs, dataset {train_set.name!r} has {train_set.num_classes} classes; "
            f"give create_model num_classes={train_set.num_classes}"
        )


def _labels(dataset: LabelledDataset) -> str:
    return f"{dataset.num_classes} classes, {'several' if dataset.multi_label else 'one'} per image"
