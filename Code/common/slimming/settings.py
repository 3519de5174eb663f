"""How a top-down search is to be done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.cost.methods import COUNTERS
from common.errors import UsageError
from common.options import Count, Many, NonNegative, Positive, Share, Whole, check_fields
from common.slimming.ranking import RANKINGS
from common.slimming.scores import Feature, HeadHandling, Scoring
from common.slimming.tuning import ErrorNorm, Tuning


@dataclass(frozen=True)
class SearchSettings:
    """How to search; one of the first three says how far.

    Args:
        tolerance: error, by ``error_norm``, that a block may make; the paper's 0.01 to 0.02 are of an unknown norm.
        mac_budget: share of the multiplications to spend, by ``counter``; shared out among the
            blocks so that the least error reaches the output before tuning, see :mod:`common.slimming.allocation`.
        lengths: tokens of every block, prefix tokens included; the last block computes these alone.
        step: patches to add at a time (the paper's r0).
        error_norm: "rel", "token", "mse" or "raw", see :func:`common.slimming.tuning.errors`.
        counter: "compact", what the slim model executes, or "paper", see :func:`common.cost.methods.slim_block_macs`.
        epochs, lr, batch_size: of the tuning of each candidate, see :class:`Tuning`; 0 epochs tune nothing.
        reset: every candidate starts from the original weights, not from those tuned for the one before.
        score: "significance", as published; "coverage", which leaves out what others stand for, see
            :mod:`common.slimming.coverage`; or a rival: "attention", "single_block", "random".
        head_handling, feature, shortcut, paths: of the significance, see :class:`Scoring`.
        score_images: images that patches are scored on, of those to tune on.
        error_images: held-out images that a budget is shared out on.
        held_out: share of the images that errors are measured on, and nothing is tuned on.
        chunk: images whose features are computed at once.
        cache_mb: memory for the features of one block; what does not fit is computed again in every epoch.
        seed: of the split, of the order of images and of sampled paths.
    """

    tolerance: NonNegative | None = None
    mac_budget: Share | None = None
    lengths: Many[Count] | None = None
    step: Count = 10
    error_norm: ErrorNorm = "rel"
    counter: Literal[COUNTERS] = "compact"
    epochs: Whole = 3
    lr: Positive = 1e-4
    batch_size: Count = 32
    reset: bool = False
    score: Literal[RANKINGS] = "significance"
    head_handling: HeadHandling = "path_energy"
    feature: Feature = "raw"
    shortcut: bool = False
    paths: Count = 64
    score_images: Count = 128
    error_images: Count = 32
    held_out: Share = 0.25
    chunk: Count = 32
    cache_mb: Whole = 1024
    seed: Whole = 0

    def __post_init__(self) -> None:
        check_fields(self)
        goals = [name for name in ("tolerance", "mac_budget", "lengths") if getattr(self, name) is not None]
        if len(goals) != 1:
            raise UsageError(f"a search needs one of tolerance, mac_budget and lengths; given: {goals or 'none'}")

    @property
    def scoring(self) -> Scoring:
        return Scoring(self.head_handling, self.feature, self.shortcut, self.paths, self.seed)

    @property
    def tuning(self) -> Tuning:
        return Tuning(self.epochs, self.lr, self.batch_size, self.error_norm)
