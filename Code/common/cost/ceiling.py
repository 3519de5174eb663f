"""How fast a method could be at most: its numbers of tokens, by leaving off the last ones instead of choosing any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from common import attention
from common.attention import Heads
from common.models.grids import embed
from common.models.reduced import ReducedVisionTransformer

Lengths = tuple[tuple[int, int], ...]  # of each block: tokens in its attention, and in its MLP; prefix tokens included


@contextmanager
def recorded_lengths(model: VisionTransformer) -> Iterator[list[list[int]]]:
    """The ``[attention, MLP]`` lengths of every block, filled in by a pass of ``model`` inside; -1 = it did not run."""
    lengths, hooks = [[-1, -1] for _ in model.blocks], []
    for found, block in zip(lengths, model.blocks, strict=True):
        for place, module in enumerate((block.norm1, block.mlp)):
            hooks.append(module.register_forward_pre_hook(partial(_note, found, place)))
    try:
        yield lengths
    finally:
        for hook in hooks:
            hook.remove()


def _note(found: list[int], place: int, module: nn.Module, given: tuple[Tensor, ...]) -> None:
    found[place] = given[0].shape[1]


def has_ceiling(model: ReducedVisionTransformer) -> bool:
    """Whether ``model`` has the same numbers of tokens for every image, all at first, and those that go stay away."""
    reducer = model.reducer
    whole = reducer.family != "resizes" and reducer.resize is None
    return whole and not (reducer.adaptive or reducer.draws or reducer.idles)


class FirstTokens(nn.Module):
    """A ViT that computes so many tokens in each block as a method would, always the first ones: nothing is scored.

    Tokens that go within a block of the method serve as keys there, and neither attend nor reach the MLP. What this
    takes is the least that any method with these numbers can take.

    Args:
        vit: whose weights are shared.
        lengths: see :data:`Lengths`.
    """

    def __init__(self, vit: VisionTransformer, lengths: Lengths) -> None:
        super().__init__()
        self.vit, self.lengths = vit, lengths

    @property
    def patch_embed(self) -> nn.Module:
        """That of the ViT, which says what images it takes."""
        return self.vit.patch_embed

    @property
    def in_chans(self) -> int:
        """Channels of its images."""
        return self.vit.in_chans

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> logits (B, classes)."""
        x = embed(self.vit, images)  # (B, N, D)
        for block, (entering, leaving) in zip(self.vit.blocks, self.lengths, strict=True):
            x = _shortened(block, x[:, :entering], leaving)
        return self.vit.forward_head(self.vit.norm(x))


def _shortened(block: Block, x: Tensor, leaving: int) -> Tensor:
    """``block`` on the tokens ``x`` (B, N, D), of which the first ``leaving`` go on."""
    if leaving == x.shape[1]:
        return block(x)
    normed = block.norm1(x)
    mixed = attention.mix(block.attn, Heads.of(block.attn, normed, normed[:, :leaving]), None)
    x = x[:, :leaving]
    x = x + block.ls1(attention.project(block.attn, mixed, normed[:, :leaving]))
    return x + block.ls2(block.mlp(block.norm2(x)))
