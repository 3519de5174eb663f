"""TRAM: patches ranked by their centrality in the multilayer network of attention maps.

Marchetti, Traini, Ursino, Virgili, "Efficient token pruning in Vision Transformers using an attention-based
Multilayer Network", Expert Systems with Applications 279, 127449, 2025.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.reducers.base import Reducer, Signal, Signals, register_reducer
from common.tokens import Selection, Tokens, top_in_order

CENTRALITY = "centrality"


def weighted_in_degree(adjacency: Tensor) -> Tensor:
    """In-degree with every incoming arc weighted by its source's own in-degree.

    Args:
        adjacency: (B, n, n) weight of the arc from row to column.

    Returns:
        (B, n) c_j = sum_i A_ij d_i with d_j = sum_i A_ij, that is (A^T)^2 1.
    """
    ones = adjacency.new_ones(len(adjacency), 1, adjacency.shape[1])
    in_degree = torch.bmm(ones, adjacency)  # (B, 1, n)
    return torch.bmm(in_degree, adjacency)[:, 0]


@register_reducer("tram")
class Tram(Reducer):
    """Accumulates the weighted in-degree of every patch over the layers and keeps the most central ones.

    Layer l contributes with weight (l + 1) / depth; heads are fused by their maximum; prefix tokens are no nodes of
    the network and are always kept. Nothing is scored after the last block that drops anything. Adds no parameters.
    """

    selects = True
    scored = "centrality in the network of attention maps up to this block"

    def __init__(self, vit, schedule) -> None:
        super().__init__(vit, schedule)
        self.depth = len(vit.blocks)

    def needs(self, layer: int, tokens: Tokens) -> frozenset[Signal] | None:
        return frozenset({"head_max"}) if layer <= self.schedule.last_drop(tokens.num_patches) else None

    @torch.no_grad()
    def select_queries(self, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Selection | None]:
        prefix = tokens.num_prefix_tokens
        centrality = weighted_in_degree(signals.head_max[:, prefix:, prefix:].float())  # (B, n)
        centrality = centrality * ((layer + 1) / self.depth) + tokens.carry.get(CENTRALITY, 0.0)
        tokens = tokens.with_carry(**{CENTRALITY: centrality}).with_scores(centrality)
        target = self.drops_at(layer, tokens)
        return tokens, None if target is None else Selection(top_in_order(centrality, target))
