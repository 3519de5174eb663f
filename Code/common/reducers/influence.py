"""How much each patch still matters to the head: a change of a patch to which nobody attends any more is no loss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from timm.models.vision_transformer import Block
from torch import Tensor

from common.models.attention import mean_map
from common.models.tokens import Tokens

INFLUENCES = ("none", "rollout")


@torch.no_grad()
def rollout(blocks: Sequence[Block], tokens: Tokens, reads_cls: bool) -> Tensor:
    """Influence (B, P, blocks) of every patch after every block on what the head reads; 1 = that of the average token.

    Followed back through attention alone: the product of (A + I) / 2 over the blocks that are still to come, A the mean
    over heads (Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, equation 1), times the number
    of tokens. After the last block no patch has any where the head reads the CLS token.

    Args:
        tokens: those that enter the first block; all blocks compute all of them.
        reads_cls: the head reads the first token; otherwise the mean of the patches.
    """
    x, maps = tokens.x, []
    for block, following in pairwise(blocks):
        x = block(x)
        maps.append(mean_map(following.attn, following.norm1(x)))
    prefix = tokens.num_prefix_tokens
    read = torch.zeros(x.shape[:2], device=x.device)
    read[:, slice(1) if reads_cls else slice(prefix, None)] = 1.0 if reads_cls else 1 / (x.shape[1] - prefix)
    shares = [read]
    for attention in reversed(maps):
        shares.append((shares[-1] + (shares[-1][:, None] @ attention)[:, 0]) / 2)
    return x.shape[1] * torch.stack(shares[::-1], dim=-1)[:, prefix:]


def weighted(similarity: Tensor, influence: Tensor) -> Tensor:
    """1 - influence (1 - similarity): the similarity of a patch whose change counts as much as its influence."""
    return 1 - influence * (1 - similarity)
