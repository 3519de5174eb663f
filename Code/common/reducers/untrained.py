"""Whether the learned parts of a method are still as they were made: then its decisions are random."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SAMPLE = 64  # numbers of each parameter; training or loading leaves none of them as they were
FORMATS = (torch.float16, torch.bfloat16)  # that a model may have been in, and come back from


class Fresh:
    """What ``module`` was made with: a few numbers of each of its parameters.

    >>> layer = nn.Linear(3, 2)
    >>> fresh = Fresh(layer)
    >>> before = fresh.is_untouched(layer.half()), fresh.is_untouched(layer.float())
    >>> _ = nn.init.ones_(layer.bias)
    >>> before, fresh.is_untouched(layer)
    ((True, True), False)
    """

    def __init__(self, module: nn.Module) -> None:
        self._kept = [_sample(parameter).clone() for parameter in module.parameters() if not parameter.is_meta]

    def is_untouched(self, module: nn.Module) -> bool:
        """Whether ``module`` still has these values, on whatever device and in whatever number format."""
        now = list(module.parameters())
        known = bool(now) and len(now) == len(self._kept) and not any(parameter.is_meta for parameter in now)
        return known and all(_same(_sample(parameter), kept) for parameter, kept in zip(now, self._kept, strict=True))


def _sample(parameter: Tensor) -> Tensor:
    return parameter.detach().flatten()[:SAMPLE].cpu()


def _same(now: Tensor, kept: Tensor) -> bool:
    return any(torch.equal(now, kept.to(between).to(now.dtype)) for between in (kept.dtype, *FORMATS))
