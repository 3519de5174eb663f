"""How similar a patch is before and after a block, how much that matters, and what methods share that use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from common.attention import mean_map
from common.precision import without_autocast
from common.reducers.base import BLOCK_OUTPUT, NO_SIGNALS, Signal
from common.reducers.idling import Idling
from common.tokens import Tokens

OWN, READ, LOST = "own_influence", "read_influence", "lost"
CLASSES = 2  # the most probable ones, whose gradients tell what an image loses: they hold nearly all of the probability


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


class Influence(NamedTuple):
    """What a block's work on each patch is worth in the model that computes everything, both (B, P, blocks).

    Attributes:
        own: influence of the patch after the block on what the head reads; 1 = that of the average token.
        read: the share that the patch has, as one of those whom they attend to, in the changes of all tokens in the
            block, these weighted by their influence.
    """

    own: Tensor
    read: Tensor


@torch.no_grad()
def rollout(
    blocks: Sequence[Block], tokens: Tokens, reads_cls: bool, similarity: Callable[[Tensor, Tensor], Tensor]
) -> Influence:
    """Influence followed back through attention alone, from what the head reads.

    ``own`` is the product of (A + I) / 2 over the blocks that are still to come, A the mean over heads (Abnar and
    Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, equation 1), times the number of tokens. After the
    last block no patch has any where the head reads the CLS token. ``read`` of patch j is ``sum_i own_i c_i A_ij`` over
    all tokens i of the block, c_i = 1 - similarity of token i before and after it.

    Args:
        tokens: those that enter the first block; all blocks compute all of them.
        reads_cls: the head reads the first token; otherwise the mean of the patches.
        similarity: one of the functions above.
    """
    x, seen = tokens.x, []
    for block in blocks:
        y = block(x)  # (B, N, D)
        seen.append((mean_map(block.attn, block.norm1(x)), 1 - similarity(x.float(), y.float())))
        x = y
    prefix = tokens.num_prefix_tokens
    share = torch.zeros(x.shape[:2], device=x.device)  # (B, N)
    share[:, slice(1) if reads_cls else slice(prefix, None)] = 1.0 if reads_cls else 1 / (x.shape[1] - prefix)
    own, read = [], []
    for attention, change in reversed(seen):
        own.append(share)
        read.append(((share * change)[:, None] @ attention)[:, 0])  # (B, N)
        share = (share + (share[:, None] @ attention)[:, 0]) / 2
    return Influence(*(x.shape[1] * torch.stack(found[::-1], dim=-1)[:, prefix:] for found in (own, read)))


def fisher(vit: VisionTransformer, tokens: Tokens, seen: bool) -> Tensor:
    """What the class probabilities would lose if a patch idled in a block, (B, P, blocks); 1 = the mean of the image.

    Idling takes from patch i its update d_i and, where idle patches are not ``seen``, i from the keys of the others. To
    second order that moves the probabilities p by a Kullback-Leibler divergence of half of::

        sum_y p_y (g_yi . d_i + m_yi)^2

    with the gradients of log p_y by the patch after the block, g_yi, and by the weight m of its key in the softmax: the
    Fisher information of one number, 1 where the patch is computed and 0 where it idles (Theis et al., "Faster gaze
    prediction with dense networks and Fisher pruning", 2018, equation 6, of feature maps). The sum is over the
    :data:`CLASSES` most probable classes; one pass of the model that computes everything, and one back for each class.

    Args:
        tokens: those that enter the first block.
    """
    with torch.inference_mode(False), torch.enable_grad(), without_autocast(tokens.x.device):
        x = tokens.x.detach().to(next(vit.blocks.parameters()).dtype, copy=True).requires_grad_()
        prefix = tokens.num_prefix_tokens
        after, keys, updates = [], [], []
        for block in vit.blocks:
            key = x.new_zeros(len(x), 1, 1, x.shape[1], requires_grad=True)  # logarithm of the weight
            y = block(x, attn_mask=key)  # (B, N, D)
            after.append(y)
            keys.append(key)
            updates.append((y - x).detach())
            x = y
        logits = vit.forward_head(vit.norm(x))
        logits = logits if isinstance(logits, Tensor) else torch.stack(logits).mean(0)  # of two heads, in training
        likely = logits.float().log_softmax(-1).topk(min(CLASSES, logits.shape[-1]))  # (B, CLASSES)
        lost = 0
        for log_p in likely.values.unbind(1):
            found = torch.autograd.grad(log_p.sum(), [*after, *keys], retain_graph=True)
            gradients = zip(found[: len(after)], found[len(after) :], updates, strict=True)
            moved = [_moved(g, None if seen else m, update) for g, m, update in gradients]
            lost = lost + log_p.detach().exp()[:, None, None] * torch.stack(moved, dim=-1).square()
    lost = lost[:, prefix:]  # (B, P, blocks)
    return lost / lost.mean((1, 2), keepdim=True).clamp(min=torch.finfo(lost.dtype).tiny)


def _moved(gradient: Tensor, by_key: Tensor | None, update: Tensor) -> Tensor:
    """What is lost to first order (B, N) of a block's ``update`` (B, N, D), and of each token as a key."""
    own = (gradient * update).sum(-1).float()
    return own if by_key is None else own + by_key[:, 0, 0].float()


class IdlingBySimilarity(Idling):
    """Decides by the similarity s of each patch before and after a block, or by what would be lost if it idled.

    That is ``own (1 - s)``, the change that the patch would not go through, weighted by its influence on what the head
    reads. With "standard" attention, where idle patches are not seen either, it is ``own (1 - s) + read``: others would
    miss it as well. Both influences are those in the model that computes everything
    (:class:`Influence`): one pass of it, before the first block.

    Args:
        similarity: one of the functions above.
        influence: "none": decide by s; "rollout": by 1 - the loss; "fisher": by 1 - the loss of :func:`fisher`, which
            asks the gradients of the model that computes everything and no similarity.
        shared: see :class:`common.reducers.idling.Idling`.
    """

    compares = True  # the next pass compares patches before and after each block

    def __init__(
        self,
        vit,
        schedule,
        *,
        similarity: Similarity = "blend",
        influence: Literal["none", "rollout", "fisher"] = "none",
        **shared,
    ) -> None:
        super().__init__(vit, schedule, **shared)
        self.similarity, self.influence = similarity, influence
        self.reads_cls = vit.global_pool == "token"
        self._backbone = (vit,)  # in a tuple: it is not a module of the reducer's own

    @property
    def signals(self) -> frozenset[Signal]:
        return BLOCK_OUTPUT if self.compares else NO_SIGNALS

    def before_block(self, tokens: Tokens, layer: int) -> Tokens:
        return self.with_influence(tokens) if layer == 0 and self.compares else tokens

    def with_influence(self, tokens: Tokens) -> Tokens:
        """The tokens that enter the first block, which from now on carry the influence that they will have."""
        if self.influence == "none":
            return tokens
        (vit,) = self._backbone
        if self.influence == "fisher":
            return tokens.with_carry(**{LOST: fisher(vit, tokens, seen=self.attention != "standard")})
        own, read = rollout(vit.blocks, tokens, self.reads_cls, SIMILARITIES[self.similarity])
        return tokens.with_carry(**{OWN: own, READ: read})

    @torch.no_grad()
    def patch_similarity(self, tokens: Tokens, output: Tensor, layer: int) -> Tensor:
        """Similarity (B, P) of patches before and after block ``layer``, whose output is (B, N, D), or 1 - the loss."""
        if self.influence == "fisher":
            return 1 - tokens.carry[LOST][..., layer]
        after = output[:, tokens.num_prefix_tokens :]  # (B, P, D)
        similarity = SIMILARITIES[self.similarity](tokens.patches.float(), after.float())
        if self.influence == "none":
            return similarity
        loss = tokens.carry[OWN][..., layer] * (1 - similarity)  # (B, P)
        return 1 - (loss + tokens.carry[READ][..., layer] if self.attention == "standard" else loss)
