"""A backbone with its data: what the studies of slimming and of idling start from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import DataLoader

from common.data import load_dataset, make_loader, subset
from common.data.base import LabelledDataset
from common.digits_backbone import resolve_weights
from common.models.factory import create_backbone
from common.models.reduced import ReducedVisionTransformer, reduce_tokens
from common.results import resolve
from common.training import Epoch, TrainConfig, torch_device
from common.training.distillation import DISTILLATION, Data, distil


@dataclass(frozen=True)
class Bench:
    """A backbone with its data.

    Attributes:
        vit: in eval mode, with its own head.
        train_set: training images, augmented.
        calibration: training images as they are evaluated; not to train on where they are a part of all.
        folder: where trainings are kept, so that a stopped one goes on; None = nowhere.
        conditions: columns that all rows of a CSV share, for ``write_run``.
    """

    vit: VisionTransformer
    train_set: LabelledDataset
    val_set: LabelledDataset
    calibration: LabelledDataset
    batch_size: int
    seed: int
    device: str | None = None
    folder: Path | None = None
    conditions: Mapping[str, object] = field(default_factory=dict)

    @cached_property
    def calibration_images(self) -> Tensor:
        """All calibration images (n, 3, H, W), decoded once."""
        return self.calibration.stack()

    def loader(self, dataset: LabelledDataset | None = None) -> DataLoader:
        """Of the calibration images, or of others, in their order."""
        return make_loader(dataset or self.calibration, self.batch_size, shuffle=False, seed=self.seed)

    def some(self, count: int | None) -> LabelledDataset:
        """``count`` validation images, the classes as even as possible; None = all."""
        return subset(self.val_set, count, self.seed)

    def training(self, count: int | None = None) -> Data:
        """``count`` training images, None = all, and a batch of validation images to follow the loss on."""
        few = self.some(min(self.batch_size, len(self.val_set)))
        return subset(self.train_set, count, self.seed), few

    def settings(self, config: TrainConfig) -> TrainConfig:
        """``config`` with the seed and the device of this bench."""
        return replace(config, seed=self.seed, device=self.device)

    def place(self, name: str) -> Path | None:
        """Where the training called ``name`` is kept."""
        return None if self.folder is None else self.folder / re.sub(r"[^A-Za-z0-9.]+", "-", name)

    def distil(
        self,
        model: ReducedVisionTransformer,
        data: Data,
        config: TrainConfig = DISTILLATION,
        *,
        title: str = "distilled",
        folder: Path | None = None,
    ) -> None:
        """Train all of ``model``, in place, to agree with the unreduced backbone, without labels.

        Args:
            data: see :meth:`training`.
            title: before the loss of every epoch, which is printed.
            folder: see :meth:`place`.
        """
        config, teacher = self.settings(config), reduce_tokens(self.vit, "none")
        follow(distil(model, teacher, data, config, folder), title, config)


def open_bench(
    backbone: str,
    weights: str,
    dataset: str,
    *,
    img_size: int,
    recipe: str,
    limit_train: int | None = None,
    limit_val: int | None = None,
    limit_calibration: int | None = None,
    batch_size: int,
    seed: int,
    device: str | None = None,
    folder: str | Path | None = None,
) -> Bench:
    """Load ``backbone`` with its own head, and the data, normalised as its weights expect.

    Args:
        weights: see :func:`common.digits_backbone.resolve_weights`.
        limit_train, limit_val, limit_calibration: images, the classes as even as possible; None = all, for training
            all that do not calibrate. Which images validate does not depend on ``seed``.
        folder: of the trainings, relative to the repository; None or "" = they are not kept.
    """
    vit = open_backbone(backbone, weights, img_size=img_size, seed=seed)
    shared = {"img_size": img_size, "recipe": recipe, **norm_of(vit)}
    apart = limit_calibration or 0
    train_set = load_dataset(dataset, "train", train=True, limit=limit_train, skip=apart, seed=seed, **shared)
    val_set = load_dataset(dataset, "val", limit=limit_val, seed=0, **shared)
    calibration = load_dataset(dataset, "train", limit=limit_calibration, seed=seed, **shared)
    where, kept = torch_device(device), resolve(folder) if folder else None
    conditions = {"backbone": backbone, "dataset": dataset, "img_size": img_size, "dtype": "float32"}
    conditions |= {"batch": batch_size, "device": str(where)}
    return Bench(vit.to(where), train_set, val_set, calibration, batch_size, seed, device, kept, conditions)


def open_backbone(backbone: str, weights: str, *, img_size: int, seed: int) -> VisionTransformer:
    """``backbone`` with its own head, in eval mode; what ``weights`` leave open is drawn by ``seed``."""
    torch.manual_seed(seed)
    return create_backbone(backbone, weights=resolve_weights(weights, backbone), img_size=img_size).eval()


def norm_of(vit: VisionTransformer) -> dict[str, tuple[float, float, float]]:
    """Mean and standard deviation of the images that the weights of ``vit`` were trained on."""
    return {key: vit.pretrained_cfg[key] for key in ("mean", "std")}


def follow(epochs: Iterable[Epoch], title: str, config: TrainConfig) -> None:
    """Go through a training by ``config`` and print the loss of every epoch."""
    for epoch in epochs:
        if epoch.epoch:
            print(f"{title}: epoch {epoch.epoch} of {config.epochs}, loss {epoch.train_loss:.3f}")
