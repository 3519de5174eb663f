"""SiT's token slimming module: a small MLP says how much of each token goes into each new one.

Zong et al., "Self-slimmed Vision Transformer", ECCV 2022; only its slimming module, as in Haurum et al., "Which Tokens
to Use?", ICCVW 2023: no distillation, no re-parameterisation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.precision import without_autocast
from common.reducers.base import Reducer, init_linear, random_until_trained, register_reducer
from common.reducers.clustering import counts_where_dropping
from common.tokens import Tokens


class Slimmer(nn.Module):
    """Weights softmax(s MLP(LN(x))) over the tokens, for each of ``num_outputs`` new ones; s is learned, at first 1."""

    def __init__(self, dim: int, num_outputs: int) -> None:
        super().__init__()
        self.score = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, num_outputs)
        )
        self.scale = nn.Parameter(torch.ones(1, 1, 1))  # three dimensions: optimisers decay it as they decay weights
        init_linear(self)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, n, D) -> weights (B, K, n), float32, each row of sum 1."""
        return (self.score(x) * self.scale).float().softmax(1).transpose(1, 2)


@register_reducer("sit")
class SiT(Reducer):
    """Merges before each reduction block into convex combinations of the tokens; prefix tokens pass untouched.

    A traced patch belongs to the merged token in which it weighs most.
    """

    family = "mixes"
    clusters = True
    untrained = random_until_trained("what patches are merged into", "MLPs")

    def __init__(self, vit, schedule) -> None:
        super().__init__(vit, schedule)
        self.counts = counts_where_dropping(vit, schedule)
        self.slimmers = nn.ModuleDict({str(layer): Slimmer(vit.embed_dim, kept) for layer, kept in self.counts.items()})

    def before_block(self, tokens: Tokens, layer: int) -> Tokens:
        if tokens.num_patch_tokens <= self.counts.get(layer, tokens.num_patch_tokens):
            return tokens
        patches = tokens.patches
        weights = self.slimmers[str(layer)](patches)  # (B, K, n)
        with without_autocast(patches.device):  # the tokens keep the precision of the residual stream
            merged = weights.to(patches.dtype) @ patches  # (B, K, D)
        return tokens.merged(merged, weights.argmax(1), weights=weights)
