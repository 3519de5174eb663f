"""Bounds for the methods that let patches idle: the best choice that labels allow, and a choice by chance.

They are no methods: the oracle computes every block whole before it decides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.reducers.base import Signals, register_reducer
from common.reducers.idling import Idling
from common.reducers.random_drop import drawn
from common.reducers.similarity import IdlingBySimilarity
from common.tokens import Tokens


@register_reducer("idle_oracle")
class IdleOracle(IdlingBySimilarity):
    """Computes the patches whose change matters most: what a predictor learns, as the decision.

    Args:
        tau: where ``keep_rate`` is 1, compute the patches whose similarity is below it, however many these are.
        shared: see :class:`common.reducers.similarity.IdlingBySimilarity`.
    """

    by_rate = False
    learns_from_signals = True  # in training the block's own pass is that output
    scored = "minus the similarity of the patch before and after the block, or what would be lost if it idled, minus 1"

    def __init__(self, vit, schedule, *, tau: float | None = None, **shared) -> None:
        super().__init__(vit, schedule, **shared)
        self.tau, self.by_score = tau, tau is not None
        if self.by_score:
            self._require_all_kept("tau", vit.patch_embed.num_patches)

    @torch.no_grad()
    def score(self, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Tensor]:
        return tokens, -self.patch_similarity(tokens, signals.output, layer)

    def passes(self, score: Tensor, layer: int) -> Tensor:
        return -score < self.tau


@register_reducer("idle_random")
class IdleRandom(Idling):
    """Computes patches drawn at random: in every block other ones, which are the same for all images.

    Args:
        seed: decides which.
        shared: see :class:`common.reducers.idling.Idling`.
    """

    scored = "a number drawn at random"

    def __init__(self, vit, schedule, *, seed: int = 0, **shared) -> None:
        super().__init__(vit, schedule, **shared)
        self.seed = seed

    def score(self, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Tensor]:
        every = drawn(tokens.num_patches, self.seed * self.depth + layer).to(tokens.x.device)  # (P,)
        return tokens, every.expand(len(tokens.x), -1)
