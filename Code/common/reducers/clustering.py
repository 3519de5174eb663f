"""What the reducers that group tokens share: distances, assignment to centres, stages, checks of options."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common.errors import UsageError
from common.models.tokens import take_rows
from common.reducers.schedule import Schedule

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


def squared_distances(x: Tensor) -> Tensor:
    """Squared Euclidean distances (B, n, n), float32, between the tokens ``x`` (B, n, D).

    Exactly symmetric and exactly zero on the diagonal, which the matrix product alone is not. It is kept for its
    speed: on CPU differences element by element take 20 to 40 times as long.
    """
    x = x.float()
    x = x - x[:, :1]  # what all tokens have in common would cost digits; the mean would make whole numbers inexact
    norm = x.square().sum(-1)
    squared = torch.baddbmm(norm[:, :, None] + norm[:, None], x, x.transpose(1, 2), alpha=-2)
    squared = ((squared + squared.transpose(1, 2)) / 2).clamp(min=0)
    squared.diagonal(dim1=1, dim2=2).zero_()
    return squared


def nearest_center(distance: Tensor, centers: Tensor) -> Tensor:
    """The nearest of ``centers`` for every token, ties to the first of them; a centre is in its own cluster.

    Args:
        distance: (B, n, n), symmetric.
        centers: (B, K) distinct positions.

    Returns:
        (B, n) cluster of every token, 0 to K - 1; no cluster is empty.
    """
    assignment = take_rows(distance, centers).argmin(1)
    own = torch.arange(centers.shape[1], device=centers.device).expand_as(centers)
    return assignment.scatter_(1, centers, own)  # a duplicate of an earlier centre would otherwise join that one


def largest_first(score: Tensor, count: int) -> Tensor:
    """Positions (B, count) of the largest entries of ``score`` (B, n), descending, ties to the lower position."""
    return score.argsort(dim=1, descending=True, stable=True)[:, :count]


def dropping_stages(vit: VisionTransformer, schedule: Schedule) -> dict[int, int]:
    """Block -> patch tokens kept, only for stages that drop some at the model's own image size."""
    before, stages = vit.patch_embed.num_patches, {}
    for layer, kept in zip(schedule.reduction_loc, schedule.counts(before), strict=True):
        if kept < before:
            stages[layer] = before = kept
    return stages


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Inside, operations keep the precision of their inputs."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def require_at_least(value: int, least: int, what: str) -> int:
    """Return ``value`` if it is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{what}={value!r} is not allowed; allowed: an integer >= {least}")
    return value
