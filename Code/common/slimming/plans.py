"""One backbone under many plans, or with one block alone that computes fewer patches.

Their models share its modules, and what they all compute alike runs once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from common.cost.closed_form import Shape
from common.errors import require_choice
from common.models.reduced import ReducedVisionTransformer, attach
from common.reducers.base import NO_SIGNALS, Reducer, Signal, Signals
from common.reducers.patch_slimming import PatchSlimming
from common.reducers.slimming_plan import SlimmingPlan
from common.schedule import Schedule
from common.tokens import Selection, Tokens

PRUNING = ("idle", "zero", "dropped")  # what becomes of the patches that a block alone does not compute


def slimmed(model: ReducedVisionTransformer, plan: SlimmingPlan, keys: str = "all") -> ReducedVisionTransformer:
    """``model``, with the same modules, following ``plan``."""
    return attach(model, PatchSlimming(model, Schedule(1.0, (0,)), plan=plan, keys=keys))


def dropped_at(model: ReducedVisionTransformer, layer: int, patches: Sequence[int]) -> SlimmingPlan:
    """The plan that keeps everything before block ``layer``, ``patches`` from there on, and none in the last block."""
    num_patches, depth = model.patch_embed.num_patches, len(model.blocks)
    kept = [range(num_patches)] * layer + [patches] * (depth - 1 - layer) + [()]
    return SlimmingPlan.of_patches(kept, num_patches, model.num_prefix_tokens)


def best_first(scores: Tensor, without: Sequence[int] = ()) -> list[int]:
    """All patches but some, by their scores (P,), the highest first."""
    left_out = set(without)
    return [patch for patch in scores.argsort(descending=True, stable=True).tolist() if patch not in left_out]


def nested(scores: Tensor, lengths: Sequence[int], num_prefix_tokens: int = 1) -> SlimmingPlan:
    """The plan of ``lengths`` whose blocks keep the patches of the one above and add those that they score highest.

    Args:
        scores: (L - 1, P) of every patch in every block but the last.
        lengths: tokens of the L blocks, prefix tokens included; they never grow, the last is ``num_prefix_tokens``.
    """
    kept: list[tuple[int, ...]] = [()]
    for ranked, length in zip(scores.flip(0), reversed(lengths[:-1]), strict=True):
        above = kept[-1]
        kept.append((*above, *best_first(ranked, above)[: length - num_prefix_tokens - len(above)]))
    return SlimmingPlan.of_patches(kept[::-1], scores.shape[1], num_prefix_tokens)


def encode_all(
    model: ReducedVisionTransformer, slim: Mapping[Hashable, ReducedVisionTransformer], images: Tensor
) -> Iterator[tuple[Hashable, Tokens]]:
    """Key and final tokens, as :meth:`encode` gives them, of ``images`` in every model ``slim``, in no order.

    Blocks up to the first in which a model drops anything run once for all of them.

    Args:
        model: unreduced.
        slim: models of the same modules, whose reducers do nothing before the first of their ``blocks``.
    """
    first = {key: min(each.reducer.blocks, default=0) for key, each in slim.items()}
    tokens = model.embed(images)
    for layer in range(len(model.blocks)):
        for key in [key for key, start in first.items() if start == layer]:
            yield key, slim[key].encode(tokens, first=layer)
        tokens = model.advance(tokens, range(layer, layer + 1))


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
