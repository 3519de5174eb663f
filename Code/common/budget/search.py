"""Where to reduce, and how much in each block: schedules at equal cost, judged by images without labels.

Every method here reduces in three blocks by default, and by the same ratio in each. Nothing says that this is best. The
search tries other blocks and other ratios, each solved to the same number of multiply-accumulates, and keeps those
whose class probabilities are nearest to the unreduced model's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from tqdm import tqdm

from common.budget.solver import BudgetSolver, Solution
from common.budget.timing import OutOfReachError
from common.data.unlabelled import Images, as_tensor
from common.models import reduced
from common.models.observe import untouched
from common.models.support import check_head, check_supported
from common.options import Count, Positive, ShareBelow1, Whole, checked
from common.reducers import Method, Schedule, reducer_class
from common.reducers.base import divergence_by_image
from common.schedule import placed_text

PARENTS = 5  # the best ones, which others are made from
CLOSE = 0.005  # of the unreduced cost; a candidate whose whole token counts miss the budget by more does not count
RACE = 1.5  # times the divergence of the best on the first batch: who is farther off there sees no other images
NEAR = 2  # blocks by which a stage moves at the most
SPREAD = 0.5  # of the logarithm of a share when it changes


@dataclass(frozen=True)
class Shape:
    """Blocks that reduce, and how much of the reduction each of them does: the logarithm of its own keep rate."""

    blocks: tuple[int, ...]
    shares: tuple[float, ...]

    @classmethod
    def even(cls, blocks: tuple[int, ...]) -> Shape:
        return cls(blocks, (1.0,) * len(blocks))


@dataclass(frozen=True)
class Candidate:
    """A schedule that was tried.

    Attributes:
        schedule: a ratio per stage, each a fraction of all patches.
        mac_cut: share of the unreduced model's multiply-accumulates that it saves.
        divergence: Kullback-Leibler divergence of the class probabilities from the unreduced model's, mean over the
            images that it has seen, nats.
        images: so many; fewer than the others have, if it was given up.
    """

    schedule: Schedule
    mac_cut: float
    divergence: float
    images: int

    @property
    def keep_rate(self) -> str:
        """The schedule as one keep rate, for :func:`common.reduce_tokens`, a profile or the YAML of a training."""
        return placed_text(self.schedule)


@dataclass(frozen=True)
class FoundSchedule:
    """What a search has found.

    Attributes:
        best: the candidate of the least divergence.
        default: that of the stages at 1/4, 1/2 and 3/4 of the depth with one ratio that compounds.
        tried: all of them, in their order.
    """

    best: Candidate
    default: Candidate
    tried: tuple[Candidate, ...]


@checked
def search_schedule(
    vit: VisionTransformer,
    method: str,
    images: Images,
    *,
    mac_cut: ShareBelow1 | None = None,
    gmac: Positive | None = None,
    candidates: Count = 40,
    seed: Whole = 0,
    batch_size: Count = 64,
) -> FoundSchedule:
    """Search the blocks and the ratios at which a method comes nearest to the unreduced model at a given cost.

    An evolution without crossing: the default, reduction in every second block and in all of them are tried first;
    then one of the best moves, gains or loses a stage, or shifts work between them. What is far off on the first batch
    is given up. It has seen the images that it chose by: judge what it found on others.

    >>> from common.models.factory import create_backbone
    >>> vit, images = create_backbone("vit_digits"), torch.rand(8, 3, 32, 32)
    >>> found = search_schedule(vit, "tome", images, mac_cut=0.3, candidates=6)
    >>> len(found.tried), found.best.divergence <= found.default.divergence
    (6, True)
    >>> model = reduced.reduce_tokens(vit, "tome", keep_rate=found.best.keep_rate)  # such as "0.8@1 0.5@4"

    Args:
        vit: unreduced.
        method: in its written form, e.g. ``topk:head_fusion=mean``.
        images: a tensor (n, 3, H, W), a ``Dataset`` or a ``DataLoader``, normalised as ``vit`` expects, without labels.
        mac_cut, gmac: the budget, see :func:`common.keep_rate_for`.
        candidates: schedules that are tried.
        seed: of what is tried.
        batch_size: images of a pass.

    Raises:
        UsageError: as :func:`common.keep_rate_for`; no images; a model without classes.
    """
    parsed = Method.parse(method)
    check_supported(vit)
    check_head(vit, "a search of schedules compares class probabilities")
    images = as_tensor(images, vit)
    few = images[:batch_size] if reducer_class(parsed.name).adaptive else None
    solver = BudgetSolver(vit, parsed.name, images=few, **dict(parsed.options))
    budget = {name: value for name, value in (("mac_cut", mac_cut), ("gmac", gmac)) if value is not None}
    first = solver.solve(**budget)  # refuses, before anything runs, what cannot be met
    with untouched(vit):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))  # a batch of all classes
        judge = _Judge(vit, parsed, images[order], batch_size)
        default = judge(solver, first)
        tried = {Shape.even(solver.blocks): default}
        shapes = _Shapes(len(vit.blocks), tried, random.Random(seed))
        for shape in tqdm(islice(shapes, candidates - 1), f"schedules of {method}", candidates - 1, leave=False):
            tried[shape] = _tried(solver, shape, first.wanted, judge)
    found = tuple(each for each in tried.values() if each is not None)
    finished = (each for each in found if each.images == len(images))
    return FoundSchedule(min(finished, key=lambda each: each.divergence), default, found)


def _tried(solver: BudgetSolver, shape: Shape, mac_cut: float, judge: _Judge) -> Candidate | None:
    """The candidate of a shape; None if it cannot meet the budget."""
    shaped = solver.shaped(shape.blocks, shape.shares)
    try:
        solution = shaped.solve(mac_cut=mac_cut)
    except OutOfReachError:
        return None
    return judge(shaped, solution) if abs(solution.mac_cut - mac_cut) <= CLOSE else None


class _Judge:
    """Measures how far a schedule is from the unreduced model on ``images``."""

    def __init__(self, vit: VisionTransformer, method: Method, images: Tensor, batch_size: int) -> None:
        self.vit, self.method = vit, method
        self.batches, self.best = images.split(batch_size), math.inf
        self.wanted = [self._logits(vit, batch) for batch in self.batches]

    def __call__(self, solver: BudgetSolver, solution: Solution) -> Candidate:
        schedule = Schedule(solution.keep_rate, solver.blocks)
        ratios = tuple(_ratio(kept, solver.patches) for kept in schedule.counts(solver.patches))
        schedule = Schedule(ratios, solver.blocks)
        how = {"keep_rate": schedule.keep_rate, "reduction_loc": schedule.reduction_loc}
        model = reduced.reduce_tokens(self.vit, self.method.name, **how, **dict(self.method.options))
        seen = torch.cat(list(self._divergences(model)))
        return Candidate(schedule, solution.mac_cut, seen.mean().item(), len(seen))

    def _divergences(self, model: VisionTransformer) -> Iterator[Tensor]:
        """Of every image, batch by batch; of the first batch alone, where it is far from the best there."""
        for place, (batch, wanted) in enumerate(zip(self.batches, self.wanted, strict=True)):
            found = divergence_by_image(self._logits(model, batch), wanted)
            yield found
            if not place:
                first = found.mean().item()
                if first > RACE * self.best:
                    return
                self.best = min(self.best, first)

    @torch.inference_mode()
    def _logits(self, model: VisionTransformer, batch: Tensor) -> Tensor:
        return model(batch.to(next(model.parameters()))).float().cpu()


class _Shapes:
    """Endless shapes to try, none twice; the later ones from the best in ``tried``, which whoever tries them fills."""

    def __init__(self, depth: int, tried: dict[Shape, Candidate | None], draw: random.Random) -> None:
        self.depth, self.tried, self.draw = depth, tried, draw

    def __iter__(self) -> Iterator[Shape]:
        yield from (Shape.even(tuple(range(start, self.depth, step))) for start, step in ((1, 2), (0, 1)))
        for _ in count():
            shape = self._child()
            while shape in self.tried:
                shape = self._child()
            yield shape

    def _child(self) -> Shape:
        most = max(each.images for each in self.tried.values() if each is not None)
        judged = {shape: each.divergence for shape, each in self.tried.items() if each and each.images == most}
        parent = self.draw.choice(sorted(judged, key=judged.get)[:PARENTS])
        stages = dict(zip(parent.blocks, parent.shares, strict=True))
        change = self.draw.choice([self._move, self._add, self._drop, self._weigh, self._weigh])
        change(stages)
        total = sum(stages.values()) / len(stages)
        return Shape(tuple(sorted(stages)), tuple(round(stages[block] / total, 3) for block in sorted(stages)))

    def _move(self, stages: dict[int, float]) -> None:
        block = self.draw.choice(sorted(stages))
        near = range(max(0, block - NEAR), min(self.depth, block + NEAR + 1))
        if free := [each for each in near if each not in stages]:
            stages[self.draw.choice(free)] = stages.pop(block)

    def _add(self, stages: dict[int, float]) -> None:
        if free := [block for block in range(self.depth) if block not in stages]:
            stages[self.draw.choice(free)] = self.draw.choice(list(stages.values()))

    def _drop(self, stages: dict[int, float]) -> None:
        if len(stages) > 1:
            del stages[self.draw.choice(sorted(stages))]

    def _weigh(self, stages: dict[int, float]) -> None:
        for block in sorted(stages):
            stages[block] *= 2 ** self.draw.gauss(0, SPREAD)


def _ratio(kept: int, patches: int) -> float:
    """A ratio of few digits of which ``kept`` of ``patches`` are left."""
    digits = 10 ** max(4, len(str(patches)) + 1)
    return -(-kept * digits // patches) / digits
