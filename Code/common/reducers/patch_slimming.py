"""Patch slimming: every block computes a fixed set of tokens, fewer the deeper it lies, found once by a search.

Tang et al., "Patch Slimming for Efficient Vision Transformers", CVPR 2022; the search is :mod:`common.slimming`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from common.errors import UsageError
from common.options import NonNegative
from common.reducers.base import NO_SIGNALS, Reducer, Signal, Signals, Teaching, divergence, register_reducer
from common.reducers.slimming_plan import SlimmingPlan
from common.schedule import Schedule
from common.tokens import Selection, Tokens


@register_reducer("patch_slimming")
class PatchSlimming(Reducer):
    """Computes in each block only the tokens of its mask: queries, projection and MLP of those, keys of all survivors.

    A token that a block does not compute is still seen by the others inside that block, and gone after it. The plan
    says how many tokens stay, so keep_rate must stay 1.0. No parameters.

    Args:
        plan: a :class:`common.slimming.SlimmingPlan`, or the path of its JSON file.
        keys: "all", as published, or "selected": tokens to be dropped are not seen in their last block either.
        distill_weight: of the divergence from the teacher where there is one, when the whole network is fine-tuned.
    """

    selects = True
    reads_prefix_only = True
    by_rate = False
    wants_teacher = True

    def __init__(
        self,
        vit,
        schedule: Schedule,
        *,
        plan: SlimmingPlan | str | Path,
        keys: Literal["all", "selected"] = "all",
        distill_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__(vit, schedule)
        self.plan, self.keys, self.distill_weight = fitting_plan(vit, schedule, plan), keys, distill_weight
        self.grid = tuple(vit.patch_embed.grid_size)
        for layer in self.blocks:
            prefix = self.plan.num_prefix_tokens
            patches = torch.tensor(self.plan.rows(layer)[prefix:], dtype=torch.long, device="cpu") - prefix
            self.register_buffer(f"rows_{layer}", patches, persistent=False)

    @property
    def blocks(self) -> tuple[int, ...]:
        return tuple(self.plan.drops)

    def needs(self, layer: int, tokens: Tokens) -> frozenset[Signal] | None:
        return NO_SIGNALS if layer in self.blocks else None

    def select_queries(self, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Selection | None]:
        if tokens.grid_size != self.grid:
            own, given = ("{} x {} patches".format(*grid) for grid in (self.grid, tokens.grid_size))
            raise UsageError(f"the plan is for {own}, the image has {given}")
        rows: Tensor = getattr(self, f"rows_{layer}")  # (K,)
        return tokens, Selection(rows.expand(len(tokens.x), -1), keys=self.keys)

    def training_loss(self, tokens: Tokens, logits: Tensor, teacher: Teaching | None) -> Tensor:
        if teacher is None:
            return super().training_loss(tokens, logits, teacher)
        return self.distill_weight * divergence(logits, teacher.logits)

    def extra_repr(self) -> str:
        return f"lengths={list(self.plan.lengths)}, plan={self.plan.digest}"


def fitting_plan(vit, schedule: Schedule, plan: SlimmingPlan | str | Path) -> SlimmingPlan:
    """``plan``, or that of its file; refused if it is for another backbone or stands beside a keep_rate."""
    plan = plan if isinstance(plan, SlimmingPlan) else SlimmingPlan.load(plan)
    if schedule.keep_rate != 1.0:
        raise UsageError(f"the plan says how many tokens stay; keep_rate={schedule.keep_rate} must stay 1.0")
    given = (len(plan.masks), plan.num_tokens, plan.num_prefix_tokens)
    prefix = vit.num_prefix_tokens
    own = (len(vit.blocks), prefix + vit.patch_embed.num_patches, prefix)
    if given != own:
        names = "{} blocks, {} tokens, {} of them prefix"
        raise UsageError(f"the plan is for {names.format(*given)}; this backbone has {names.format(*own)}")
    return plan
