"""EViT: keep the patches that the CLS token attends to, and fuse the others into one more token.

Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations", ICLR 2022.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from common.reducers.base import Reducer, Signal, Signals, register_reducer
from common.reducers.tram import top_in_order
from common.tokens import GONE, Selection, Tokens


@register_reducer("evit")
class EViT(Reducer):
    """Keeps the K patches with the largest CLS attention (mean over heads) and appends one fused token.

    The fused token is the sum of the other tokens weighted by their CLS attention, not renormalised. At the next stage
    it is a token like the others: it may be kept, or fused again. Traced patches that were fused belong to it.
    """

    needs_class_token = True
    learns_from_signals = True
    selects = True

    def needs(self, layer: int, tokens: Tokens) -> frozenset[Signal] | None:
        return None if self.drops_at(layer, tokens) is None else frozenset({"cls_attention"})

    def after_attention(self, tokens: Tokens, signals: Signals, layer: int) -> Tokens:
        target = self.drops_at(layer, tokens)
        if target is None:
            return tokens
        attention = signals.cls_attention[:, :, tokens.num_prefix_tokens :].float().mean(1)
        kept = top_in_order(attention.detach(), target)
        return fuse(tokens.with_scores(attention.detach()), attention, kept)


def fuse(tokens: Tokens, weight: Tensor, kept: Tensor) -> Tokens:
    """Tokens at ``kept`` (B, K), and behind them the sum of the others, each times its ``weight`` (B, n)."""
    others = weight.scatter(1, kept, 0.0).to(tokens.x.dtype)
    fused = others[:, None] @ tokens.patches
    result = tokens.keep(Selection(kept))
    result = result.with_x(torch.cat([result.x, fused], dim=1))
    if tokens.assignment is None:
        return result
    lost = (result.assignment == GONE) & (tokens.assignment != GONE)
    mixture = torch.full_like(result.origin[:, :1], GONE)
    return replace(
        result,
        assignment=result.assignment.masked_fill(lost, kept.shape[1]),
        origin=torch.cat([result.origin, mixture], dim=1),
    )
