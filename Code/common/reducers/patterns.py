"""Fixed patterns: keep the patches around the centre of the image, the same ones for every image.

The baselines of Haurum et al., "Which Tokens to Use? Investigating Token Reduction in Vision Transformers", ICCVW 2023.
"""

from __future__ import annotations

import math
from bisect import bisect_right

import torch
from torch import Tensor

from common.errors import UsageError
from common.reducers.base import Reducer, register_reducer
from common.schedule import Schedule
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
        counts: block -> patches left, for every block that drops some.
    """

    selects = True

    def __init__(self, vit, schedule, *, contiguous: bool = False, min_radius: float = 1.0) -> None:
        super().__init__(vit, schedule)
        if vit.dynamic_img_size:
            raise UsageError("fixed patterns need a fixed grid; dynamic_img_size=True is not allowed, set img_size")
        if not contiguous and min_radius != 1.0:
            raise UsageError(f"min_radius={min_radius!r} is about contiguous=True; without it only 1.0 is allowed")
        rows, columns = vit.patch_embed.grid_size
        down = [abs(2 * i - rows + 1) for i in range(rows)]
        across = [abs(2 * j - columns + 1) for j in range(columns)]
        rings = [self.ring(a, b) for a in down for b in across]
        if contiguous:
            last_rings = self._shrinking(schedule, rings, max(rows, columns), min_radius)
        else:
            counts = schedule.counts(len(rings))
            last_rings = {
                layer: closest_ring(rings, count) for layer, count in zip(schedule.reduction_loc, counts, strict=True)
            }
        self.num_patches, self.counts, self._blocks = len(rings), {}, tuple(last_rings)
        for layer, last in last_rings.items():
            kept = [position for position, ring in enumerate(rings) if ring <= last]
            if len(kept) < len(rings):
                # on the CPU whatever the default device is: the model's device follows
                self.register_buffer(f"kept_{layer}", torch.tensor(kept, device="cpu"), persistent=False)
                rings, self.counts[layer] = [rings[position] for position in kept], len(kept)

    @property
    def blocks(self) -> tuple[int, ...]:
        return self._blocks

    @staticmethod
    def ring(a: int, b: int) -> int:
        """The ring of the patch at offsets ``a`` and ``b`` from the centre: an integer that grows with its distance."""
        raise NotImplementedError

    @staticmethod
    def radius(ring: int) -> float:
        """Distance of a ring from the centre in half patches."""
        return float(ring)

    def before_block(self, tokens: Tokens, layer: int) -> Tokens:
        if layer not in self.counts:
            return tokens
        if tokens.grid_size != self.num_patches:
            raise UsageError(f"the pattern was made for {self.num_patches} patches, the image has {tokens.grid_size}")
        kept: Tensor = getattr(self, f"kept_{layer}")
        return tokens.keep(Selection(kept.expand(len(tokens.x), -1)))

    def _shrinking(self, schedule: Schedule, rings: list[int], side: int, min_radius: float) -> dict[int, int]:
        """Block -> last ring kept, by the linear radius schedule."""
        if any(count != len(rings) for count in schedule.counts(len(rings))):
            raise UsageError(f"contiguous=True sets its own counts; keep_rate={schedule.keep_rate} must stay 1.0")
        unit = side / (2 * max(side - 1, 1))
        radii = {ring: unit * self.radius(ring) for ring in set(rings)}
        corner, innermost = max(radii.values()), min(radii.values())
        if min_radius > corner:
            raise UsageError(f"min_radius={min_radius!r} is not allowed; allowed: a number up to {corner:g}")
        end = min_radius if min_radius > 0 else innermost
        first, last = schedule.reduction_loc[0], schedule.reduction_loc[-1]
        rings_kept = {}
        for layer in range(first, last + 1):
            limit = corner + (end - corner) * (layer - first + 1) / (last - first + 2)
            # a ring that lies exactly on the radius must not be lost to binary rounding
            inside = [ring for ring, radius in radii.items() if radius <= max(limit, innermost) * (1 + 1e-9)]
            rings_kept[layer] = max(inside)
        return rings_kept


@register_reducer("l1")
class L1(FixedPattern):
    """A diamond: rings of equal a + b. See :class:`FixedPattern`."""

    @staticmethod
    def ring(a: int, b: int) -> int:
        return a + b


@register_reducer("l2")
class L2(FixedPattern):
    """A disc: rings of equal a^2 + b^2. See :class:`FixedPattern`."""

    @staticmethod
    def ring(a: int, b: int) -> int:
        return a**2 + b**2

    @staticmethod
    def radius(ring: int) -> float:
        return math.sqrt(ring)


@register_reducer("linf")
class Linf(FixedPattern):
    """A square: rings of equal max(a, b). See :class:`FixedPattern`."""

    @staticmethod
    def ring(a: int, b: int) -> int:
        return max(a, b)
