"""Parts of the training losses that methods bring along."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def divergence(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence of a model's class probabilities from its teacher's, mean over the batch."""
    own, wanted = logits.float().log_softmax(-1), teacher_logits.float().log_softmax(-1)
    return F.kl_div(own, wanted, reduction="batchmean", log_target=True)
