"""Scores that patches can be ranked by, by name: the significance, and four others that it is compared with.

"coverage" is the significance of paths with the redundancy that its last step leaves out. Equation 6 of Tang et al.
(CVPR 2022) bounds the norm of a sum over the patches that go by the sum of their norms: two patches that carry the same
are both dear, though either could go. Here a patch that goes costs what reaches the output from it, unless a patch that
stays carries the same,

    f(S) = mean over images of sum_i w_i max over j in S of cos(v_i, v_j),

w_i the share of the paths of attention from the output that end in patch i, half of each map the identity, and v_i
what the next block reads from the patch, its values in all heads. This is facility location: each patch that is added
gains less than it would have before, so that the greedy choice comes within 1 - 1/e of the best one (Nemhauser, Wolsey
and Fisher, Mathematical Programming 14, 1978), and what each adds when it is chosen is a score.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data.unlabelled import Calibration
from common.models.block import Heads
from common.models.observe import watching
from common.models.reduced import ReducedVisionTransformer
from common.slimming.calibration import batches
from common.slimming.scores import Scoring, image_significances, significances
from common.tokens import Tokens
from common.training.accelerator import progress

COVERAGE = "coverage"
_PATHS = Scoring(feature="none", shortcut=True)


def attention_norm(model: ReducedVisionTransformer, tokens: Tokens, layer: int, how: Scoring, batch: int) -> Tensor:
    """Norm of each patch's attention map in block ``layer`` alone, over all heads (the paper's baseline, figure 7)."""
    seen = []
    watching(model, seen.append).advance(tokens, range(layer, layer + 1))
    return seen[0].attention.float().square().sum((1, 3)).sqrt()[:, tokens.num_prefix_tokens :]


def single_block(model: ReducedVisionTransformer, tokens: Tokens, layer: int, how: Scoring, batch: int) -> Tensor:
    """Row norms of (M X^T) M, with M the attention output of the tokens X in block ``layer``: nothing from above it.

    The score of a student reproduction of the paper (CENG502, 2023).
    """
    mixed = model.blocks[layer].attn(model.blocks[layer].norm1(tokens.x))  # (B, N, D)
    return (mixed @ (tokens.x.transpose(1, 2) @ mixed)).norm(dim=-1)[:, tokens.num_prefix_tokens :]


def random(model: ReducedVisionTransformer, tokens: Tokens, layer: int, how: Scoring, batch: int) -> Tensor:
    """Chance, the same for all images."""
    generator = torch.Generator().manual_seed(how.seed * 1_000_003 + layer)
    return torch.rand(tokens.num_patch_tokens, generator=generator).expand(len(tokens.x), -1)


def significant(model: ReducedVisionTransformer, tokens: Tokens, layer: int, how: Scoring, batch: int) -> Tensor:
    """The significance."""
    return image_significances(model, tokens, range(layer, layer + 1), how, batch)[:, 0]


# Scores (B, P) of each image for itself: of the patches of ``tokens``, all of which enter block ``layer``.
IMAGE_SCORES = {
    "significance": significant,
    "attention": attention_norm,
    "single_block": single_block,
    "random": random,
}
SCORES = (*IMAGE_SCORES, COVERAGE)


def carried(model: ReducedVisionTransformer, tokens: Tokens, layer: int) -> tuple[Tensor, Tensor]:
    """Values (B, P, H·d) of unit length that each patch leaves block ``layer`` with, and its share (B, P) of the paths.

    Args:
        tokens: all that enter block ``layer``, which must be followed by another.
    """
    weights = image_significances(model, tokens, range(layer, layer + 1), _PATHS)[:, 0]
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
    similarity = values @ values.transpose(1, 2)  # (n, P, P)
    covered = -torch.ones_like(weights)  # less than no cosine is
    added = torch.full_like(weights[0], -1, dtype=torch.float64)
    for step in range(values.shape[1]):
        gains = torch.einsum("np,npq->q", weights, (similarity - covered[:, :, None]).relu()).double() / len(values)
        patch = kept[step] if step < len(kept) else int(gains.masked_fill(added >= 0, -1).argmax())
        added[patch] = gains[patch]
        covered = covered.maximum(similarity[:, :, patch])
    return added


@torch.inference_mode()
def block_scores(
    name: str,
    model: ReducedVisionTransformer,
    entering: Iterable[Tokens],
    layer: int,
    how: Scoring,
    kept: Sequence[int] = (),
) -> Tensor:
    """Score (P,) of every patch in block ``layer``, float64: the mean over images, or what it adds to the coverage.

    Args:
        name: of :data:`SCORES`.
        entering: all tokens that enter block ``layer``, in batches.
        kept: patches that stay anyway; "coverage" looks for those that add most to them.
    """
    if name == COVERAGE:
        values, weights = zip(*(carried(model, tokens, layer) for tokens in entering), strict=True)
        return coverage(torch.cat(values), torch.cat(weights), kept).cpu()
    score = IMAGE_SCORES[name]
    found = [score(model, tokens, layer, how, number).double() for number, tokens in enumerate(entering)]
    return torch.cat(found).mean(0).cpu()


@torch.inference_mode()
def network_scores(name: str, model: ReducedVisionTransformer, images: Calibration, how: Scoring) -> Tensor:
    """:func:`block_scores` (L - 1, P) in every block but the last of the unreduced ``model``.

    The features of all ``images`` are held for one block.
    """
    below_last = range(len(model.blocks) - 1)
    if name == "significance":
        return significances(model, images, below_last, how)
    entering, scores = [model.embed(batch) for batch in batches(images, 16, model, "patches")], []
    for layer in progress(below_last, name, quiet=False):
        scores.append(block_scores(name, model, entering, layer, how))
        entering = [model.advance(tokens, range(layer, layer + 1)) for tokens in entering]
    return torch.stack(scores)
