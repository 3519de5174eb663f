"""How to train: one validated object, and the protocols of the papers as instances of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import Strict
from timm.optim import list_optimizers

from common.devices import Device, torch_device
from common.errors import UsageError, require_choice
from common.options import Count, Many, NonNegative, Positive, Share, Whole, check_fields, check_names, field_kinds

MUON = "muon"
SECOND_ORDER = ("adahessian",)  # want the graph of the gradients, which nothing else here needs
OPTIMIZERS = tuple(sorted({MUON, *list_optimizers()} - set(SECOND_ORDER)))
Shares = Annotated[tuple[Share, Share], Strict(False), "two numbers from 0 to 1"]


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are TRAM's simple protocol: Adam at a constant rate, cross-entropy, nothing else.

    Attributes:
        epochs: passes over the training set; 0 = evaluate only (off the shelf).
        lr: learning rate, see ``lr_batch_normalizer``.
        batch_size: images per process and pass.
        grad_accum_steps: passes per update; an update sees batch_size x grad_accum_steps x processes images.
        seed: of the order of images, their augmentation and everything random in the model.
        workers: processes that load data.
        device: "cpu", "cuda" ...; None = "cuda" when there is one.
        mixed_precision: "no", "bf16", or "fp16" (with loss scaling; not on a CPU, not with Muon).
        optimizer: one of ``timm.optim.list_optimizers()`` (no second-order ones); "muon" is Muon (Jordan et al., 2024)
            at 20 times ``lr`` for the matrices of the blocks and Adam for the rest, which trains a small ViT from
            scratch in a fraction of the epochs.
        weight_decay: not for biases, one-dimensional parameters, class tokens and positions.
        eps, betas: of the optimizer, where it has them; None = its own.
        momentum: of the optimizers that have one.
        clip_grad: largest global norm of the gradient.
        backbone_lr_scale: factor on the rate of pretrained parameters: not heads, positions, patch embedding, reducer.
        backbone_freeze_epochs: epochs during which the pretrained parameters have rate 0.
        constant_cls, constant_pos: do not train class and distillation tokens; positions.
        attention_only: train attention, heads and positions only.
        reducer_only: train the reducer's own parameters only.
        lr_batch_normalizer: the rate is lr x (images per update) / this; None = lr as it is.
        schedule: "constant", "step" (times ``decay_rate`` after every ``decay_epochs``), "cosine" (to ``min_lr``).
        decay_epochs, decay_rate: of "step".
        warmup_epochs: linear rise at the start, may be a fraction; part of ``epochs``.
        warmup_lr: where it starts; None = equal steps, the first one above 0.
        min_lr: where the cosine ends, the same for all parameters.
        warmup_prefix: the cosine starts after the warm-up. False is what timm does by default and the published runs
            of "Which Tokens to Use?" did: it runs from the first epoch, so the rate jumps down after the warm-up.
        schedule_in_steps: a new rate for every update; False = for every epoch.
        cooldown_epochs: further epochs at ``min_lr`` after a cosine.
        mixup, cutmix, cutmix_minmax, mixup_prob, mixup_switch_prob, mixup_mode: as in ``timm.data.Mixup``; 0 = off.
            An incomplete last batch is left out then. Refused for data with several labels per image.
        smoothing: of the labels of single-label data.
        repeats: of each image in an epoch (repeated augmentation); 1 = off.
        label_weight: factor on the loss of the labels; 0 = learn from what the reducer adds, from a teacher say, alone.
        loss: "auto" is cross-entropy, or the asymmetric loss for data with several labels per image.
        ema_decay: of an exponential moving average of the weights, None = off.
        distillation: of a distilled DeiT from a teacher: "none", "soft", "hard".
        distillation_alpha: weight of the teacher against the labels.
        distillation_tau: temperature of "soft".
        trackers: of "tensorboard", "wandb".
    """

    epochs: Whole
    lr: Positive = 1e-4
    batch_size: Count = 64
    grad_accum_steps: Count = 1
    seed: Whole = 42
    workers: Whole = 0
    device: Device | None = None
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    optimizer: Literal[OPTIMIZERS] = "adam"
    weight_decay: NonNegative = 0.0
    eps: Positive | None = None
    betas: Shares | None = None
    momentum: Share = 0.9
    clip_grad: Positive | None = None
    backbone_lr_scale: Positive = 1.0
    backbone_freeze_epochs: Whole = 0
    constant_cls: bool = False
    constant_pos: bool = False
    attention_only: bool = False
    reducer_only: bool = False
    lr_batch_normalizer: Positive | None = None
    schedule: Literal["constant", "step", "cosine"] = "constant"
    decay_epochs: Count = 10
    decay_rate: Positive = 0.5
    warmup_epochs: NonNegative = 0.0
    warmup_lr: NonNegative | None = None
    min_lr: NonNegative = 0.0
    warmup_prefix: bool = True
    schedule_in_steps: bool = True
    cooldown_epochs: Whole = 0
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    cutmix_minmax: Shares | None = None
    mixup_prob: Share = 1.0
    mixup_switch_prob: Share = 0.5
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    smoothing: Share = 0.0
    repeats: Count = 1
    label_weight: NonNegative = 1.0
    loss: Literal["auto", "cross_entropy", "bce", "asymmetric"] = "auto"
    ema_decay: Share | None = None
    distillation: Literal["none", "soft", "hard"] = "none"
    distillation_alpha: Share = 0.5
    distillation_tau: Positive = 1.0
    trackers: Many[Literal["tensorboard", "wandb"]] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.device is not None:
            torch_device(self.device)  # refuses what is none
        self._check_combinations()

    @property
    def mixes(self) -> bool:
        """Images and their labels are mixed."""
        return self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None

    @property
    def total_epochs(self) -> int:
        return self.epochs + self.cooldown_epochs

    def _check_combinations(self) -> None:
        refusals = {
            f"warmup_epochs={self.warmup_epochs:g} of epochs={self.epochs}; give at most as many": (
                self.warmup_epochs > self.epochs > 0
            ),
            f"cooldown_epochs={self.cooldown_epochs} with schedule {self.schedule!r}; only a cosine cools down": (
                self.cooldown_epochs and self.schedule != "cosine"
            ),
            f"mixup of batch_size={self.batch_size}; it pairs images: give an even number": (
                self.mixes and self.batch_size % 2
            ),
            "mixed_precision 'fp16' with optimizer 'muon': its loss scale serves one optimizer; give 'bf16'": (
                self.mixed_precision == "fp16" and self.optimizer == MUON
            ),
            "mixed_precision 'fp16' on the device 'cpu'; give 'bf16' or 'no'": (
                self.mixed_precision == "fp16" and torch_device(self.device).type == "cpu"
            ),
        }
        for refusal, applies in refusals.items():
            if applies:
                raise UsageError(f"not possible: {refusal}")
        for tracker in self.trackers:
            if find_spec(tracker) is None:
                raise UsageError(f"tracker {tracker!r} is not installed; install it: pip install {tracker}")


