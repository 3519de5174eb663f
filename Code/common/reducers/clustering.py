"""What the reducers that group tokens share: distances, assignment to centres, means of groups."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from common.precision import without_autocast
from common.schedule import Schedule
from common.tokens import GONE, Tokens, take_rows

LARGE = 10**6  # patches: of so many a schedule drops some wherever it ever does


def squared_distances(x: Tensor) -> Tensor:
    """Squared Euclidean distances (B, n, n), float32, between the tokens ``x`` (B, n, D).

    Exactly symmetric and exactly zero on the diagonal, which the matrix product alone is not. It is kept for its
    speed: on CPU, differences element by element take more than ten times as long.
    """
    x = x.float()
    x = x - x[:, :1]  # what all tokens have in common would cost digits; the mean would make whole numbers inexact
    norm = x.square().sum(-1)  # (B, n)
    squared = torch.baddbmm(norm[:, :, None] + norm[:, None], x, x.transpose(1, 2), alpha=-2)  # (B, n, n)
    squared = ((squared + squared.transpose(1, 2)) / 2).clamp(min=0)
    return squared.masked_fill_(torch.eye(x.shape[1], dtype=torch.bool, device=x.device), 0.0)


def nearest_center(distance: Tensor, centers: Tensor) -> Tensor:
    """The nearest of ``centers`` for every token, ties to the first of them; a centre is in its own cluster.

    Args:
        distance: (B, n, n), symmetric.
        centers: (B, K) distinct positions.

    Returns:
        (B, n) cluster of every token, 0 to K - 1; no cluster is empty.
    """
    assignment = take_rows(distance, centers).argmin(1)  # (B, n)
    own = torch.arange(centers.shape[1], device=centers.device).expand_as(centers)
    return assignment.scatter_(1, centers, own)  # a duplicate of an earlier centre would otherwise join that one


def largest_first(score: Tensor, count: int) -> Tensor:
    """Positions (B, count) of the largest entries of ``score`` (B, n), descending, ties to the lower position."""
    return score.argsort(dim=1, descending=True, stable=True)[:, :count]


def patch_sizes(tokens: Tokens) -> Tensor:
    """How many patches each patch token stands for in attention: (B, n), float32 ones where nobody keeps count."""
    if tokens.size is None:
        return torch.ones_like(tokens.patches[..., 0], dtype=torch.float32)
    return tokens.size[:, tokens.num_prefix_tokens :]


def group_means(x: Tensor, size: Tensor, group: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Means of the tokens ``x`` (B, n, D) of each group weighted by ``size`` (B, n), and the sizes of the groups.

    Args:
        group: (B, n) 0 to ``num_groups`` - 1, none of them empty; -1 = in no group.

    Returns:
        (B, K, D) in the dtype of ``x``, computed in float32, and (B, K).
    """
    group = torch.where(group == GONE, num_groups, group)
    share = size.new_zeros(len(size), num_groups + 1, size.shape[1]).scatter(1, group[:, None], size[:, None])
    share = share[:, :num_groups]  # (B, K, n)
    total = share.sum(-1)
    with without_autocast(size.device):
        means = (share / total[..., None]) @ x.float()
    return means.to(x.dtype), total


def counts_where_dropping(vit: VisionTransformer, schedule: Schedule) -> dict[int, int]:
    """Block -> patch tokens left of an image of the model's own size, for every block that can have some to drop.

    With ``dynamic_img_size`` a block may drop some of a larger image, and none of these.
    """
    own = vit.patch_embed.num_patches
    layers = schedule.drops(LARGE if vit.dynamic_img_size else own)
    return {layer: schedule.target(layer, own) for layer in layers}
