"""Top-down search of the tokens that each block can do without, and the tuning of the blocks to do without them.

Algorithm 1 of Tang et al., "Patch Slimming for Efficient Vision Transformers", CVPR 2022, as it is meant: the last
block computes the prefix tokens only; from there back, block l starts from the tokens of block l + 1 and adds the most
significant others, ``step`` at a time, until the output of block l + 1 is again as the original network gives it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from tqdm import tqdm

from common.cost.closed_form import Shape
from common.cost.methods import COUNTERS
from common.data.unlabelled import Calibration, Images, as_calibration, digest, split, take
from common.errors import UsageError
from common.models.observe import untouched
from common.models.reduced import reduce_tokens
from common.models.support import check_supported, has_head
from common.options import Count, Many, NonNegative, Share, Whole, check_names, field_kinds
from common.reducers.slimming_plan import Candidate, LayerRecord, SlimmingPlan, record_of
from common.slimming.allocation import (
    FALLING,
    SHARINGS,
    TAPER,
    TAPERED,
    UNIFORM,
    allocate,
    best_tapered,
    error_curves,
    sensitivity,
    tapered_lengths,
    uniform_lengths,
)
from common.slimming.plans import best_first, slimmed
from common.slimming.ranking import SCORES, block_scores, network_scores
from common.slimming.scores import Scoring, check_backbone
from common.slimming.tuning import LayerFeatures, Tuning, measure, tune_block
from common.tokens import Tokens
from common.training.checkpoint import RunFolder

GOALS = ("tolerance", "mac_budget", "mac_cut", "lengths")


@dataclass(frozen=True)
class SearchSettings(Tuning, Scoring):
    """How to search, to score (see :class:`Scoring`) and to tune each candidate (see :class:`Tuning`).

    Args:
        tolerance: error, by ``error_norm``, that a block may make; the paper's 0.01 to 0.02 are of an unknown norm.
        mac_budget: share of the multiplications to spend, by ``counter``, shared out among the blocks before tuning.
        mac_cut: the same as the share to save.
        lengths: tokens of every block, prefix tokens included; the last block computes these alone. One of these
            four says how far to go.
        step: patches to add at a time (the paper's r0).
        sharing: how a budget is shared out, see :mod:`common.slimming.allocation`: "falling", evenly from a first block
            of 20 % more tokens than the mean of all to a last one of 20 % less; "uniform", as many in every block;
            "learned", so that the blocks, each by itself, add the least error to the output; "tapered", by the best of
            eight families of lengths, the first two among them, whose whole networks are measured.
        counter: "compact", what the slim model executes, or "paper", see :func:`common.cost.methods.slim_block_macs`.
        reset: every candidate starts from the original weights, not from those tuned for the one before.
        score: by which patches are added: "significance", as published, or another of :mod:`common.slimming.ranking`.
        score_images: images that patches are scored on, of those to tune on.
        error_images: held-out images that a budget is shared out on.
        held_out: share of the images that errors are measured on, and nothing is tuned on.
        chunk: images whose features are computed at once.
        cache_mb: memory for the features of one block; what does not fit is computed again in every epoch.
        seed: of the split, of the order of images and of sampled paths.
    """

    tolerance: NonNegative | None = None
    mac_budget: Share | None = None
    mac_cut: Share | None = None
    lengths: Many[Count] | None = None
    step: Count = 10
    sharing: Literal[SHARINGS] = FALLING
    counter: Literal[COUNTERS] = "compact"
    reset: bool = False
    score: Literal[SCORES] = "significance"
    score_images: Count = 512
    error_images: Count = 32
    held_out: Share = 0.25
    chunk: Count = 32
    cache_mb: Whole = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        goals = [name for name in GOALS if getattr(self, name) is not None]
        if len(goals) != 1:
            raise UsageError(f"a search needs one of {', '.join(GOALS)}; given: {', '.join(goals) or 'none'}")

    @property
    def budget(self) -> float | None:
        """The share of the multiplications to spend, where the goal is one."""
        return self.mac_budget if self.mac_cut is None else 1 - self.mac_cut


def search(
    model: VisionTransformer, images: Images, *, output_dir: str | Path | None = None, **settings: Any
) -> SlimmingPlan:
    """Find the plan of ``model`` and tune its blocks, in place, to follow it.

    >>> import torch
    >>> from common.models.factory import create_backbone
    >>> vit = create_backbone("vit_digits")
    >>> plan = search(vit, torch.rand(8, 3, 32, 32), lengths=(65, 33, 33, 17, 9, 1), epochs=1)
    >>> plan.lengths, reduce_tokens(vit, "patch_slimming", plan=plan)(torch.rand(2, 3, 32, 32)).shape
    ((65, 33, 33, 17, 9, 1), torch.Size([2, 10]))

    Args:
        model: a timm backbone that classifies from its prefix tokens; afterwards its blocks are the tuned ones:
            ``reduce_tokens(model, "patch_slimming", plan=plan)`` is the slim model.
        images: (N, 3, H, W), normalised as the weights expect; a ``Dataset`` of images or of tuples that begin with
            one; or a ``DataLoader``. No labels are used. A dataset of this package is decoded as it is needed.
        output_dir: a folder where the search keeps each finished block, and from where a stopped one goes on.
        **settings: of :class:`SearchSettings`; ``mac_cut``, ``mac_budget``, ``tolerance`` or ``lengths`` says how far
            to go.

    Returns:
        The plan with its errors and scores. Where a tolerance cannot be met, the best candidate was taken, and its
        record says so (``LayerRecord.reached``).

    Raises:
        UsageError: a backbone that averages its patches, settings or images that do not fit, a folder of another
            search.
    """
    check_names(settings, field_kinds(SearchSettings), "setting of a search")
    how = SearchSettings(**settings)
    check_supported(model)
    if len(model.blocks) < 2:
        raise UsageError("a model of one block is given, whose patches no other block reads; give two blocks or more")
    check_backbone(model)
    if how.sharing == TAPERED and not has_head(model):
        others = ", ".join(repr(name) for name in SHARINGS if name != TAPERED)
        raise UsageError(f"sharing={TAPERED!r} compares class probabilities; this backbone has no head; give {others}")
    if how.budget is not None:
        uniform_lengths(Shape.of(model), how.budget, how.counter)  # refuses what no lengths can meet
    calibration = as_calibration(images, model)
    with untouched(model):
        return _Search(model, calibration, how, output_dir).run()


class _Search:
    """One search: what is decided so far, from the last block back."""

    def __init__(
        self, vit: VisionTransformer, images: Calibration, how: SearchSettings, output_dir: str | Path | None
    ) -> None:
        self.images, self.how, self.shape = images, how, Shape.of(vit)
        self.tuned_on, self.measured_on = split(images, how.held_out, how.seed)
        self.teacher, self.student = reduce_tokens(copy.deepcopy(vit), "none"), reduce_tokens(vit, "none")
        settings = {**asdict(how), "images": len(images), "digest": digest(vit, images)}
        self.folder = None if output_dir is None else RunFolder(Path(output_dir).absolute(), settings)
        self.depth, self.prefix, self.num_patches = len(vit.blocks), vit.num_prefix_tokens, vit.patch_embed.num_patches
        self.lengths: Sequence[int] | None = None  # where they are not the search's own to find
        self.kept: dict[int, tuple[int, ...]] = {self.depth - 1: ()}
        self.records: list[LayerRecord] = []

    def run(self) -> SlimmingPlan:
        self._resume()
        if not self.records:
            self.lengths = self._given_lengths()
        todo = range(self.depth - 2 - len(self.records), -1, -1)
        with tqdm(todo, "blocks", initial=len(self.records), total=self.depth - 1) as bar:
            for layer in bar:
                self.records.append(self._search_block(layer))
                self._save()
                error = self.records[-1].candidates[-1].after[self.how.error_norm]
                bar.set_postfix(block=layer, tokens=self.prefix + len(self.kept[layer]), error=f"{error:.2g}")
        lengths = None if self.lengths is None else list(self.lengths)
        settings = {**asdict(self.how), "lengths": lengths, "images": len(self.images)}
        settings = {key: value for key, value in settings.items() if value is not None}
        return replace(self._plan(), settings=settings, layers=tuple(self.records[::-1]))

    def _given_lengths(self) -> Sequence[int] | None:
        """The tokens of every block by the settings: as they are given, or shared out by a budget."""
        how = self.how
        if how.budget is None:
            return how.lengths if how.lengths is None else self._checked(how.lengths)
        if how.sharing == UNIFORM:
            return uniform_lengths(self.shape, how.budget, how.counter)
        if how.sharing == FALLING:
            return tapered_lengths(self.shape, how.budget, TAPER, counter=how.counter)
        scored = take(self.images, self.tuned_on[: how.score_images])
        held_out = take(self.images, self.measured_on[: how.error_images])
        scores = network_scores(how.score, self.teacher, scored, how)
        if how.sharing == TAPERED:
            return best_tapered(self.teacher, held_out, scores, how.budget, how.counter)
        curves = error_curves(sensitivity(self.teacher, held_out, scores), self.num_patches)
        return allocate(curves, self.shape, how.budget, how.counter)

    def _checked(self, lengths: Sequence[int]) -> Sequence[int]:
        wanted = [self.prefix + self.num_patches, *lengths]
        falls = all(a >= b for a, b in zip(wanted, lengths, strict=False))
        if len(lengths) != self.depth or not falls or lengths[-1] != self.prefix:
            raise UsageError(
                f"lengths={list(lengths)} are not allowed; give {self.depth} numbers of tokens, from at most "
                f"{wanted[0]} down to {self.prefix} in the last block, that never grow"
            )
        return lengths

    def _search_block(self, layer: int) -> LayerRecord:
        """Try candidates for block ``layer`` until one is good enough, and keep the weights tuned for the best."""
        how, above, block = self.how, self.kept[layer + 1], self.student.blocks[layer]
        tuned_on, measured_on = self._features(layer, self.tuned_on), self._features(layer, self.measured_on)
        # below the block the original network, above it the slim one
        model, entering = slimmed(self.student, self._plan()), self._scored(tuned_on)
        scores = block_scores(how.score, model, entering, layer, how, above)
        order = best_first(scores, above)
        sizes = [*range(0, len(order), how.step), len(order)]
        if self.lengths is not None:
            sizes = [self.lengths[layer] - self.prefix - len(above)]
        generator = torch.Generator().manual_seed(how.seed * 1_000_003 + layer)
        start, candidates, least = copy.deepcopy(block.state_dict()), [], math.inf
        for size in sizes:
            if how.reset:
                block.load_state_dict(start)
            self.kept[layer] = (*above, *order[:size])
            candidates.append(self._tuned(layer, tuned_on, measured_on, generator))
            error = candidates[-1].after[how.error_norm]
            if len(candidates) == 1 or error < least:
                least, best = error, (self.kept[layer], copy.deepcopy(block.state_dict()))
            if how.tolerance is not None and error <= how.tolerance:
                break
        self.kept[layer], weights = best
        block.load_state_dict(weights)
        reached = how.tolerance is None or least <= how.tolerance
        return LayerRecord(layer, tuple(scores.tolist()), tuple(candidates), reached)

    def _features(self, layer: int, places: Tensor) -> LayerFeatures:
        memory = {"chunk": self.how.chunk, "cache": self.how.cache_mb * 2**20 // 2}
        return LayerFeatures(self.teacher, self.images, places, layer, self._plan().masks[layer + 1], **memory)

    def _tuned(
        self, layer: int, tuned_on: LayerFeatures, measured_on: LayerFeatures, generator: torch.Generator
    ) -> Candidate:
        """Tune block ``layer`` for the patches that it keeps now, and measure it before and after."""
        model = slimmed(self.student, self._plan())
        before = measure(model, layer, measured_on)
        tune_block(model, layer, tuned_on, self.how, generator)
        after = measure(model, layer, measured_on) if self.how.epochs else before
        return Candidate(self.prefix + len(self.kept[layer]), before, after)

    def _scored(self, features: LayerFeatures) -> Iterator[Tokens]:
        """What enters the block of ``features``, of as many images as are scored."""
        left = self.how.score_images
        for inputs, _ in features:
            yield Tokens(inputs[:left], self.prefix, self.student.patch_embed.grid_size)
            left -= len(inputs)
            if left <= 0:
                return

    def _plan(self) -> SlimmingPlan:
        """What is decided; blocks that are not keep everything."""
        kept = [self.kept.get(layer, range(self.num_patches)) for layer in range(self.depth)]
        return SlimmingPlan.of_patches(kept, self.num_patches, self.prefix)

    def _save(self) -> None:
        if self.folder is not None:
            blocks = {str(record.layer): self.student.blocks[record.layer].state_dict() for record in self.records}
            state = {"blocks": blocks, "kept": dict(self.kept), "lengths": self.lengths}
            self.folder.save(state, [asdict(record) for record in self.records])

    def _resume(self) -> None:
        found = None if self.folder is None else self.folder.load()
        if found is None:
            return
        state, history = found
        self.records, self.lengths = [record_of(record) for record in history], state["lengths"]
        self.kept = {int(layer): tuple(patches) for layer, patches in state["kept"].items()}
        for layer, weights in state["blocks"].items():
            self.student.blocks[int(layer)].load_state_dict(weights)
