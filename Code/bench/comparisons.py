"""What is timed: pairs of calls with the same inputs, opened only after both have given the same result."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.testing import assert_close

from common.analysis import feature_intervals
from common.benchmark import assert_identity
from common.cost.counter import count_macs
from common.data import load_dataset, make_loader
from common.data.base import LabelledDataset
from common.evaluation import Record, export_json
from common.explain import Mutex
from common.idling.outcomes import outcomes
from common.models.factory import create_backbone
from common.models.reduced import attach, reduce_tokens
from common.reducers.clustering import largest_first, squared_distances
from common.reducers.kmedoids import cluster
from common.slimming import SlimmingPlan, significance
from references import (
    FIGURE_5,
    AsMeasured,
    confidences_one_by_one,
    intervals_by_deleting,
    kmedoids_by_loops,
    record_of,
    significance_by_paths,
)


@dataclass(frozen=True)
class Scale:
    """How large the inputs are, and where they live.

    Attributes:
        backbone: that is reduced.
        explained: the backbone that MUTEX explains.
        images: per batch.
        records: images of a record.
        device: of models and images.
        folder: for files.
    """

    backbone: str = "vit_small_patch16_224"
    explained: str = "vit_tiny_patch16_224"
    images: int = 16
    records: int = 5000
    device: str = "cpu"
    folder: Path = Path()


FULL, QUICK = Scale(), Scale("vit_tiny_patch16_224", "vit_digits", images=2, records=50)


@dataclass(frozen=True)
class Pair:
    """Two calls with the same ``inputs``, made once both have given the same result.

    Attributes:
        baseline: what ``ours`` is compared with.
        macs: how many times fewer multiplications ``ours`` executes; None where that is not the point.
    """

    baseline: Callable[[Tensor], object]
    ours: Callable[[Tensor], object]
    inputs: Tensor
    macs: float | None = None


def _backbone(name: str, scale: Scale) -> tuple[torch.nn.Module, Tensor]:
    """A backbone with random weights in eval mode, and images for it."""
    vit = create_backbone(name).eval().to(scale.device)
    return vit, torch.randn(scale.images, 3, *vit.patch_embed.img_size).to(scale.device)


def _reduced(reducer: str, scale: Scale, **options: object) -> Pair:
    vit, images = _backbone(scale.backbone, scale)
    assert_identity(vit, images[:1])
    model = reduce_tokens(vit, reducer, **options).eval()
    side = vit.patch_embed.img_size
    return Pair(vit, model, images, count_macs(vit, side).total / count_macs(model, side).total)


def _slimmed(scale: Scale) -> Pair:
    plan = SlimmingPlan.of_patches([range(length - 1) for length in FIGURE_5], 196)
    return _reduced("patch_slimming", scale, plan=plan)


def _idling(scale: Scale) -> Pair:
    """Every image computes another number of patches, spread as they were found to be on photographs."""
    vit, images = _backbone(scale.backbone, scale)
    assert_identity(vit, images[:1])
    model = attach(vit, AsMeasured(vit, len(images))).eval()
    loader = make_loader([(image, 0) for image in images.cpu()], scale.images, shuffle=False, seed=0)
    (unreduced, idle), _ = outcomes([reduce_tokens(vit, "none"), model], loader)
    return Pair(vit, model, images, (unreduced.macs.mean() / idle.macs.mean()).item())


def _kmedoids(scale: Scale, parity: bool) -> Pair:
    """The first stage of ViT-Ti at keep rate 0.7; distances are given to both."""
    x, weight = torch.randn(scale.images, 196, 192, device=scale.device), torch.rand(scale.images, 196).to(scale.device)
    distance, centers = squared_distances(x).sqrt(), largest_first(weight, 137)

    def by(run: Callable[..., tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return run(distance, weight, centers, 3, parity=parity)

    assert_close(by(cluster), by(kmedoids_by_loops), rtol=0, atol=0)
    return Pair(lambda _: by(kmedoids_by_loops), lambda _: by(cluster), x)


def _mutex(scale: Scale, backbone: str = "", gradients: bool = False) -> Pair:
    """54 confidences in few passes and one by one, as the reference implementation has them."""
    vit, images = _backbone(backbone or scale.explained, replace(scale, images=1))
    explainer = Mutex(vit, batch_size=64)
    found = explainer(images)
    masks = found.masks[0].flatten(1)

    def one_by_one(images: Tensor) -> Tensor:
        with torch.inference_mode(not gradients):
            return confidences_one_by_one(vit, images[0], found.labels[0], masks)

    def together(images: Tensor) -> Tensor:
        return explainer.confidences(images, found.labels, masks[None])[0]

    assert_close(together(images), one_by_one(images), rtol=0, atol=1e-5, check_stride=False)
    return Pair(one_by_one, together, images)


def _record(scale: Scale) -> Pair:
    """What an evaluation notes about every image, read from its own file and from the reference's format."""
    record = record_of(scale.records)
    path, text = record.save(scale.folder / "record.npz"), export_json(record, scale.folder / "record.json")

    def from_json(_: Tensor) -> dict:
        return json.loads(text.read_text(encoding="utf-8"))

    read = from_json(torch.empty(0))
    for block, stage in Record.load(path).stages.items():
        kept = [read[name][f"Stage-{block}"]["Kept_Token"] for name in record.image_ids]
        np.testing.assert_array_equal(np.array(kept), stage.kept)
    return Pair(from_json, lambda _: Record.load(path), torch.empty(scale.records))


