"""How much each patch still matters to the head: a change of a patch to which nobody attends any more is no loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from timm.models.vision_transformer import Block
from torch import Tensor

from common.attention import mean_map
from common.tokens import Tokens


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
        similarity: of :mod:`common.reducers.similarity`.
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