PROTOCOLS = {
    "tram": TrainConfig(epochs=5),
    "which_tokens": TrainConfig(
        epochs=30,
        lr=1e-3,
        lr_batch_normalizer=1024,
        batch_size=256,
        grad_accum_steps=2,
        seed=0,
        optimizer="adamw",
        eps=1e-8,
        betas=(0.9, 0.999),
        weight_decay=0.05,
        schedule="cosine",
        warmup_epochs=20,
        warmup_lr=1e-6,
        min_lr=1e-5,
        mixup=0.8,
        cutmix=1.0,
        smoothing=0.1,
        ema_decay=0.99996,
    ),
}


def protocol(name: str, **changes: object) -> TrainConfig:
    """The settings of a paper, with changes.

    ``tram``: fine-tuning of TRAM. ``which_tokens``: the published ImageNet command of "Which Tokens to Use?" (Haurum et
    al., 2023) on one GPU, where its repeated augmentation is off. It ran in fp16, which needs a GPU: ask for it with
    ``mixed_precision="fp16"``; for its jump of the rate after the warm-up with ``warmup_prefix=False``; data with
    several labels per image need ``mixup=0, cutmix=0``. What is not a matter of training has to be said elsewhere: its
    augmentation (``recipe="which_tokens"`` of the data) and its stochastic depth (``drop_path=0.1`` of the model).

    Raises:
        UsageError: unknown protocol or setting.
    """
    check_names(changes, field_kinds(TrainConfig), "setting")
    return replace(PROTOCOLS[require_choice(name, PROTOCOLS, "protocol")], **changes)
