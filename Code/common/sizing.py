"""MACs derived by hand: from the schedule to the tokens of every block, from the tokens to the operations.

Two closed forms for the same network. :func:`executed` is what this package's models do, attention products included;
:func:`published` is the convention behind the "GFlops" of TRAM's tables. ``common.macs`` counts both by running the
model, and the two ways must agree to the unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from common.macs import count_macs
from common.models.reduced import ReducedVisionTransformer, reduce_tokens
from common.models.simple_vit import NormalizedPatchEmbed
from common.reducers import Schedule, default_reduction_loc


@dataclass(frozen=True)
class Shape:
    """The sizes of a ViT that decide its cost.

    Attributes:
        num_patches: P. prefix: prefix tokens. dim: D. heads: H. depth: blocks. mlp_dim: hidden width of the MLP.
        patch_dim: pixels times channels of a patch. classes: outputs of the head.
        normalized_embed: the patch embedding has a LayerNorm before and after (SimpleViT, vit-pytorch).
    """

    num_patches: int
    prefix: int
    dim: int
    heads: int
    depth: int
    mlp_dim: int
    patch_dim: int
    classes: int
    normalized_embed: bool

    @classmethod
    def of(cls, vit: VisionTransformer) -> Shape:
        """Read the sizes off a model."""
        block, embed = vit.blocks[0], vit.patch_embed
        return cls(
            num_patches=embed.num_patches,
            prefix=vit.num_prefix_tokens,
            dim=vit.embed_dim,
            heads=block.attn.num_heads,
            depth=len(vit.blocks),
            mlp_dim=block.mlp.fc1.out_features,
            patch_dim=embed.proj.weight[0].numel(),
            classes=vit.num_classes,
            normalized_embed=isinstance(embed, NormalizedPatchEmbed),
        )


@dataclass(frozen=True)
class BlockLengths:
    """Patch tokens (prefix not counted) that enter block ``layer``'s attention and MLP, and that it merged from."""

    layer: int
    attention: int
    mlp: int
    merged_from: int | None = None


def block_lengths(shape: Shape, reducer: str, schedule: Schedule) -> list[BlockLengths]:
    """Tokens per block: TRAM and TopK drop between attention and MLP, PatchMerger merges before the attention."""
    tokens, lengths = shape.num_patches, []
    for layer in range(shape.depth):
        target = schedule.target(layer, shape.num_patches) or tokens
        if reducer == "patchmerger" and target < tokens:
            lengths.append(BlockLengths(layer, target, target, merged_from=tokens))
        else:
            lengths.append(BlockLengths(layer, tokens, target))
        tokens = target
    return lengths


def executed(shape: Shape, reducer: str, schedule: Schedule, *, prefix: int | None = None) -> dict[str, list[int]]:
    """MAC per block of this package's models: keys qkv, attention, proj, mlp, score; and embed, head of one entry.

    Args:
        shape: the network.
        reducer: none, tram, topk or patchmerger; a sampler such as ATS has no closed form.
        schedule: when and how much.
        prefix: prefix tokens that travel; default those of the network (PatchMerger without CLS: 0).
    """
    prefix, dim = shape.prefix if prefix is None else prefix, shape.dim
    last_scored = schedule.last_drop(shape.num_patches)
    parts: dict[str, list[int]] = {"qkv": [], "attention": [], "proj": [], "mlp": [], "score": []}
    for block in block_lengths(shape, reducer, schedule):
        keys, rows = block.attention + prefix, block.mlp + prefix
        drops, score, queries = rows < keys, 0, keys
        if reducer == "tram" and block.layer <= last_scored:
            score = 2 * block.attention**2  # two products of a vector with the (n, n) adjacency
        elif reducer == "topk" and drops:
            score, queries = keys * dim, rows  # the CLS row once more; attention only for the kept queries
        elif block.merged_from is not None:
            score = 2 * block.attention * block.merged_from * dim
        parts["qkv"].append(3 * keys * dim**2)
        parts["attention"].append(2 * queries * keys * dim)
        parts["proj"].append(rows * dim**2)
        parts["mlp"].append(2 * rows * dim * shape.mlp_dim)
        parts["score"].append(score)
    return {**parts, "embed": [shape.num_patches * dim * shape.patch_dim], "head": [dim * shape.classes]}


def executed_total(parts: dict[str, list[int]]) -> int:
    """Sum of :func:`executed` over blocks and parts."""
    return sum(sum(values) for values in parts.values())


def published(shape: Shape, reducer: str, schedule: Schedule, *, prefix: int | None = None) -> int:
    """MAC in the convention of TRAM's tables, for the published implementation of ``reducer``."""
    prefix, dim = shape.prefix if prefix is None else prefix, shape.dim
    total = shape.num_patches * dim * shape.patch_dim + dim * shape.classes
    if shape.normalized_embed:
        total += 4 * shape.num_patches * (shape.patch_dim + dim)
    for block in block_lengths(shape, reducer, schedule):
        n, m = block.attention + prefix, block.mlp + prefix
        norms = 4 * dim * (n + m + (block.merged_from or 0))
        softmax = shape.heads * n * (3 * n - 1)
        total += norms + softmax + 4 * n * dim**2 + 2 * m * dim * shape.mlp_dim
    return total + 4 * m * dim


def published_model(
    backbone: str, reducer: str, keep_rate: float, img_size: int, num_classes: int = 10
) -> ReducedVisionTransformer:
    """The network behind a row of TRAM's benchmark tables.

    Made without memory for weights (on the meta device), since only its shapes matter. Its authors' ViT has no qkv
    bias, and all methods but TRAM itself embed patches between two LayerNorms, which is 1.2 MMAC and 3072 parameters
    (ViT-B, 224 px) in TRAM's favour.
    """
    options = {"num_classes": num_classes, "img_size": img_size}
    if not backbone.startswith("simple_vit"):
        options["qkv_bias"] = False
        if reducer != "tram":
            options["embed_layer"] = NormalizedPatchEmbed
    extra = {"parity": True} if reducer == "patchmerger" else {}
    with torch.device("meta"):
        vit = timm.create_model(backbone, **options)
        return reduce_tokens(vit, reducer, keep_rate=keep_rate, **extra)


def reproduce(backbone: str, method: str, keep_rate: float, img_size: int) -> dict[str, float]:
    """The sizing columns of one published network: counted by running it, and by hand.

    Returns:
        params (thop's convention), and in GMAC: gmac_linear, gmac_attention, gmac, gmac_closed_form,
        gmac_thop_compat.
    """
    model = published_model(backbone, method, keep_rate, img_size)
    schedule = Schedule(keep_rate, default_reduction_loc(len(model.blocks)))
    by_hand = executed(Shape.of(model), method, schedule, prefix=0 if method == "patchmerger" else None)
    macs = count_macs(model, img_size)
    return {
        "params": thop_params(model),
        "gmac_linear": macs.linear / 1e9,
        "gmac_attention": macs.attention / 1e9,
        "gmac": macs.total / 1e9,
        "gmac_closed_form": executed_total(by_hand) / 1e9,
        "gmac_thop_compat": macs.thop_compat / 1e9,
    }


def thop_params(model: nn.Module) -> int:
    """Parameters as thop counts them: linear, convolution and norm layers only, no position, CLS or merger query."""
    counted = (nn.Linear, nn.Conv2d, nn.LayerNorm)
    modules = [module for module in model.modules() if isinstance(module, counted)]
    return sum(parameter.numel() for module in modules for parameter in module.parameters(recurse=False))
