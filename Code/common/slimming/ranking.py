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

import math
from collections.abc import Iterable, Sequence
from typing import get_args

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from common.data.unlabelled import Calibration
from common.errors import require_choice
from common.models.block import Heads
from common.models.observe import watching
from common.models.reduced import ReducedVisionTransformer, reduce_tokens
from common.slimming.calibration import batches
from common.slimming.scores import HeadHandling, Scoring, image_significances, significances
from common.tokens import Tokens
from common.training.accelerator import progress

COVERAGE = "coverage"
_WEIGHED = 8  # patches at once, of those that may add most
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
# Other ways to sum the paths of heads, to see the features and the shortcut.
SIGNIFICANCES = {
    "significance, ln": Scoring(feature="ln"),
    "significance, value": Scoring(feature="value"),
    "significance, shortcut": Scoring(shortcut=True),
    **{f"significance, {name}": Scoring(name) for name in get_args(HeadHandling)[1:]},
}


def path_shares(model: ReducedVisionTransformer, tokens: Tokens, layers: range) -> Tensor:
    """Share (B, len(layers), P) of the paths from the output that end in each patch, in every block of ``layers``.

    Args:
        tokens: all that enter the first of ``layers``, which another block must follow.
    """
    weights = image_significances(model, tokens, layers, _PATHS)
    return weights / weights.sum(-1, keepdim=True)


def values_read(model: ReducedVisionTransformer, left: Tokens, layer: int) -> Tensor:
    """Values (B, P, H·d) of unit length that block ``layer`` + 1 reads from the patches of ``left``, its tokens."""
    above = model.blocks[layer + 1]
    values = Heads.of(above.attn, above.norm1(left.x)).v.transpose(1, 2).flatten(2)
    return F.normalize(values[:, left.num_prefix_tokens :].float(), dim=-1)


def coverage(values: Tensor, weights: Tensor, kept: Sequence[int] = ()) -> Tensor:
    """What every patch adds to f (P,), float64, when the greedy choice comes to it: by falling scores, its order.

    What a patch adds can only fall, so that few are weighed again at each step (Minoux, 1978).

    Args:
        values: (n, P, C) of unit length, of n images.
        weights: (n, P), of every image summing to 1.
        kept: patches that were chosen before; they come first, in their order.
    """
    similarity = values @ values.transpose(1, 2)  # (n, P, P)
    covered = -torch.ones_like(weights)  # less than no cosine is

    def gains(patches: Tensor) -> Tensor:
        """What each of ``patches`` (K,) would add now (K,)."""
        more = (similarity[:, patches] - covered[:, None]).relu()  # (n, K, P)
        return torch.einsum("np,nkp->k", weights, more).double() / len(values)

    count = values.shape[1]
    bounds = gains(torch.arange(count, device=values.device))
    added = torch.empty_like(bounds)
    for step in range(count):
        if step < len(kept):
            patch = torch.tensor(kept[step], device=values.device)
            bounds[patch] = gains(patch[None])[0]
        else:
            patch = bounds.argmax()
            checked = torch.zeros_like(bounds, dtype=torch.bool)
            while not checked[patch]:
                few = bounds.masked_fill(checked, -math.inf).topk(min(_WEIGHED, count - step)).indices
                bounds[few], checked[few] = gains(few).minimum(bounds[few]), True
                patch = bounds.argmax()
        added[patch], bounds[patch] = bounds[patch].clone(), -math.inf
        covered = covered.maximum(similarity[:, patch])
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
        found = [carried(model, tokens, layer) for tokens in entering]
        values, weights = (torch.cat(each) for each in zip(*found, strict=True))
        return coverage(values, weights, kept).cpu()
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
    entering = [model.embed(batch) for batch in batches(images, 16, model, "patches")]
    if name == COVERAGE:
        return _network_coverage(model, entering, below_last)
    scores = []
    for layer in progress(below_last, name, quiet=False):
        scores.append(block_scores(name, model, entering, layer, how))
        entering = [_leaving(model, tokens, layer) for tokens in entering]
    return torch.stack(scores)


def _network_coverage(model: ReducedVisionTransformer, entering: Sequence[Tokens], layers: range) -> Tensor:
    """:func:`coverage` (len(layers), P), the paths of all blocks from one pass."""
    shares = torch.cat([path_shares(model, tokens, layers) for tokens in entering])  # (n, len(layers), P)
    scores = []
    for layer in progress(layers, COVERAGE, quiet=False):
        entering = [_leaving(model, tokens, layer) for tokens in entering]
        values = torch.cat([values_read(model, tokens, layer) for tokens in entering])
        scores.append(coverage(values, shares[:, layer]).cpu())
    return torch.stack(scores)


def carried(model: ReducedVisionTransformer, tokens: Tokens, layer: int) -> tuple[Tensor, Tensor]:
    """:func:`values_read` and :func:`path_shares` of the patches of ``tokens``, all of which enter block ``layer``."""
    shares = path_shares(model, tokens, range(layer, layer + 1))[:, 0]
    return values_read(model, _leaving(model, tokens, layer), layer), shares


def _leaving(model: ReducedVisionTransformer, tokens: Tokens, layer: int) -> Tokens:
    return model.advance(tokens, range(layer, layer + 1))


def scores_by(name: str, seed: int = 0) -> tuple[str, Scoring]:
    """The score, of :data:`SCORES`, that is called ``name``, of these or :data:`SIGNIFICANCES`, and how it is made.

    Args:
        seed: of "random", which is the same for all images.
    """
    require_choice(name, (*SCORES, *SIGNIFICANCES), "score")
    return ("significance" if name in SIGNIFICANCES else name), SIGNIFICANCES.get(name, Scoring(seed=seed))


def mean_scores(vit: VisionTransformer, images: Tensor, name: str, seed: int = 0) -> Tensor:
    """:func:`network_scores` of the unreduced network by the name of a score, see :func:`scores_by`."""
    score, how = scores_by(name, seed)
    return network_scores(score, reduce_tokens(vit, "none"), images[:1] if name == "random" else images, how)
