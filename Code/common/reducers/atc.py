"""ATC: join the nearest patches, or groups of them, until as many groups are left as tokens shall stay.

Haurum et al., "Agglomerative Token Clustering", ECCV 2024.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.hierarchy import linkage as dendrogram
from torch import Tensor

from common.precision import without_autocast
from common.reducers.base import Reducer, Signals, register_reducer
from common.reducers.clustering import group_means, patch_sizes
from common.tokens import Tokens

Linkage = Literal["average", "complete", "single"]
LINKAGES = get_args(Linkage)


def agglomerate(distance: Tensor, count: int, linkage: Linkage) -> Tensor:
    """Cluster (B, n) of every token when ``count`` are left, numbered by their first members.

    Args:
        distance: (B, n, n), symmetric, 0 on the diagonal.
        linkage: distance of two clusters: the smallest, largest or mean distance of their members.
    """
    upper = np.triu_indices(distance.shape[-1], 1)
    labels = np.empty(distance.shape[:2], np.int64)
    for row, each in zip(labels, distance.double().cpu().numpy(), strict=True):
        row[:] = _cut(dendrogram(each[upper], linkage), count)
    return torch.from_numpy(labels).to(distance.device)


def _cut(joins: np.ndarray, count: int) -> np.ndarray:
    """Clusters (n,) after the first n - ``count`` of SciPy's ``joins`` (n - 1, 4), which are in order of height."""
    n = len(joins) + 1
    parent = np.arange(2 * n - count)  # of the tokens, and of the clusters behind them in order of their making
    for made, pair in enumerate(joins[: n - count, :2].astype(int), start=n):
        parent[pair] = made
    for node in range(len(parent) - 1, -1, -1):  # a parent stands behind its children, so its own is known by now
        parent[node] = parent[parent[node]]
    _, first, cluster = np.unique(parent[:n], return_index=True, return_inverse=True)
    return first.argsort().argsort()[cluster]


@register_reducer("atc")
class ATC(Reducer):
    """Merges between attention and MLP, by the keys of the block averaged over heads. No parameters.

    Bottom-up clustering of all patch tokens by cosine distance (SciPy's, on the CPU): no partition into two sets, no
    limit of a half. A token is the mean of its patches, and log(size) is added to the attention logits of later blocks.
    The code published for backbones without training keeps one token more per block than ToMe at the same r; here both
    have the counts of the schedule.

    Args:
        linkage: distance of two clusters: the mean ("average"), largest ("complete") or smallest ("single") of the
            distances of their members, in which every token counts once, whatever its size.
    """

    family = "merges"
    clusters = True
    in_pieces = "SciPy clusters each image"
    signals = frozenset({"key_mean"})

    def __init__(self, vit, schedule, *, linkage: Linkage = "average") -> None:
        super().__init__(vit, schedule)
        self.linkage = linkage

    def after_attention(self, tokens: Tokens, signals: Signals, layer: int) -> Tokens:
        count, size = self.drops_at(layer, tokens), patch_sizes(tokens)
        with torch.no_grad(), without_autocast(size.device):
            keys = F.normalize(signals.key_mean[:, tokens.num_prefix_tokens :].float(), dim=-1)
            cluster = agglomerate(1 - keys @ keys.transpose(1, 2), count, self.linkage)
        patches, size = group_means(tokens.patches, size, cluster, count)
        return tokens.merged(patches, cluster, size=size)
