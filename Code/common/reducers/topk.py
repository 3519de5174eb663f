"""TopK: keep the patches that the CLS token attends to most in the current layer."""

from __future__ import annotations

from typing import Literal

import torch

from common.reducers.base import Reducer, Signals, register_reducer
from common.tokens import Selection, Tokens, top_in_order

HEAD_FUSION = {"max": lambda attention: attention.amax(1), "mean": lambda attention: attention.mean(1)}
HeadFusion = Literal["max", "mean"]


@register_reducer("topk")
class TopK(Reducer):
    """Scores patch j by the CLS attention A[0, j] of the block itself, fused over heads.

    Args:
        head_fusion: "max", as TRAM's authors compare against it, or "mean", as Haurum et al. ("Which Tokens to Use?",
            ICCVW 2023) and EViT define it.
    """

    needs_class_token = True
    selects = True
    signals = frozenset({"cls_attention"})

    def __init__(self, vit, schedule, *, head_fusion: HeadFusion = "max") -> None:
        super().__init__(vit, schedule)
        self.head_fusion = head_fusion
        self.scored = f"CLS attention of the block, {head_fusion} over heads"

    @torch.no_grad()
    def select_queries(self, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Selection | None]:
        attention = signals.cls_attention[:, :, tokens.num_prefix_tokens :].float()  # (B, H, n)
        score = HEAD_FUSION[self.head_fusion](attention)  # (B, n)
        return tokens.with_scores(score), Selection(top_in_order(score, self.drops_at(layer, tokens)))
