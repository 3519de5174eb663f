"""One block alone computes fewer patches: what becomes of the others, and what accuracy is left without any tuning."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from common.cost.closed_form import Shape
from common.errors import require_choice
from common.models.reduced import ReducedVisionTransformer, attach, reduce_tokens
from common.reducers.base import NO_SIGNALS, Reducer, Signal, Signals
from common.schedule import Schedule
from common.setup import Setup
from common.slimming.branches import best_first, dropped_at, slimmed
from common.slimming.study import Row, compared, cost, mean_scores, slim_hits
from common.tokens import Selection, Tokens

PRUNED = ("idle", "zero", "dropped")


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
    model: ReducedVisionTransformer, layer: int, patches: Sequence[int], pruned: str
) -> ReducedVisionTransformer:
    """``model`` whose block ``layer`` computes ``patches`` alone, and whose last block the prefix tokens.

    Args:
        pruned: what becomes of the other patches: "idle", they pass the block unchanged and the next one computes them
            again; "zero", the same, but their rows are zero after the block, as equation 2 of Tang et al. (CVPR 2022)
            is printed; "dropped", they are gone for good. Their figure 6 has the first block far more fragile than the
            second and every block from the ninth on nearly free: only "idle" has both, since to drop patches for good
            costs the same in the first two blocks, and blocks that come late and see zeros fail.
    """
    require_choice(pruned, PRUNED, "pruned")
    if pruned == "dropped":
        return slimmed(model, dropped_at(model, layer, patches))
    return attach(model, OneBlock(model, layer, patches, zero=pruned == "zero"))


def one_block_cost(vit: VisionTransformer, layer: int, count: int, pruned: str) -> Row:
    """Multiplications when block ``layer`` computes ``count`` patches; only what is dropped costs no keys later."""
    shape = Shape.of(vit)
    few, last = shape.num_prefix_tokens + count, shape.num_prefix_tokens
    after = few if pruned == "dropped" else shape.num_tokens
    lengths = [shape.num_tokens] * layer + [few] + [after] * (shape.depth - layer - 1)
    return cost(shape, [*lengths[:-1], last], "compact" if pruned == "dropped" else "paper")


def one_block_rows(
    setup: Setup,
    *,
    layers: Sequence[int],
    shares: Sequence[float],
    scores: Sequence[str],
    pruned: Sequence[str] = ("idle",),
    random_masks: int = 5,
    limit_val: int | None = None,
) -> Iterator[Row]:
    """Accuracy when one block computes a share of its patches, chosen by a score or by chance, without any tuning.

    ``gain`` is the difference to random masks (the mean over several) on the same images, with its standard error.

    Args:
        scores: see :func:`common.slimming.study.mean_scores`.
        random_masks: how many; with 0 there is no gain.
        limit_val: validation images; None = all.
    """
    names = [(score, 0) for score in scores] + [("random", seed) for seed in range(random_masks)]
    ranks = {name: mean_scores(setup.vit, setup.calibration_images, *name) for name in names}
    model = reduce_tokens(setup.vit, "none")
    cells = [(how, layer, share) for how in pruned for layer in layers for share in shares]
    slim = {
        (name, cell): one_block(model, cell[1], _highest(ranked, *cell[1:]), cell[0])
        for name, ranked in ranks.items()
        for cell in cells
    }
    hits = slim_hits(setup, slim, limit_val)
    for cell in cells:
        yield from _rows(setup.vit, hits, cell, scores, random_masks)


def _highest(ranked: Tensor, layer: int, share: float) -> list[int]:
    """Patches of block ``layer``, a ``share`` of them; the last block computes none."""
    if layer == len(ranked):
        return []
    return best_first(ranked[layer])[: round(share * ranked.shape[1])]


def _rows(
    vit: VisionTransformer,
    hits: Mapping[Hashable, Tensor],
    cell: tuple[str, int, float],
    scores: Sequence[str],
    random_masks: int,
) -> Iterator[Row]:
    pruned, layer, share = cell
    shown = {name: hits[(name, 0), cell] for name in scores}
    if random_masks:
        shown["random"] = torch.stack([hits[("random", seed), cell] for seed in range(random_masks)]).mean(0)
    count = 0 if layer == len(vit.blocks) - 1 else round(share * vit.patch_embed.num_patches)
    for name, right in shown.items():
        yield {
            "schedule": name,
            "layer": layer,
            "share": share,
            "pruned": pruned,
            "stage": "searched",
            "method": "patch_slimming",
            **one_block_cost(vit, layer, count, pruned),
            **compared(right, shown.get("random")),
        }
