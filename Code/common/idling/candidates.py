"""Models with idle patches, made from one backbone: trained, given a budget, looked at."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import DataLoader

from common.data import load_dataset, make_loader
from common.data.base import LabelledDataset
from common.data.loading import subset
from common.digits_backbone import resolve_weights
from common.idling.budget import solve_thresholds
from common.idling.outcomes import acting_blocks, outcomes
from common.idling.states import alikeness
from common.idling.training import LABEL_STAGE, TASK_STAGE, Data, fit_pruners, tune
from common.models.factory import create_backbone
from common.models.reduced import ReducedVisionTransformer, reduce_tokens
from common.reducers import Method
from common.reducers.base import Reducer
from common.results import resolve
from common.training import TrainConfig, torch_device
from common.visualize import denormalise


@dataclass(frozen=True)
class Candidate:
    """A model under comparison, and what a row of the table ``idling`` says of how it came about.

    Attributes:
        text: the method as :class:`common.reducers.Method` writes it.
        model: it.
        stage: "frozen" or "tuned".
        tau: of the labels that its pruners learnt.
        cut: share of the MAC that its thresholds were solved to save.
        n_train, epochs: of its last training.
        seed: of what is drawn.
    """

    text: str
    model: ReducedVisionTransformer
    stage: str = "frozen"
    tau: float | None = None
    cut: float | None = None
    n_train: int = 0
    epochs: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Bench:
    """A backbone with its data.

    Attributes:
        data: training images, augmented, and validation images.
        calibration: training images as they are evaluated.
        folder: where trainings are kept, so that a stopped one goes on; None = nowhere.
        conditions: columns that all rows of a CSV share, for ``write_run``.
    """

    vit: VisionTransformer
    data: Data
    calibration: LabelledDataset
    batch_size: int
    seed: int
    device: str | None
    folder: Path | None
    conditions: Mapping[str, object] = field(default_factory=dict)

    @property
    def val_set(self) -> LabelledDataset:
        return self.data[1]

    def loader(self, dataset: LabelledDataset | None = None) -> DataLoader:
        """Of the calibration images, or of others, in their order."""
        return make_loader(dataset or self.calibration, self.batch_size, shuffle=False, seed=self.seed)

    def some(self, count: int | None) -> LabelledDataset:
        """``count`` validation images, the classes as even as possible; None = all."""
        return subset(self.val_set, count, self.seed)

    def build(self, text: str, pruners: Reducer | None = None, **options: object) -> ReducedVisionTransformer:
        """A reduced model that shares the weights of the backbone and has a copy of those ``pruners``."""
        method = Method.parse(text)
        model = reduce_tokens(self.vit, method.name, **dict(method.options), **options)
        if pruners is not None:
            model.reducer.load_state_dict(pruners.state_dict())
        return model.to(torch_device(self.device)).eval()

    def tau(self, text: str, share: float) -> float:
        """The tau at which a ``share`` of all patches in all blocks may idle, by the labels that ``text`` learns."""
        reducer = self.build(text, score_threshold=0.5).reducer
        return alikeness(self.build("none"), self.loader(), reducer.similarity, reducer.influence).tau(share)

    def fit(self, text: str, tau: float, config: TrainConfig = LABEL_STAGE, count: int | None = None) -> Candidate:
        """Stage 1 on the frozen backbone: an Idling MLP whose pruners know the labels of ``tau``.

        Args:
            count: training images, as for :meth:`tuned`; None = all.
        """
        torch.manual_seed(self.seed)
        model = self.build(text, score_threshold=0.5, tau=tau)
        config, data = self._settings(config), self._training(count)
        for epoch in fit_pruners(model, data, config, self._folder(f"{text}-tau{tau:.4f}-labels")):
            _tell(f"pruners of {text}, tau {tau:.3f}", epoch, config)
        return Candidate(text, model.eval(), tau=tau, n_train=len(data[0]), epochs=config.epochs, seed=self.seed)

    def within(self, fitted: Candidate, cut: float, attention: str | None = None) -> Candidate:
        """``fitted`` with thresholds for ``cut``, a share of the MAC; with another attention on the frozen backbone."""
        copied = replace(fitted, model=copy.deepcopy(fitted.model))
        changed = self.attending(fitted, attention) if attention else copied
        solve_thresholds(changed.model, self.loader(), cut)
        return replace(changed, cut=cut)

    def attending(self, fitted: Candidate, attention: str) -> Candidate:
        """``fitted`` with its thresholds, whatever they then save, and another attention."""
        method = Method.parse(fitted.text)
        options = {**dict(method.options), "attention": attention}
        text = str(Method(method.name, tuple(options.items())))
        model = self.build(text, fitted.model.reducer, score_threshold=0.5, tau=fitted.tau)
        return replace(fitted, text=text, model=model, cut=None)

    def tuned(
        self, start: Candidate, cut: float | None, config: TrainConfig = TASK_STAGE, count: int | None = None
    ) -> Candidate:
        """Stage 2 of a copy of ``start``, distilled from the backbone; new thresholds where a ``cut`` is given."""
        model, config, data = copy.deepcopy(start.model), self._settings(config), self._training(count)
        if cut is not None:
            found = outcomes({"": model}, self.loader())[0][""]
            acting = acting_blocks(model)
            model.reducer.keep_target = found.computed[:, acting].double().mean().item() / found.num_patches
        name = f"{start.text}-{model.reducer.schedule.keep_rate}-{cut}-task"
        for epoch in tune(model, self.build("none"), data, config, self._folder(name)):
            _tell(f"{start.text}, distilled", epoch, config)
        if cut is not None:
            solve_thresholds(model.eval(), self.loader(), cut)
        trained = {"n_train": len(data[0]), "epochs": config.epochs}
        return replace(start, model=model.eval(), stage="tuned", **trained)

    def masks(
        self, model: ReducedVisionTransformer, places: Sequence[int], among: int = 10
    ) -> tuple[list[Tensor], list[Tensor], list[str]]:
        """Pictures (3, H, W) in [0, 1], patches that each block computes (depth, P), and classes.

        Args:
            places: of the images among ``among`` validation images, the classes as even as possible.
        """
        few = self.some(among).select(torch.tensor(list(places)))
        images = torch.stack([few[place][0] for place in range(len(few))])
        _, trace = model.trace(images.to(torch_device(self.device)))
        pictures = denormalise(images, few.mean, few.std)
        return list(pictures), list(torch.stack(trace.active, 1).cpu()), [few.classes[label] for label in few.labels]

    def _training(self, count: int | None) -> Data:
        """``count`` training images, and a batch of others to follow the loss on."""
        few = subset(self.val_set, min(self.batch_size, len(self.val_set)), self.seed)
        return subset(self.data[0], count, self.seed), few

    def _settings(self, config: TrainConfig) -> TrainConfig:
        return replace(config, seed=self.seed, device=self.device)

    def _folder(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / re.sub(r"[^A-Za-z0-9.]+", "-", name)


def open_bench(
    backbone: str,
    weights: str,
    dataset: str,
    *,
    img_size: int,
    recipe: str,
    limit_train: int | None,
    limit_val: int | None,
    limit_calibration: int | None,
    batch_size: int,
    seed: int,
    device: str | None = None,
    folder: str | Path | None = None,
) -> Bench:
    """Load ``backbone`` with its own head, and the data.

    Args:
        limit_train, limit_val, limit_calibration: images, the classes as even as possible; None = all.
        folder: of the trainings, relative to the repository; None or "" = they are not kept.
    """
    torch.manual_seed(seed)
    vit = create_backbone(backbone, weights=resolve_weights(weights, backbone), img_size=img_size).eval()
    norm = {key: vit.pretrained_cfg[key] for key in ("mean", "std")}
    shared = {"img_size": img_size, "recipe": recipe, **norm}
    train_set = load_dataset(dataset, "train", train=True, limit=limit_train, seed=seed, **shared)
    val_set = load_dataset(dataset, "val", limit=limit_val, seed=0, **shared)
    calibration = load_dataset(dataset, "train", limit=limit_calibration, seed=seed, **shared)
    where, kept = torch_device(device), resolve(folder) if folder else None
    conditions = {"backbone": backbone, "dataset": dataset, "img_size": img_size, "dtype": "float32"}
    conditions |= {"batch": batch_size, "device": str(where)}
    return Bench(vit.to(where), (train_set, val_set), calibration, batch_size, seed, device, kept, conditions)


def _tell(what: str, epoch: object, config: TrainConfig) -> None:
    if epoch.epoch:
        print(f"{what}: epoch {epoch.epoch} of {config.epochs}, loss {epoch.train_loss:.3f}")
