"""The networks behind TRAM's benchmark tables, and the convention of their "GFlops": by hand, and by thop itself.

Three ways to one number: :func:`common.cost.counter.count_macs` counts ``thop_compat`` while this package's model runs,
:func:`thop_macs` is the closed form, and :func:`run_thop` has thop count the network as its authors run it.
"""

from __future__ import annotations

import copy

import thop
import timm
import torch
from thop.vision.basic_hooks import count_normalization
from timm.layers import LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from common.cost.closed_form import Shape, block_parts
from common.cost.counter import count_macs
from common.cost.methods import block_lengths, scheduled_macs
from common.models import registered  # noqa: F401 (adds SimpleViT to timm's models)
from common.models.published import as_published
from common.models.reduced import ReducedVisionTransformer, reduce_tokens
from common.reducers import Schedule, default_reduction_loc


def published_model(
    backbone: str, reducer: str, keep_rate: float, img_size: int, num_classes: int = 10
) -> ReducedVisionTransformer:
    """The network behind a row of TRAM's benchmark tables.

    Made without weights (on the meta device, and none are drawn), since only its shapes matter. Its authors' ViT has no
    qkv bias, and all methods but TRAM itself embed patches between two LayerNorms, which is 1.2 MMAC and 3072
    parameters (ViT-B, 224 px) in TRAM's favour.
    """
    extra = {"parity": True} if reducer == "patchmerger" else {}
    with torch.device("meta"):
        vit = timm.create_model(backbone, num_classes=num_classes, img_size=img_size, weight_init="skip")
        as_published(vit, normalized_embed=reducer != "tram")
        return reduce_tokens(vit, reducer, keep_rate=keep_rate, **extra)


def thop_macs(shape: Shape, reducer: str, schedule: Schedule) -> int:
    """MAC by hand in the convention of TRAM's tables, for the published implementation of ``reducer``."""
    dim, total = shape.dim, shape.num_patches * shape.dim * shape.patch_dim + shape.dim * shape.num_outputs
    if shape.normalized_embed:
        total += 4 * shape.num_patches * (shape.patch_dim + dim)
    for block in block_lengths(shape, reducer, schedule):
        n, m = block.attention + shape.num_prefix_tokens, block.mlp + shape.num_prefix_tokens
        norms = 4 * dim * (n + m + (block.merged_from or 0))
        softmax = shape.heads * n * (3 * n - 1)
        parts = block_parts(shape, n, n, m)
        total += norms + softmax + parts["qkv"] + n * dim**2 + parts["mlp"]
    return total + 4 * m * dim


def run_thop(model: ReducedVisionTransformer, schedule: Schedule, img_size: int) -> tuple[int, int]:
    """MAC and parameters that the library thop reports of a :func:`published_model`, run as its authors run it.

    Parameters are those of linear, convolution and norm layers only: no position, no CLS token, no queries of a merger.
    """
    image = torch.zeros(1, model.in_chans, img_size, img_size, device="meta")
    as_published = _AsPublished(copy.deepcopy(model), schedule)  # a copy, since thop leaves buffers behind
    rules = {LayerNorm: count_normalization}  # thop has one for torch's LayerNorm, not for timm's subclass of it
    macs, params = thop.profile(as_published, (image,), custom_ops=rules, verbose=False)
    return int(macs), int(params)


class _AsPublished(nn.Module):
    """The modules of ``model`` as TRAM's authors run theirs: softmax is a module, all tokens that attend are projected.

    thop reads shapes alone, so the scale of attention is left out, and the first tokens are the ones that are kept.
    """

    def __init__(self, model: ReducedVisionTransformer, schedule: Schedule) -> None:
        super().__init__()
        self.model, self.schedule, self.softmax = model, schedule, nn.Softmax(dim=-1)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.model.embed(images)
        for layer, block in enumerate(self.model.blocks):
            tokens = self.model.reducer.before_block(tokens, layer)
            x = tokens.x + self._attention(block, block.norm1(tokens.x))  # (B, N, D)
            kept = self.schedule.target(layer, tokens.num_patches)
            x = x if kept is None else x[:, : tokens.num_prefix_tokens + kept]  # (B, N', D)
            tokens = tokens.with_x(x + block.mlp(block.norm2(x)))
        return self.model.classify(tokens.with_x(self.model.norm(tokens.x)))

    def _attention(self, block: Block, x: Tensor) -> Tensor:
        q, k, v = block.attn.qkv(x).unflatten(-1, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, N, d)
        mixed = self.softmax(q @ k.transpose(-2, -1)) @ v  # (B, H, N, d)
        return block.attn.proj(mixed.transpose(1, 2).flatten(2))


def reproduce(backbone: str, method: str, keep_rate: float, img_size: int) -> dict[str, float]:
    """The sizing columns of a published network: counted by running it, by hand, and by thop (``params`` too)."""
    model = published_model(backbone, method, keep_rate, img_size)
    schedule = Schedule(keep_rate, default_reduction_loc(len(model.blocks)))
    macs, (by_thop, params) = count_macs(model, img_size), run_thop(model, schedule, img_size)
    return {
        "params": params,
        "gmac_linear": macs.linear / 1e9,
        "gmac_attention": macs.attention / 1e9,
        "gmac": macs.total / 1e9,
        "gmac_closed_form": scheduled_macs(Shape.of(model), method, schedule) / 1e9,
        "gmac_thop_compat": macs.thop_compat / 1e9,
        "gmac_thop": by_thop / 1e9,
    }
