"""PatchMerger: learned queries turn the tokens of a stage into a fixed number of new ones.

Renggli, Pinto, Houlsby, Mustafa, Puigcerver, Riquelme, "Learning to Merge Tokens in Vision Transformers", 2022.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from common.errors import UsageError
from common.precision import without_autocast
from common.reducers.base import Reducer, random_until_trained, register_reducer
from common.reducers.clustering import counts_where_dropping
from common.tokens import Tokens


class Merger(nn.Module):
    """Softmax-attention of ``num_queries`` learned queries over normalised tokens: softmax(s Q LN(x)^T) LN(x).

    There is no residual: the output lives in the normalised space, not on the scale of the residual stream.
    """

    def __init__(self, dim: int, num_queries: int, scale: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.queries = nn.Parameter(torch.randn(num_queries, dim))
        self.scale = scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, n, D) -> merged tokens (B, K, D) and their weights (B, K, n)."""
        x = self.norm(x)
        with without_autocast(x.device):  # in half precision near ties of 1 in 100 weights would go the other way
            exact = x.float()
            weights = (self.queries.float() @ exact.transpose(1, 2) * self.scale).softmax(-1)  # (B, K, n)
            return (weights @ exact).to(x.dtype), weights


@register_reducer("patchmerger")
class PatchMerger(Reducer):
    """Merges before each reduction block; prefix tokens pass untouched.

    A traced patch belongs to the output token that gives it the largest weight.

    Args:
        parity: as TRAM's authors compare against it: queries scaled by D^-1/2, no prefix token at all, classification
            from the mean of the merged tokens. Default: scale 1, CLS kept (Haurum et al., ICCVW 2023).
    """

    family = "mixes"
    clusters = True
    untrained = random_until_trained("what patches are merged into", "queries")

    def __init__(self, vit, schedule, *, parity: bool = False) -> None:
        super().__init__(vit, schedule)
        self.parity = parity
        if parity and (vit.global_pool not in ("token", "avg") or vit.pool_include_prefix or hasattr(vit, "head_dist")):
            raise UsageError(
                f"patchmerger with parity=True classifies from the mean of the merged tokens; allowed: global_pool "
                f"token or avg and one head, given {type(vit).__name__} with {vit.global_pool}"
            )
        scale = vit.embed_dim**-0.5 if parity else 1.0
        self.counts = counts_where_dropping(vit, schedule)
        mergers = {str(layer): Merger(vit.embed_dim, count, scale) for layer, count in self.counts.items()}
        self.mergers = nn.ModuleDict(mergers)

    @property
    def pools_mean(self) -> bool:
        return self.parity and len(self.mergers) > 0

    def before_block(self, tokens: Tokens, layer: int) -> Tokens:
        if layer == 0 and self.pools_mean:
            tokens = replace(tokens, x=tokens.patches, num_prefix_tokens=0)
        if tokens.num_patch_tokens <= self.counts.get(layer, tokens.num_patch_tokens):
            return tokens
        merged, weights = self.mergers[str(layer)](tokens.patches)
        return tokens.merged(merged, weights.argmax(1), weights=weights)
