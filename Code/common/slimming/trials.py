"""The candidates of one block in a search: tuned, measured, the best of them kept."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from common.models.reduced import ReducedVisionTransformer
from common.reducers.slimming_plan import Candidate
from common.slimming.settings import SearchSettings
from common.slimming.tuning import LayerFeatures, measure, tune_block


class Trials:
    """The candidates of one block and the best of them, with its weights."""

    def __init__(self, how: SearchSettings, block: torch.nn.Module, layer: int) -> None:
        self.how, self.block, self.layer = how, block, layer
        self.generator = torch.Generator().manual_seed(how.seed * 1_000_003 + layer)
        self.start = copy.deepcopy(block.state_dict())
        self.candidates: list[Candidate] = []
        self._best: tuple[float, tuple[int, ...], dict[str, Tensor]] | None = None

    def add(
        self,
        model: ReducedVisionTransformer,
        tuned_on: LayerFeatures,
        measured_on: LayerFeatures,
        patches: tuple[int, ...],
    ) -> Candidate:
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
