"""Models with idle patches under comparison: made from one backbone, trained, given a budget, measured together."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import DataLoader

from common.benchmark import interleaved
from common.data import head_classes, load_dataset, make_loader
from common.data.base import LabelledDataset
from common.data.loading import subset
from common.digits_backbone import resolve_weights
from common.idling.budget import solve_thresholds
from common.idling.macs import model_macs
from common.idling.outcomes import Outcome, acting_blocks, outcomes, pruner_quality
from common.idling.training import LABEL_STAGE, TASK_STAGE, Data, fit_pruners, tune
from common.models.factory import create_backbone
from common.models.reduced import ReducedVisionTransformer, reduce_tokens
from common.reducers import Method
from common.reducers.base import Reducer
from common.sizing import Shape
from common.training import TrainConfig, accuracy, torch_device
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
    """

    vit: VisionTransformer
    data: Data
    calibration: LabelledDataset
    batch_size: int
    seed: int
    device: str | None
    folder: Path | None

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

    def fit(self, text: str, tau: float, config: TrainConfig = LABEL_STAGE) -> Candidate:
        """Stage 1 on the frozen backbone: an Idling MLP whose pruners know the labels of ``tau``."""
        torch.manual_seed(self.seed)
        model = self.build(text, score_threshold=0.5, tau=tau)
        config = self._settings(config)
        few = self.data[0], subset(self.val_set, min(self.batch_size, len(self.val_set)), self.seed)
        for epoch in fit_pruners(model, few, config, self._folder(f"{text}-tau{tau:.4f}-labels")):
            _tell(f"pruners of {text}, tau {tau:.3f}", epoch, config)
        return Candidate(text, model.eval(), tau=tau, n_train=len(self.data[0]), epochs=config.epochs, seed=self.seed)

    def within(self, fitted: Candidate, cut: float, attention: str | None = None) -> Candidate:
        """``fitted`` with thresholds for ``cut``, a share of the MAC, and perhaps another attention."""
        changed = self.attending(fitted, attention or fitted.model.reducer.attention)
        solve_thresholds(changed.model, self.loader(), cut)
        return replace(changed, cut=cut)

    def attending(self, fitted: Candidate, attention: str) -> Candidate:
        """``fitted`` with its thresholds, whatever they then save, and another attention."""
        method = Method.parse(fitted.text)
        options = {**dict(method.options), "attention": attention}
        text = str(Method(method.name, tuple(options.items())))
        model = self.build(text, fitted.model.reducer, score_threshold=0.5, tau=fitted.tau)
        return replace(fitted, text=text, model=model, cut=None)

    def tuned(self, start: Candidate, cut: float | None, config: TrainConfig = TASK_STAGE) -> Candidate:
        """Stage 2 of a copy of ``start``, distilled from the backbone; new thresholds where a ``cut`` is given."""
        model, config = copy.deepcopy(start.model), self._settings(config)
        if cut is not None:
            found = outcomes({"": model}, self.loader())[0][""]
            acting = acting_blocks(model)
            model.reducer.keep_target = found.computed[:, acting].double().mean().item() / found.num_patches
        few = self.data[0], subset(self.val_set, min(self.batch_size, len(self.val_set)), self.seed)
        name = f"{start.text}-{model.reducer.schedule.keep_rate}-{cut}-task"
        for epoch in tune(model, self.build("none"), few, config, self._folder(name)):
            _tell(f"{start.text}, distilled", epoch, config)
        if cut is not None:
            solve_thresholds(model.eval(), self.loader(), cut)
        trained = {"n_train": len(self.data[0]), "epochs": config.epochs}
        return replace(start, model=model.eval(), stage="tuned", **trained)

    def counts(self, found: Outcome) -> list[int]:
        """Patches that each block computes, mean over the images of ``found``, as whole numbers."""
        return found.computed.double().mean(0).round().clamp(min=1).int().tolist()

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

    def rows(
        self, candidates: Sequence[Candidate], images: LabelledDataset | None = None
    ) -> tuple[list[dict[str, object]], list[Outcome]]:
        """A row of the table ``idling`` for every candidate on all ``images``, and what the rows are made from."""
        images = self.val_set if images is None else images
        found, labels = outcomes(dict(enumerate(c.model for c in candidates)), self.loader(images))
        rows = [self._row(each, found[place], labels, images) for place, each in enumerate(candidates)]
        return rows, list(found.values())

    def _row(self, candidate: Candidate, found: Outcome, labels: Tensor, images: LabelledDataset) -> dict[str, object]:
        method, reducer = Method.parse(candidate.text), candidate.model.reducer
        dense = model_macs(Shape.of(candidate.model), {}, "standard")
        back = found.came_back
        return {
            "method": method.name,
            "options": method.options_text,
            "keep_rate": reducer.schedule.keep_rate,
            "attention": getattr(reducer, "attention", "standard"),
            "stage": candidate.stage,
            "tau": candidate.tau,
            "target_cut": None if candidate.cut is None else 100 * candidate.cut,
            "patches_idle": found.patches_idled,
            "came_back": None if back != back else back,
            **accuracies(found.logits, labels, images),
            "gmac": found.macs.mean().item() / 1e9,
            "macs_cut": 100 * (1 - found.macs.mean().item() / dense),
            "n_train": candidate.n_train,
            "epochs": candidate.epochs,
            "n_val": len(labels),
            "seed": candidate.seed,
        }

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
    """Load ``backbone`` with its own head, and the data."""
    torch.manual_seed(seed)
    vit = create_backbone(backbone, weights=resolve_weights(weights, backbone), img_size=img_size).eval()
    norm = {key: vit.pretrained_cfg[key] for key in ("mean", "std")}
    shared = {"img_size": img_size, "recipe": recipe, **norm}
    train_set = load_dataset(dataset, "train", train=True, limit=limit_train, seed=seed, **shared)
    val_set = load_dataset(dataset, "val", limit=limit_val, seed=0, **shared)
    calibration = load_dataset(dataset, "train", limit=limit_calibration, seed=seed, **shared)
    kept = None if folder in (None, "") else Path(folder)
    return Bench(vit.to(torch_device(device)), (train_set, val_set), calibration, batch_size, seed, device, kept)


