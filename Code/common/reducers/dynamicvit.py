"""DynamicViT: small predictors decide which patches go on, trained through a mask with straight-through gradients.

Rao et al., "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification", NeurIPS 2021.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.options import NonNegative
from common.precision import without_autocast
from common.reducers.base import Reducer, Teaching, divergence, init_linear, random_until_trained, register_reducer
from common.reducers.clustering import counts_where_dropping
from common.tokens import Selection, Tokens, top_in_order

EPS = 1e-6
DECISIONS = "decisions"


class Predictor(nn.Module):
    """Log-probability of keeping each patch, from the patch itself and the mean of those kept so far."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.classify = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, dim // 4), nn.GELU(), nn.Linear(dim // 4, 2)
        )
        init_linear(self)

    def forward(self, x: Tensor, policy: Tensor) -> Tensor:
        """Patches (B, n, D) and ``policy`` (B, n), 1 = alive -> log-probabilities (B, n, 2) of keep and drop."""
        with without_autocast(x.device):  # decisions rounded to half precision would tie
            own, shared = self.embed(x.to(self.embed[0].weight.dtype)).chunk(2, dim=-1)  # (B, n, D/2) each
            alive = policy[..., None].to(shared.dtype)  # (B, n, 1)
            # eps belongs into the denominator: with every patch dropped the mean is 0, not 0 / 0
            mean = (shared * alive).sum(1, keepdim=True) / (alive.sum(1, keepdim=True) + EPS)
            return self.classify(torch.cat([own, mean.expand_as(shared)], dim=-1)).float().log_softmax(-1)


@register_reducer("dynamicvit")
class DynamicViT(Reducer):
    """Predicts before each reduction block. Evaluation keeps the patches with the largest keep-probability.

    Training keeps all patches and masks the dropped ones in attention (:mod:`common.attention`): decisions are
    drawn from a Gumbel-softmax of temperature 1, hard with straight-through gradient; who is dropped stays dropped. The
    training loss asks for the scheduled ratios and, with a teacher, for its outputs::

        w_ratio (1/S) sum_s mean_b (mean_j D_sbj - ratio_s)^2 + w_distill KL(teacher || model) + w_token T

    The ratios are those of the scheduled counts, floor(P r^s) / P. T compares the patches after the final norm that the
    last stage keeps with the teacher's; it is 0 where none is kept. The labels' own loss has weight 1.

    Args:
        ratio_weight: w_ratio.
        distill_weight: w_distill, of the batch-mean Kullback-Leibler divergence of class probabilities.
        token_weight: w_token.
        token_loss: T is "mse", over kept patches and channels, or "kl", the divergence of their softmax rows.
    """

    masks = True
    selects = True
    scored = "predicted log-probability that the patch is kept"
    wants_teacher = True
    untrained = random_until_trained("which patches stay", "predictors")

    def __init__(
        self,
        vit,
        schedule,
        *,
        ratio_weight: NonNegative = 2.0,
        distill_weight: NonNegative = 0.5,
        token_weight: NonNegative = 0.5,
        token_loss: Literal["mse", "kl"] = "mse",
    ) -> None:
        super().__init__(vit, schedule)
        self.ratio_weight, self.distill_weight = ratio_weight, distill_weight
        self.token_weight, self.token_loss = token_weight, token_loss
        counts = counts_where_dropping(vit, schedule)
        self.ratios = [kept / vit.patch_embed.num_patches for kept in counts.values()]
        self.predictors = nn.ModuleDict({str(layer): Predictor(vit.embed_dim) for layer in counts})

    def before_block(self, tokens: Tokens, layer: int) -> Tokens:
        target = self.drops_at(layer, tokens)
        if str(layer) not in self.predictors or (target is None and not self.training):
            return tokens
        patches = tokens.patches
        policy = patches.new_ones(patches.shape[:2]) if tokens.policy is None else tokens.policy
        log_prob = self.predictors[str(layer)](patches, policy)  # (B, n, 2)
        if self.training:
            return self._masked(tokens, log_prob, policy)
        score = log_prob[..., 0]
        kept = top_in_order(score, target)  # (B, K)
        return tokens.with_scores(score).keep(Selection(kept))

    def _masked(self, tokens: Tokens, log_prob: Tensor, policy: Tensor) -> Tokens:
        policy = F.gumbel_softmax(log_prob, tau=1.0, hard=True)[..., 0] * policy  # (B, n)
        decisions = policy[..., None]
        if DECISIONS in tokens.carry:
            decisions = torch.cat([tokens.carry[DECISIONS], decisions], dim=-1)  # (B, n, stages so far)
        return replace(tokens, policy=policy).with_carry(**{DECISIONS: decisions})

    def training_loss(self, tokens: Tokens, logits: Tensor, teacher: Teaching | None) -> Tensor:
        loss = logits.new_zeros((), dtype=torch.float32)
        if DECISIONS in tokens.carry:
            kept = tokens.carry[DECISIONS].mean(1)  # (B, S)
            loss = loss + self.ratio_weight * (kept - kept.new_tensor(self.ratios)).square().mean()
        if teacher is None:
            return loss
        loss = loss + self.distill_weight * divergence(logits, teacher.logits)
        return loss + self.token_weight * self._token_loss(tokens, teacher.patches)

    def _token_loss(self, tokens: Tokens, teacher_patches: Tensor) -> Tensor:
        """T over the patches whose last decision is to keep; 0 when there is none."""
        own, wanted = tokens.patches.float(), teacher_patches.float()
        alive = torch.ones_like(own[..., 0]) if tokens.policy is None else tokens.policy.detach().float()
        if self.token_loss == "mse":
            each = (own - wanted).square().mean(-1)
        else:
            each = F.kl_div(own.log_softmax(-1), wanted.log_softmax(-1), reduction="none", log_target=True).sum(-1)
        return (each * alive).sum() / alive.sum().clamp(min=1)
