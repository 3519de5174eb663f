"""What the methods share that know, or learn, how much a block changes a patch and how much that matters."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from common.reducers.idling import Idling
from common.reducers.influence import rollout
from common.reducers.similarity import SIMILARITIES
from common.tokens import Tokens

OWN, READ = "own_influence", "read_influence"
Similarity = Literal[tuple(SIMILARITIES)]


class Judging(Idling):
    """Judges by the similarity s of each patch before and after a block, or by what would be lost if it idled.

    That is ``own (1 - s)``, the change that the patch would not go through, weighted by its influence on what the head
    reads. With "standard" attention, where idle patches are not seen either, it is ``own (1 - s) + read``: others would
    miss it as well. Both influences are those in the model that computes everything
    (:class:`common.reducers.influence.Influence`): one pass of it, before the first block.

    Args:
        similarity: see :mod:`common.reducers.similarity`.
        influence: "none": judge by s; "rollout": by 1 - the loss.
        shared: see :class:`common.reducers.idling.Idling`.
    """

    def __init__(
        self,
        vit,
        schedule,
        *,
        similarity: Similarity = "blend",
        influence: Literal["none", "rollout"] = "none",
        **shared,
    ) -> None:
        super().__init__(vit, schedule, **shared)
        self.similarity, self.influence = similarity, influence
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
        own, read = rollout(self._backbone[0], tokens, self.reads_cls, SIMILARITIES[self.similarity])
        return tokens.with_carry(**{OWN: own, READ: read})

    @torch.no_grad()
    def alike(self, tokens: Tokens, output: Tensor, layer: int) -> Tensor:
        """Similarity (B, P) of patches before and after block ``layer``, whose output is (B, N, D), or 1 - the loss."""
        after = output[:, tokens.num_prefix_tokens :]  # (B, P, D)
        similarity = SIMILARITIES[self.similarity](tokens.patches.float(), after.float())
        if self.influence == "none":
            return similarity
        loss = tokens.carry[OWN][..., layer] * (1 - similarity)  # (B, P)
        return 1 - (loss + tokens.carry[READ][..., layer] if self.attention == "standard" else loss)
