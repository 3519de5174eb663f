"""DPC-KNN: tokens are clustered around density peaks, and every cluster becomes a learned weighted mean.

Du, Ding, Jia, "Study on density peaks clustering based on k-nearest neighbors and principal component analysis",
Knowledge-Based Systems 99, 2016; on tokens: Zeng et al., "Not All Tokens Are Equal", CVPR 2022 (TCFormer), and
Haurum et al., "Which Tokens to Use?", ICCVW 2023.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from common.precision import without_autocast
from common.reducers.base import Reducer, init_linear, register_reducer
from common.reducers.clustering import counts_where_dropping, largest_first, nearest_center, squared_distances
from common.tokens import Tokens

Neighbors = Annotated[int, Ge(2), "a whole number >= 2"]  # every token is its own first


def log_density(squared: Tensor, k_neighbors: int) -> Tensor:
    """Logarithm (B, n) of the density: minus the mean of the squared distances (B, n, n) to the nearest neighbours.

    A token is its own first neighbour; where there are fewer than ``k_neighbors`` tokens, all are neighbours.
    """
    count = min(k_neighbors, squared.shape[-1])
    return -squared.topk(count, dim=-1, largest=False).values.mean(-1)


def log_peak(squared: Tensor, density: Tensor) -> Tensor:
    """Logarithm (B, n) of density times the distance to the nearest denser token; large for density peaks.

    Of two equal densities the lower position counts as denser. The densest token has none above it and takes the
    largest distance in the image. In the logarithm no density underflows, however far tokens are apart.

    Args:
        squared: (B, n, n) squared distances.
        density: (B, n) logarithms.
    """
    position = torch.arange(density.shape[1], device=density.device)
    own, other = density[:, :, None], density[:, None]  # (B, n, 1), (B, 1, n)
    denser = (other > own) | ((other == own) & (position < position[:, None]))  # (B, n, n)
    gap = torch.where(denser, squared, float("inf")).amin(-1)
    gap = torch.where(denser.any(-1), gap, squared.amax((1, 2))[:, None])
    return density + gap.log() / 2


def weighted_means(x: Tensor, log_weight: Tensor, assignment: Tensor, num_clusters: int) -> Tensor:
    """Means (B, K, D) of the tokens ``x`` (B, n, D) of each cluster, weighted by exp of ``log_weight`` (B, n).

    A softmax within each cluster, so that no weight overflows; with gradient for ``x`` and ``log_weight``.
    """
    outside = log_weight.new_full((len(x), num_clusters, x.shape[1]), float("-inf"))
    share = outside.scatter(1, assignment[:, None], log_weight[:, None]).softmax(-1)  # (B, K, n)
    return share.to(x.dtype) @ x


@register_reducer("dpcknn")
class DpcKnn(Reducer):
    """Clusters before each reduction block; a cluster becomes the mean of its tokens, weighted by exp(u x + b).

    Centres are the tokens with the largest product of density and distance to the nearest denser token, by Euclidean
    distance over sqrt(D); the others join the nearest centre. The decision is deterministic (the reference
    implementation adds noise to densities) and without gradient. The learned bias b cancels in the mean; it is kept
    so that weights trained elsewhere fit.

    Args:
        k_neighbors: neighbours in the density, the token itself included.
        equal_weight: plain means, no parameters.
    """

    selects = True
    family = "merges"
    clusters = True
    scored = "logarithm of density times distance to the nearest denser token"

    def __init__(self, vit, schedule, *, k_neighbors: Neighbors = 5, equal_weight: bool = False) -> None:
        super().__init__(vit, schedule)
        self.k_neighbors, self.equal_weight = k_neighbors, equal_weight
        layers = [] if equal_weight else counts_where_dropping(vit, schedule)
        self.log_weights = nn.ModuleDict({str(layer): nn.Linear(vit.embed_dim, 1) for layer in layers})
        init_linear(self)

    def before_block(self, tokens: Tokens, layer: int) -> Tokens:
        target = self.drops_at(layer, tokens)
        if target is None:
            return tokens
        patches = tokens.patches
        with without_autocast(patches.device):
            centers, assignment, score = self._cluster(patches, target)
            if self.equal_weight:
                log_weight = torch.zeros_like(score)
            else:
                linear = self.log_weights[str(layer)]
                log_weight = linear(patches.to(linear.weight.dtype))[..., 0].float()
            means = weighted_means(patches, log_weight, assignment, target)  # (B, K, D)
        return tokens.with_scores(score).merged(means, assignment, centers=centers)

    @torch.no_grad()
    def _cluster(self, patches: Tensor, target: int) -> tuple[Tensor, Tensor, Tensor]:
        squared = squared_distances(patches) / patches.shape[-1]  # (B, n, n)
        score = log_peak(squared, log_density(squared, self.k_neighbors))
        centers = largest_first(score, target)  # (B, K)
        return centers, nearest_center(squared, centers), score
