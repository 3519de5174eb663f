"""A keep rate for a budget: how many tokens a method may keep so that the model costs what it may.

The same keep rate is not the same cost: methods reduce before a block, in it or after its attention, and scoring costs
too. So methods are compared at an equal number of multiply-accumulates, which this module solves for.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from common.budget.timing import DEFAULT_CACHE, WHOLE, Limit, Measure, OutOfReachError, Timed, TimedRates, in_turn
from common.cost.allocator import keep_freed_memory
from common.cost.closed_form import Shape
from common.cost.counter import count_macs, mean_macs
from common.data import subset
from common.data.base import LabelledDataset
from common.data.unlabelled import Images, as_tensor
from common.devices import DTYPES, Dtype, torch_device
from common.errors import UsageError
from common.models import reduced
from common.models.reduced import ReducedVisionTransformer
from common.models.support import check_supported
from common.options import AtLeast1, Count, Many, Positive, ShareBelow1, Whole, checked
from common.provenance import describe_device
from common.reducers import Method, Schedule, default_reduction_loc, reducer_class
from common.reducers.base import check_options
from common.reducers.method import named
from common.schedule import BUDGETS, is_budget, read_budget

DIGITS = 4  # of a keep rate: fine enough to move one token of 1,000 in any stage
COST_IMAGES = 32  # on which the cost of a method is solved that keeps more of some images than of others
TINY = 1e-9  # a keep rate that leaves one token of any number
CLOSE_ENOUGH = 1e-4  # of the unreduced cost; below what a token is worth
FITTED = " (common.idling.fit and common.slimming.search meet a mac_cut by other means)"
COARSEST = 0.06  # of the unreduced cost; what half a step of a small image's grid may miss


@dataclass(frozen=True)
class Solution:
    """What was found for a budget.

    Attributes:
        keep_rate: one ratio that compounds, see :class:`common.reducers.Schedule`; a ratio per stage of uneven shares.
        counts: patch tokens left after each stage, by the schedule.
        gmac: 10^9 multiply-accumulates of an image, attention and scoring included, mean over the images for methods
            whose cost depends on them.
        mac_cut: share of the unreduced model's cost that is saved.
        wanted: what was asked for: a share of the MAC to be saved, milliseconds, or a speed-up.
        timed: of a budget of time, what was measured for this keep rate.
        sure: of a budget of time, whether measuring again gave the same within 5 %.
    """

    keep_rate: float | tuple[float, ...]
    counts: tuple[int, ...]
    gmac: float
    mac_cut: float
    wanted: float
    timed: Timed | None = None
    sure: bool = True


class BudgetSolver:
    """Keep rates of one method on one backbone for any number of budgets; what was counted once is not counted again.

    >>> from common.models.factory import create_backbone
    >>> solver = BudgetSolver(create_backbone("vit_digits"), "tome")
    >>> [solver.solve(mac_cut=share).counts for share in (0.2, 0.4)]
    [(54, 46, 40), (41, 27, 18)]

    Args:
        vit, reducer, images, reduction_loc, batch_size, device, dtype, cache, reducer_options: see
            :func:`keep_rate_for`.
        measure: in place of the clock, see :func:`common.budget.timing.in_turn`.

    Raises:
        UsageError: a method that has no keep rate; one whose cost depends on the images, and none are given.
    """

    @checked
    def __init__(
        self,
        vit: VisionTransformer,
        reducer: str,
        *,
        images: Any = None,  # Images, which as_tensor checks
        reduction_loc: Many[Whole] | None = None,
        batch_size: Count = 1,
        device: str | None = None,
        dtype: Dtype | None = None,
        cache: str | Path | None = None,
        measure: Measure = in_turn,
        **reducer_options,
    ) -> None:
        reducer, reducer_options = named(reducer, reducer_options)
        check_solvable(reducer)
        check_options(reducer, reducer_options)
        check_supported(vit)
        _check_images(reducer, images)
        self._where = {"batch_size": batch_size, "device": device, "dtype": dtype, "cache": cache}
        self._measure = measure
        self.vit, self.reducer, self.options = vit, reducer, reducer_options
        self.images = None if images is None else as_tensor(images, vit)
        self.blocks = reduction_loc or default_reduction_loc(len(vit.blocks))
        self._shares: tuple[float, ...] | None = None
        self._costs: dict[tuple[int, ...], float] = {}

    def shaped(self, blocks: tuple[int, ...], shares: tuple[float, ...]) -> BudgetSolver:
        """The same method that reduces in other ``blocks``, unevenly; the unreduced model is not counted again.

        Args:
            shares: of each block in the logarithm of what is kept at the end, in any unit. Equal ones are the one ratio
                that compounds; the solutions have a ratio per stage.
        """
        other = copy.copy(self)
        other.blocks, other._costs = blocks, {}
        other._shares = tuple(len(shares) * share / sum(shares) for share in shares)
        vars(other).pop("_times", None)
        vars(other)["_whole"] = self._whole
        return other

    @checked
    def solve(
        self,
        *,
        mac_cut: ShareBelow1 | None = None,
        gmac: Positive | None = None,
        latency_ms: Positive | None = None,
        speedup: AtLeast1 | None = None,
    ) -> Solution:
        """The keep rate for one budget, see :func:`keep_rate_for`."""
        budgets = {"mac_cut": mac_cut, "gmac": gmac, "latency_ms": latency_ms, "speedup": speedup}
        given = {word: value for word, value in budgets.items() if value is not None}
        if len(given) != 1:
            told = ", ".join(f"{word}={value}" for word, value in given.items()) or "none"
            raise UsageError(f"give one budget: {', '.join(BUDGETS)}; given {told}")
        [(word, value)] = given.items()
        if word in ("latency_ms", "speedup"):
            return self._within(Limit(word, value))
        return self._saving(value if word == "mac_cut" else self._share_of(value))

    def _share_of(self, gmac: float) -> float:
        """The share of the MAC that must be saved for ``gmac`` to be left."""
        wanted = 1 - gmac * 1e9 / self._whole
        if wanted < 0:
            raise UsageError(f"gmac={gmac} is more than the unreduced model costs: {self._whole / 1e9:.4g}")
        return wanted

    def _saving(self, wanted: float) -> Solution:
        """The solution whose share of the MAC saved is nearest to ``wanted``."""
        what = f"{self._method} in blocks {list(self.blocks)} cannot save {wanted:.1%} of the MAC"
        if (most := self._cut_at(10.0**-DIGITS)) < wanted - CLOSE_ENOUGH:
            raise OutOfReachError(f"{what}; at most {most:.1%}")
        rate = _nearest(self._cut_at, wanted)
        found = self._cut_at(rate)
        if abs(found - wanted) > COARSEST:
            raise OutOfReachError(f"{what}; the nearest that it can is {found:.1%}, at keep rate {rate}")
        gmac = (1 - found) * self._whole / 1e9
        return Solution(self._keep_rate_at(rate), self._counts_at(rate), gmac, found, wanted)

    def _within(self, limit: Limit) -> Solution:
        """The solution that keeps most within a budget of time."""
        rate, timed, sure = self._times.rate_for(limit)
        cut = self._cut_at(rate)
        gmac, counts = (1 - cut) * self._whole / 1e9, self._counts_at(rate)
        return Solution(self._keep_rate_at(rate), counts, gmac, cut, limit.value, timed, sure)

    @cached_property
    def _times(self) -> TimedRates:
        """Of a copy of the backbone, as ``batch_size``, ``device`` and ``dtype`` want it."""
        weight, device, dtype = next(self.vit.parameters()), self._where["device"], self._where["dtype"]
        where = weight.device if device is None else torch_device(device)
        vit = copy.deepcopy(self.vit).to(where, weight.dtype if dtype is None else DTYPES[dtype]).eval()
        images = self._batch().to(next(vit.parameters()))
        conditions = {
            "device": describe_device(where),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "memory": "kept" if keep_freed_memory() else "returned",
            "dtype": str(images.dtype).removeprefix("torch."),
            "batch": len(images),
            "backbone": {**asdict(Shape.of(vit)), "img_size": vit.patch_embed.img_size, "pool": vit.global_pool},
            "method": str(self._method),
            "reduction_loc": self.blocks,
            "shares": self._shares,
            "images": "" if self.images is None else hashlib.sha256(images.float().cpu().numpy().tobytes()).hexdigest(),
        }

        def model_at(rate: float) -> VisionTransformer:
            return vit if rate == WHOLE else self._model_at(rate, vit).eval()

        folder = Path(self._where["cache"] or DEFAULT_CACHE).expanduser()
        return TimedRates(model_at, self._counts_at, images, conditions, folder, self._measure)

    def _batch(self) -> Tensor:
        """Images (batch_size, 3, H, W) to be timed: random, or the user's where the method keeps more of some."""
        batch = self._where["batch_size"]
        if self.images is None:
            size, generator = self.vit.patch_embed.img_size, torch.Generator().manual_seed(0)
            return torch.randn(batch, self.vit.in_chans, *size, generator=generator)
        if len(self.images) < batch:
            raise UsageError(f"{str(self._method)!r} is timed on your images: give batch_size={batch} of them or more")
        return self.images[:batch]

    @property
    def _method(self) -> Method:
        """With its options, as it is written."""
        return Method(self.reducer, tuple(sorted(self.options.items())))

    @cached_property
    def _whole(self) -> int:
        """MAC of the unreduced model."""
        return count_macs(self.vit, self.vit.patch_embed.img_size).total

    def _keep_rate_at(self, rate: float) -> float | tuple[float, ...]:
        """``rate`` itself, or for uneven shares the part of all patches that each stage keeps."""
        return rate if self._shares is None else tuple(max(rate**power, TINY) for power in accumulate(self._shares))

    def _counts_at(self, rate: float) -> tuple[int, ...]:
        return Schedule(self._keep_rate_at(rate), self.blocks).counts(self.patches)

    @cached_property
    def patches(self) -> int:
        """Of an image as the method sees it."""
        return reduced.resized(self.vit, self.reducer, self.options.get("resize")).patch_embed.num_patches

    def _cut_at(self, rate: float) -> float:
        if (counts := self._counts_at(rate)) not in self._costs:
            self._costs[counts] = self._cost(self._model_at(rate))
        return 1 - self._costs[counts] / self._whole

    def _cost(self, model: ReducedVisionTransformer) -> float:
        """MAC of an image."""
        if self.images is None:
            return count_macs(model, self.vit.patch_embed.img_size).total
        return mean_macs(model, self.images)

    def _model_at(self, rate: float, vit: VisionTransformer | None = None) -> ReducedVisionTransformer:
        return reduced.reduce_tokens(
            vit or self.vit, self.reducer, keep_rate=self._keep_rate_at(rate), reduction_loc=self.blocks, **self.options
        )


