"""Top-down search of the tokens that each block can do without, and the tuning of the blocks to do without them.

Algorithm 1 of Tang et al., "Patch Slimming for Efficient Vision Transformers", CVPR 2022, as it is meant: the last
block computes the prefix tokens only; from there back, block l starts from the tokens of block l + 1 and adds the most
significant others, ``step`` at a time, until the output of block l + 1 is again as the original network gives it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from tqdm import tqdm

from common.errors import UsageError, require_choice
from common.explain.base import untouched
from common.models.reduced import is_reduced, reduce_tokens
from common.models.tokens import Tokens
from common.reducers.slimming_plan import Candidate, LayerRecord, SlimmingPlan, record_of
from common.results import resolve
from common.slimming.allocation import Curves, allocate, sensitivity
from common.slimming.baselines import SCORES
from common.slimming.branches import slimmed
from common.slimming.calibration import Calibration, check_backbone, digest, split, take
from common.slimming.costs import COUNTERS, Costs
from common.slimming.scores import Scoring, significances
from common.slimming.tuning import ERRORS, LayerFeatures, Tuning, measure, tune_block
from common.training.checkpoint import RunFolder
from common.training.config import check_names

LEAST = {"step": 1, "epochs": 0, "batch_size": 1, "score_images": 1, "error_images": 1, "chunk": 1}


@dataclass(frozen=True)
class SearchSettings:
    """How to search; one of the first three says how far.

    Args:
        tolerance: error, by ``error_norm``, that a block may make; the paper's 0.01 to 0.02 are of an unknown norm.
        mac_budget: share of the multiplications to spend, by ``counter``; every block gets as many tokens as make the
            same error at the output, before tuning, see :mod:`common.slimming.allocation`.
        lengths: tokens of every block, prefix tokens included; the last block computes these alone.
        step: patches to add at a time (the paper's r0).
        error_norm: "rel", "token", "mse" or "raw", see :func:`common.slimming.tuning.errors`.
        counter: "compact", what the slim model executes, or "paper".
        epochs, lr, batch_size: of the tuning of each candidate, see :class:`Tuning`; 0 epochs tune nothing.
        reset: every candidate starts from the original weights, not from those tuned for the one before.
        score: "significance", or a rival: "attention", "single_block", "random".
        head_handling, feature, shortcut, paths: of the significance, see :class:`Scoring`.
        score_images: images that patches are scored on, of those to tune on.
        error_images: held-out images that a budget is shared out on.
        held_out: share of the images that errors are measured on, and nothing is tuned on.
        chunk: images whose features are computed at once.
        cache_mb: memory for the features of one block; what does not fit is computed again in every epoch.
        seed: of the split, of the order of images and of sampled paths.
    """

    tolerance: float | None = None
    mac_budget: float | None = None
    lengths: tuple[int, ...] | None = None
    step: int = 10
    error_norm: str = "rel"
    counter: str = "compact"
    epochs: int = 3
    lr: float = 1e-4
    batch_size: int = 32
    reset: bool = False
    score: str = "significance"
    head_handling: str = "path_energy"
    feature: str = "raw"
    shortcut: bool = False
    paths: int = 64
    score_images: int = 128
    error_images: int = 32
    held_out: float = 0.25
    chunk: int = 32
    cache_mb: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        goals = [name for name in ("tolerance", "mac_budget", "lengths") if getattr(self, name) is not None]
        if len(goals) != 1:
            raise UsageError(f"a search needs one of tolerance, mac_budget and lengths; given: {goals or 'none'}")
        if self.tolerance is not None and not self.tolerance >= 0:
            raise UsageError(f"tolerance={self.tolerance!r} is not allowed; give an error >= 0")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"{name}={value!r} is not allowed; give a whole number >= {least}")
        for name, allowed in {"error_norm": ERRORS, "counter": COUNTERS, "score": SCORES}.items():
            require_choice(getattr(self, name), allowed, name)
        if self.lengths is not None:
            object.__setattr__(self, "lengths", tuple(self.lengths))
        _ = self.scoring  # refuses what it does not know

    @property
    def scoring(self) -> Scoring:
        return Scoring(self.head_handling, self.feature, self.shortcut, self.paths, self.seed)

    @property
    def tuning(self) -> Tuning:
        return Tuning(self.epochs, self.lr, self.batch_size, self.error_norm)


def search(
    model: VisionTransformer,
    calibration: Calibration,
    *,
    tolerance: float | None = None,
    mac_budget: float | None = None,
    lengths: Sequence[int] | None = None,
    output_dir: str | Path | None = None,
    **settings: Any,
) -> SlimmingPlan:
    """Find the plan of ``model`` and tune its blocks, in place, to follow it.

    Args:
        model: a timm backbone that classifies from its prefix tokens; afterwards its blocks are the tuned ones:
            ``reduce_tokens(model, "patch_slimming", plan=plan)`` is the slim model.
        calibration: images (n, 3, H, W), or a dataset of this package; no labels are used.
        tolerance, mac_budget, lengths: how far to go, one of the three, see :class:`SearchSettings`.
        output_dir: a folder where the search keeps each finished block, and from where a stopped one goes on.
        **settings: of :class:`SearchSettings`.

    Returns:
        The plan with its errors and scores. Where a tolerance cannot be met, the best candidate was taken, and its
        record says so (``LayerRecord.reached``).

    Raises:
        UsageError: a backbone that averages its patches, settings that do not fit, a folder of another search.
    """
    check_names(settings, [entry.name for entry in fields(SearchSettings)], "setting of a search")
    goal = {"tolerance": tolerance, "mac_budget": mac_budget, "lengths": lengths}
    how = SearchSettings(**goal, **settings)
    if is_reduced(model):
        raise UsageError("the model is reduced already; search the timm model it was made from")
    check_backbone(model)
    with untouched(model):
        return _Search(model, calibration, how, output_dir).run()


class _Search:
    """One search: what is decided so far, from the last block back."""

    def __init__(
        self, vit: VisionTransformer, images: Calibration, how: SearchSettings, output_dir: str | Path | None
    ) -> None:
        self.images, self.how, self.costs = images, how, Costs.of(vit)
        self.tuned_on, self.measured_on = split(images, how.held_out, how.seed)
        self.teacher, self.student = reduce_tokens(copy.deepcopy(vit), "none"), reduce_tokens(vit, "none")
        self.found_at = how.tolerance
        settings = {**asdict(how), "images": len(images), "digest": digest(vit, images)}
        self.folder = None if output_dir is None else RunFolder(resolve(output_dir), settings)
        self.depth, self.prefix, self.num_patches = len(vit.blocks), vit.num_prefix_tokens, vit.patch_embed.num_patches
        self.kept: dict[int, tuple[int, ...]] = {self.depth - 1: ()}
        self.records: list[LayerRecord] = []

    def run(self) -> SlimmingPlan:
        self._resume()
        lengths = self._lengths()
        todo = range(self.depth - 2 - len(self.records), -1, -1)
        with tqdm(todo, "blocks", initial=len(self.records), total=self.depth - 1) as bar:
            for layer in bar:
                record = self._search_block(layer, None if lengths is None else lengths[layer])
                self.records.append(record)
                self._save(lengths)
                error = record.candidates[-1].after[self.how.error_norm]
                bar.set_postfix(block=layer, tokens=self.prefix + len(self.kept[layer]), error=f"{error:.2g}")
        return replace(self._plan(), settings=self._described(lengths), layers=tuple(self.records[::-1]))

    def _described(self, lengths: Sequence[int] | None) -> dict[str, Any]:
        """Plain values for the plan's file."""
        shown = {key: value for key, value in asdict(self.how).items() if value is not None and key != "lengths"}
        if lengths is not None:
            shown["lengths"] = list(lengths)
        return {**shown, "tolerance": self.found_at, "images": len(self.images)}

    def _lengths(self) -> tuple[int, ...] | None:
        """The tokens of every block where they are not the search's own to find."""
        how = self.how
        if how.mac_budget is None:
            return how.lengths if how.lengths is None else self._checked(how.lengths)
        if self.records:
            return self.given
        scored, measured = self.tuned_on[: how.score_images], self.measured_on[: how.error_images]
        scores = significances(self.teacher, take(self.images, scored), range(self.depth - 1), how.scoring)
        curves = Curves(sensitivity(self.teacher, take(self.images, measured), scores), self.num_patches)
        lengths, self.found_at = allocate(curves, self.costs, how.mac_budget, how.counter)
        return lengths

    def _checked(self, lengths: Sequence[int]) -> tuple[int, ...]:
        wanted = [self.prefix + self.num_patches, *lengths]
        falls = all(a >= b for a, b in zip(wanted, lengths, strict=False))
        if len(lengths) != self.depth or not falls or lengths[-1] != self.prefix:
            raise UsageError(
                f"lengths={list(lengths)} are not allowed; give {self.depth} numbers of tokens, from at most "
                f"{wanted[0]} down to {self.prefix} in the last block, that never grow"
            )
        return tuple(lengths)

    def _search_block(self, layer: int, length: int | None) -> LayerRecord:
        """Try candidates for block ``layer`` until one is good enough, and keep the weights tuned for it."""
        rows = self._plan().masks[layer + 1]
        memory = {"chunk": self.how.chunk, "cache": self.how.cache_mb * 2**20 // 2}
        tuned_on, measured_on = (
            LayerFeatures(self.teacher, self.images, places, layer, rows, **memory)
            for places in (self.tuned_on, self.measured_on)
        )
        scores = self._scores(layer, tuned_on)
        above = self.kept[layer + 1]
        order = [patch for patch in scores.argsort(descending=True, stable=True).tolist() if patch not in set(above)]
        sizes = self._sizes(len(order)) if length is None else [length - self.prefix - len(above)]
        tried = _Trials(self.how, self.student.blocks[layer], layer)
        for size in sizes:
            self.kept[layer] = (*above, *order[:size])
            candidate = tried.add(slimmed(self.student, self._plan()), tuned_on, measured_on, self.kept[layer])
            if length is None and candidate.after[self.how.error_norm] <= self.how.tolerance:
                break
        self.kept[layer], reached = tried.best(self.how.tolerance)
        return LayerRecord(layer, tuple(scores.tolist()), tuple(tried.candidates), reached)

    def _sizes(self, available: int) -> list[int]:
        return [*range(0, available, self.how.step), available]

    def _scores(self, layer: int, features: LayerFeatures) -> Tensor:
        """Mean score (P,) in block ``layer``: below it the original network, above it the slim one."""
        model, total, count = slimmed(self.student, self._plan()), 0, 0
        with torch.inference_mode():
            for number, (inputs, _) in enumerate(features):
                tokens = Tokens(inputs[: self.how.score_images - count], self.prefix, self.num_patches)
                scores = SCORES[self.how.score](model, tokens, layer, self.how.scoring, number)
                total, count = total + scores.double().sum(0).cpu(), count + len(tokens.x)
                if count >= self.how.score_images:
                    break
        return total / count

    def _plan(self) -> SlimmingPlan:
        """What is decided; blocks that are not keep everything."""
        kept = [self.kept.get(layer, range(self.num_patches)) for layer in range(self.depth)]
        return SlimmingPlan.of_patches(kept, self.num_patches, self.prefix)

    def _save(self, lengths: Sequence[int] | None) -> None:
        if self.folder is None:
            return
        blocks = {str(record.layer): self.student.blocks[record.layer].state_dict() for record in self.records}
        state = {"blocks": blocks, "kept": dict(self.kept), "lengths": lengths, "tolerance": self.found_at}
        self.folder.save(state, [asdict(record) for record in self.records])

    def _resume(self) -> None:
        found = None if self.folder is None else self.folder.load()
        if found is None:
            return
        state, history = found
        self.records = [record_of(record) for record in history]
        self.kept = {int(layer): tuple(patches) for layer, patches in state["kept"].items()}
        self.given, self.found_at = state["lengths"], state["tolerance"]
        for layer, weights in state["blocks"].items():
            self.student.blocks[int(layer)].load_state_dict(weights)


class _Trials:
    """The candidates of one block and the best of them, with its weights."""

    def __init__(self, how: SearchSettings, block: torch.nn.Module, layer: int) -> None:
        self.how, self.block, self.layer = how, block, layer
        self.generator = torch.Generator().manual_seed(how.seed * 1_000_003 + layer)
        self.start = copy.deepcopy(block.state_dict())
        self.candidates: list[Candidate] = []
        self._best: tuple[float, tuple[int, ...], dict[str, Tensor]] | None = None

    def add(self, model, tuned_on: LayerFeatures, measured_on: LayerFeatures, patches: tuple[int, ...]) -> Candidate:
        """Tune the block for ``patches``, which ``model`` follows, and measure it before and after."""
        if self.how.reset:
            self.block.load_state_dict(self.start)
        before = measure(model, self.layer, measured_on)
        tune_block(model, self.layer, tuned_on, self.how.tuning, self.generator)
        after = measure(model, self.layer, measured_on) if self.how.epochs else before
        candidate = Candidate(model.num_prefix_tokens + len(patches), before, after)
        self.candidates.append(candidate)
        error = after[self.how.error_norm]
        if self._best is None or error < self._best[0]:
            self._best = (error, patches, copy.deepcopy(self.block.state_dict()))
        return candidate

    def best(self, tolerance: float | None) -> tuple[tuple[int, ...], bool]:
        """Patches of the best candidate, whose weights the block now has, and whether it met the tolerance."""
        error, patches, weights = self._best
        self.block.load_state_dict(weights)
        return patches, tolerance is None or error <= tolerance
