"""Models of which one block alone computes fewer patches, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.vision_transformer import VisionTransformer

from common.cost.closed_form import Shape
from common.errors import require_choice
from common.models.reduced import ReducedVisionTransformer, attach
from common.reducers.base import NO_SIGNALS, Reducer, Signal, Signals
from common.schedule import Schedule
from common.slimming.plans import dropped_at, slimmed
from common.tokens import Selection, Tokens

PRUNING = ("idle", "zero", "dropped")  # what becomes of the patches that the block does not compute


class OneBlock(Reducer):
    """Block ``layer`` computes ``patches`` alone; all go on, and the last block computes the prefix tokens alone.

    Args:
        zero: the rows of the other patches are zero after the block; or else they pass it unchanged.
    """

    selects = True
    reads_prefix_only = True

    def __init__(self, vit: VisionTransformer, layer: int, patches: Sequence[int], *, zero: bool = False) -> None:
        super().__init__(vit, Schedule(1.0, (layer,)))
        self._last, self._layer, self._zero = len(vit.blocks) - 1, layer, zero
        rows = torch.tensor(sorted(patches), dtype=torch.long, device="cpu")
        self.register_buffer("_rows", rows, persistent=False)

    @property
    def blocks(self) -> tuple[int, ...]:
        return tuple(sorted({self._layer, self._last}))

    def needs(self, layer: int, tokens: Tokens) -> frozenset[Signal] | None:
        return NO_SIGNALS if layer in self.blocks else None

    def select_queries(self, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Selection | None]:
        rows = self._rows[:0] if layer == self._last else self._rows
        return tokens, Selection(rows.expand(len(tokens.x), -1), idle=layer != self._last)

    def before_block(self, tokens: Tokens, layer: int) -> Tokens:
        if not self._zero or layer != self._layer + 1:
            return tokens
        computed = torch.zeros_like(tokens.x[0, :, :1])
        computed[: tokens.num_prefix_tokens] = computed[tokens.num_prefix_tokens + self._rows] = 1
        return tokens.with_x(tokens.x * computed)


def one_block(
    model: ReducedVisionTransformer, layer: int, patches: Sequence[int], pruning: str
) -> ReducedVisionTransformer:
    """``model`` whose block ``layer`` computes ``patches`` alone, and whose last block the prefix tokens.

    Args:
        pruning: what becomes of the other patches: "idle", they pass the block unchanged and the next one computes them
            again; "zero", the same, but their rows are zero after the block, as equation 2 of Tang et al. (CVPR 2022)
            is printed; "dropped", they are gone for good. Their figure 6 has the first block far more fragile than the
            second and every block from the ninth on nearly free: only "idle" has both, since to drop patches for good
            costs the same in the first two blocks, and blocks that come late and see zeros fail.
    """
    require_choice(pruning, PRUNING, "pruning")
    if pruning == "dropped":
        return slimmed(model, dropped_at(model, layer, patches))
    return attach(model, OneBlock(model, layer, patches, zero=pruning == "zero"))


def one_block_lengths(shape: Shape, layer: int, count: int, pruning: str) -> list[int]:
    """Tokens that each block of :func:`one_block` computes, ``count`` patches in block ``layer``."""
    few = shape.num_prefix_tokens + count
    after = few if pruning == "dropped" else shape.num_tokens
    lengths = [shape.num_tokens] * layer + [few] + [after] * (shape.depth - layer - 1)
    return [*lengths[:-1], shape.num_prefix_tokens]
