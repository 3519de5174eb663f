"""The lower bound of every comparison, and token reduction's own opinion."""

from __future__ import annotations

import torch
from torch import Tensor

from common.explain.base import Explainer, Explanation, predicted, register_explainer
from common.models.observe import AttentionLayer, watch
from common.options import Count
from common.reducers.tram import weighted_in_degree


@register_explainer("random")
class Random(Explainer):
    """Uniform noise: what an explanation must beat. Every call draws other noise, each new explainer the same."""

    explains_class = False

    def __init__(self, model, *, seed: int = 0, batch_size: Count = 32) -> None:
        super().__init__(model, batch_size=batch_size)
        self._generator = torch.Generator().manual_seed(seed)

    def explain(self, images: Tensor, labels: Tensor | None) -> Explanation:
        labels = self.model(images).argmax(1) if labels is None else labels
        noise = torch.rand(len(images), *self.model.patch_grid(images), generator=self._generator)
        return Explanation(noise.to(images.device), labels)


@register_explainer("tram")
class TramCentrality(Explainer):
    """TRAM's centrality, summed over all blocks, although TRAM itself scores no more after its last reduction.

    Block l of L contributes (l + 1) / L times the weighted in-degree of the maximum over heads. It asks for no class.
    """

    explains_class = False

    def explain(self, images: Tensor, labels: Tensor | None) -> Explanation:
        centralities: list[Tensor] = []

        def add(layer: AttentionLayer) -> None:
            centralities.append(layer.to_patches(weighted_in_degree(layer.between_patches().amax(1))))

        labels = predicted(watch(self.model, images, add), labels)
        weights = torch.arange(1, len(centralities) + 1, device=images.device) / len(centralities)
        heat = torch.stack([weight * centrality for weight, centrality in zip(weights, centralities, strict=True)])
        return Explanation(self.on_grid(heat.sum(0), images), labels)
