"""The start of TRAM's authors: their network made of a timm ViT, with pretrained weights or with new ones.

Marchetti, Traini, Ursino, Virgili, Expert Systems with Applications 279, 2025, and the repository of its authors. They
copy timm's weights into modules after vit-pytorch's, which have no place for the biases of queries, keys and values; so
even their unreduced network is not timm's. Nothing here is a part of the method: it is for numbers that shall stand
beside theirs.
"""

from __future__ import annotations

import re

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common.errors import UsageError
from common.models.reduced import ReducedVisionTransformer
from common.models.simple_vit import NormalizedPatchEmbed
from common.reducers.base import Reducer
from common.weights import NETWORK, OWN, PUBLISHED

EPS = 1e-5  # of all LayerNorms; timm's ViT has 1e-6
# What their network holds, under timm's names.
_HELD = re.compile(
    r"cls_token|pos_embed|(patch_embed\.(proj|norm|norm_patch)|norm|head|"
    r"blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2))\.(weight|bias)"
)


def as_published(vit: VisionTransformer, *, normalized_embed: bool = False) -> VisionTransformer:
    """Turn a plain ViT, reduced or not, into the network of TRAM's authors: in place, and returned.

    Its queries, keys and values lose their biases, its LayerNorms get eps 1e-5. A ``simple_vit_*`` is theirs already.

    Args:
        normalized_embed: embed patches between two LayerNorms, with new weights, as the authors do where they train
            from random weights; where they fine-tune, it is timm's convolution.

    Raises:
        UsageError: the backbone has parameters that the authors' network has no place for.
    """
    _refuse_others(vit)
    for block in vit.blocks:
        block.attn.qkv.bias = None
    for module in vit.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = EPS
    if vit.has_class_token:  # a SimpleViT is read as timm's
        vit.pretrained_cfg = {**vit.pretrained_cfg, NETWORK: PUBLISHED}
    if normalized_embed and not isinstance(vit.patch_embed, NormalizedPatchEmbed):
        old = vit.patch_embed
        new = NormalizedPatchEmbed(old.img_size, old.patch_size, vit.in_chans, vit.embed_dim)
        vit.patch_embed = new.to(old.proj.weight)
    return vit


def start_pretrained(model: ReducedVisionTransformer, *, fresh_head: bool = True) -> None:
    """Let a reduced model with timm's weights start as the authors' fine-tuning does; in place.

    Besides :func:`as_published`: a model that classifies from the mean of all tokens (PatchMerger with ``parity=True``)
    gives each patch the position of the patch before it, the first that of the CLS token, since it reads the first P
    rows of a table whose row 0 is the CLS token's; and it alone draws its head as torch does, uniform up to D^-1/2.

    Weights of their network, such as this start led to, are left as they are.

    Args:
        fresh_head: the head is new; else it stays.
    """
    if model.pretrained_cfg.get(NETWORK) == PUBLISHED:
        return
    as_published(model)
    if not model.reducer.pools_mean:
        return
    if model.num_prefix_tokens:
        with torch.no_grad():
            model.pos_embed.copy_(model.pos_embed.roll(1, dims=1))  # what comes to row 0 is not read
    if fresh_head:
        _reset(model.head)


def start_random(model: ReducedVisionTransformer) -> None:
    """Let a reduced model start as the authors' training from random weights does; in place.

    :func:`as_published` with its normalised embedding; positions and CLS token are standard normal where they are
    learned, everything else is as torch draws it: linear layers uniform up to 1/sqrt(inputs), weights and biases. What
    the method itself learns starts as it always does.
    """
    as_published(model, normalized_embed=True)
    for part in model.children():
        if not isinstance(part, Reducer):
            _reset(part)
    for name, parameter in model.named_parameters(recurse=False):
        if name in ("cls_token", "pos_embed"):
            nn.init.normal_(parameter)


def load_published(vit: VisionTransformer, state: dict[str, Tensor]) -> None:
    """Make a plain timm ``vit`` the authors' network with the weights ``state``, under timm's names; in place.

    Positions are resampled to the size of its images; its head stays where it has another number of outputs. Names that
    do not fit are for the caller to find.

    Raises:
        RuntimeError: a shape does not fit.
    """
    as_published(vit, normalized_embed="patch_embed.norm_patch.weight" in state)
    fitting = {name: value for name, value in state.items() if not name.startswith("head.")}
    if len(state["head.weight"]) == vit.num_classes:
        fitting = state
    if "pos_embed" in state:
        position = resample_abs_pos_embed(state["pos_embed"], list(vit.patch_embed.grid_size), num_prefix_tokens=1)
        fitting = {**fitting, "pos_embed": position}
    vit.load_state_dict(fitting, strict=False)


def _reset(part: nn.Module) -> None:
    for module in part.modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            module.reset_parameters()


def _refuse_others(vit: VisionTransformer) -> None:
    unknown = [name for name in vit.state_dict() if not name.startswith(OWN) and not _HELD.fullmatch(name)]
    if unknown or vit.no_embed_class:
        what = unknown[0] if unknown else "positions without one of the CLS token"
        raise UsageError(
            f"the published network of TRAM has no place for {what!r} of this backbone; "
            f"allowed: a plain ViT (vit_tiny, vit_small, vit_base ...) or SimpleViT"
        )
