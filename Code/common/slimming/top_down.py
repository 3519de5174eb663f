"""Top-down search of the tokens that each block can do without, and the tuning of the blocks to do without them.

Algorithm 1 of Tang et al., "Patch Slimming for Efficient Vision Transformers", CVPR 2022, as it is meant: the last
block computes the prefix tokens only; from there back, block l starts from the tokens of block l + 1 and adds the most
significant others, ``step`` at a time, until the output of block l + 1 is again as the original network gives it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from tqdm import tqdm

from common.cost.closed_form import Shape
from common.errors import UsageError
from common.models.observe import untouched
from common.models.reduced import is_reduced, reduce_tokens
from common.options import check_names, field_kinds
from common.reducers.slimming_plan import LayerRecord, SlimmingPlan, record_of
from common.slimming.allocation import allocate, error_curves, sensitivity
from common.slimming.branches import best_first, slimmed
from common.slimming.calibration import Calibration, check_backbone, digest, split, take
from common.slimming.ranking import block_scores, network_scores
from common.slimming.settings import SearchSettings
from common.slimming.trials import Trials
from common.slimming.tuning import LayerFeatures
from common.tokens import Tokens
from common.training.checkpoint import RunFolder


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

    >>> import torch
    >>> from common.models.factory import create_backbone
    >>> vit = create_backbone("vit_digits")
    >>> plan = search(vit, torch.rand(8, 3, 32, 32), lengths=(65, 33, 33, 17, 9, 1), epochs=1)
    >>> plan.lengths, reduce_tokens(vit, "patch_slimming", plan=plan)(torch.rand(2, 3, 32, 32)).shape
    ((65, 33, 33, 17, 9, 1), torch.Size([2, 10]))

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
    check_names(settings, field_kinds(SearchSettings), "setting of a search")
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
        self.images, self.how, self.shape = images, how, Shape.of(vit)
        self.tuned_on, self.measured_on = split(images, how.held_out, how.seed)
        self.teacher, self.student = reduce_tokens(copy.deepcopy(vit), "none"), reduce_tokens(vit, "none")
        settings = {**asdict(how), "images": len(images), "digest": digest(vit, images)}
        self.folder = None if output_dir is None else RunFolder(Path(output_dir).absolute(), settings)
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
        return {**shown, "images": len(self.images)}

    def _lengths(self) -> tuple[int, ...] | None:
        """The tokens of every block where they are not the search's own to find."""
        how = self.how
        if how.mac_budget is None:
            return how.lengths if how.lengths is None else self._checked(how.lengths)
        if self.records:
            return self.given
        scored, measured = self.tuned_on[: how.score_images], self.measured_on[: how.error_images]
        scores = network_scores(how.score, self.teacher, take(self.images, scored), how.scoring)
        curves = error_curves(sensitivity(self.teacher, take(self.images, measured), scores), self.num_patches)
        return allocate(curves, self.shape, how.mac_budget, how.counter)

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
        above = self.kept[layer + 1]
        scores = self._scores(layer, tuned_on, above)
        order = best_first(scores, above)
        sizes = self._sizes(len(order)) if length is None else [length - self.prefix - len(above)]
        tried = Trials(self.how, self.student.blocks[layer], layer)
        for size in sizes:
            self.kept[layer] = (*above, *order[:size])
            candidate = tried.add(slimmed(self.student, self._plan()), tuned_on, measured_on, self.kept[layer])
            if length is None and candidate.after[self.how.error_norm] <= self.how.tolerance:
                break
        self.kept[layer], reached = tried.best(self.how.tolerance)
        return LayerRecord(layer, tuple(scores.tolist()), tuple(tried.candidates), reached)

    def _sizes(self, available: int) -> list[int]:
        return [*range(0, available, self.how.step), available]

    def _scores(self, layer: int, features: LayerFeatures, above: tuple[int, ...]) -> Tensor:
        """Score (P,) in block ``layer``: below it the original network, above it the slim one."""
        model = slimmed(self.student, self._plan())
        return block_scores(self.how.score, model, self._scored(features), layer, self.how.scoring, above)

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

    def _save(self, lengths: Sequence[int] | None) -> None:
        if self.folder is None:
            return
        blocks = {str(record.layer): self.student.blocks[record.layer].state_dict() for record in self.records}
        state = {"blocks": blocks, "kept": dict(self.kept), "lengths": lengths}
        self.folder.save(state, [asdict(record) for record in self.records])

    def _resume(self) -> None:
        found = None if self.folder is None else self.folder.load()
        if found is None:
            return
        state, history = found
        self.records = [record_of(record) for record in history]
        self.kept = {int(layer): tuple(patches) for layer, patches in state["kept"].items()}
        self.given = state["lengths"]
        for layer, weights in state["blocks"].items():
            self.student.blocks[int(layer)].load_state_dict(weights)
