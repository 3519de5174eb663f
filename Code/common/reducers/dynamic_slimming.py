"""Dynamic patch slimming: small gates predict, image by image, how much each patch will matter.

The dynamic variant of Tang et al., "Patch Slimming for Efficient Vision Transformers", CVPR 2022, section 4.4, which
leaves gates, their targets and the budget open; they are completed here. :func:`common.slimming.fit_gates` trains the
gates together until the model agrees with the unreduced one, or each to predict the image's own significance scores.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from common.errors import UsageError
from common.reducers.base import (
    NO_SIGNALS,
    Reducer,
    Signal,
    Signals,
    Teaching,
    divergence,
    init_linear,
    register_reducer,
)
from common.reducers.clustering import counts_where_dropping
from common.reducers.patch_slimming import fitting_plan
from common.reducers.slimming_plan import SlimmingPlan
from common.schedule import Schedule
from common.tokens import Selection, Tokens, top_in_order

PATCH = "patch"  # carried along: which patch of the image each token is
NEXT = "policy"  # carried along in training: who stays after the block


class TokenGate(nn.Module):
    """LayerNorm and an MLP on each token alone: (B, n, D) -> (B, n)."""

    def __init__(self, dim: int, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, 1))
        init_linear(self)

    @property
    def last(self) -> nn.Linear:
        return self.layers[-1]

    def forward(self, x: Tensor, patch: Tensor) -> Tensor:
        return self.layers(x)[..., 0]


class MeanGate(nn.Module):
    """The paper's down-sampling: the mean of abs(x) of every patch, 0 where it is gone, then one linear layer."""

    def __init__(self, num_patches: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(num_patches), nn.Linear(num_patches, num_patches)
        init_linear(self)

    @property
    def last(self) -> nn.Linear:
        return self.linear

    def forward(self, x: Tensor, patch: Tensor) -> Tensor:
        means = x.new_zeros(len(x), self.linear.in_features).scatter(1, patch, x.abs().mean(-1))  # (B, P)
        return self.linear(self.norm(means)).gather(1, patch)


class PlannedGate(nn.Module):
    """A gate that starts from a plan: 1 for the patches that its block keeps, -1 for the others, and what it learns.

    Its own part is 0 at first, so that before any training the same patches are kept as in the plan.
    """

    def __init__(self, gate: TokenGate | MeanGate, kept: tuple[int, ...], num_patches: int) -> None:
        super().__init__()
        self.gate, self.prior = gate, nn.Parameter(torch.full((num_patches,), -1.0))
        with torch.no_grad():
            self.prior[list(kept)] = 1.0
            gate.last.weight.zero_()

    def forward(self, x: Tensor, patch: Tensor) -> Tensor:
        return self.gate(x, patch) + self.prior[patch]


@register_reducer("dynamic_slimming")
class DynamicSlimming(Reducer):
    """In each block only the patches that its gate scores highest are computed; the others are seen, and then gone.

    Gates choose before the block computes anything, so only what is chosen gets queries. In training nothing is left
    out: later blocks do not see what is not chosen, and the choices pass gradients straight through (:func:`masked`).
    With a teacher the training loss is the divergence from it.

    Args:
        plan: a static plan whose numbers of tokens are kept to, and whose patches, until the gates are trained
            (:class:`PlannedGate`); keep_rate must stay 1.0 then. Without one, keep_rate and reduction_loc say where and
            how many.
        gate: "token", an MLP on each token, or "mean", one linear map from and to all patches.
        budget: "fixed", the same number of patches in every image; or "threshold", the patches that score above one,
            which :func:`common.slimming.calibrate_thresholds` sets so that the mean number is the same.
    """

    selects = True
    masks = True
    reads_prefix_only = True
    by_rate = False
    wants_teacher = True
    scored = "prediction of the block's gate"
    untrained = "which patches stay is random: the gates are untrained; common.slimming.fit_gates trains them"

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
        self.adaptive = budget == "threshold"
        self.in_pieces = "" if budget == "fixed" else "how many patches pass a threshold depends on the image"
        if gate == "mean" and vit.dynamic_img_size:
            raise UsageError("gate 'mean' needs a fixed grid; dynamic_img_size=True is not allowed, set img_size")
        self.plan = None if plan is None else fitting_plan(vit, schedule, plan)
        # block -> patches that it computes, of the blocks that drop some
        self.counts = schedule.drops(num_patches) if plan is None else self.plan.drops
        make, size = (MeanGate, num_patches) if gate == "mean" else (TokenGate, vit.embed_dim)
        gated = counts_where_dropping(vit, schedule) if self.plan is None else self.counts
        # where all patches go, nothing is to be chosen
        gates = {layer: make(size) for layer, count in gated.items() if count}
        if self.plan is not None:
            gates = {layer: PlannedGate(gate, self.plan.kept[layer], num_patches) for layer, gate in gates.items()}
        self.gates = nn.ModuleDict({str(layer): gate for layer, gate in gates.items()})
        if budget == "threshold":
            self.register_buffer("thresholds", torch.full((len(vit.blocks),), float("nan"), device="cpu"))

    def caution(self) -> str:
        return super().caution() if self.plan is None else ""  # gates of a plan start from its patches

    @property
    def blocks(self) -> tuple[int, ...]:
        return self.schedule.reduction_loc if self.plan is None else tuple(self.counts)

    def needs(self, layer: int, tokens: Tokens) -> frozenset[Signal] | None:
        return None if self._target(layer, tokens) is None else NO_SIGNALS

    def _target(self, layer: int, tokens: Tokens) -> int | None:
        if self.plan is None and str(layer) not in self.gates:
            return None  # nothing is dropped here, though in training all that was dropped before is still there
        by_schedule = self.plan is None and self.budget == "fixed"
        return self.drops_at(layer, tokens) if by_schedule else self.counts.get(layer)

    def select_queries(self, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Selection | None]:
        count = self._target(layer, tokens)
        if count is None:
            return tokens, None
        if count == 0:
            return tokens, Selection(torch.empty(len(tokens.x), 0, dtype=torch.long, device=tokens.x.device))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.training):
            tokens = with_patches(tokens)
            scores = self.score(tokens, layer)  # (B, n)
        if scores.requires_grad:
            return masked(tokens, scores, count), None
        if tokens.valid is not None:
            scores = scores.masked_fill(~tokens.valid_patches, float("-inf"))
        chosen = Selection(top_in_order(scores, count)) if self.budget == "fixed" else self._above(scores, layer)
        return tokens.with_scores(scores), chosen

    def after_attention(self, tokens: Tokens, signals: Signals, layer: int) -> Tokens:
        # a patch that the block leaves out is still seen inside it
        return replace(tokens, policy=tokens.carry[NEXT]) if NEXT in tokens.carry else tokens

    def training_loss(self, tokens: Tokens, logits: Tensor, teacher: Teaching | None) -> Tensor:
        if teacher is None:
            return super().training_loss(tokens, logits, teacher)
        return divergence(logits, teacher.logits)

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


def masked(tokens: Tokens, scores: Tensor, count: int) -> Tokens:
    """All of ``tokens``, carrying the policy (B, n) of the blocks after this one: 1 for the ``count`` that stay.

    Straight through, the policy has the gradient of a sigmoid around the lowest score that stays. It also reaches the
    patches that are gone: what they would change in every block that they would have passed, had the gates before kept
    them. So a gate learns what later blocks need.
    """
    before = torch.ones_like(scores) if tokens.policy is None else tokens.policy
    alive = before.detach() > 0
    highest = scores.detach().masked_fill(~alive, float("-inf")).topk(count, dim=1)
    lowest = highest.values[:, -1:]
    would = ~alive & (scores.detach() >= lowest)
    stays = torch.zeros_like(alive).scatter(1, highest.indices, True)
    soft = (scores - lowest).sigmoid()
    policy = before * ((stays | would) + (soft - soft.detach()))
    return tokens.with_carry(**{NEXT: policy}).with_scores(scores.detach())
