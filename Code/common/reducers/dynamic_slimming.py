"""Dynamic patch slimming: small gates predict, image by image, how much each patch will matter.

The dynamic variant of Tang et al., "Patch Slimming for Efficient Vision Transformers", CVPR 2022, section 4.4, which
leaves gates, their targets and the budget open; they are completed here. :func:`common.slimming.fit_gates` trains the
gates to predict the logarithm of each image's own significance scores, standardised within the image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from common.errors import UsageError
from common.reducers.base import NO_SIGNALS, Reducer, Signal, Signals, init_linear, register_reducer
from common.reducers.clustering import counts_where_dropping
from common.reducers.patch_slimming import fitting_plan
from common.reducers.slimming_plan import SlimmingPlan
from common.reducers.untrained import Fresh
from common.schedule import Schedule
from common.tokens import Selection, Tokens, top_in_order

PATCH = "patch"  # carried along: which patch of the image each token is


class TokenGate(nn.Module):
    """LayerNorm and an MLP on each token alone: (B, n, D) -> (B, n)."""

    def __init__(self, dim: int, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, 1))
        init_linear(self)

    def forward(self, x: Tensor, patch: Tensor) -> Tensor:
        return self.layers(x)[..., 0]


class MeanGate(nn.Module):
    """The paper's down-sampling: the mean of abs(x) of every patch, 0 where it is gone, then one linear layer."""

    def __init__(self, num_patches: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(num_patches), nn.Linear(num_patches, num_patches)
        init_linear(self)

    def forward(self, x: Tensor, patch: Tensor) -> Tensor:
        means = x.new_zeros(len(x), self.linear.in_features).scatter(1, patch, x.abs().mean(-1))  # (B, P)
        return self.linear(self.norm(means)).gather(1, patch)


@register_reducer("dynamic_slimming")
class DynamicSlimming(Reducer):
    """In each block only the patches that its gate scores highest are computed; the others are seen, and then gone.

    Gates choose before the block computes anything, so only what is chosen gets queries. In training their scores get
    the gradient of the loss by a straight-through factor that is 1 (:func:`straight_through`).

    Args:
        plan: a static plan whose numbers of tokens are kept to; keep_rate must stay 1.0 then. Without one, keep_rate
            and reduction_loc say where and how many.
        gate: "token", an MLP on each token, or "mean", one linear map from and to all patches.
        budget: "fixed", the same number of patches in every image; or "threshold", the patches that score above one,
            which :func:`common.slimming.calibrate_thresholds` sets so that the mean number is the same.
    """

    selects = True
    masks = True
    reads_prefix_only = True
    by_rate = False
    scored = "prediction of the block's gate"

    def __init__(
        self,
        vit,
        schedule: Schedule,
        *,
        plan: SlimmingPlan | str | Path | None = None,
        gate: Literal["token", "mean"] = "token",
        budget: Literal["fixed", "threshold"] = "fixed",
    ) -> None:
        super().__init__(vit, schedule)
        self.budget, num_patches = budget, vit.patch_embed.num_patches
        self.in_pieces = "" if budget == "fixed" else "how many patches pass a threshold depends on the image"
        if gate == "mean" and vit.dynamic_img_size:
            raise UsageError("gate 'mean' needs a fixed grid; dynamic_img_size=True is not allowed, set img_size")
        self.plan = None if plan is None else fitting_plan(vit, schedule, plan)
        # block -> patches that it computes, of the blocks that drop some
        self.counts = schedule.drops(num_patches) if plan is None else self.plan.drops
        make, size = (MeanGate, num_patches) if gate == "mean" else (TokenGate, vit.embed_dim)
        gated = counts_where_dropping(vit, schedule) if self.plan is None else self.counts
        # where all patches go, nothing is to be chosen
        self.gates = nn.ModuleDict({str(layer): make(size) for layer, count in gated.items() if count})
        if budget == "threshold":
            self.register_buffer("thresholds", torch.full((len(vit.blocks),), float("nan"), device="cpu"))

        self._fresh = Fresh(self.gates)

    def caution(self) -> str:
        untrained = self._fresh.is_untouched(self.gates)
        return (
            "which patches stay is random: the gates are untrained; common.slimming.fit_gates trains them" * untrained
        )

    @property
    def blocks(self) -> tuple[int, ...]:
        return self.schedule.reduction_loc if self.plan is None else tuple(self.counts)

    def needs(self, layer: int, tokens: Tokens) -> frozenset[Signal] | None:
        return None if self._target(layer, tokens) is None else NO_SIGNALS

    def _target(self, layer: int, tokens: Tokens) -> int | None:
        by_schedule = self.plan is None and self.budget == "fixed"
        return self.drops_at(layer, tokens) if by_schedule else self.counts.get(layer)

    def select_queries(self, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Selection | None]:
        count = self._target(layer, tokens)
        if count == 0:
            return tokens, Selection(torch.empty(len(tokens.x), 0, dtype=torch.long, device=tokens.x.device))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.training):
            tokens = with_patches(tokens)
            scores = self.score(tokens, layer)  # (B, n)
        if tokens.valid is not None:
            scores = scores.masked_fill(~tokens.valid_patches, float("-inf"))
        if scores.requires_grad:
            tokens = straight_through(tokens, scores)
        scores = scores.detach()
        chosen = Selection(top_in_order(scores, count)) if self.budget == "fixed" else self._above(scores, layer)
        return tokens.with_scores(scores), chosen

    def score(self, tokens: Tokens, layer: int) -> Tensor:
        """What the gate of block ``layer`` predicts for the patch tokens (B, n), float32."""
        return self.gates[str(layer)](tokens.patches, tokens.carry[PATCH]).float()

    def _above(self, scores: Tensor, layer: int) -> Selection:
        """The patches (at least one) that score above the threshold, filled up to the most that an image has."""
        threshold = self.thresholds[layer]
        if threshold.isnan():
            raise UsageError("budget 'threshold' has no thresholds yet; common.slimming.calibrate_thresholds sets them")
        chosen = scores >= threshold
        return Selection.of_mask(chosen.scatter(1, scores.argmax(1, keepdim=True), True))


def with_patches(tokens: Tokens) -> Tokens:
    """``tokens`` that carry which patch each of them is, from the first time on."""
    if PATCH in tokens.carry:
        return tokens
    patch = torch.arange(tokens.num_patch_tokens, device=tokens.x.device).expand(len(tokens.x), -1)
    return tokens.with_carry(**{PATCH: patch})


def straight_through(tokens: Tokens, scores: Tensor) -> Tokens:
    """The same numbers; in the backward pass each patch token is as if multiplied by 1 + its score."""
    finite = scores.masked_fill(scores.isinf(), 0.0)
    factor = (1 + (finite - finite.detach())).to(tokens.x.dtype)[..., None]  # (B, n, 1)
    return tokens.with_x(torch.cat([tokens.prefix, tokens.patches * factor], dim=1))
