"""A keep rate for a budget: how many tokens a method may keep so that the model costs what it may.

The same keep rate is not the same cost: methods reduce before a block, in it or after its attention, and scoring costs
too. So methods are compared at an equal number of multiply-accumulates, which this module solves for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from common.cost.counter import count_macs, mean_macs
from common.errors import UsageError
from common.models import reduced
from common.models.reduced import ReducedVisionTransformer
from common.options import Positive, ShareBelow1, checked
from common.reducers import Schedule, default_reduction_loc, reducer_class

DIGITS = 4  # of a keep rate: fine enough to move one token of 1,000 in any stage
CLOSE_ENOUGH = 1e-4  # of the unreduced cost; below what a token is worth
COARSEST = 0.06  # of the unreduced cost; what half a step of a small image's grid may miss


class OutOfReachError(UsageError):
    """A budget that no keep rate of a method meets."""


@dataclass(frozen=True)
class Solution:
    """What was found for a budget.

    Attributes:
        keep_rate: one ratio that compounds, see :class:`common.reducers.Schedule`.
        counts: patch tokens left after each stage, by the schedule.
        gmac: 10^9 multiply-accumulates of an image, attention and scoring included, mean over the images for methods
            whose cost depends on them.
        mac_cut: share of the unreduced model's cost that is saved.
        wanted: the share that was asked for.
    """

    keep_rate: float
    counts: tuple[int, ...]
    gmac: float
    mac_cut: float
    wanted: float


class BudgetSolver:
    """Keep rates of one method on one backbone for any number of budgets; what was counted once is not counted again.

    >>> import timm
    >>> solver = BudgetSolver(timm.create_model("vit_tiny_patch16_224"), "tome")
    >>> [solver.solve(mac_cut=share).counts for share in (0.2, 0.4)]
    [(166, 142, 121), (127, 82, 53)]

    Args:
        vit, reducer, images, reduction_loc, reducer_options: see :func:`keep_rate_for`.

    Raises:
        UsageError: a method that has no keep rate; one whose cost depends on the images, and none are given.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        reducer: str,
        *,
        images: Tensor | None = None,
        reduction_loc: tuple[int, ...] | None = None,
        **reducer_options,
    ) -> None:
        _check_method(reducer, images)
        self.vit, self.reducer, self.images, self.options = vit, reducer, images, reducer_options
        self.blocks = reduction_loc or default_reduction_loc(len(vit.blocks))
        self._costs: dict[tuple[int, ...], float] = {}

    @checked
    def solve(self, *, mac_cut: ShareBelow1 | None = None, gmac: Positive | None = None) -> Solution:
        """The keep rate for one budget, see :func:`keep_rate_for`."""
        if (mac_cut is None) == (gmac is None):
            raise UsageError(f"give one budget: mac_cut or gmac; given mac_cut={mac_cut}, gmac={gmac}")
        wanted = mac_cut if gmac is None else 1 - gmac * 1e9 / self._whole
        if wanted < 0:
            raise UsageError(f"gmac={gmac} is more than the unreduced model costs: {self._whole / 1e9:.4g}")
        what = f"{self.reducer} in blocks {list(self.blocks)} cannot save {wanted:.1%} of the MAC"
        if (most := self._cut_at(10.0**-DIGITS)) < wanted - CLOSE_ENOUGH:
            raise OutOfReachError(f"{what}; at most {most:.1%}")
        rate = _nearest(self._cut_at, wanted)
        found = self._cut_at(rate)
        if abs(found - wanted) > COARSEST:
            raise OutOfReachError(f"{what}; the nearest that it can is {found:.1%}, at keep rate {rate}")
        return Solution(rate, self._counts_at(rate), (1 - found) * self._whole / 1e9, found, wanted)

    @cached_property
    def _whole(self) -> int:
        """MAC of the unreduced model."""
        return count_macs(self.vit, self.vit.patch_embed.img_size).total

    def _counts_at(self, rate: float) -> tuple[int, ...]:
        return Schedule(rate, self.blocks).counts(self.vit.patch_embed.num_patches)

    def _cut_at(self, rate: float) -> float:
        if (counts := self._counts_at(rate)) not in self._costs:
            self._costs[counts] = self._cost(self._model_at(rate))
        return 1 - self._costs[counts] / self._whole

    def _cost(self, model: ReducedVisionTransformer) -> float:
        """MAC of an image."""
        if self.images is None:
            return count_macs(model, self.vit.patch_embed.img_size).total
        return mean_macs(model, self.images)

    def _model_at(self, rate: float) -> ReducedVisionTransformer:
        return reduced.reduce_tokens(self.vit, self.reducer, keep_rate=rate, reduction_loc=self.blocks, **self.options)


