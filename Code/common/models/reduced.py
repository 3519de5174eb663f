"""A timm VisionTransformer whose blocks run on the tokens that a reducer leaves."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from timm.models import checkpoint
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common.errors import UsageError
from common.images import check_images
from common.models.block import prefix_block, reduced_block
from common.models.grids import at_grid, embed, merged_patches, resized_grid, view_at
from common.models.support import TYPES, check_supported, is_reduced, obstacle
from common.models.trace import Trace
from common.reducers.base import REDUCERS, Reducer, check_options, reducer_class
from common.reducers.method import named
from common.schedule import Schedule, default_reduction_loc
from common.tokens import GONE, Tokens


class _Reduced:
    """What a reduced model changes of its timm parent: the loop over blocks, pooling of padded tokens, ``trace``."""

    reducer: Reducer
    cautioned = False  # whether its user was told what there is to be told

    def forward(self, x: Tensor, return_tokens: bool = False) -> Tensor | tuple[Tensor, Tokens]:
        """Images (B, 3, H, W) -> logits (B, classes); with ``return_tokens`` also the tokens after the final norm."""
        if return_tokens:
            tokens = self.encode(self.embed(x))
            return self.classify(tokens), tokens
        lean = self.reducer.last_block == "cls" and not self.training
        return self.classify(self.encode_prefix(self.embed(x)) if lean else self.encode(self.embed(x)))

    def embed(self, images: Tensor, traced: bool = False) -> Tokens:
        """Images (B, 3, H, W) -> tokens with their positions, as they enter the first block.

        Args:
            traced: note from block to block where each patch went (``Tokens.assignment``, ``Tokens.origin``); the first
                block is entered by the patches of the image, whatever the grid that the reducer has it cut into.

        Raises:
            UsageError: images that are no such tensor, or of a size that the model does not take.
        """
        check_images(self, images)
        full = self.patch_grid(images)
        grid = self.reducer.cut(full)
        x = embed(self, images) if grid == self._own_grid(images) else embed(*at_grid(self, images, grid))  # (B, N, D)
        tokens = Tokens(x, self.num_prefix_tokens, full)
        if not traced:
            return tokens
        holder = merged_patches(full, grid).to(x.device).expand(len(x), -1)  # (B, P)
        origin = holder if grid == full else holder.new_full((len(x), tokens.num_patch_tokens), GONE)
        return replace(tokens, assignment=holder, origin=origin, destination=holder)

    def patch_grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of the patches of ``images`` (B, 3, H, W), after the method's ``resize``."""
        return resized_grid(self, self._own_grid(images), self.reducer.resize)

    @property
    def grid_size(self) -> tuple[int, int]:
        """:meth:`patch_grid` of images of the model's own size."""
        return resized_grid(self, tuple(self.patch_embed.grid_size), self.reducer.resize)

    def _own_grid(self, images: Tensor) -> tuple[int, int]:
        return self.patch_embed.dynamic_feat_size(images.shape[2:])

    def encode(self, tokens: Tokens, trace: Trace | None = None, first: int = 0) -> Tokens:
        """Tokens that enter block ``first``, of :meth:`embed` at the start, all or a part of them -> those at the end.

        The end is after the last block and the final norm.
        """
        self._caution()
        tokens = self.reducer.finish(self.advance(tokens, range(first, len(self.blocks)), trace))
        return tokens.with_x(self.norm(tokens.x))

    def encode_prefix(self, tokens: Tokens) -> Tokens:
        """As :meth:`encode`, but only the prefix tokens: all that a head needs which reads no patches."""
        self._caution()
        last = len(self.blocks) - 1
        tokens = self.advance(tokens, range(last))
        tokens = prefix_block(self.blocks[last], tokens, last, self.reducer)
        return tokens.with_x(self.norm(tokens.x))

    def _caution(self) -> None:
        """Say in the first evaluation what makes all decisions of the method void; graphs do not hold the question."""
        if torch.compiler.is_compiling() or self.training or self.cautioned:
            return
        self.cautioned = True
        if text := self.reducer.caution():
            warnings.warn(text, stacklevel=2)

    def advance(self, tokens: Tokens, layers: range, trace: Trace | None = None) -> Tokens:
        """Tokens that enter the first of the blocks ``layers`` -> tokens after the last of them."""
        step = reduced_block
        if self.grad_checkpointing and torch.is_grad_enabled():
            step = partial(checkpoint, reduced_block)
        for layer in layers:
            tokens = step(self.blocks[layer], tokens, layer, self.reducer)
            if trace is not None:
                trace.record(layer, tokens)
                tokens = tokens.entering()
        return tokens

    def classify(self, tokens: Tokens) -> Tensor:
        """Tokens of :meth:`encode` -> logits (B, classes)."""
        return self.forward_head(self._to_pool(tokens))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> what timm's head pools (B, N', D), normalised: prefix tokens and surviving patches.

        Where patches are masked and the head averages them, their mean stands for them.
        """
        return self._to_pool(self.encode(self.embed(x)))

    def forward_intermediates(self, *args, **kwargs):
        """Refused: the tokens of a reduced model fill no grid. Use :meth:`trace`, or the unreduced model."""
        raise UsageError("a reduced model has no forward_intermediates: its tokens fill no grid; use trace(images)")

    def prune_intermediate_layers(self, *args, **kwargs):
        """Refused, as what it prepares for; and the method would go on to count on all blocks."""
        raise UsageError("the blocks of a reduced model cannot be pruned; prune the unreduced one, then reduce it")

    def set_input_size(self, *args, **kwargs):
        """Refused: the backbone shares the patch embedding, and the method was made for its patches."""
        raise UsageError("the image size of a reduced model is fixed; set that of the unreduced one, then reduce it")

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As timm's; with another pooling only if the method leaves what that reads.

        Raises:
            UsageError: it does not: patches under ``last_block="cls"``, or all of them.
        """
        pool = self.global_pool if global_pool is None else global_pool
        name = REDUCERS.name_of(type(self.reducer))
        if reason := obstacle(self, name, self.reducer.last_block, method=self.reducer, global_pool=pool):
            raise UsageError(reason)
        super().reset_classifier(num_classes, global_pool)

    @torch.inference_mode()
    def trace(self, images: Tensor, cls_at: Sequence[int] = ()) -> tuple[Tensor, Trace]:
        """Logits (B, classes) and what happened to every patch; the model should be in eval mode.

        Args:
            images: (B, 3, H, W).
            cls_at: blocks after which the CLS token is recorded.
        """
        self.check_cls_at(cls_at)
        trace = Trace(cls_at=cls_at)
        return self.classify(self.encode(self.embed(images, traced=True), trace)), trace

    def check_cls_at(self, cls_at: Sequence[int]) -> None:
        """Refuse blocks that do not exist, or any where there is no CLS token, as :meth:`trace` does."""
        outside = [layer for layer in cls_at if layer not in range(len(self.blocks))]
        has_cls = self.has_class_token and not self.reducer.pools_mean
        if outside or (cls_at and not has_cls):
            allowed = f"blocks 0 to {len(self.blocks) - 1}" if has_cls else "none, there is no CLS token"
            raise UsageError(f"cls_at={list(cls_at)} is not allowed; allowed: {allowed}")

    def _to_pool(self, tokens: Tokens) -> Tensor:
        """What timm's head reads in place of all normalised tokens, so that its pooling leaves out the masked ones."""
        if self.reducer.pools_mean:
            # wherever timm reads its class token or averages its patches, it finds the mean
            return masked_mean(tokens.x, tokens.valid).expand(-1, self.num_prefix_tokens + 1, -1)
        weight = tokens.valid_patches if tokens.policy is None else tokens.policy
        if weight is not None and self.global_pool == "avg":
            # timm averages over all patch tokens; a single one that is the mean of the seen ones keeps the others out
            return torch.cat([tokens.prefix, masked_mean(tokens.patches, weight)], dim=1)
        return tokens.x


