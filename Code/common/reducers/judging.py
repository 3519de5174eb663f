"""What the methods share that know, or learn, how much a block changes a patch and how much that matters."""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import require_choice
from common.models.tokens import Tokens
from common.reducers.idling import Idling
from common.reducers.influence import INFLUENCES, rollout, weighted
from common.reducers.similarity import SIMILARITIES

INFLUENCE = "influence"


class Judging(Idling):
    """Judges by the similarity of each patch before and after a block, which may be weighted by its influence.

    The influence is that in the model that computes everything: one pass of it, before the first block.

    Args:
        similarity: see :mod:`common.reducers.similarity`.
        influence: "none", or "rollout": a change counts as much as the patch, through all later attention, has
            influence on what the head reads (:func:`common.reducers.influence.rollout`).
        shared: see :class:`common.reducers.idling.Idling`.
    """

    def __init__(self, vit, schedule, *, similarity: str = "blend", influence: str = "none", **shared) -> None:
        super().__init__(vit, schedule, **shared)
        self.similarity = require_choice(similarity, SIMILARITIES, "similarity")
        self.influence = require_choice(influence, INFLUENCES, "influence")
        self.reads_cls = vit.global_pool == "token"
        self._backbone = (vit.blocks,)  # in a tuple: they are not the reducer's own modules

    @property
    def judges(self) -> bool:
        """Whether the next pass asks for judgements."""
        return True

    def before_block(self, tokens: Tokens, layer: int) -> Tokens:
        return self.look_ahead(tokens) if layer == 0 and self.judges else tokens

    def look_ahead(self, tokens: Tokens) -> Tokens:
        """The tokens that enter the first block, which from now on carry the influence that they will have."""
        if self.influence == "none":
            return tokens
        return tokens.with_carry(**{INFLUENCE: rollout(self._backbone[0], tokens, self.reads_cls)})

    @torch.no_grad()
    def alike(self, tokens: Tokens, output: Tensor, layer: int) -> Tensor:
        """Similarity (B, P) of patches before and after block ``layer``, whose output is (B, N, D); weighted."""
        after = output[:, tokens.num_prefix_tokens :]
        similarity = SIMILARITIES[self.similarity](tokens.patches.float(), after.float())
        return similarity if self.influence == "none" else weighted(similarity, tokens.carry[INFLUENCE][..., layer])