def keep_rate_for(
    vit: VisionTransformer,
    reducer: str,
    *,
    mac_cut: float | None = None,
    gmac: float | None = None,
    images: Tensor | None = None,
    reduction_loc: tuple[int, ...] | None = None,
    **reducer_options,
) -> Solution:
    """The keep rate at which a method's cost comes nearest to a budget, counted by running one image.

    Token counts are whole, so the cost is met to a token: within 0.2 % of the unreduced model for 196 patches and
    stages at 3, 6 and 9. Smaller images go in larger steps, ``downsample`` in those of its grid.

    >>> import timm
    >>> found = keep_rate_for(timm.create_model("vit_tiny_patch16_224"), "tome", mac_cut=0.4)
    >>> found.keep_rate, found.counts, round(found.gmac, 3), round(found.mac_cut, 4)
    (0.648, (127, 82, 53), 0.753, 0.3994)

    Args:
        vit: unreduced.
        mac_cut: share of the multiply-accumulates to save, 0 to below 1.
        gmac: or what an image may cost, in 10^9.
        images: (n, 3, H, W) of your data, for methods that keep more of some images than of others (ATS): their mean
            cost is solved for, and holds for images like these.
        reduction_loc: blocks of the stages; default 1/4, 1/2 and 3/4 of the depth.

    Raises:
        OutOfReachError: no keep rate meets the budget; the message has the most that can be saved.
        UsageError: not exactly one budget; a method that has no keep rate; one whose cost depends on the images, and
            none are given.
    """
    solver = BudgetSolver(vit, reducer, images=images, reduction_loc=reduction_loc, **reducer_options)
    return solver.solve(mac_cut=mac_cut, gmac=gmac)


def _check_method(reducer: str, images: Tensor | None) -> None:
    method = reducer_class(reducer)
    if reducer == "none" or method.idles or method.reads_prefix_only:
        raise UsageError(f"{reducer!r} has no keep rate to solve for; allowed: methods that follow a schedule")
    if method.adaptive and images is None:
        raise UsageError(f"what {reducer!r} keeps depends on the images; give some of yours as images=(n, 3, H, W)")


def _nearest(cut_at: Callable[[float], float], wanted: float) -> float:
    """The keep rate of ``DIGITS`` digits whose cut is nearest to ``wanted``; the larger of two that are as near."""
    steps = 10**DIGITS
    low, high = 1, steps  # low saves at least what is wanted, high does not
    if cut_at(1.0) >= wanted:
        return 1.0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cut_at(middle / steps) >= wanted else (low, middle)
    return min((high / steps, low / steps), key=lambda rate: abs(cut_at(rate) - wanted))


def reduce_tokens(
    vit: VisionTransformer,
    reducer: str,
    *,
    keep_rate: float | tuple[float, ...] | str | None = None,
    mac_cut: float | None = None,
    gmac: float | None = None,
    images: Tensor | None = None,
    reduction_loc: tuple[int, ...] | None = None,
    **reducer_options,
) -> ReducedVisionTransformer:
    """Make a timm VisionTransformer run on fewer tokens: for a keep rate, or for a budget.

    The result shares all weights with ``vit``, which stays usable and unreduced.

    >>> import timm, common
    >>> vit = timm.create_model("vit_tiny_patch16_224").eval()
    >>> fast = common.reduce_tokens(vit, "tome", mac_cut=0.4)
    >>> round(common.count_macs(fast, 224).total / common.count_macs(vit, 224).total, 2)
    0.6

    Args:
        vit, reducer, keep_rate, reduction_loc, reducer_options: see :func:`common.models.reduced.reduce_tokens`.
        mac_cut, gmac, images: in place of a keep rate, see :func:`keep_rate_for`.

    Raises:
        UsageError: as both of them do; a keep rate beside a budget.
    """
    budget = {"mac_cut": mac_cut, "gmac": gmac, "images": images}
    if keep_rate is None and (mac_cut is not None or gmac is not None):
        solution = keep_rate_for(vit, reducer, **budget, reduction_loc=reduction_loc, **reducer_options)
        keep_rate = solution.keep_rate
    elif any(value is not None for value in budget.values()):
        given = ", ".join(name for name, value in {"keep_rate": keep_rate, **budget}.items() if value is not None)
        raise UsageError(f"give a keep_rate, or one of mac_cut and gmac (with images or without); given {given}")
    rate = 1.0 if keep_rate is None else keep_rate
    return reduced.reduce_tokens(vit, reducer, keep_rate=rate, reduction_loc=reduction_loc, **reducer_options)
