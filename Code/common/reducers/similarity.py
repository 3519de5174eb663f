"""How much a block changes a patch: what decides whether computing it was worth while."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def raw_cos(x: Tensor, y: Tensor) -> Tensor:
    """cos(x_i, y_i), in [-1, 1]."""
    return F.cosine_similarity(x, y, dim=-1)


def scaled_cos(x: Tensor, y: Tensor) -> Tensor:
    """(cos(x_i, y_i) + 1) / 2, in [0, 1]."""
    return (raw_cos(x, y) + 1) / 2


def rel_update(x: Tensor, y: Tensor) -> Tensor:
    """1 / (1 + |y_i - x_i|^2 / |y_i|^2), in (0, 1]."""
    return 1 / (1 + (y - x).square().sum(-1) / y.square().sum(-1).clamp(min=1e-12))


def rel_norm(x: Tensor, y: Tensor) -> Tensor:
    """1 / (1 + |y_i - x_i| / |y_i|), in (0, 1]."""
    return 1 / (1 + (y - x).norm(dim=-1) / y.norm(dim=-1).clamp(min=1e-6))


def blend(x: Tensor, y: Tensor) -> Tensor:
    """The mean of :func:`scaled_cos` and :func:`rel_update`."""
    return (scaled_cos(x, y) + rel_update(x, y)) / 2


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    function.__name__: function for function in (blend, scaled_cos, raw_cos, rel_update, rel_norm)
}