def _significance(scale: Scale) -> Pair:
    """How many scores of all patches in block 0 a forward pass is worth; right by all paths from block 9 on."""
    vit, images = _backbone(scale.backbone, replace(scale, images=min(scale.images, 4)))
    expected = significance_by_paths(vit, images[:1], SlimmingPlan.whole(vit), 9)[0].double().cpu()
    found = significance(vit, images[:1], 9)
    assert_close(found / found.sum(), expected / expected.sum(), rtol=1e-3, atol=0)
    return Pair(vit, lambda images: significance(vit, images, 0, batch_size=len(images)), images)


def _features(scale: Scale) -> Pair:
    """How alike the CLS tokens of two runs are, and how sure that is by leaving out each of 20 groups of images."""
    x = torch.randn(scale.records, 192, dtype=torch.float64)
    y = x + torch.randn_like(x)

    def by(run: Callable[..., object]) -> Callable[[Tensor], object]:
        return lambda x: run(x.numpy(), y.numpy(), few_images=True)

    ours, baseline = by(feature_intervals), by(intervals_by_deleting)
    found = [[each.value, each.error, each.low, each.high] for each in ours(x).values()]
    np.testing.assert_allclose(found, baseline(x), rtol=0, atol=1e-10)
    return Pair(baseline, ours, x)


def _photographs(scale: Scale, memory_gb: float) -> LabelledDataset:
    """Training images of 224 pixels, as many as a batch has, of JPEG files as large as Imagenette's smallest form."""
    folder = scale.folder / "photographs"
    for number in range(scale.images):
        path = folder / "train" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        y, x = 17 * number % 200, 31 * number % 400
        pixels = load_sample_images().images[number % 2][y : y + 160, x : x + 213]
        Image.fromarray(pixels).save(path, quality=90)
    return load_dataset(f"folder:{folder}", "train", img_size=224, train=True, memory_gb=memory_gb)


def _epochs(data: LabelledDataset) -> Callable[[Tensor], Tensor]:
    """Loads the next epoch of ``data``, whose flips its number decides."""
    loader = make_loader(data, len(data), shuffle=True, seed=0)
    return lambda _: next(iter(loader))[0]


def _memory(scale: Scale) -> Pair:
    """A batch of training images, from their files and from memory."""
    files, memory = (_epochs(_photographs(scale, gigabytes)) for gigabytes in (0, 1))
    nothing = torch.empty(0)
    for _ in range(2):  # the first epoch fills the memory
        assert_close(memory(nothing), files(nothing), rtol=0, atol=0)
    return Pair(files, memory, nothing)


def _loading(scale: Scale) -> Pair:
    """How many times a step of training takes as long as the loading of its images, from memory."""
    vit = create_backbone("vit_tiny_patch16_224").to(scale.device)
    optimizer, load = torch.optim.Adam(vit.parameters()), _epochs(_photographs(scale, 1))

    @torch.inference_mode(False)
    def step(images: Tensor) -> Tensor:
        loss = vit(images.clone()).logsumexp(1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    images = load(torch.empty(0)).to(scale.device)
    assert step(images).isfinite()
    return Pair(step, load, images)


COMPARISONS: Mapping[str, tuple[str, Callable[[Scale], Pair]]] = {
    "tram": ("ViT-S, 16 images: unreduced / TRAM at 50 %", partial(_reduced, "tram", keep_rate=0.5)),
    "tome": ("ViT-S, 16 images: unreduced / ToMe at 50 %", partial(_reduced, "tome", keep_rate=0.5)),
    "patch_slimming": ("ViT-S, 16 images: unreduced / published patch slimming", _slimmed),
    "idle_mlp": ("ViT-S, 16 images: unreduced / idling, lengths of photographs", _idling),
    "kmedoids": ("196 tokens, 16 images: loops / 137 K-Medoids", partial(_kmedoids, parity=False)),
    "kmedoids_parity": ("the same by the reference's objective", partial(_kmedoids, parity=True)),
    "mutex": ("ViT-Ti, 54 masks: one by one / MUTEX", _mutex),
    "mutex_gradients": ("the same, one by one with gradients", partial(_mutex, gradients=True)),
    "mutex_digits": ("ViT for digits, 54 masks: one by one / MUTEX", partial(_mutex, backbone="vit_digits")),
    "record": ("decisions on 5,000 images: JSON / record file", _record),
    "features": ("CLS tokens of 5,000 images: images deleted / summed by groups", _features),
    "memory": ("16 training images: JPEG files / memory", _memory),
    "loading": ("ViT-Ti, 16 images: step of training / loading from memory", _loading),
    "significance": ("ViT-S, 4 images: forward pass / significance of block 0", _significance),
}
