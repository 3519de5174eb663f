"""EViT: keep the patches that the CLS token attends to, and fuse the others into one more token.

Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations", ICLR 2022.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from common.reducers.base import Reducer, Signals, register_reducer
from common.tokens import GONE, Tokens, take_rows, top_in_order


@register_reducer("evit")
class EViT(Reducer):
    """Keeps the K patches with the largest CLS attention (mean over heads) and appends one fused token.

    The fused token is the sum of the other tokens weighted by their CLS attention, not renormalised. At the next stage
    it is a token like the others: it may be kept, or fused again. Traced patches that were fused belong to it.
    """

    needs_class_token = True
    learns_from_signals = True
    selects = True
    signals = frozenset({"cls_attention"})
    fuses = True
    scored = "CLS attention of the block, mean over heads"

    def after_attention(self, tokens: Tokens, signals: Signals, layer: int) -> Tokens:
        attention = signals.cls_attention[:, :, tokens.num_prefix_tokens :].float().mean(1)  # (B, n)
        kept = top_in_order(attention.detach(), self.drops_at(layer, tokens))  # (B, K)
        return fuse(tokens.with_scores(attention.detach()), attention, kept)


def fuse(tokens: Tokens, weight: Tensor, kept: Tensor) -> Tokens:
    """Tokens at ``kept`` (B, K), and behind them the sum of the others, each times its ``weight`` (B, n)."""
    length, rank = tokens.num_patch_tokens, torch.arange(kept.shape[1], device=kept.device)
    others = weight.scatter(1, kept, 0.0).to(tokens.x.dtype)  # (B, n)
    patches = torch.cat([take_rows(tokens.patches, kept), others[:, None] @ tokens.patches], dim=1)  # (B, K + 1, D)
    places = kept.new_full((len(kept), length), len(rank)).scatter(1, kept, rank.expand_as(kept))  # (B, n)
    return tokens.merged(patches, places, centers=F.pad(kept, (0, 1), value=GONE))
