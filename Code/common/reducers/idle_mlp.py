"""Idling MLP: a small MLP per block predicts which patches the block would hardly change, and lets them idle.

Its report calls these MLPs pruners; here they are predictors, as in all methods that have some.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UsageError
from common.options import Count, NonNegative, Share
from common.precision import without_autocast
from common.reducers.base import Signals, Teaching, divergence, register_reducer
from common.reducers.idling import append_block
from common.reducers.similarity import IdlingBySimilarity
from common.tokens import Tokens

Context = Literal["none", "cls", "conv", "both"]
LOGITS, LABELS, GATES = "logits", "labels", "gates"
MOST_POSITIVE_WEIGHT = 10.0


class Predictor(nn.Module):
    """Logit of computing each patch, from its own features and perhaps what is around it.

    Args:
        dim: D. hidden: width of the only hidden layer.
        context: of "none"; "cls": the first prefix token (the mean of the patches where there is none); "conv": 3 x 3
            neighbours in a projection to ``hidden`` / 2 channels; "both".
    """

    def __init__(self, dim: int, hidden: int, context: Context) -> None:
        super().__init__()
        self.own, self.out = nn.Linear(dim, hidden), nn.Linear(hidden, 1)
        # the layer over [patch, CLS] in two parts: that of the CLS token is computed once for all patches
        self.cls = nn.Linear(dim, hidden, bias=False) if context in ("cls", "both") else None
        self.squeeze = self.around = self.expand = None
        if context in ("conv", "both"):
            width = max(1, hidden // 2)
            self.squeeze, self.expand = nn.Linear(dim, width, bias=False), nn.Linear(width, hidden, bias=False)
            self.around = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)

    def forward(self, prefix: Tensor, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Prefix tokens (B, N - P, D) and patches (B, P, D) of ``grid`` (rows, columns) -> logits (B, P), float32."""
        with without_autocast(patches.device):
            prefix, patches = prefix.to(self.own.weight.dtype), patches.to(self.own.weight.dtype)
            hidden = self.own(patches)  # (B, P, hidden)
            if self.cls is not None:
                whole = prefix[:, :1] if prefix.shape[1] else patches.mean(1, keepdim=True)  # (B, 1, D)
                hidden = hidden + self.cls(whole)
            if self.around is not None:
                squeezed = self.squeeze(patches).transpose(1, 2).unflatten(2, grid)  # (B, hidden / 2, rows, columns)
                hidden = hidden + self.expand(self.around(squeezed).flatten(2).transpose(1, 2))
            return self.out(hidden.relu())[..., 0].float()


