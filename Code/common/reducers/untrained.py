"""Whether the learned parts of a method are still as they were made: then its decisions are random."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Fresh:
    """What ``module`` was made with, as far as any training or loading changes it: its biases and its norms.

    >>> layer = nn.Linear(3, 2)
    >>> fresh = Fresh(layer)
    >>> before = fresh.is_untouched(layer.half())
    >>> _ = nn.init.ones_(layer.bias)
    >>> before, fresh.is_untouched(layer)
    (True, False)
    """

    def __init__(self, module: nn.Module) -> None:
        self._kept = [parameter.detach().cpu().clone() for parameter in _small(module) if not parameter.is_meta]

    def is_untouched(self, module: nn.Module) -> bool:
        """Whether ``module`` still has these values, on whatever device and in whatever number format."""
        now = _small(module)
        known = bool(now) and len(now) == len(self._kept) and not any(parameter.is_meta for parameter in now)
        return known and all(_same(*pair) for pair in zip(now, self._kept, strict=True))


def _small(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.ndim == 1]


def _same(now: Tensor, kept: Tensor) -> bool:
    return torch.equal(now.detach().cpu(), kept.to(now.dtype))
