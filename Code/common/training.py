"""Training and evaluation under TRAM's protocols: plain Adam, cross-entropy, one evaluation after every epoch.

Pretrained: learning rate 1e-4, constant, 5 epochs, batch 64. Scratch: learning rate 1e-4, halved every 10 epochs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from common.data import make_loader
from common.data.base import LabelledDataset
from common.errors import UsageError, require_choice

OPTIMIZERS = ("adam", "muon")
WARMUP = 0.1  # share of the steps, schedule "cosine"
SCHEDULES = ("constant", "step", "cosine")


def torch_device(name: str | None = None) -> torch.device:
    """The device called ``name``; by default "cuda" when there is one, else "cpu".

    Raises:
        UsageError: there is no such device here.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} is not to be had here: {str(error).splitlines()[0]}") from error
    return device


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: passes over the training set; 0 = evaluate only (off the shelf).
        lr: learning rate of Adam (default betas, no weight decay).
        optimizer: "adam", or "muon": Muon (Jordan et al., 2024) at 20 times ``lr`` for the matrices of the blocks and
            Adam for the rest, which trains a small ViT from scratch in a fraction of the epochs.
        schedule: "constant", "step" (times 0.5 after every 10 epochs), or "cosine" (to 0, after a linear warm-up over
            the first 10 % of the steps).
        batch_size: images per step.
        seed: of the order of images and their augmentation.
        workers: processes that load data.
        device: "cpu", "cuda" ...; None = "cuda" when there is one.
    """

    epochs: int
    lr: float = 1e-4
    optimizer: str = "adam"
    schedule: str = "constant"
    batch_size: int = 64
    seed: int = 42
    workers: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        require_choice(self.optimizer, OPTIMIZERS, "optimizer")
        require_choice(self.schedule, SCHEDULES, "schedule")
        for name, least in (("epochs", 0), ("batch_size", 1), ("workers", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UsageError(f"{name}={value!r} is not allowed; give an integer >= {least}")
        torch_device(self.device)
        if not isinstance(self.lr, (int, float)) or not 0 < self.lr < math.inf:
            raise UsageError(f"lr={self.lr!r} is not allowed; give a positive number")


@dataclass(frozen=True)
class Epoch:
    """What is known after one epoch; epoch 0 is before training, without training losses.

    Attributes:
        train_loss: mean over the epoch's images.
        train_loss_last_batch: the last batch's, which the reference repository of TRAM records.
        val_loss: mean over the validation images.
        val_accuracy: percent.
        epoch_seconds: training and validation.
    """

    epoch: int
    train_loss: float | None
    train_loss_last_batch: float | None
    val_loss: float
    val_accuracy: float
    epoch_seconds: float


def train(
    model: nn.Module, train_set: LabelledDataset, val_set: LabelledDataset, config: TrainConfig
) -> Iterator[Epoch]:
    """Train ``model`` in place; yields epoch 0 (before training) and then every epoch.

    Raises:
        FloatingPointError: the loss is no longer finite; the message names epoch and step.
    """
    device = torch_device(config.device)
    model.to(device)
    train_loader = make_loader(train_set, config.batch_size, shuffle=True, seed=config.seed, workers=config.workers)
    val_loader = make_loader(val_set, config.batch_size, shuffle=False, seed=config.seed, workers=config.workers)
    start = time.perf_counter()
    yield Epoch(0, None, None, *evaluate(model, val_loader), time.perf_counter() - start)
    if config.epochs == 0:
        return
    steps = [_Step(optimizer, config, len(train_loader)) for optimizer in _optimizers(model, config)]
    torch.manual_seed(config.seed)
    for epoch in range(1, config.epochs + 1):
        start = time.perf_counter()
        losses = _train_epoch(model, train_loader, steps, epoch)
        yield Epoch(epoch, *losses, *evaluate(model, val_loader), time.perf_counter() - start)


def _optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    if config.optimizer == "adam":
        return [torch.optim.Adam(model.parameters(), lr=config.lr)]
    matrices = [parameter for parameter in model.blocks.parameters() if parameter.ndim == 2]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    muon = torch.optim.Muon(matrices, lr=20 * config.lr, weight_decay=0.0)
    return [muon, torch.optim.Adam(others, lr=config.lr)]


class _Step:
    """An optimizer with its schedule, which advances after every batch."""

    def __init__(self, optimizer: torch.optim.Optimizer, config: TrainConfig, batches: int) -> None:
        self.optimizer = optimizer
        total = config.epochs * batches

        def factor(step: int) -> float:
            if config.schedule == "step":
                return 0.5 ** (step // (10 * batches))
            if config.schedule == "cosine":
                warmup = max(1, round(WARMUP * total))
                return min(
                    (step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, total - warmup)))
                )
            return 1.0

        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def __call__(self) -> None:
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)


def _train_epoch(model: nn.Module, loader: DataLoader, steps: Sequence[_Step], epoch: int) -> tuple[float, float]:
    model.train()
    device = next(model.parameters()).device
    total, seen = 0.0, 0
    bar = tqdm(loader, desc=f"epoch {epoch}", leave=False)
    for step, (images, labels) in enumerate(bar):
        loss = F.cross_entropy(model(images.to(device)), labels.to(device))
        last = loss.item()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {last} in epoch {epoch}, step {step}; try a smaller lr")
        loss.backward()
        for update in steps:
            update()
        total, seen = total + last * len(labels), seen + len(labels)
        bar.set_postfix(loss=f"{last:.3f}")
    return total / seen, last


def evaluate(model: nn.Module, loader: DataLoader) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in percent over ``loader``."""
    predictions, labels = predict({"model": model}, loader)
    logits = predictions["model"].logits
    return cross_entropy(logits, labels), accuracy(logits, labels)


