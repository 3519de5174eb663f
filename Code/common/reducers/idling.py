"""What all methods share whose patches skip blocks and come back: how many idle, what attends to what, training."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from common.errors import UsageError
from common.options import Count, Many
from common.reducers.base import NO_SIGNALS, Reducer, Signal, Signals
from common.tokens import Choice, Gate, Keys, Selection, Tokens, top_in_order

ATTENTION: dict[str, Keys] = {"standard": "selected", "modified": "all", "cls_sees_all": "prefix"}
IDLED = "idled"


class Idling(Reducer):
    """Scores all patches in every block anew; those of low score pass it unchanged, no patch is ever lost.

    ``keep_rate`` below 1 sets how many are computed: all before the first stage; then each stage holds for its own
    block and all up to the next stage, and each of these computes the floor(P r^s) patches of highest score. That is
    the schedule of IdleViT (Xu et al., "No Token Left Behind", AJCAI 2023) at the default stages 3, 6 and 9.

    A training pass computes all patches and gates their updates (:class:`common.tokens.Gate`): the same numbers,
    and gradients for the idle ones.

    Args:
        attention: what computed patches attend to. "standard": each other and the prefix tokens; "modified": all, idle
            ones too, whose keys and values are then paid for; "cls_sees_all": as "standard", but prefix tokens see all.
        counts: patches to compute in every block, one number per block, where ``keep_rate`` is 1.
        re_entry: whether a patch that idled may be computed again in a later block.
    """

    family = "idles"
    idles = True
    by_score = False  # how many patches are computed follows from their scores, in every block
    signals: frozenset[Signal] = NO_SIGNALS  # what :meth:`score` reads

    def __init__(
        self,
        vit,
        schedule,
        *,
        attention: Literal["standard", "modified", "cls_sees_all"] = "modified",
        counts: Many[Count] | None = None,
        re_entry: bool = True,
    ) -> None:
        super().__init__(vit, schedule)
        self.attention, self.re_entry, self.depth = attention, re_entry, len(vit.blocks)
        self.counts = counts if counts is None else self._checked(counts, vit.patch_embed.num_patches)

    def _checked(self, counts: tuple[int, ...], num_patches: int) -> tuple[int, ...]:
        if max(counts, default=0) > num_patches or len(counts) != self.depth:
            raise UsageError(
                f"counts={list(counts)} is not allowed; give {self.depth} whole numbers, 1 to {num_patches}"
            )
        if not self.re_entry and any(a < b for a, b in pairwise(counts)):
            raise UsageError(f"counts={list(counts)} with re_entry=False is not possible; give counts that never grow")
        self._require_all_kept("counts", num_patches)
        return counts

    def _require_all_kept(self, what: str, num_patches: int) -> None:
        if min(self.schedule.counts(num_patches)) < num_patches:
            raise UsageError(
                f"{what} with keep_rate={self.schedule.keep_rate} is not possible: both say how many patches are "
                f"computed; give keep_rate=1.0"
            )

    @property
    def keys(self) -> Keys:
        return ATTENTION[self.attention]

    @property
    def in_pieces(self) -> str:
        return "how many patches pass a threshold depends on the image" if self.by_score else ""

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks in which patches may idle."""
        return tuple(range(0 if self.counts or self.by_score else self.schedule.reduction_loc[0], self.depth))

    def count(self, layer: int, num_patches: int) -> int | None:
        """How many patches block ``layer`` computes, None = all of them."""
        if self.counts is not None:
            count = self.counts[layer]
        else:
            stage = sum(block <= layer for block in self.schedule.reduction_loc)
            count = self.schedule.counts(num_patches)[stage - 1] if stage else num_patches
        return count if count < num_patches else None

    def acts(self, layer: int, tokens: Tokens) -> bool:
        """Whether any patch may idle in block ``layer``."""
        return self.by_score or self.count(layer, tokens.num_patches) is not None

    def needs(self, layer: int, tokens: Tokens) -> frozenset[Signal] | None:
        return self.signals if self.acts(layer, tokens) else None

    def select_queries(self, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Choice]:
        tokens, score = self.score(tokens, signals, layer)
        ranked = score.detach()
        tokens = tokens.with_scores(ranked)
        ranked = self.ranked(tokens, ranked)
        count = self.count(layer, tokens.num_patches)
        best = None if count is None else top_in_order(ranked, count)  # (B, K)
        computed = self.passes(ranked, layer) if best is None else torch.zeros_like(ranked).scatter(1, best, 1.0) > 0
        if not self.re_entry:
            tokens = tokens.with_carry(**{IDLED: ~computed})
        if self.training:
            return tokens, Gate(self.gate(computed, score), self.keys)
        return tokens, ragged(computed, self.keys) if best is None else Selection(best, idle=True, keys=self.keys)

    def ranked(self, tokens: Tokens, score: Tensor) -> Tensor:
        """``score`` (B, P), -inf where a patch idled that may not come back."""
        return score.masked_fill(tokens.carry[IDLED], float("-inf")) if IDLED in tokens.carry else score

    def score(self, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Tensor]:
        """The tokens, and how much each patch (B, P) deserves to be computed; both may carry gradients."""
        raise NotImplementedError

    def passes(self, score: Tensor, layer: int) -> Tensor:
        """Which patches (B, P) block ``layer`` computes where their number is left to the ``score`` (B, P)."""
        raise NotImplementedError

    def gate(self, computed: Tensor, score: Tensor) -> Tensor:
        """``computed`` (B, P) as zeros and ones, with a gradient where the method learns which to compute."""
        return computed.float()

    def extra_repr(self) -> str:
        how = f", counts={list(self.counts)}" if self.counts else ""
        return f"{super().extra_repr()}{how}, attention={self.attention}, re_entry={self.re_entry}"


def append_block(tokens: Tokens, name: str, values: Tensor) -> Tokens:
    """Append ``values`` (B, P) of one block to what ``tokens`` carry under ``name`` (B, P, blocks so far)."""
    values = values[..., None]
    return tokens.with_carry(**{name: torch.cat([tokens.carry.get(name, values[..., :0]), values], dim=-1)})


def ragged(computed: Tensor, keys: Keys) -> Selection | None:
    """The ``computed`` (B, P) patches, padded to the image that has most of them; None = all patches of all images."""
    return None if computed.all() else Selection.of_mask(computed, idle=True, keys=keys)