def keep_rate_for(
    vit: VisionTransformer,
    reducer: str,
    *,
    mac_cut: float | None = None,
    gmac: float | None = None,
    latency_ms: float | None = None,
    speedup: float | None = None,
    **how,
) -> Solution:
    """The keep rate at which a method's cost comes nearest to a budget of MAC, or that keeps most within one of time.

    Token counts are whole, so the cost is met to a token: within 0.2 % of the unreduced model for 196 patches and
    stages at 3, 6 and 9. Smaller images go in larger steps, ``downsample`` in those of its grid.

    >>> import timm
    >>> found = keep_rate_for(timm.create_model("vit_tiny_patch16_224"), "tome", mac_cut=0.4)
    >>> found.keep_rate, found.counts, round(found.gmac, 3), round(found.mac_cut, 4)
    (0.648, (127, 82, 53), 0.753, 0.3994)

    Time is measured here: a few keep rates in turn with the unreduced model, once, and again for what is chosen. It
    holds for this machine, batch and number format (:mod:`common.budget.timing`).

    Args:
        vit: unreduced.
        reducer: a method by its name or in its written form, e.g. ``topk:head_fusion=mean``.
        mac_cut: share of the multiply-accumulates to save, 0 to below 1.
        gmac: or what an image may cost, in 10^9.
        latency_ms: or how long a pass over a batch may take at the most, in milliseconds.
        speedup: or how many times as fast as the unreduced model it must be at the least.
        images: some of your data, for methods that keep more of some images than of others (ATS): their mean cost is
            solved for, or the first ``batch_size`` timed, and the answer holds for images like these. A tensor
            (n, 3, H, W), a ``Dataset`` or a ``DataLoader``, all of which is counted: some 32 images are enough.
        reduction_loc: blocks of the stages; default 1/4, 1/2 and 3/4 of the depth.
        batch_size, device, dtype: what time is measured for; default: one image, where and as ``vit`` is.
        cache: folder where times are kept; default ``~/.cache/token-reduction/timings``.
        **how: these, and the options of the method.

    Raises:
        OutOfReachError: no keep rate meets the budget; the message has the nearest.
        UsageError: not exactly one budget; a method that has no keep rate; one whose cost depends on the images, and
            none are given.
    """
    solver = BudgetSolver(vit, reducer, **how)
    return solver.solve(mac_cut=mac_cut, gmac=gmac, latency_ms=latency_ms, speedup=speedup)


