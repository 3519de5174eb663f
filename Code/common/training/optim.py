"""Parameter groups, optimizers, and the learning rate as a function of time."""

from __future__ import annotations

import math

import torch
from timm.optim import create_optimizer_v2
from timm.optim.muon import get_lr_scale, zeropower_via_newtonschulz
from torch import Tensor, nn

from common.errors import UsageError
from common.training.config import MUON, TrainConfig

NEW = frozenset({"head", "head_dist", "pos_embed", "patch_embed", "reducer"})
TOKENS = frozenset({"cls_token", "dist_token"})
POSITIONS = frozenset({"pos_embed"})
NO_DECAY = TOKENS | POSITIONS | {"reg_token"}
MUON_RATE = 20.0  # Muon's update of a matrix has spectral norm 1, Adam's entries are of size 1


def is_new(name: str) -> bool:
    """The parameter belongs to what fine-tuning adds or adapts to new images, not to the pretrained backbone."""
    return name.split(".")[0] in NEW


def trains(name: str, config: TrainConfig) -> bool:
    parts = name.split(".")
    if config.reducer_only:
        return parts[0] == "reducer"
    if (config.constant_cls and name in TOKENS) or (config.constant_pos and name in POSITIONS):
        return False
    return not config.attention_only or "attn" in parts or parts[0] in ("head", "head_dist") or name in POSITIONS


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict]:
    """The groups ``no_decay``, ``new_param_no_decay``, ``new_param``, ``decay``, those that are not empty.

    Each has besides ``params`` its ``name``, ``weight_decay``, ``lr_scale`` and ``freeze_epochs``. Order is that of
    first encounter among the model's parameters; parameters that are not to be trained are in none.
    """
    groups: dict[str, dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and name not in NO_DECAY and not name.endswith(".bias")
        kind = "decay" if decays else "no_decay"
        if is_new(name):
            kind = "new_param" if decays else "new_param_no_decay"
        group = {
            "name": kind,
            "params": [],
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr_scale": 1.0 if is_new(name) else config.backbone_lr_scale,
            "freeze_epochs": 0 if is_new(name) else config.backbone_freeze_epochs,
        }
        groups.setdefault(kind, group)["params"].append(parameter)
    if not groups:
        raise UsageError("nothing is left to train: every parameter of the model is held constant")
    return list(groups.values())


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """One optimizer, or the two of "muon". Rates are set before every update, by the engine."""
    groups = parameter_groups(model, config)
    if config.optimizer == MUON:
        return _muon_and_adam(model, groups, config)
    given = {name: value for name in ("eps", "betas") if (value := getattr(config, name)) is not None}
    try:
        return [create_optimizer_v2(groups, config.optimizer, lr=config.lr, momentum=config.momentum, **given)]
    except Exception as error:  # what needs another package, a GPU or another momentum says so in its own way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(f"optimizer {config.optimizer!r} cannot be made here: {reason}") from error


def _muon_and_adam(model: nn.Module, groups: list[dict], config: TrainConfig) -> list[torch.optim.Optimizer]:
    matrices = {id(parameter) for parameter in model.blocks.parameters() if parameter.ndim == 2}
    of_muon, of_adam = [], []
    for group in groups:
        for parts, chosen, scale in ((of_muon, True, MUON_RATE), (of_adam, False, 1.0)):
            params = [parameter for parameter in group["params"] if (id(parameter) in matrices) is chosen]
            if params:
                parts.append({**group, "params": params, "lr_scale": scale * group["lr_scale"]})
    adam = {"lr": config.lr, "betas": config.betas or (0.9, 0.999), "eps": config.eps or 1e-8}
    optimizers = [Muon(of_muon, lr=config.lr)] if of_muon else []
    return [*optimizers, torch.optim.Adam(of_adam, **adam)] if of_adam else optimizers


class Muon(torch.optim.Muon):
    """torch's Muon (Jordan et al., 2024), whose updates are orthogonalised in float32 on a CPU.

    torch does that in bfloat16 everywhere. A CPU without units for it takes twelve times as long as in float32: half
    of a training step of the small ViTs of this package.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict) -> None:
        grad, state, momentum = parameter.grad, self.state[parameter], group["momentum"]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        average = state["momentum_buffer"].lerp_(grad, 1 - momentum)
        update = grad.lerp(average, momentum) if group["nesterov"] else average
        rate = group["lr"] * get_lr_scale(parameter.shape, "original")
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(orthogonal(update, group), alpha=rate)


def orthogonal(matrix: Tensor, group: dict) -> Tensor:
    """``matrix`` with singular values near 1, by as many Newton-Schulz iterations as the options ``group`` say."""
    dtype = torch.float32 if matrix.device.type == "cpu" else torch.bfloat16
    steps, coefficients = group["ns_steps"], [group["ns_coefficients"]]
    return zeropower_via_newtonschulz(matrix, steps, coefficients, eps=group["eps"], dtype=dtype)


def base_rate(config: TrainConfig, processes: int = 1) -> float:
    """``config.lr``, scaled by the images per update where the config asks for it."""
    if config.lr_batch_normalizer is None:
        return config.lr
    return config.lr * config.batch_size * config.grad_accum_steps * processes / config.lr_batch_normalizer


def learning_rate(update: int, *, base: float, updates_per_epoch: int, config: TrainConfig) -> float:
    """Rate of the ``update``-th update, counted from 0 over the whole training.

    Args:
        base: the rate of the parameter group without a schedule; ``min_lr`` and ``warmup_lr`` are the same for all.
    """
    if config.schedule_in_steps:
        now, unit = update, updates_per_epoch
    else:
        now, unit = update // updates_per_epoch, 1
    warmup = round(config.warmup_epochs * unit)
    if now < warmup:
        if config.warmup_lr is None:
            return base * (now + 1) / warmup
        return config.warmup_lr + (base - config.warmup_lr) * now / warmup
    start = warmup if config.warmup_prefix else 0
    if config.schedule == "cosine":
        progress = (now - start) / max(1, config.epochs * unit - start)
        return config.min_lr + 0.5 * (base - config.min_lr) * (1 + math.cos(math.pi * min(1.0, progress)))
    if config.schedule == "step":
        return base * config.decay_rate ** ((now - start) // (config.decay_epochs * unit))
    return base
