"""What looks at a forward pass and leaves it as it is: the attention maps of any backbone under any reducer, the
signals and choices of a block, and a model that is afterwards as it was before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common.errors import UsageError
from common.models.reduced import ReducedVisionTransformer, attach, reduce_tokens, uncautioned
from common.models.support import is_reduced
from common.reducers.base import NO_SIGNALS, Reducer, Signal, Signals
from common.tokens import GONE, Choice, Tokens

UNOBSERVED = ("cut", "resize", "before_block", "finish", "training_loss")
See = Callable[[int, Tokens, Signals, Choice], None]


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """``model`` frozen and in eval mode; afterwards its modules and parameters are as they were."""
    modes = {module: module.training for module in model.modules()}
    gradients = {parameter: (parameter.requires_grad, parameter.grad) for parameter in model.parameters()}
    model.eval().requires_grad_(False)
    try:
        with uncautioned(model):
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, (learns, gradient) in gradients.items():
            parameter.requires_grad_(learns).grad = gradient


def as_reduced(model: VisionTransformer) -> ReducedVisionTransformer:
    """``model`` itself if it is reduced already, else one that shares its weights and drops nothing."""
    return model if is_reduced(model) else reduce_tokens(model, "none")


class Observer(Reducer):
    """Does in every hook what another reducer does, and calls ``see`` with what each block decided.

    Args:
        vit: the model whose reducer is observed.
        reducer: that reducer.
        see: called with the block, the tokens that entered its attention, its signals and the choice that was made.
        signals: what ``see`` reads, beside what the reducer does.
        resting: whether blocks that the reducer leaves alone are seen too.
    """

    def __init__(
        self, vit: VisionTransformer, reducer: Reducer, see: See, signals: frozenset[Signal], *, resting: bool
    ) -> None:
        super().__init__(vit, reducer.schedule)
        self.reducer, self.see, self.signals, self.resting = reducer, see, signals, resting
        for name, value in vars(Reducer).items():
            if isinstance(value, bool) or name in UNOBSERVED:  # what a method says of itself, and does unseen
                setattr(self, name, getattr(reducer, name))
        self._rests = False  # a reducer that needs no signal in a block is not asked there

    @property
    def blocks(self) -> tuple[int, ...]:
        return self.reducer.blocks

    def needs(self, layer: int, tokens: Tokens) -> frozenset[Signal] | None:
        wanted = self.reducer.needs(layer, tokens)
        self._rests = wanted is None
        return None if self._rests and not self.resting else (wanted or NO_SIGNALS) | self.signals

    def select_queries(self, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Choice]:
        after, choice = (tokens, None) if self._rests else self.reducer.select_queries(tokens, signals, layer)
        self.see(layer, tokens, signals, choice)
        return after, choice

    def after_attention(self, tokens: Tokens, signals: Signals, layer: int) -> Tokens:
        return tokens if self._rests else self.reducer.after_attention(tokens, signals, layer)


def observing(
    model: ReducedVisionTransformer, see: See, signals: frozenset[Signal], *, resting: bool = False
) -> ReducedVisionTransformer:
    """``model`` with an :class:`Observer` of its reducer; the arguments are that class's."""
    observed = attach(model, Observer(model, model.reducer, see, signals, resting=resting))
    observed.grad_checkpointing = False  # what is run again for its gradient is not what was seen
    return observed


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
        maps = self.attention.detach()[:, :, prefix:, prefix:].float()  # (B, H, n, n)
        return maps if self.valid is None else maps * self.valid[:, None, :, None]

    def to_patches(self, values: Tensor) -> Tensor:
        """Values (B, ..., n) of the patch tokens -> (B, ..., P): each token's is shared out evenly among its patches.

        Patches that were dropped before get 0.
        """
        index, held = self._spread(values)
        count = torch.zeros_like(values).scatter_add_(-1, index, held)  # (B, ..., n)
        return (values / count.clamp(min=1)).gather(-1, index) * held

    def from_patches(self, values: Tensor) -> Tensor:
        """Values (B, ..., P) of the patches -> (B, ..., n): each token gets the sum over its patches."""
        index, held = self._spread(values)
        tokens = values.new_zeros(*values.shape[:-1], self.attention.shape[-1] - self.num_prefix_tokens)
        return tokens.scatter_add_(-1, index, values * held)

    def _spread(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """For ``values`` (B, ..., n or P): where each patch is held, and 1 where it is, both (B, ..., P)."""
        between = [None] * (values.dim() - 2)
        assignment = self.assignment[(slice(None), *between)].expand(*values.shape[:-1], -1)
        return assignment.clamp(min=0), (assignment != GONE).to(values.dtype)


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

    def show(layer: int, tokens: Tokens, signals: Signals, choice: Choice) -> None:
        found = (signals.attention, tokens.assignment, tokens.num_prefix_tokens, tokens.valid_patches, tokens.x)
        see(AttentionLayer(*found))

    return observing(model, show, frozenset({"attention"}), resting=True)
