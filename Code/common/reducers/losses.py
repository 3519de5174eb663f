"""Parts of the training losses that methods bring along."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from common.errors import UsageError


def require_weight(value: float, what: str) -> float:
    """Return ``value`` if it can weigh a term of a loss."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise UsageError(f"{what}={value!r} is not allowed; allowed: a number >= 0")
    return value


def divergence(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence of a model's class probabilities from its teacher's, mean over the batch."""
    own, wanted = logits.float().log_softmax(-1), teacher_logits.float().log_softmax(-1)
    return F.kl_div(own, wanted, reduction="batchmean", log_target=True)
