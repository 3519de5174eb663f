"""Downsample: a smaller image instead of fewer tokens. What every method has to beat at the same cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from common.reducers.base import Reducer, register_reducer


@dataclass(frozen=True)
class LinearCost:
    """MAC of a ViT in which each block drops patches between attention and MLP, without what it costs to score them.

    With N tokens before and N' after, width D and MLP width M, a block has 3 N D^2 + 2 N' N D + N' D^2 + 2 N' D M; the
    network also P D of a patch's pixels and channels, and D of the classes.
    """

    prefix: int
    dim: int
    mlp_dim: int
    patch_dim: int
    outputs: int

    @classmethod
    def of(cls, vit: VisionTransformer) -> LinearCost:
        patch_dim, outputs = vit.patch_embed.proj.weight[0].numel(), vit.num_classes
        return cls(vit.num_prefix_tokens, vit.embed_dim, mlp_width(vit), patch_dim, outputs)

    def __call__(self, patches: Sequence[int]) -> int:
        """MAC of one image with ``patches`` (depth + 1) before the first block and after each."""
        blocks = (self._block(*(self.prefix + count for count in pair)) for pair in pairwise(patches))
        return sum(blocks) + self.dim * (patches[0] * self.patch_dim + self.outputs)

    def _block(self, before: int, after: int) -> int:
        return self.dim * (before * (3 * self.dim + 2 * after) + after * (self.dim + 2 * self.mlp_dim))


def mlp_width(vit: VisionTransformer) -> int:
    """Width of an MLP of two layers that costs what that of a block does, which may have gates or adapters (SwiGLU)."""
    weights = sum(layer.weight.numel() for layer in vit.blocks[0].mlp.modules() if isinstance(layer, nn.Linear))
    return weights // (2 * vit.embed_dim)


def candidates(full: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Grids (h, w) of at most ``full`` (rows, columns) and nearly its shape: of a square those with |h - w| <= 1."""
    rows, columns = full
    for h in range(1, rows + 1):
        for w in range(1, columns + 1):
            if abs(h * columns - w * rows) <= max(full):
                yield h, w


@register_reducer("downsample")
class Downsample(Reducer):
    """Cuts a smaller copy of the image into fewer patches, and drops none. No parameters.

    The null row of the whole field: the same network on a smaller image at the multiplications of the schedule, if
    every stage dropped between attention and MLP. The images are resized (bicubic, antialiased), the position embedding
    is resampled as timm does. Grids come in steps, so the cost may be some percent off: print it beside. A patch of the
    image belongs to the new patch that holds its centre. Resizing the crop a second time is a little worse than
    resizing the photograph once to that size.

    >>> from common import create_model
    >>> model = create_model("vit_tiny_patch16_224", reducer="downsample", keep_rate=0.5)
    >>> model.reducer.cut((14, 14))
    (10, 10)
    """

    family = "resizes"
    clusters = True

    def __init__(self, vit, schedule) -> None:
        super().__init__(vit, schedule)
        self.depth, self.cost = len(vit.blocks), LinearCost.of(vit)
        self._grids: dict[tuple[int, int], tuple[int, int]] = {}

    @property
    def blocks(self) -> tuple[int, ...]:
        return (0,)  # before which it is done

    def cut(self, full: tuple[int, int]) -> tuple[int, int]:
        full = tuple(full)
        if full not in self._grids:
            target = self.cost(self._scheduled(full[0] * full[1]))
            self._grids[full] = min(candidates(full), key=lambda grid: (abs(self._whole(*grid) - target), grid))
        return self._grids[full]

    def _scheduled(self, patches: int) -> list[int]:
        """Patches before the first block and after each by the schedule."""
        counts = [patches]
        for layer in range(self.depth):
            counts.append(self.schedule.target(layer, patches) or counts[-1])
        return counts

    def _whole(self, h: int, w: int) -> int:
        return self.cost([h * w] * (self.depth + 1))
