"""Fixed patterns: keep the patches around the centre of the image, the same ones for every image.

The baselines of Haurum et al., "Which Tokens to Use? Investigating Token Reduction in Vision Transformers", ICCVW 2023.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_right

import torch

from common.errors import UsageError
from common.reducers.base import Reducer, register_reducer
from common.tokens import Selection, Tokens


def closest_ring(rings: list[int], target: int) -> int:
    """The ring up to which closest to ``target`` patches lie, ties to the smaller; ``rings`` has an entry per patch."""
    ordered = sorted(rings)
    return min(sorted(set(rings)), key=lambda last: abs(bisect_right(ordered, last) - target))


class FixedPattern(Reducer):
    """Drops all patches outside a ring around the centre, before each reduction block. No parameters.

    Each stage keeps the rings whose number of patches is closest to the scheduled one, ties to fewer. Rings are whole:
    they are told apart in integers, by the offsets a = abs(2 i - (rows - 1)) and b = abs(2 j - (columns - 1)) from the
    centre, in half patches along both axes, also where the grid is a rectangle. Patches are really removed. The
    reference implementation only masks them in attention, and its float32 distances split some rings, which could
    explain differences from published numbers.

    Args:
        contiguous: drop before every block b from the first to the last of ``reduction_loc`` (s to e), outside the
            radius R + (m - R) (b - s + 1) / (e - s + 2), with R the distance of the corner patch and m = min_radius.
            keep_rate has no say and must stay 1.0, at which the model then is *not* the unreduced one.
        min_radius: m, where the longer side of the grid, S patches, measures S from the centre of its first patch to
            the centre of its last. 0 or less: the distance of the innermost patches, which are always kept.

    Attributes:
        counts: block -> patches left of an image of the model's own size, for every block that drops some.
    """

    selects = True
    radius = staticmethod(float)  # distance of a ring from the centre, in half patches

    def __init__(self, vit, schedule, *, contiguous: bool = False, min_radius: float = 1.0) -> None:
        super().__init__(vit, schedule)
        if not contiguous and min_radius != 1.0:
            raise UsageError(f"min_radius={min_radius!r} is about contiguous=True; without it only 1.0 is allowed")
        self.contiguous, self.min_radius = contiguous, min_radius
        self._kept: dict[tuple[int, int], dict[int, list[int]]] = {}
        self.counts = {layer: len(kept) for layer, kept in self.kept(tuple(vit.patch_embed.grid_size)).items()}

    @property
    def blocks(self) -> tuple[int, ...]:
        stages = self.schedule.reduction_loc
        return tuple(range(stages[0], stages[-1] + 1)) if self.contiguous else stages

    def kept(self, grid: tuple[int, int]) -> dict[int, list[int]]:
        """Block -> which of the patches before it stay of a ``grid`` (rows, columns), for blocks that drop some."""
        if grid not in self._kept:
            down, across = ([abs(2 * place - side + 1) for place in range(side)] for side in grid)
            rings, kept = [self.ring(a, b) for a in down for b in across], {}
            for layer, last in self._last_rings(rings, max(grid)).items():
                inside = [position for position, ring in enumerate(rings) if ring <= last]
                if len(inside) < len(rings):
                    rings, kept[layer] = [rings[position] for position in inside], inside
            self._kept[grid] = kept
        return self._kept[grid]

    def _last_rings(self, rings: list[int], side: int) -> dict[int, int]:
        """Block -> the outermost ring that is kept."""
        if self.contiguous:
            return self._shrinking(rings, side)
        counts = zip(self.blocks, self.schedule.counts(len(rings)), strict=True)
        return {layer: closest_ring(rings, count) for layer, count in counts}

    @staticmethod
    def ring(a: int, b: int) -> int:
        """The ring of the patch at offsets ``a`` and ``b`` from the centre: an integer that grows with its distance."""
        raise NotImplementedError

    def before_block(self, tokens: Tokens, layer: int) -> Tokens:
        kept = self.kept(tokens.grid_size).get(layer)
        if kept is None:
            return tokens
        return tokens.keep(Selection(torch.tensor(kept, device=tokens.x.device).expand(len(tokens.x), -1)))

    def _shrinking(self, rings: list[int], side: int) -> dict[int, int]:
        """Block -> last ring kept, by the linear radius schedule."""
        schedule, min_radius = self.schedule, self.min_radius
        if any(count != len(rings) for count in schedule.counts(len(rings))):
            raise UsageError(f"contiguous=True sets its own counts; keep_rate={schedule.keep_rate} must stay 1.0")
        unit = side / (2 * max(side - 1, 1))
        radii = {ring: unit * self.radius(ring) for ring in set(rings)}
        corner, innermost = max(radii.values()), min(radii.values())
        if min_radius > corner:
            raise UsageError(f"min_radius={min_radius!r} is not allowed; allowed: a number up to {corner:g}")
        end = min_radius if min_radius > 0 else innermost
        rings_kept = {}
        for step, layer in enumerate(self.blocks, start=1):
            limit = corner + (end - corner) * step / (len(self.blocks) + 1)
            # a ring that lies exactly on the radius must not be lost to binary rounding
            inside = [ring for ring, radius in radii.items() if radius <= max(limit, innermost) * (1 + 1e-9)]
            rings_kept[layer] = max(inside)
        return rings_kept


@register_reducer("l1")
class L1(FixedPattern):
    """A diamond: rings of equal a + b. See :class:`FixedPattern`."""

    ring = staticmethod(operator.add)


@register_reducer("l2")
class L2(FixedPattern):
    """A disc: rings of equal a^2 + b^2. See :class:`FixedPattern`."""

    ring = staticmethod(lambda a, b: a**2 + b**2)
    radius = staticmethod(math.sqrt)


@register_reducer("linf")
class Linf(FixedPattern):
    """A square: rings of equal max(a, b). See :class:`FixedPattern`."""

    ring = staticmethod(max)