class ReducedVisionTransformer(_Reduced, VisionTransformer):
    """Reduced ViT, DeiT, DeiT-III, DINOv2, SigLIP or SimpleViT."""


class ReducedVisionTransformerDistilled(_Reduced, VisionTransformerDistilled):
    """Reduced DeiT with a distillation token."""


REDUCED = dict(zip(TYPES, (ReducedVisionTransformer, ReducedVisionTransformerDistilled), strict=True))


def reduce_tokens(
    vit: VisionTransformer,
    reducer: str,
    *,
    keep_rate: float | tuple[float, ...] | str = 1.0,
    reduction_loc: tuple[int, ...] | None = None,
    **reducer_options,
) -> ReducedVisionTransformer:
    """Make a timm VisionTransformer run on fewer tokens.

    The result shares all weights with ``vit``, which stays usable and unreduced; names in the state dict are timm's,
    a method's own parameters stand under ``reducer.``.

    >>> vit = VisionTransformer(img_size=64, patch_size=16, embed_dim=32, depth=4, num_heads=2)
    >>> fast = reduce_tokens(vit, "topk", keep_rate=0.5).eval()
    >>> logits, trace = fast.trace(torch.rand(1, 3, 64, 64))
    >>> [tokens.item() for tokens in trace.num_tokens]  # of 16 patches
    [16, 8, 4, 2]

    Args:
        vit: a timm ``VisionTransformer``: ViT, DeiT (distilled too), DeiT-III, DINOv2, SigLIP, SimpleViT.
        reducer: one of :func:`common.list_reducers`, or its written form with options: "topk:head_fusion=mean".
        keep_rate: see :class:`common.reducers.Schedule`.
        reduction_loc: 0-based blocks; default 1/4, 1/2 and 3/4 of the depth (3, 6, 9 of 12); all for a rule ("r=13").
        **reducer_options: the method's own options, and :func:`common.reducers.base.shared_options`.

    Raises:
        UsageError: unknown method or option, schedule that does not fit, architecture that is not supported.
    """
    reducer, reducer_options = named(reducer, reducer_options)
    check_options(reducer, reducer_options)
    check_supported(vit)
    depth = len(vit.blocks)
    schedule = Schedule(keep_rate, default_reduction_loc(depth, keep_rate) if reduction_loc is None else reduction_loc)
    if schedule.reduction_loc[-1] >= depth:
        raise UsageError(
            f"reduction_loc={list(schedule.reduction_loc)} does not fit a backbone of depth {depth}; "
            f"allowed: blocks 0 to {depth - 1}"
        )
    if reason := obstacle(vit, reducer, reducer_options.get("last_block", "whole")):
        raise UsageError(reason)
    seen = resized(vit, reducer, reducer_options.get("resize"))
    schedule.counts(seen.patch_embed.num_patches)
    return attach(vit, reducer_class(reducer)(seen, schedule, **reducer_options))


