"""Patches that stand for all others: the significance of paths, with the redundancy that its last step leaves out.

Equation 6 of Tang et al. (CVPR 2022) bounds the norm of a sum over the patches that go by the sum of their norms: two
patches that carry the same are both dear, though either could go. Here a patch that goes costs what reaches the output
from it, unless a patch that stays carries the same,

    f(S) = mean over images of sum_i w_i max over j in S of cos(v_i, v_j),

w_i the share of the paths of attention from the output that end in patch i, half of each map the identity, and v_i
what the next block reads from the patch, its values in all heads. This is facility location: each patch that is added
gains less than it would have before, so that the greedy choice comes within 1 - 1/e of the best one (Nemhauser, Wolsey
and Fisher, Mathematical Programming 14, 1978), and what each adds when it is chosen is a score.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.models.block import Heads
from common.models.reduced import ReducedVisionTransformer
from common.slimming.scores import Scoring, image_significances
from common.tokens import Tokens

PATHS = Scoring(feature="none", shortcut=True)


def carried(model: ReducedVisionTransformer, tokens: Tokens, layer: int) -> tuple[Tensor, Tensor]:
    """Values (B, P, H·d) of unit length that each patch leaves block ``layer`` with, and its share (B, P) of the paths.

    Args:
        tokens: all that enter block ``layer``, which must be followed by another.
    """
    weights = image_significances(model, tokens, range(layer, layer + 1), PATHS)[:, 0]
    left, above = model.advance(tokens, range(layer, layer + 1)).x, model.blocks[layer + 1]
    values = Heads.of(above.attn, above.norm1(left)).v.transpose(1, 2).flatten(2)[:, tokens.num_prefix_tokens :]
    return F.normalize(values.float(), dim=-1), weights / weights.sum(1, keepdim=True)


def coverage(values: Tensor, weights: Tensor, kept: Sequence[int] = ()) -> Tensor:
    """What every patch adds to f (P,), float64, when the greedy choice comes to it: by falling scores, its order.

    Args:
        values: (n, P, C) of unit length, of n images.
        weights: (n, P), of every image summing to 1.
        kept: patches that were chosen before; they come first, in their order.
    """
    similarity = values @ values.transpose(1, 2)
    covered = -torch.ones_like(weights)  # less than no cosine is
    added = torch.full_like(weights[0], -1, dtype=torch.float64)
    for step in range(values.shape[1]):
        gains = torch.einsum("np,npq->q", weights, (similarity - covered[:, :, None]).relu()).double() / len(values)
        patch = kept[step] if step < len(kept) else int(gains.masked_fill(added >= 0, -1).argmax())
        added[patch] = gains[patch]
        covered = covered.maximum(similarity[:, :, patch])
    return added
