"""IdleViT: the patches that the CLS token attends to least idle, and compete again in the next block.

Xu, Li, Chen, Ye et al., "No Token Left Behind: Efficient Vision Transformer via Dynamic Token Idling", AJCAI 2023.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from common.options import Count, Many, NonNegative
from common.reducers.base import CLS_LOGITS, Signal, Signals, Teaching, divergence, register_reducer
from common.reducers.idling import Idling, append_block
from common.tokens import Choice, Gate, Tokens

CUT = "cut"


def cut_errors(logits: Tensor, computed: Tensor) -> Tensor:
    """Squared error (B, n) of every patch in the token cut loss; prefix tokens' errors are shared out evenly.

    With W the softmax rows of ``logits``, M = 1 for computed tokens, of which prefix tokens are some, and 0 for idle
    ones: ``sum_j abs(M_i - M_j) W_ij`` over patches j should be 0, and ``sum_j M_i M_j W_ij`` should be M_i. That is:
    attention stays inside the two sets.

    Args:
        logits: (B, N, N) of all tokens, prefix first.
        computed: (B, n) whether a patch is.
    """
    prefix = logits.shape[1] - computed.shape[1]
    member, weight = F.pad(computed.float(), (prefix, 0), value=1.0), logits.softmax(-1)
    across = ((member[:, :, None] - member[:, None]).abs() * weight)[..., prefix:].sum(-1)  # (B, N)
    inside = member * (weight @ member[..., None])[..., 0]  # (B, N)
    errors = across.square() + (inside - member).square()
    return errors[:, prefix:] + errors[:, :prefix].sum(1, keepdim=True) / computed.shape[1]


@register_reducer("idle_topk")
class IdleTopK(Idling):
    """Computes the patches of largest CLS logit, averaged over heads. Adds no parameters.

    Keys of all patches are projected for it, queries and values of the computed ones only, who see each other: 11 n d^2
    + N d^2 + 2 n^2 d a block for n of N tokens. The training loss adds::

        w_cut mean over blocks and tokens of the token cut loss + w_d (KL(teacher || model) + w_cls E)

    The second part with a teacher only. E is the mean over images and channels of the squared difference between the
    CLS tokens of both after the final norm, brought to length 1.

    Args:
        cut_weight: w_cut.
        distill_weight: w_d.
        cls_weight: w_cls.
        counts, re_entry: see :class:`common.reducers.idling.Idling`.
    """

    needs_class_token = True
    learns_from_signals = True  # the token cut loss does
    scored = "scaled product of the CLS token's query and the patch's key, mean over heads"
    wants_teacher = True

    def __init__(
        self,
        vit,
        schedule,
        *,
        counts: Many[Count] | None = None,
        re_entry: bool = True,
        cut_weight: NonNegative = 20.0,
        distill_weight: NonNegative = 5.0,
        cls_weight: NonNegative = 100.0,
    ) -> None:
        super().__init__(vit, schedule, attention="standard", counts=counts, re_entry=re_entry)
        self.cut_weight, self.distill_weight, self.cls_weight = cut_weight, distill_weight, cls_weight

    def needs(self, layer: int, tokens: Tokens) -> frozenset[Signal] | None:
        if not self.acts(layer, tokens):
            return None
        return frozenset({"logit_mean"}) if self.training else CLS_LOGITS

    def score(self, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Tensor]:
        logits = signals.logit_mean[:, 0] if self.training else signals.cls_logits  # (B, N)
        return tokens, logits[:, tokens.num_prefix_tokens :].detach()

    def select_queries(self, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Choice]:
        tokens, choice = super().select_queries(tokens, signals, layer)
        if isinstance(choice, Gate) and self.cut_weight:
            tokens = append_block(tokens, CUT, cut_errors(signals.logit_mean, choice.computed))
        return tokens, choice

    def training_loss(self, tokens: Tokens, logits: Tensor, teacher: Teaching | None) -> Tensor:
        loss = logits.new_zeros((), dtype=torch.float32)
        if CUT in tokens.carry:
            errors = tokens.carry[CUT]
            loss = loss + self.cut_weight * errors.sum(1).mean() / tokens.x.shape[1]
        if teacher is None:
            return loss
        own, wanted = F.normalize(tokens.x[:, 0].float(), dim=-1), F.normalize(teacher.prefix[:, 0], dim=-1)  # (B, D)
        taught = divergence(logits, teacher.logits) + self.cls_weight * F.mse_loss(own, wanted)
        return loss + self.distill_weight * taught
