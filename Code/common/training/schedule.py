"""The learning rate as a function of time."""

from __future__ import annotations

import math

from common.training.config import TrainConfig


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