def check_solvable(reducer: str) -> None:
    """Refuse a budget for a method that has no keep rate."""
    if not reducer_class(reducer).by_rate:
        raise UsageError(f"{reducer!r} has no keep rate to solve for; allowed: methods that follow a schedule{FITTED}")


def _check_images(reducer: str, images: Images | None) -> None:
    if reducer_class(reducer).adaptive and images is None:
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


def cost_images(dataset: LabelledDataset) -> Tensor:
    """Images (n, 3, H, W) that the cost of a method is counted on which keeps more of some than of others."""
    return subset(dataset, min(COST_IMAGES, len(dataset)), seed=0).stack()


def solved(
    vit: VisionTransformer,
    method: Method,
    keep_rate: float | tuple[float, ...] | str,
    images: Callable[[], Tensor],
    **how,
) -> float | tuple[float, ...] | str:
    """``keep_rate`` as it is, or that of the budget which it is the text of.

    Args:
        images: gives some (n, 3, H, W), for methods whose cost depends on them.
        **how: ``reduction_loc``, ``batch_size``, ``device``, ``dtype`` and ``cache`` of :func:`keep_rate_for`.
    """
    if not is_budget(keep_rate):
        return keep_rate
    given = {"images": images()} if reducer_class(method.name).adaptive else {}
    return keep_rate_for(vit, method.name, **read_budget(keep_rate), **given, **how, **dict(method.options)).keep_rate