def resized(vit: VisionTransformer, reducer: str, resize: int | None) -> VisionTransformer:
    """``vit`` as a ``reducer`` sees it, whose images are resized to ``resize`` pixels on their longer side.

    Raises:
        UsageError: no size that patches fill, or a method that resizes images itself.
    """
    if resize is None:
        return vit
    patch, side = max(vit.patch_embed.patch_size), max(vit.patch_embed.img_size)
    if resize % patch or not patch <= resize <= side:
        raise UsageError(f"resize={resize} is not allowed; give a multiple of {patch} pixels, at most {side}")
    if reducer_class(reducer).family == "resizes":
        raise UsageError(f"reducer {reducer!r} resizes the image itself; it takes no resize")
    return view_at(vit, resized_grid(vit, vit.patch_embed.grid_size, resize))


def attach(vit: VisionTransformer, reducer: Reducer) -> ReducedVisionTransformer:
    """The model of :func:`reduce_tokens` for a reducer that was made for ``vit``.

    Modules are shared: ``train()`` and ``to()`` of one reach the blocks of the other. Hooks on ``vit`` itself are not.
    """
    reduced_class = REDUCED.get(type(vit), type(vit))
    reduced = reduced_class.__new__(reduced_class)
    # buffers stay in one dict, so that moving one model moves the other's as it moves its parameters
    own = {key: value.copy() for key, value in vit.__dict__.items() if isinstance(value, dict) and key != "_buffers"}
    reduced.__dict__.update({**vit.__dict__, **own, "cautioned": False})
    reducer.remember_start()
    reduced.reducer = reducer.to(next(vit.parameters())).train(vit.training)
    return reduced


@contextmanager
def uncautioned(model: nn.Module) -> Iterator[None]:
    """Nothing is told of ``model``, which is tried or trained here; if there was something to tell, there still is."""
    if not is_reduced(model):
        yield
        return
    before, model.cautioned = model.cautioned, True
    try:
        yield
    finally:
        model.cautioned = before


def masked_mean(x: Tensor, weight: Tensor | None) -> Tensor:
    """Mean (B, 1, D) of the tokens ``x`` (B, N, D) that ``weight`` (B, N), 0 or 1, lets in; None lets all in."""
    if weight is None:
        return x.mean(1, keepdim=True)
    weight = weight.to(x.dtype)[..., None]  # (B, N, 1)
    return (x * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1e-6)