@register_reducer("idle_mlp")
class IdleMlp(IdlingBySimilarity):
    """Computes the patches whose predicted chance of changing is high; p = sigmoid(W2 relu(W1 x_i + b1) + b2).

    A patch's label in a block is 1 (compute it) where the similarity of its features before and after the whole block,
    perhaps weighted by its influence, lies below ``tau``. With ``keep_rate`` below 1, or ``counts``, the patches of
    largest p are computed. With a ``score_threshold`` instead, those with p >= threshold, in every image of a batch its
    own number. Its buffer ``thresholds`` (depth,) holds one for each block, 0 = compute all and predict nothing;
    :func:`common.idling.budget.solve_thresholds` fills it for a number of MACs.

    Training has two stages. ``learns="labels"``: binary cross-entropy against the labels, on the states that the gates
    of the blocks before lead to; predictors only (``reducer_only`` of :class:`common.training.TrainConfig`). "task":
    the gates pass gradients straight through to p, and the loss adds, the former with a teacher::

        w_d KL(teacher || model) + w_b (mean of the gates - keep_target)^2

    A file of weights may hold predictors of blocks in which a ``keep_rate`` computes everything; they are left out.

    Args:
        score_threshold: decide by p; not with ``keep_rate`` below 1 or ``counts``.
        tau: of the labels.
        hidden, context: of the predictors, see :class:`Predictor`.
        learns: "labels" or "task".
        on_policy: share of images whose patches idle, block by block, while labels are learnt; the rest is computed.
        distill_weight: w_d.
        budget_weight: w_b.
        keep_target: share of patches to compute, mean over the blocks that act; None = no such term.
        shared: see :class:`common.reducers.similarity.IdlingBySimilarity`.
    """

    by_rate = False
    learns_from_signals = True
    scored = "predicted chance that the block changes the patch"
    wants_teacher = True
    untrained = "which patches idle is random: the predictors are untrained; common.idling.fit trains some"

    def __init__(
        self,
        vit,
        schedule,
        *,
        score_threshold: Share | None = None,
        tau: float = 0.95,
        hidden: Count = 64,
        context: Context = "none",
        learns: Literal["labels", "task"] = "task",
        on_policy: Share = 0.5,
        distill_weight: NonNegative = 1.0,
        budget_weight: NonNegative = 2.0,
        keep_target: Share | None = None,
        **shared,
    ) -> None:
        super().__init__(vit, schedule, **shared)
        self.tau, self.learns, self.on_policy = tau, learns, on_policy
        self.distill_weight, self.budget_weight, self.keep_target = distill_weight, budget_weight, keep_target
        self.by_score = self.adaptive = score_threshold is not None
        if self.by_score:
            self._require_all_kept("score_threshold", vit.patch_embed.num_patches)
            if self.counts is not None:
                raise UsageError("score_threshold with counts is not possible; give one of them")
            self.register_buffer("thresholds", torch.full((self.depth,), score_threshold, device="cpu"))
        always = self.by_score or vit.dynamic_img_size
        acting = [layer for layer in self.blocks if always or self.count(layer, vit.patch_embed.num_patches)]
        self.predictors = nn.ModuleDict({str(layer): Predictor(vit.embed_dim, hidden, context) for layer in acting})
        self.register_load_state_dict_pre_hook(_leave_out_resting)

    def caution(self) -> str:
        if self._computes_all and self.last_block == "whole":
            what = "thresholds of 0 in all blocks" if self.by_score else "no score_threshold and keep_rate 1"
            return (
                f"idle_mlp with {what} computes every patch and saves nothing; common.idling.fit makes one that saves"
            )
        return super().caution()

    @property
    def _computes_all(self) -> bool:
        if self.by_score:
            return not (self.thresholds > 0).any()
        return not self.predictors or (self.counts is None and self.schedule.keep_rate == 1.0)

    @property
    def compares(self) -> bool:
        return self.training and self.learns == "labels"

    def acts(self, layer: int, tokens: Tokens) -> bool:
        if not self.by_score:
            return super().acts(layer, tokens)
        asked = self.thresholds[layer] if self.re_entry else self.thresholds[: layer + 1].max()  # who idled stays idle
        return bool(asked > 0)

    def score(self, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Tensor]:
        logits = self.predictors[str(layer)](tokens.prefix.detach(), tokens.patches.detach(), tokens.grid_size)
        if signals.output is not None:
            tokens = append_block(tokens, LOGITS, logits)
            tokens = append_block(tokens, LABELS, self.labels(tokens, signals.output, layer))
        return tokens, logits.sigmoid()

    def labels(self, tokens: Tokens, output: Tensor, layer: int) -> Tensor:
        """Of each patch (B, P): 1.0 where block ``layer``, whose output is (B, N, D), changes more than tau allows."""
        return (self.patch_similarity(tokens, output, layer) < self.tau).float()

    def passes(self, score: Tensor, layer: int) -> Tensor:
        return score >= self.thresholds[layer]

    def select_queries(self, tokens: Tokens, signals: Signals, layer: int):
        tokens, choice = super().select_queries(tokens, signals, layer)
        return (append_block(tokens, GATES, choice.gate), choice) if self.training else (tokens, choice)

    def gate(self, computed: Tensor, score: Tensor) -> Tensor:
        hard = computed.float()
        if self.learns == "task":
            return hard + score - score.detach()
        whole = torch.rand(len(hard), 1, device=hard.device) >= self.on_policy
        return torch.where(whole, 1.0, hard)

    def training_loss(self, tokens: Tokens, logits: Tensor, teacher: Teaching | None) -> Tensor:
        loss = logits.new_zeros((), dtype=torch.float32)
        if self.learns == "labels":
            return self._label_loss(tokens) if LOGITS in tokens.carry else loss
        if self.keep_target is not None and GATES in tokens.carry:
            loss = loss + self.budget_weight * (tokens.carry[GATES].mean() - self.keep_target).square()
        return loss if teacher is None else loss + self.distill_weight * divergence(logits, teacher.logits)

    def _label_loss(self, tokens: Tokens) -> Tensor:
        """Sum over blocks of the mean cross-entropy; positives weigh as much as negatives together, within bounds."""
        logits, labels = tokens.carry[LOGITS], tokens.carry[LABELS]
        positive = labels.sum((0, 1))
        negative = labels[..., 0].numel() - positive
        weight = (negative / positive.clamp(min=1)).clamp(1 / MOST_POSITIVE_WEIGHT, MOST_POSITIVE_WEIGHT)
        each = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight, reduction="none")
        return each.mean((0, 1)).sum()


def _leave_out_resting(module: IdleMlp, state: dict[str, Tensor], prefix: str, *_) -> None:
    """Forget predictors of blocks in which ``module`` has none, and thresholds where it decides by numbers."""
    for name in [name for name in state if name.startswith(prefix)]:
        kind, _, rest = name.removeprefix(prefix).partition(".")
        resting = kind == "predictors" and rest.partition(".")[0] not in module.predictors
        if resting or (kind == "thresholds" and not module.by_score):
            del state[name]
