"""K-Medoids: tokens are clustered, and of every cluster its central token goes on.

Marin et al., "Token Pooling in Vision Transformers for Image Classification", WACV 2023; as a hard-merging method in
Haurum et al., "Which Tokens to Use? Investigating Token Reduction in Vision Transformers", ICCVW 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import UsageError
from common.options import Count
from common.precision import without_autocast
from common.reducers.base import Reducer, Signal, Signals, register_reducer
from common.reducers.clustering import counts_where_dropping, largest_first, nearest_center, squared_distances
from common.tokens import Selection, Tokens, take_rows

RECEIVED = "received"


def farthest_points(distance: Tensor, count: int) -> Tensor:
    """Positions (B, count): first the token nearest to all others, then always the one farthest from those chosen.

    Args:
        distance: (B, n, n). A token is as far from the chosen ones as from the nearest of them; ties to the lower
            position; no token is chosen twice, even where all that are left are duplicates of chosen ones.
    """
    chosen = [distance.sum(-1).argmin(1, keepdim=True)]
    gap = torch.full_like(distance[:, 0], float("inf"))  # (B, n)
    for _ in range(count - 1):
        gap = torch.minimum(gap, take_rows(distance, chosen[-1])[:, 0]).scatter_(1, chosen[-1], -1.0)
        chosen.append(gap.argmax(1, keepdim=True))
    return torch.cat(chosen, dim=1)


def cost_within(distance: Tensor, weight: Tensor, assignment: Tensor) -> Tensor:
    """What each token would cost (B, n) as centre of its cluster k: sum over j in k of w_j d_ij."""
    same = assignment[:, :, None] == assignment[:, None]  # (B, n, n)
    return torch.where(same, distance * weight[:, None], 0.0).sum(-1)


def cheapest_members(cost: Tensor, assignment: Tensor, num_clusters: int) -> Tensor:
    """Position (B, K) of the member of each cluster with the least ``cost`` (B, n), ties to the lower position."""
    batch, length = cost.shape
    least = cost.new_full((batch, num_clusters), float("inf")).scatter_reduce_(1, assignment, cost, "amin")
    position = torch.arange(length, device=cost.device)
    # the last position stands for "not the cheapest": as the largest one it changes no minimum
    candidate = torch.where(cost == least.gather(1, assignment), position, length - 1)
    return torch.full_like(assignment[:, :num_clusters], length - 1).scatter_reduce_(1, assignment, candidate, "amin")


def cluster(
    distance: Tensor, weight: Tensor, centers: Tensor, iterations: int, *, parity: bool = False
) -> tuple[Tensor, Tensor]:
    """Alternate between the nearest centre of every token and the best centre of every cluster.

    Args:
        distance: (B, n, n). weight: (B, n). centers: (B, K) to start from, distinct.
        iterations: how often centres are moved.
        parity: see :class:`KMedoids`.

    Returns:
        Centres (B, K), distinct, and the cluster (B, n) of every token.
    """
    for _ in range(iterations):
        assignment = nearest_center(distance, centers)
        cost = weight * distance.sum(-1) if parity else cost_within(distance, weight, assignment)
        centers = cheapest_members(cost, assignment, centers.shape[1])
    return centers, nearest_center(distance, centers)


@register_reducer("kmedoids")
class KMedoids(Reducer):
    """Clusters before each reduction block by Euclidean distance; the medoids go on as they are. No parameters.

    A token weighs what attention it receives in the block before, from all tokens (CLS included) and heads. Those with
    the largest weight are the first centres. A medoid is the member i of its cluster k with the least
    sum over j in k of w_j d_ij. Gradients flow through the medoids' features, none through the decision.

    Args:
        cluster_iters: how often the medoids are moved.
        equal_weight: all weights 1, no attention read. The first centres are the :func:`farthest_points` instead. The
            reference implementation starts at a random token and goes by the largest distance to any chosen one.
        parity: the reference implementation's objective, w_i times the sum of d_ij over *all* tokens j. It moves
            centres to tokens that receive little attention, which could explain differences from published numbers.
    """

    selects = True
    family = "merges"
    clusters = True

    def __init__(
        self, vit, schedule, *, cluster_iters: Count = 3, equal_weight: bool = False, parity: bool = False
    ) -> None:
        super().__init__(vit, schedule)
        self.cluster_iters, self.equal_weight, self.parity = cluster_iters, equal_weight, parity
        self.scored = "" if equal_weight else "attention received in the block before, sum over queries and heads"
        if not equal_weight and 0 in counts_where_dropping(vit, schedule):
            raise UsageError(
                f"kmedoids reads the attention of the block before; reduction_loc={list(schedule.reduction_loc)} "
                f"is not allowed, allowed: blocks from 1 on, or equal_weight=True"
            )

    def needs(self, layer: int, tokens: Tokens) -> frozenset[Signal] | None:
        if self.equal_weight or self.drops_at(layer + 1, tokens) is None:
            return None
        return frozenset({"received"})

    def select_queries(self, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Selection | None]:
        return tokens.with_carry(**{RECEIVED: signals.received[:, tokens.num_prefix_tokens :]}), None

    def before_block(self, tokens: Tokens, layer: int) -> Tokens:
        target = self.drops_at(layer, tokens)
        if target is None:
            return tokens
        if not self.equal_weight:
            tokens = tokens.with_scores(tokens.carry[RECEIVED])
        centers, assignment = self._cluster(tokens, target)
        return tokens.merged(take_rows(tokens.patches, centers), assignment, centers=centers)

    @torch.no_grad()
    def _cluster(self, tokens: Tokens, target: int) -> tuple[Tensor, Tensor]:
        with without_autocast(tokens.x.device):
            distance = squared_distances(tokens.patches).sqrt()  # (B, n, n)
            if self.equal_weight:
                weight, centers = torch.ones_like(distance[:, 0]), farthest_points(distance, target)
            else:
                weight = tokens.carry[RECEIVED]  # (B, n)
                centers = largest_first(weight, target)  # (B, K)
            return cluster(distance, weight, centers, self.cluster_iters, parity=self.parity)