@dataclass
class Prediction:
    """Logits (n, classes) of one model, float32 on the CPU, and images per second without the first batch."""

    logits: Tensor
    images_per_second: float


@torch.inference_mode()
def predict(models: Mapping[Hashable, nn.Module], loader: DataLoader) -> tuple[dict[Hashable, Prediction], Tensor]:
    """Predictions of every model, put in eval mode, over ``loader``, each batch decoded once; and the labels (n,)."""
    outputs, seconds, labels = {key: [] for key in models}, {key: [] for key in models}, []
    for model in models.values():
        model.eval()
    parameter = next(next(iter(models.values())).parameters())
    for images, targets in tqdm(loader, desc="evaluation", leave=False):
        images = images.to(parameter)
        for key, model in models.items():
            start = time.perf_counter()
            outputs[key].append(model(images).float().cpu())
            seconds[key].append(time.perf_counter() - start)
        labels.append(targets)
    warm = slice(1, None) if len(labels) > 1 else slice(None)  # the first batch pays for what is made once
    images = sum(map(len, labels[warm]))
    return {key: Prediction(torch.cat(outputs[key]), images / sum(seconds[key][warm])) for key in models}, torch.cat(
        labels
    )


def accuracy(logits: Tensor, labels: Tensor, classes: Sequence[int] | None = None) -> float:
    """Top-1 accuracy in percent.

    Args:
        logits: (n, C).
        labels: (n,) positions in ``classes``, or class indices when that is None.
        classes: restrict the head to these of its C classes.
    """
    return 100.0 * (_restricted(logits, classes).argmax(1) == labels).double().mean().item()


def cross_entropy(logits: Tensor, labels: Tensor, classes: Sequence[int] | None = None) -> float:
    """Mean cross-entropy; arguments as of :func:`accuracy`."""
    return F.cross_entropy(_restricted(logits, classes), labels).item()


def _restricted(logits: Tensor, classes: Sequence[int] | None) -> Tensor:
    return logits if classes is None else logits[:, list(classes)]
