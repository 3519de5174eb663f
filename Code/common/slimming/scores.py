"""How much each patch matters to the output of a vision transformer, block by block.

Tang et al., "Patch Slimming for Efficient Vision Transformers", CVPR 2022, equation 6: what happens to patch i in block
t reaches the output over all paths of attention heads through the blocks above,

    s_t(i) = sum over paths || A[:, i] U[i, :] ||_F^2,   A = P_L ... P_(t+1),   U = P_t abs(Z_(t-1)),

which is exactly D_t(i) C_t(i): the squared norm of A's column, summed over the paths (:func:`influences`), times that
of U's row, summed over the heads of block t (:func:`energy`). Nobody enumerates H^(L-t) paths: their sum is the
diagonal of a Gram matrix that a recursion carries down from the last block. The bound behind the score leaves out the
shortcut around attention and the MLP, and a factor that is the same for all patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from common.data.unlabelled import Calibration
from common.errors import UsageError
from common.models.block import Heads
from common.models.observe import AttentionLayer, as_reduced, untouched, watching
from common.models.reduced import ReducedVisionTransformer
from common.models.support import obstacle
from common.options import Count, Whole, check, check_fields
from common.reducers.patch_slimming import PatchSlimming
from common.reducers.slimming_plan import SlimmingPlan
from common.slimming.calibration import batches
from common.tokens import Tokens

HeadHandling = Literal["path_energy", "rollout", "same_head", "sampled"]
Feature = Literal["raw", "ln", "value", "none"]


@dataclass(frozen=True)
class Scoring:
    """How patches are scored.

    Args:
        head_handling: "path_energy", all paths of heads, exactly; "rollout", one path of maps averaged over heads;
            "same_head", the H paths that stay in one head; "sampled", some of all paths, an unbiased estimate.
        feature: what U mixes: "raw" is abs(Z) as published, "ln" that after the block's norm, "value" abs(V); "none"
            leaves the score to the paths, that is to D.
        shortcut: half of each map is the identity, as in attention rollout; published is without.
        paths: how many paths are sampled per image.
        seed: of the sampling.

    Raises:
        UsageError: a name that does not exist, or no path.
    """

    head_handling: HeadHandling = "path_energy"
    feature: Feature = "raw"
    shortcut: bool = False
    paths: Count = 64
    seed: Whole = 0

    def __post_init__(self) -> None:
        check_fields(self)


def significance(
    model: VisionTransformer,
    images: Calibration,
    layer: int,
    head_handling: HeadHandling = "path_energy",
    *,
    batch_size: int = 16,
    **scoring: Any,
) -> Tensor:
    """Significance (P,) of every patch in block ``layer``, mean over ``images``, float64; only ratios mean anything.

    >>> from common.models.factory import create_backbone
    >>> significance(create_backbone("vit_digits"), torch.rand(2, 3, 32, 32), layer=3).shape
    torch.Size([64])

    Args:
        model: a timm model, or one reduced by "patch_slimming", which must keep all patches up to block ``layer``.
        layer: the block, 0 to the last but one.
        batch_size: images at once; the maps of a ViT-S with 197 tokens take 11 MB per image.
        head_handling, **scoring: of :class:`Scoring`.

    Raises:
        UsageError: the head averages the patches, so that none can go; or a choice that does not exist.
    """
    how, model = Scoring(head_handling, **scoring), as_reduced(model)
    check_backbone(model)
    last, plan = len(model.blocks) - 2, plan_of(model)
    if check("layer", layer, Whole) > last:
        raise UsageError(f"layer={layer} is not allowed; allowed: blocks 0 to {last}, the last one drops all patches")
    if plan.lengths[layer] < plan.num_tokens:
        raise UsageError(f"the model drops patches up to block {layer}; give one that keeps all of them up to there")
    return significances(model, images, range(layer, layer + 1), how, batch_size=batch_size)[0]


def significances(
    model: ReducedVisionTransformer,
    images: Calibration,
    layers: range,
    how: Scoring = Scoring(),
    *,
    batch_size: int = 16,
) -> Tensor:
    """:func:`significance` (len(layers), P) in several blocks, from one pass over the images."""
    total = torch.zeros(len(layers), model.patch_embed.num_patches, dtype=torch.float64)
    with untouched(model), torch.inference_mode():
        for number, batch in enumerate(batches(images, batch_size, model, "significance")):
            tokens = model.advance(model.embed(batch), range(layers.start))
            total += image_significances(model, tokens, layers, how, number).double().sum(0).cpu()
    return total / len(images)


def image_significances(
    model: ReducedVisionTransformer, tokens: Tokens, layers: range, how: Scoring = Scoring(), batch: int = 0
) -> Tensor:
    """Significance (B, len(layers), P) in every block of ``layers`` of the patches of ``tokens`` that enter the first.

    One pass through the blocks and one way back through their maps serve all of them; the same tokens must enter each.

    Args:
        tokens: of an unreduced ``model`` also fewer than an image has; those of the patches that a slim one leaves.
        batch: number of the batch, so that sampled paths are not the same in all.
    """
    prefix, seen = model.num_prefix_tokens, []
    watching(model, seen.append).encode(tokens, first=layers.start)
    above = range(layers.start + 1, len(model.blocks))
    maps = [_computed(found, model, layer, how) for layer, found in zip(above, seen[1:], strict=True)]
    maps[-1] = maps[-1][:, :, :prefix]  # whatever it computes, no head reads the rest
    scores = []
    for layer, influence in zip(reversed(above), influences(maps, how, batch), strict=True):
        if layer - 1 in layers:
            mixed = energy(model.blocks[layer - 1], seen[layer - 1 - layers.start], how)
            score = influence * (mixed if how.head_handling == "same_head" else mixed.sum(1, keepdim=True))
            scores.append(score.sum(1)[:, prefix:])
    return torch.stack(scores[::-1], dim=1)


def plan_of(model: ReducedVisionTransformer) -> SlimmingPlan:
    """The plan that ``model`` follows; that of an unreduced model keeps all that matters."""
    return model.reducer.plan if isinstance(model.reducer, PatchSlimming) else SlimmingPlan.whole(model)


def _computed(seen: AttentionLayer, model: ReducedVisionTransformer, layer: int, how: Scoring) -> Tensor:
    """The rows (B, H, n, n') of the maps of block ``layer`` that it computes: all of an unreduced ``model``."""
    slim, entering = isinstance(model.reducer, PatchSlimming), seen.attention.shape[-1]
    rows = torch.tensor(plan_of(model).rows(layer) if slim else range(entering), device=seen.attention.device)
    maps = seen.attention[:, :, rows].float()
    if not how.shortcut:
        return maps
    own = torch.zeros_like(maps[0, 0])
    own[torch.arange(len(rows)), rows] = 1
    return (maps + own) / 2


def influences(maps: Sequence[Tensor], how: Scoring = Scoring(), batch: int = 0) -> Iterator[Tensor]:
    """D up to a factor per image: (B, 1, n), or (B, H, n) with "same_head"; of the last block's keys first.

    Args:
        maps: (B, H, n, n') of consecutive blocks, rows = the tokens that a block computes, columns = its keys; rows of
            the last are what the head reads.
    """
    start = maps[-1].new_ones(maps[-1].shape[2]).diag().expand(len(maps[-1]), 1, -1, -1)
    if how.head_handling == "path_energy":
        yield from _gram(maps[::-1], start[:, 0])
        return
    paths = start  # (B, paths, prefix, n): the rows of each path's product that the head reads
    generator = torch.Generator().manual_seed(how.seed * 1_000_003 + batch)
    if how.head_handling == "sampled":
        paths = paths.expand(-1, how.paths, -1, -1)
    for attention in reversed(maps):
        if how.head_handling == "sampled":
            paths = _through_random_heads(paths, attention, generator)
        else:
            paths = paths @ (attention.mean(1, keepdim=True) if how.head_handling == "rollout" else attention)
        squares = paths.square().sum(2)
        yield squares.mean(1, keepdim=True) if how.head_handling == "sampled" else squares


def _gram(maps: Sequence[Tensor], gram: Tensor) -> Iterator[Tensor]:
    """G <- sum over heads of P^T G P, from the last block down; its trace is kept at 1, or it would underflow."""
    for attention in maps:
        product = gram[:, None] @ attention
        gram = attention.flatten(1, 2).transpose(1, 2) @ product.flatten(1, 2)
        diagonal = gram.diagonal(dim1=1, dim2=2)
        trace = diagonal.sum(1)[:, None, None]
        gram = gram / trace
        yield (diagonal / trace[:, 0])[:, None]


def _through_random_heads(paths: Tensor, attention: Tensor, generator: torch.Generator) -> Tensor:
    """Each of the ``paths`` (B, K, p, n) through one head of ``attention`` (B, H, n, m), drawn for it."""
    batch, count, prefix, _ = paths.shape
    heads = attention.shape[1]
    through = (paths.flatten(1, 2)[:, None] @ attention).unflatten(2, (count, prefix))  # (B, H, K, p, m)
    drawn = torch.randint(heads, (batch, 1, count, 1, 1), generator=generator).to(paths.device)
    return through.gather(1, drawn.expand(-1, -1, -1, *through.shape[3:]))[:, 0]


def energy(block: Block, seen: AttentionLayer, how: Scoring = Scoring()) -> Tensor:
    """C by heads (B, H, N): squared norm of each row of P abs(Z)."""
    if how.feature == "none":
        return torch.ones_like(seen.attention[..., 0], dtype=torch.float32)
    if how.feature == "raw":
        feature = seen.inputs[:, None]
    else:
        normed = block.norm1(seen.inputs)
        feature = normed[:, None] if how.feature == "ln" else Heads.of(block.attn, normed).v
    return (seen.attention.float() @ feature.float().abs()).square().sum(-1)


def check_backbone(vit: VisionTransformer) -> None:
    """Refuse a backbone whose head reads the patches, so that it can do without none."""
    reason = obstacle(vit, "patch_slimming")
    if reason:
        raise UsageError(reason)
