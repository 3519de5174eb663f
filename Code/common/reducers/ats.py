"""ATS: adaptive token sampling, an image keeps as many patches as its attention asks for, up to a budget.

Fayyaz et al., "Adaptive Token Sampling for Efficient Vision Transformers", ECCV 2022.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from common.errors import UsageError
from common.reducers.base import Reducer, Signals, register_reducer
from common.tokens import Selection, Tokens

EPS = 1e-6


def significance(cls_attention: Tensor, value_norm: Tensor, alive: Tensor) -> Tensor:
    """Share of each patch: sum over heads of A[0, j] ||v_j||, normalised to sum 1 over the patches alive.

    Args:
        cls_attention: (B, H, n) CLS attention of the patches.
        value_norm: (B, H, n) norm of their values.
        alive: (B, n) False at padding.
    """
    score = (cls_attention.float() * value_norm).sum(1) * alive  # (B, n)
    return score / (score.sum(1, keepdim=True) + EPS)


def grid_points(budget: int, parity: bool, device: torch.device) -> Tensor:
    """Where the inverse CDF is read: (2k - 1) / 2K for k = 1..K; with parity over K + 1, the tail is left out."""
    points = torch.arange(1, budget + 1, device=device, dtype=torch.float32)
    return (2 * points - 1) / (2 * (budget + parity))


def nearest_in_cdf(share: Tensor, alive: Tensor, points: Tensor) -> Tensor:
    """For every one of ``points`` (K,) the position (B, K) whose cumulative share (B, n) is nearest.

    Padding, False in ``alive`` (B, n), is never nearest, also where the shares sum to less than a point. Exact
    differences after a binary search: a matrix-product distance would move up to 4 % of the samples.
    """
    cdf = share.cumsum(1).masked_fill(~alive, float("inf"))  # (B, n)
    points = points.expand(len(cdf), -1).contiguous()  # (B, K)
    above = torch.searchsorted(cdf, points).clamp(max=cdf.shape[1] - 1)  # (B, K)
    below = (above - 1).clamp(min=0)
    closer_below = (points - cdf.gather(1, below)).abs() <= (cdf.gather(1, above) - points).abs()
    return torch.where(closer_below, below, above)


@register_reducer("ats")
class Ats(Reducer):
    """Samples patches by their share of CLS attention times value norm; equal samples collapse into one.

    The number of survivors differs per image; shorter ones are padded, which is masked in attention and pooling, and
    left out of the linear layers where that pays (:mod:`common.models.packed`). An image that has no more patches than
    the budget keeps them all.

    Args:
        sampler: "grid" reads the inverse CDF at regular points, deterministic and independent of the batch; "random"
            draws the budget with replacement, in evaluation too, as in vit-pytorch (which TRAM compares against).
        parity: with "grid", the reference implementation's grid, which under-samples the tail of the CDF.
        padding: "batch" pads images to the longest of their batch; "budget" always to the budget, which gives the same
            numbers, and a graph that ``torch.compile`` and exports take whole, at the same cost for every image.
    """

    needs_class_token = True
    masks = True
    selects = True
    adaptive = True
    signals = frozenset({"cls_attention", "value_norm"})
    scored = "share of CLS attention times value norm, sum over heads; the shares of an image sum to 1"

    def __init__(
        self,
        vit,
        schedule,
        *,
        sampler: Literal["grid", "random"] = "grid",
        parity: bool = False,
        padding: Literal["batch", "budget"] = "batch",
    ) -> None:
        super().__init__(vit, schedule)
        if parity and sampler != "grid":
            raise UsageError("ATS parity=True is about the grid, and sampler='random' has none; give one of them")
        self.sampler, self.parity, self.draws = sampler, parity, sampler == "random"
        self.padding = padding
        if padding == "batch":
            self.in_pieces = "images are padded to the longest of their batch; padding='budget' gives one graph"

    @torch.no_grad()
    def select_queries(self, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Selection | None]:
        prefix, budget = tokens.num_prefix_tokens, self.drops_at(layer, tokens)
        alive = tokens.valid_patches
        if alive is None:
            alive = torch.ones(tokens.patches.shape[:2], dtype=torch.bool, device=tokens.x.device)
        share = significance(signals.cls_attention[:, :, prefix:], signals.value_norm[:, :, prefix:], alive)
        sampled = self._sample(share, alive, budget)  # (B, budget)
        chosen = torch.zeros_like(alive).scatter_(1, sampled, True)  # (B, n)
        few = tokens.count()[:, None] <= budget
        length = budget if self.padding == "budget" else None
        return tokens.with_scores(share), Selection.of_mask(alive & (few | chosen), length)

    def _sample(self, share: Tensor, alive: Tensor, budget: int) -> Tensor:
        if self.sampler == "random":
            return torch.multinomial((share + EPS) * alive, budget, replacement=True)
        return nearest_in_cdf(share, alive, grid_points(budget, self.parity, share.device))
