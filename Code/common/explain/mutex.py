"""MUTEX: explanations from the multiplex network of a transformer's attention maps.

Marchetti, Traini, Ursino, Virgili, "Multiplex network-based representation of vision transformers for visual
explainability", Neural Computing & Applications 37(29), 2025.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from common.errors import UsageError
from common.explain import network
from common.explain.base import Explainer, Explanation, predicted, register_explainer
from common.models.observe import watch
from common.options import Count, Share, Whole
from common.reducers.downsample import Downsample
from common.reducers.none import NoReduction
from common.reducers.patch_slimming import PatchSlimming
from common.reducers.patterns import FixedPattern
from common.slimming.plans import one_block
from common.tokens import Selection

# (aggregation, degree, statistic) of each of the 54 masks
MASKS = tuple(product(network.AGGREGATIONS, network.DEGREES, network.STATISTICS))


@register_explainer("mutex")
class Mutex(Explainer):
    """Masks from 54 centralities of the patches, weighed by what the model still says when only they are shown.

    >>> from common import create_model
    >>> found = Mutex(create_model("vit_digits"), token_ratio=0.5)(torch.rand(1, 3, 32, 32))
    >>> found.heatmaps.shape, found.masks.shape, found.confidences.shape
    (torch.Size([1, 8, 8]), torch.Size([1, 54, 8, 8]), torch.Size([1, 54]))

    The attention maps of one pass, their heads aggregated in three ways, are three multiplex networks; the in- and
    out-degrees of a patch in their layers, summed up by nine statistics, give 54 rankings, and each ranking a mask of
    the patches to show. The heat of a patch is the mean probability of the label over the masks that show it, or 0 if
    none does. Hidden patches are removed from the sequence, not blackened; the label has no say in the masks.

    Masks that coincide run through the model once and count as often as they occur; masks that show the same number of
    patches run together, whichever image they belong to.

    A reduced model is explained as it runs: what it drops has no arcs from then on, and of what a mask shows it drops
    whatever exceeds the number that it would keep of the whole image.

    Args:
        min_cut: arcs below this share of the strongest arc of their layer are cut; in [0, 1].
        token_ratio: about the share of patches that each mask hides, see :func:`common.explain.network.masks_above`.
        starting_layer: first block that counts.
        parity: the published rankings. The last bits of float32 rank degrees that are equal in theory (default: they
            tie); patches whose degree is the same in all layers have no skewness and no kurtosis, and are hidden
            although they rank highest.
    """

    def __init__(
        self,
        model: VisionTransformer,
        *,
        min_cut: Share = 0.01,
        token_ratio: Share = 0.5,
        starting_layer: Whole = 0,
        parity: bool = False,
        batch_size: Count = 32,
    ) -> None:
        super().__init__(model, batch_size=batch_size)
        last = len(self.model.blocks) - 1
        if starting_layer > last:
            raise UsageError(f"starting_layer={starting_layer!r} is not allowed; allowed: 0 to {last}")
        if isinstance(self.model.reducer, FixedPattern | PatchSlimming):
            raise UsageError("mutex hides patches, and a fixed pattern needs all of them; explain another model")
        if isinstance(self.model.reducer, Downsample):
            raise UsageError("mutex hides patches, and a smaller image is cut into others; explain another model")
        self.min_cut, self.token_ratio, self.starting_layer = min_cut, token_ratio, starting_layer
        self.parity = parity

    def explain(self, images: Tensor, labels: Tensor | None) -> Explanation:
        degrees = []
        logits = watch(self.model, images, lambda layer: degrees.append(network.weighted_degrees(layer, self.min_cut)))
        labels = predicted(logits, labels)
        multiplex = torch.stack(degrees[self.starting_layer :], dim=3)  # (B, 3, 2, L, P)
        multiplex = multiplex if self.parity else network.significant(multiplex)
        rankings = network.across_layers(multiplex, parity=self.parity)  # (B, 3, 2, 9, P)
        masks = network.masks_above(rankings.flatten(1, 3), self.token_ratio)
        confidences = self.confidences(images, labels, masks)
        heatmaps = coverage_mean(masks, confidences)
        return Explanation(self.on_grid(heatmaps, images), labels, self.on_grid(masks, images), confidences)

    def confidences(self, images: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
        """Probabilities (B, M) of ``labels`` (B,) when only the patches of each of ``masks`` (B, M, P) are shown.

        A model that reads only patches and is shown none says nothing: 0.
        """
        model = self.model
        if model.global_pool == "token" and isinstance(model.reducer, NoReduction):
            # the same logits, without the patches of the last block, which nobody reads
            model = one_block(model, len(model.blocks) - 1, (), "idle")
        tokens = model.embed(images)
        owner = torch.arange(len(images), device=images.device).repeat_interleave(masks.shape[1])
        rows, occurrence = torch.cat([owner[:, None], masks.flatten(0, 1)], dim=1).unique(dim=0, return_inverse=True)
        owner, shown = rows[:, 0], rows[:, 1:].bool()
        found = torch.zeros(len(rows), device=images.device)
        for group in self._of_one_length(shown.sum(1)):
            patches = shown[group].nonzero()[:, 1].view(len(group), -1)  # (G, n), as many in each
            logits = model.classify(model.encode(tokens.with_x(tokens.x[owner[group]]).keep(Selection(patches))))
            found[group] = logits.float().softmax(1).gather(1, labels[owner[group], None])[:, 0]
        return found[occurrence].unflatten(0, masks.shape[:2])

    def _of_one_length(self, lengths: Tensor) -> Iterator[Tensor]:
        """Positions of equal ``lengths`` (n,) of what the model can read, at most ``batch_size`` at a time."""
        reads_prefix = self.model.global_pool == "token" or self.model.pool_include_prefix
        for length in lengths.unique():
            if length > 0 or (reads_prefix and not self.model.reducer.pools_mean):
                yield from (lengths == length).nonzero()[:, 0].split(self.batch_size)


def coverage_mean(masks: Tensor, confidences: Tensor) -> Tensor:
    """Heat (B, ...): mean of the ``confidences`` (B, M) over the ``masks`` (B, M, ...) that show a patch; 0 if none."""
    weights = confidences.view(*confidences.shape, *[1] * (masks.dim() - 2))
    return (masks * weights).sum(1) / masks.sum(1).clamp(min=1)


def only_masks(explanation: Explanation, chosen: Sequence[int]) -> Explanation:
    """The ``explanation`` that MUTEX would give if it had only the masks in the places ``chosen``."""
    masks, confidences = explanation.masks[:, list(chosen)], explanation.confidences[:, list(chosen)]
    return Explanation(coverage_mean(masks, confidences), explanation.labels, masks, confidences)
