"""What else patches could be chosen by: the rivals of the significance score, of one block each."""

from __future__ import annotations

import torch
from torch import Tensor

from common.models.observe import AttentionLayer, watching
from common.models.reduced import ReducedVisionTransformer
from common.slimming.scores import Scoring, image_significances
from common.tokens import Tokens


def attention_norm(model: ReducedVisionTransformer, tokens: Tokens, layer: int, how: Scoring, batch: int) -> Tensor:
    """Norm of each patch's attention map in block ``layer`` alone, over all heads (the paper's baseline, figure 7)."""
    attention = _seen(model, tokens, layer).attention.float()
    return attention.square().sum((1, 3)).sqrt()[:, tokens.num_prefix_tokens :]


def single_block(model: ReducedVisionTransformer, tokens: Tokens, layer: int, how: Scoring, batch: int) -> Tensor:
    """Row norms of (M X^T) M, with M the attention output of the tokens X in block ``layer``: nothing from above it.

    The score of a student reproduction of the paper (CENG502, 2023).
    """
    mixed = model.blocks[layer].attn(model.blocks[layer].norm1(tokens.x))
    return (mixed @ (tokens.x.transpose(1, 2) @ mixed)).norm(dim=-1)[:, tokens.num_prefix_tokens :]


def random(model: ReducedVisionTransformer, tokens: Tokens, layer: int, how: Scoring, batch: int) -> Tensor:
    """Chance, the same for all images."""
    generator = torch.Generator().manual_seed(how.seed * 1_000_003 + layer)
    return torch.rand(tokens.num_patch_tokens, generator=generator).expand(len(tokens.x), -1)


def significant(model: ReducedVisionTransformer, tokens: Tokens, layer: int, how: Scoring, batch: int) -> Tensor:
    """The significance score."""
    return image_significances(model, tokens, range(layer, layer + 1), how, batch)[:, 0]


# Every score: (B, P) of the patches of ``tokens``, all of which enter block ``layer``.
SCORES = {
    "significance": significant,
    "attention": attention_norm,
    "single_block": single_block,
    "random": random,
}


def _seen(model: ReducedVisionTransformer, tokens: Tokens, layer: int) -> AttentionLayer:
    found: list[AttentionLayer] = []
    watching(model, found.append).advance(tokens, range(layer, layer + 1))
    return found[0]
