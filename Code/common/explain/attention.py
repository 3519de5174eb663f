"""The attention maps that a model really used, of any backbone and any reducer, and their way back to the patches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common.errors import UsageError
from common.models.reduced import ReducedVisionTransformer, attach, is_reduced, reduce_tokens
from common.reducers.base import NOTHING, Reducer, Signal, Signals
from common.tokens import GONE, Selection, Tokens


@dataclass(frozen=True)
class AttentionLayer:
    """What one block attended to.

    Attributes:
        attention: (B, H, N, N) softmax maps, row = query, column = key; N counts prefix tokens and padding.
        assignment: (B, P) position among the patch tokens that holds each patch of the image, -1 = dropped before;
            None when the tokens are not traced.
        num_prefix_tokens: how many of the N come before the patch tokens.
        valid: (B, n) False where a patch token is padding, or None when there is none.
        inputs: (B, N, D) the tokens that entered the block.
    """

    attention: Tensor
    assignment: Tensor | None
    num_prefix_tokens: int
    valid: Tensor | None = None
    inputs: Tensor | None = None

    def between_patches(self) -> Tensor:
        """Maps (B, H, n, n) from patch token to patch token, float32 without gradient; padding attends to nothing."""
        prefix = self.num_prefix_tokens
        maps = self.attention.detach()[:, :, prefix:, prefix:].float()
        return maps if self.valid is None else maps * self.valid[:, None, :, None]

    def to_patches(self, values: Tensor) -> Tensor:
        """Values (B, ..., n) of the patch tokens -> (B, ..., P): each token's is shared out evenly among its patches.

        Patches that were dropped before get 0.
        """
        index = self._index(values)
        count = torch.zeros_like(values).scatter_add_(-1, index, self._held(values))
        return (values / count.clamp(min=1)).gather(-1, index) * self._held(values)

    def from_patches(self, values: Tensor) -> Tensor:
        """Values (B, ..., P) of the patches -> (B, ..., n): each token gets the sum over its patches."""
        tokens = values.new_zeros(*values.shape[:-1], self.attention.shape[-1] - self.num_prefix_tokens)
        return tokens.scatter_add_(-1, self._index(values), values * self._held(values))

    def _index(self, like: Tensor) -> Tensor:
        return self._spread(self.assignment.clamp(min=0), like)

    def _held(self, like: Tensor) -> Tensor:
        return self._spread((self.assignment != GONE).to(like.dtype), like)

    def _spread(self, per_patch: Tensor, like: Tensor) -> Tensor:
        """(B, P) -> (B, ..., P)"""
        between = like.dim() - 2
        return per_patch[(slice(None), *[None] * between)].expand(*like.shape[:-1], -1)


def as_reduced(model: VisionTransformer) -> ReducedVisionTransformer:
    """``model`` itself if it is reduced already, else one that shares its weights and drops nothing."""
    return model if is_reduced(model) else reduce_tokens(model, "none")


def attention_layers(model: ReducedVisionTransformer, images: Tensor) -> tuple[Tensor, list[AttentionLayer]]:
    """Logits (B, classes) and the maps of every block; where gradients are on, they reach the maps."""
    layers: list[AttentionLayer] = []
    return watch(model, images, layers.append), layers


def watch(model: ReducedVisionTransformer, images: Tensor, see: Callable[[AttentionLayer], None]) -> Tensor:
    """Logits (B, classes) of ``images``, after ``see`` was shown the maps of each block in turn.

    timm's fused attention has no maps; here every block computes them explicitly, and uses them.

    Raises:
        UsageError: patches idle in the model.
    """
    watched = watching(model, see)
    return watched.classify(watched.encode(watched.embed(images, traced=True)))


def watching(model: ReducedVisionTransformer, see: Callable[[AttentionLayer], None]) -> ReducedVisionTransformer:
    """``model``, every block of which shows its attention maps to ``see``; without a trace they have no assignment."""
    if model.reducer.idles:
        name = type(model.reducer).__name__
        raise UsageError(f"{name} lets patches idle, which then attend to nobody: there is no map of the whole block")
    watched = attach(model, _Watched(model.reducer, see))
    watched.grad_checkpointing = False  # recomputed maps would not be the ones that were seen
    return watched


class _Watched(Reducer):
    """Does for one forward pass what another reducer does, and shows the attention maps of every block to ``see``."""

    def __init__(self, reducer: Reducer, see: Callable[[AttentionLayer], None]) -> None:
        nn.Module.__init__(self)
        self.reducer, self.see, self.schedule = reducer, see, reducer.schedule
        self.learns_from_signals = reducer.learns_from_signals
        self._rests = False  # a reducer that needs no signal in a block is not asked there

    @property
    def pools_mean(self) -> bool:
        return self.reducer.pools_mean

    def needs(self, layer: int, tokens: Tokens) -> frozenset[Signal]:
        wanted = self.reducer.needs(layer, tokens)
        self._rests = wanted is None
        return (wanted or NOTHING) | {"attention"}

    def before_block(self, tokens: Tokens, layer: int) -> Tokens:
        return self.reducer.before_block(tokens, layer)

    def select_queries(self, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Selection | None]:
        found = (signals.attention, tokens.assignment, tokens.num_prefix_tokens, tokens.valid_patches, tokens.x)
        self.see(AttentionLayer(*found))
        return (tokens, None) if self._rests else self.reducer.select_queries(tokens, signals, layer)

    def after_attention(self, tokens: Tokens, signals: Signals, layer: int) -> Tokens:
        return tokens if self._rests else self.reducer.after_attention(tokens, signals, layer)

    def finish(self, tokens: Tokens) -> Tokens:
        return self.reducer.finish(tokens)
