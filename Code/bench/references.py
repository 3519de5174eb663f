"""Slow forms of what the package computes fast, each taken literally, and inputs of full size.

The tests compare results with them; bench.py times against them.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from common.analysis import feature_measures, jackknife
from common.evaluation import Record, Setting, Stage
from common.reducers import Schedule
from common.reducers.idle_mlp import IdleMlp
from common.slimming import SlimmingPlan

# tokens of DeiT-S's blocks as figure 5 of "Patch Slimming" (Tang et al., CVPR 2022) shows them, read by eye
FIGURE_5 = (197, 197, 160, 153, 121, 101, 83, 63, 50, 25, 20, 1)


# Patches of 196 that an image computes in a block: mean and standard deviation, 128 validation images of Imagenette.
# ViT-Ti, predictors of 32 hidden units of what would be lost (similarity=rel_norm, influence=rollout; 480 training
# images, one epoch, seed 0), thresholds for 35 % of the MAC; in the first three blocks all.
IDLING_COUNTS = {
    3: (114.9, 19.3),
    4: (189.2, 8.9),
    5: (168.1, 28.0),
    6: (96.0, 38.0),
    7: (104.1, 33.0),
    8: (78.5, 32.2),
    9: (74.6, 31.7),
    10: (71.0, 29.6),
    11: (84.2, 35.4),
}


class AsMeasured(IdleMlp):
    """Computes, of each image, as many patches as a draw from ``IDLING_COUNTS`` says, by thresholds of its own.

    These are found in the first pass, from what the predictors then say of the same images. Each block is drawn alone:
    what a batch costs, padded or not, does not depend on whether the same images compute many patches in every block.

    Args:
        images: of the batch.
    """

    def __init__(self, vit: VisionTransformer, images: int) -> None:
        super().__init__(vit, Schedule(1.0, (0,)), score_threshold=0.5, attention="standard", hidden=32)
        generator = torch.Generator().manual_seed(0)
        self.least: dict[int, Tensor] = {}
        self.drawn = {
            layer: (mean + deviation * torch.randn(images, generator=generator)).round().clamp(1, 196).long()
            for layer, (mean, deviation) in IDLING_COUNTS.items()
        }
        for layer in range(self.depth):
            if layer in self.drawn:
                torch.nn.init.normal_(self.predictors[str(layer)].own.weight, std=0.2)  # as they start, all say 0.5
            else:
                self.thresholds[layer] = 0.0

    def passes(self, score: Tensor, layer: int) -> Tensor:
        if layer not in self.least:
            rank = self.drawn[layer].to(score.device)[:, None] - 1
            self.least[layer] = score.sort(dim=1, descending=True).values.gather(1, rank)  # (B, 1)
        return score >= self.least[layer]


def kmedoids_by_loops(
    distance: Tensor, weight: Tensor, centers: Tensor, iterations: int, parity: bool
) -> tuple[Tensor, Tensor]:
    """:func:`common.reducers.kmedoids.cluster`, one image, one cluster and one candidate at a time."""
    all_centers, all_clusters = [], []
    for d, w, start in zip(distance, weight, centers, strict=True):
        chosen = start.tolist()
        for step in range(iterations + 1):
            clusters = d[chosen].argmin(0)
            for number, center in enumerate(chosen):
                clusters[center] = number
            if step == iterations:
                break
            for number in range(len(chosen)):
                members = (clusters == number).nonzero()[:, 0]
                if parity:
                    costs = [w[i] * d[i].sum() for i in members]
                else:
                    costs = [(w[members] * d[i, members]).sum() for i in members]
                chosen[number] = members[torch.stack(costs).argmin()].item()
        all_centers.append(torch.tensor(chosen, device=d.device))
        all_clusters.append(clusters)
    return torch.stack(all_centers), torch.stack(all_clusters)


def confidences_one_by_one(vit: VisionTransformer, image: Tensor, label: Tensor, masks: Tensor) -> Tensor:
    """Probabilities (M,) of ``label`` in as many passes of the ``image`` (3, H, W), each cut after the positions.

    Args:
        masks: bool (M, ...) over the patches, True = shown.
    """
    found = []
    for mask in masks.flatten(1):
        prefix = vit.num_prefix_tokens
        rows = torch.cat([torch.arange(prefix, device=mask.device), mask.nonzero()[:, 0] + prefix])
        handle = vit.pos_drop.register_forward_hook(lambda module, given, tokens, rows=rows: tokens[:, rows])
        found.append(vit(image[None]).softmax(1)[0, label])
        handle.remove()
    return torch.stack(found)


def significance_by_paths(vit: VisionTransformer, images: Tensor, plan: SlimmingPlan, layer: int) -> Tensor:
    """Scores (B, P) of block ``layer`` by equation 6 of "Patch Slimming", path by path, from timm's own features."""
    z, seen = vit.norm_pre(vit._pos_embed(vit.patch_embed(images))), list(range(plan.num_tokens))
    maps, features = [], []
    for number, block in enumerate(vit.blocks):
        attn = block.attn
        q, k, _ = attn.qkv(block.norm1(z)).unflatten(2, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4)
        attention = ((q * attn.scale) @ k.transpose(-2, -1)).softmax(-1)  # (B, H, N, N)
        rows = [seen.index(token) for token in plan.masks[number]]
        maps.append(attention[:, :, rows])
        features.append(z)
        z, seen = block(z)[:, rows], plan.masks[number]
    maps[-1] = maps[-1][:, :, : plan.num_prefix_tokens]
    carried = maps[layer] @ features[layer][:, None].abs()  # (B, H, N, D)
    total = 0
    for path in product(range(maps[0].shape[1]), repeat=len(maps) - 1 - layer):
        matrix = torch.eye(plan.num_prefix_tokens, device=images.device).expand(len(images), -1, -1)
        for head, attention in zip(path, reversed(maps[layer + 1 :]), strict=True):
            matrix = matrix @ attention[:, head]
        outer = torch.einsum("bni,bhid->bhind", matrix, carried)  # A[:, i] U[i, :]
        total = total + outer.square().sum((1, 3, 4))
    return total[:, plan.num_prefix_tokens :]


