"""How similar a patch is before and after a block, and the methods that know or predict it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from common.reducers.idling import Idling
from common.reducers.influence import rollout
from common.tokens import Tokens

OWN, READ = "own_influence", "read_influence"


def raw_cos(x: Tensor, y: Tensor) -> Tensor:
    """cos(x_i, y_i), in [-1, 1]."""
    return F.cosine_similarity(x, y, dim=-1)


def scaled_cos(x: Tensor, y: Tensor) -> Tensor:
    """(cos(x_i, y_i) + 1) / 2, in [0, 1]."""
    return (raw_cos(x, y) + 1) / 2


def rel_update(x: Tensor, y: Tensor) -> Tensor:
    """1 / (1 + |y_i - x_i|^2 / |y_i|^2), in (0, 1]."""
    return 1 / (1 + (y - x).square().sum(-1) / y.square().sum(-1).clamp(min=1e-12))


def rel_norm(x: Tensor, y: Tensor) -> Tensor:
    """1 / (1 + |y_i - x_i| / |y_i|), in (0, 1]."""
    return 1 / (1 + (y - x).norm(dim=-1) / y.norm(dim=-1).clamp(min=1e-6))


def blend(x: Tensor, y: Tensor) -> Tensor:
    """The mean of :func:`scaled_cos` and :func:`rel_update`."""
    return (scaled_cos(x, y) + rel_update(x, y)) / 2


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    function.__name__: function for function in (blend, scaled_cos, raw_cos, rel_update, rel_norm)
}
Similarity = Literal[tuple(SIMILARITIES)]


class IdlingBySimilarity(Idling):
    """Decides by the similarity s of each patch before and after a block, or by what would be lost if it idled.

    That is ``own (1 - s)``, the change that the patch would not go through, weighted by its influence on what the head
    reads. With "standard" attention, where idle patches are not seen either, it is ``own (1 - s) + read``: others would
    miss it as well. Both influences are those in the model that computes everything
    (:class:`common.reducers.influence.Influence`): one pass of it, before the first block.

    Args:
        similarity: one of the functions above.
        influence: "none": decide by s; "rollout": by 1 - the loss.
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
    def compares(self) -> bool:
        """Whether the next pass compares patches before and after each block."""
        return True

    def before_block(self, tokens: Tokens, layer: int) -> Tokens:
        return self.with_influence(tokens) if layer == 0 and self.compares else tokens

    def with_influence(self, tokens: Tokens) -> Tokens:
        """The tokens that enter the first block, which from now on carry the influence that they will have."""
        if self.influence == "none":
            return tokens
        own, read = rollout(self._backbone[0], tokens, self.reads_cls, SIMILARITIES[self.similarity])
        return tokens.with_carry(**{OWN: own, READ: read})

    @torch.no_grad()
    def patch_similarity(self, tokens: Tokens, output: Tensor, layer: int) -> Tensor:
        """Similarity (B, P) of patches before and after block ``layer``, whose output is (B, N, D), or 1 - the loss."""
        after = output[:, tokens.num_prefix_tokens :]  # (B, P, D)
        similarity = SIMILARITIES[self.similarity](tokens.patches.float(), after.float())
        if self.influence == "none":
            return similarity
        loss = tokens.carry[OWN][..., layer] * (1 - similarity)  # (B, P)
        return 1 - (loss + tokens.carry[READ][..., layer] if self.attention == "standard" else loss)
