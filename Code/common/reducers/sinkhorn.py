"""Sinkhorn: tokens are shared out among learned prototypes by optimal transport.

Cuturi, "Sinkhorn Distances", NeurIPS 2013; as a soft-merging method in Haurum et al., "Which Tokens to Use?
Investigating Token Reduction in Vision Transformers", ICCVW 2023.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.options import Count, Positive
from common.reducers.base import Reducer, random_until_trained, register_reducer
from common.reducers.clustering import counts_where_dropping
from common.tokens import Tokens


def transport(score: Tensor, iterations: int) -> Tensor:
    """How much of each token goes to each cluster (B, K, n), float32; every token hands out exactly 1.

    Alternates f_k = log mu - LSE_j(S_kj + g_j) and g_j = log nu - LSE_k(S_kj + f_k). Constant marginals mu and nu only
    shift f and g against each other, so normalising rows and columns of S in turn gives the same plan.

    Args:
        score: (B, K, n) S, similarities over the temperature.
        iterations: of both updates. The more, the closer every cluster comes to n / K.
    """
    log_plan = score.float()
    for _ in range(iterations):
        log_plan = log_plan.log_softmax(2).log_softmax(1)
    return log_plan.exp()


@register_reducer("sinkhorn")
class Sinkhorn(Reducer):
    """Merges before each reduction block into sums of unit vectors; prefix tokens pass untouched.

    Scores are cosines of tokens and learned prototypes over ``eps``. A merged token is the sum of the normalised tokens
    times what they give: its norm is up to n / K, the scale of the residual stream is lost. A traced patch belongs to
    the merged token that it gives most.

    Args:
        eps: temperature; at 1 tokens are shared out almost evenly.
        cluster_iters: Sinkhorn iterations.
    """

    family = "mixes"
    clusters = True
    untrained = random_until_trained("what patches are merged into", "prototypes")

    def __init__(self, vit, schedule, *, eps: Positive = 1.0, cluster_iters: Count = 3) -> None:
        super().__init__(vit, schedule)
        self.eps, self.cluster_iters = eps, cluster_iters
        self.counts = counts_where_dropping(vit, schedule)
        # of unit length from the start, as the reference keeps them: the longer they are, the slower they would turn
        starts = {str(layer): torch.randn(count, vit.embed_dim) for layer, count in self.counts.items()}
        self.prototypes = nn.ParameterDict({layer: F.normalize(start, dim=-1) for layer, start in starts.items()})

    def before_block(self, tokens: Tokens, layer: int) -> Tokens:
        if tokens.num_patch_tokens <= self.counts.get(layer, tokens.num_patch_tokens):
            return tokens
        patches = F.normalize(tokens.patches, dim=-1)
        prototypes = F.normalize(self.prototypes[str(layer)], dim=-1)
        plan = transport(prototypes @ patches.transpose(1, 2) / self.eps, self.cluster_iters)  # (B, K, n)
        return tokens.merged(plan.to(patches.dtype) @ patches, plan.argmax(1), weights=plan)