def record_of(images: int) -> Record:
    """A record of random decisions of K-Medoids at keep rate 0.9 on 196 patches: the most there is to keep."""
    rng = np.random.default_rng(0)
    stages = {}
    for block, count in zip((3, 6, 9), (176, 158, 142), strict=True):
        kept = rng.random((images, 196), dtype=np.float32).argsort(1)[:, :count].astype(np.int16)
        assignment = rng.integers(0, count, (images, 196), dtype=np.int16)
        stages[block] = Stage(np.full(images, count, dtype=np.int16), kept, assignment)
    return Record(
        setting=Setting("run", "kmedoids", "vit", "imagenet", "", 0.9, (3, 6, 9), (224, 224), (14, 14)),
        image_ids=tuple(f"ILSVRC2012_val_{i:08}.JPEG" for i in range(images)),
        targets=rng.integers(0, 1000, images, dtype=np.int32),
        predictions=rng.integers(0, 1000, (images, 5), dtype=np.int32),
        loss=rng.random(images, dtype=np.float32),
        accuracy={"top1": 0.1, "top5": 0.5},
        params=22_050_664,
        stages=stages,
    )


def intervals_by_deleting(
    x: np.ndarray, y: np.ndarray, *, parity: bool = False, few_images: bool = False, **options: object
) -> np.ndarray:
    """:func:`common.analysis.feature_intervals` by measuring again what is left: (5, 4) value, error and ends."""

    def measures(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.array(list(feature_measures(x, y, parity=parity, few_images=few_images).values()))

    found = jackknife(measures, x, y, **options)
    return np.stack([found.value, found.error, found.low, found.high], axis=1)