def bounds(bench: Bench, fitted: Candidate, counts: Sequence[int], seeds: Sequence[int]) -> list[Candidate]:
    """Oracle, predictor and, for each of ``seeds``, random patches: all compute ``counts`` patches in every block."""
    how, pruners = {"counts": tuple(counts)}, fitted.model.reducer
    oracle, chance = (f"{name}:attention={pruners.attention}" for name in ("idle_oracle", "idle_random"))
    found = [Candidate(oracle, bench.build(oracle, **how), seed=fitted.seed)]
    found.append(replace(fitted, cut=None, model=bench.build(fitted.text, pruners, **how)))
    return [*found, *(Candidate(chance, bench.build(chance, seed=seed, **how), seed=seed) for seed in seeds)]


def prediction(bench: Bench, candidate: Candidate, images: LabelledDataset) -> dict[str, float]:
    """How well the pruners of ``candidate`` know their labels, mean over the blocks where both labels occur."""
    found = [
        each for each in pruner_quality(candidate.model, bench.loader(images)).values() if each.auroc == each.auroc
    ]
    names = {"pruner_accuracy": "accuracy", "balanced_accuracy": "balanced_accuracy", "auroc": "auroc"}
    return {column: mean(getattr(each, name) for each in found) for column, name in names.items()}


def speeds(bench: Bench, candidates: Sequence[Candidate], rounds: int = 3) -> list[float]:
    """Median speed-up of every candidate over the first, interleaved, on one batch of validation images."""
    images, _ = next(iter(bench.loader(bench.some(min(bench.batch_size, len(bench.val_set))))))
    models = {place: each.model.eval() for place, each in enumerate(candidates)}
    measured = interleaved(models, images.to(torch_device(bench.device)), baseline=0, rounds=rounds)
    return [measured[place].speedup for place in models]


def accuracies(logits: Tensor, labels: Tensor, images: LabelledDataset) -> dict[str, float | None]:
    """Percent: with the head restricted to the dataset's classes, and in full where it has more."""
    inside = head_classes(logits.shape[1], images)
    full = None if inside is None else accuracy(logits, torch.tensor(inside)[labels])
    return {"accuracy": accuracy(logits, labels, inside), "accuracy_full": full}


def _tell(what: str, epoch: object, config: TrainConfig) -> None:
    if epoch.epoch:
        print(f"{what}: epoch {epoch.epoch} of {config.epochs}, loss {epoch.train_loss:.3f}")
