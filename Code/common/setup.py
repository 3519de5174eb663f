"""A backbone with its data: what every notebook and every study starts from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import DataLoader

from common.budget import COST_IMAGES, solved
from common.data import load_dataset, make_loader, subset
from common.data.base import LabelledDataset
from common.data.on_device import on_device
from common.devices import torch_device
from common.models.factory import create_backbone
from common.models.reduced import ReducedVisionTransformer, reduce_tokens
from common.reducers import Method
from common.results import resolve
from common.schedule import is_budget
from common.training import TrainConfig, train
from common.training.digits_backbone import resolve_weights
from common.training.distillation import DISTILLATION, Data, in_the_heads_classes
from common.training.engine import goes_on
from common.weights import NORM, weights_label


@dataclass(frozen=True)
class Setup:
    """A backbone and a dataset whose images are normalised as the weights expect. Both are opened when first used.

    Args:
        backbone: timm's name.
        weights: see :func:`common.training.digits_backbone.resolve_weights`.
        dataset, img_size, recipe: see :func:`common.load_dataset`.
        batch_size, workers: of all loaders.
        seed: of what the weights leave open, and of which training images are chosen; not of which images validate.
        device: None = CUDA where there is one.
        limit_train, limit_val, limit_calibration: images, the classes as even as possible; None = all, for training
            all that do not calibrate.
        memory_gb: for the decoded pictures of each dataset, see :func:`common.load_dataset`; 0 = none.
        folder: of trainings and explanations, relative to the repository, so that what was done in a run that was
            stopped is not done again; "" = they are not kept.
        quiet: the losses of trainings are not printed.

    Example:
        >>> setup = Setup("vit_digits", "", "digits", img_size=32, limit_val=20)
        >>> setup.vit.embed_dim, len(setup.val_set), setup.conditions["weights"]
        (64, 20, 'random')
    """

    backbone: str
    weights: str
    dataset: str
    img_size: int
    recipe: str = "pretrained"
    batch_size: int = 32
    workers: int = 0
    seed: int = 0
    device: str | None = None
    limit_train: int | None = None
    limit_val: int | None = None
    limit_calibration: int | None = None
    memory_gb: float = 4.0
    folder: str = ""
    quiet: bool = False

    @classmethod
    def around(cls, vit: VisionTransformer, data: Mapping[str, LabelledDataset], **given: object) -> Setup:
        """The setup of a backbone and datasets that are open already.

        Args:
            vit: in eval mode, with its own head.
            data: ``train_set``, ``val_set``, ``calibration``, those that are used.
            given: settings, as of the class.
        """
        name = next(iter(data.values())).name
        given = {"backbone": "", "weights": "", "dataset": name, "img_size": vit.patch_embed.img_size[0], **given}
        setup = cls(**given)
        vars(setup).update(data, vit=vit)
        return setup

    @cached_property
    def vit(self) -> VisionTransformer:
        """The backbone with its own head, in eval mode, on the device."""
        weights = resolve_weights(self.weights, self.backbone)
        torch.manual_seed(self.seed)
        vit = create_backbone(self.backbone, weights=weights, img_size=self.img_size)
        return vit.eval().to(self.where)

    @cached_property
    def train_set(self) -> LabelledDataset:
        """Training images, augmented."""
        apart = self.limit_calibration or 0
        return self._load("train", train=True, limit=self.limit_train, skip=apart, seed=self.seed)

    @cached_property
    def val_set(self) -> LabelledDataset:
        """Validation images."""
        return self._load("val", limit=self.limit_val, seed=0)

    @cached_property
    def calibration(self) -> LabelledDataset:
        """Training images as they are evaluated; nothing trains on them where they are a part of all."""
        return self._load("train", limit=self.limit_calibration, seed=self.seed)

    def _load(self, split: str, **given: object) -> LabelledDataset:
        norm = {name: self.vit.pretrained_cfg[name] for name in NORM}
        how = {"img_size": self.img_size, "recipe": self.recipe, "memory_gb": self.memory_gb}
        return load_dataset(self.dataset, split, **how, **norm, **given)

    @property
    def where(self) -> torch.device:
        """The device that models run on."""
        return torch_device(self.device)

    @property
    def conditions(self) -> dict[str, object]:
        """What all rows of a run share, for :func:`common.results.write_run`."""
        weights, device = weights_label(self.weights, self.backbone), str(self.where)
        same = {"backbone": self.backbone, "weights": weights, "dataset": self.dataset, "recipe": self.recipe}
        return same | {"img_size": self.img_size, "dtype": "float32", "batch": self.batch_size, "device": device}

    @cached_property
    def calibration_images(self) -> Tensor:
        """All calibration images (n, 3, H, W), decoded once."""
        return self.calibration.stack()

    def loader(self, dataset: LabelledDataset | None = None) -> DataLoader:
        """Of the calibration images, or of others, in their order."""
        chosen = self.calibration if dataset is None else dataset
        loader = make_loader(chosen, self.batch_size, shuffle=False, seed=self.seed, workers=self.workers)
        return on_device(loader, self.where)

    def some(self, count: int | None) -> LabelledDataset:
        """``count`` validation images, the classes as even as possible; None = all."""
        return subset(self.val_set, count, self.seed).remembered(self.memory_gb)

    def cost_images(self) -> Tensor:
        """Images (n, 3, H, W) that the cost of a method is counted on which keeps more of some than of others."""
        return self.some(min(COST_IMAGES, len(self.val_set))).stack()

    def training(self, count: int | None = None) -> Data:
        """``count`` training images, None = all, and a batch of validation images to follow the loss on."""
        few = self.some(min(self.batch_size, len(self.val_set)))
        return subset(self.train_set, count, self.seed), few

    def reduced(self, text: str, **options: object) -> ReducedVisionTransformer:
        """A model on the weights of the backbone, in eval mode, whose method is written as ``text``.

        A method that draws by a seed which neither ``text`` nor ``options`` give has that of this setup. A budget in
        place of a keep rate ("mac_cut=0.4") is solved; one of time for the batches and the device of this setup.
        """
        method = Method.parse(text)
        given = {**dict(method.seeded(self.seed).options), **options}
        if is_budget(given.get("keep_rate")):
            how = {"reduction_loc": given.get("reduction_loc"), "batch_size": self.batch_size}
            given["keep_rate"] = solved(self.vit, method, given["keep_rate"], self.cost_images, **how)
        return reduce_tokens(self.vit, method.name, **given).to(self.where).eval()

    def place(self, name: str) -> Path | None:
        """Where what is called ``name`` is kept."""
        return resolve(self.folder) / re.sub(r"[^A-Za-z0-9.]+", "-", name) if self.folder else None

    def learn(
        self,
        model: ReducedVisionTransformer,
        data: Data,
        config: TrainConfig,
        *,
        title: str = "fine-tuned",
        teacher: ReducedVisionTransformer | None = None,
        folder: Path | None = None,
    ) -> int:
        """Train ``model``, in place, with the seed and on the device of this setup; a head keeps all its classes.

        Args:
            data: see :meth:`training`.
            title: before the loss of every epoch, which is printed.
            teacher: see :func:`common.training.train`.
            folder: where a stopped training goes on from, see :meth:`place`.

        Returns:
            How many images it learnt from.
        """
        config = replace(config, seed=self.seed, device=self.device)

        def say(line: str) -> None:
            if not self.quiet:
                print(f"{title}: {line}")

        how = {"teacher": teacher, "output_dir": folder, "on_resume": lambda history: say(goes_on(history, config))}
        for epoch in train(model, *in_the_heads_classes(model, data), config, **how):
            if epoch.epoch:
                say(f"epoch {epoch.epoch} of {config.epochs}, loss {epoch.train_loss:.3f}")
        return len(data[0])

    def distil(
        self, model: ReducedVisionTransformer, data: Data, config: TrainConfig = DISTILLATION, **how: Any
    ) -> int:
        """Train all of ``model``, in place, to agree with the unreduced backbone, without labels.

        Args:
            **how: ``title`` and ``folder`` of :meth:`learn`.
        """
        how = {"title": "distilled", **how}
        return self.learn(model, data, config, teacher=reduce_tokens(self.vit, "none"), **how)
