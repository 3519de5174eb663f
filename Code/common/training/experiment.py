"""A run as data: model, datasets and settings, from a few lines of YAML to a folder of results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import InstanceOf
from torch import nn

from common.budget import COST_IMAGES, check_solvable, solved
from common.data import head_classes, load_dataset, subset
from common.data.base import LabelledDataset
from common.data.catalog import Dataset
from common.data.transforms import Mean, Recipe, Std
from common.devices import torch_device
from common.errors import UsageError
from common.models.factory import create_backbone, create_model, expected_norm
from common.models.published import start_pretrained, start_random
from common.models.reduced import ReducedVisionTransformer
from common.options import Count, NonNegative, ShareBelow1, check_fields, check_names, field_kinds
from common.processes import is_alone, is_main_process
from common.reducers import Method
from common.reducers.method import MethodText
from common.results import conditions, from_cwd, resolve
from common.schedule import Blocks, KeepRateOrBudget, is_budget, keep_rate_text, read_budget
from common.training.checkpoint import STATE, refuse_difference, write_json
from common.training.config import TrainConfig, protocol
from common.training.digits_backbone import NO_PATH, resolve_weights
from common.training.engine import ANYWHERE, Epoch, train
from common.weights import weights_label
from common.yaml_files import parse_yaml, read_yaml

RECORD = "experiment.json"
ASKED = "budget"  # the key of the record for what the keep rate was solved for
DTYPES = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}
PATHS = {"output_dir", "weights", "teacher_weights"}  # relative ones of a YAML file start from the working directory
CIRCUMSTANCES = ("device", "threads", "torch", "timm", "commit", "date")


@dataclass(frozen=True)
class Experiment:
    """Everything that a training run is.

    Attributes:
        backbone: name for :func:`common.create_model`.
        dataset, img_size, recipe: see :func:`common.load_dataset`.
        config: how to train.
        weights: "" = random, "timm" = the hub's, "digits" = the small ViT of this package, or a .safetensors file.
        reducer: method with its options as text, e.g. ``topk`` or ``dynamicvit:ratio_weight=2``.
        keep_rate, reduction_loc: see :class:`common.reducers.Schedule`; or a budget, "mac_cut=0.4" or "speedup=1.5", of
            the model in evaluation, on this machine, with ``batch_size`` images in the format of ``mixed_precision``.
            A run that goes on has the keep rate that was found when it was begun.
        mean, std: of the images; by default what the weights expect, without any the teacher's, or else the recipe's.
        limit_train, limit_val: number of images; None = all.
        drop_path: stochastic depth of the backbone.
        head: "fresh" = as many outputs as the dataset has classes, trained from scratch where the weights have another
            number; "dataset" = of a head of 1000 ImageNet classes the rows of the dataset's classes, so that epoch 0 is
            the accuracy off the shelf; "auto" = "dataset" where the weights know its classes, else "fresh".
        start: "timm" = the network and its weights as timm has them; "published" = as the code of TRAM's authors
            starts, from the weights or without any: :mod:`common.models.published`.
        teacher, teacher_weights: backbone to learn from, with its weights; its head is restricted like "dataset".
        output_dir: the run's folder, from which a stopped run goes on; "" = none. Like files of weights it starts from
            the repository's root where it is relative, as in a notebook; in a YAML file, from the working directory.
        memory_gb: for the decoded pictures of each of the two datasets, see :func:`common.load_dataset`; 0 = none.
    """

    backbone: str
    dataset: Dataset
    config: InstanceOf[TrainConfig] = field(default_factory=lambda: protocol("tram"))
    weights: str = ""
    reducer: MethodText = "none"
    keep_rate: KeepRateOrBudget = 1.0
    reduction_loc: Blocks | None = None
    img_size: Count = 224
    recipe: Recipe = "pretrained"
    mean: Mean | None = None
    std: Std | None = None
    limit_train: Count | None = None
    limit_val: Count | None = None
    drop_path: ShareBelow1 = 0.0
    head: Literal["fresh", "dataset", "auto"] = "fresh"
    start: Literal["timm", "published"] = "timm"
    teacher: str = ""
    teacher_weights: str = ""
    output_dir: str = ""
    memory_gb: NonNegative = 4.0

    def __post_init__(self) -> None:
        check_fields(self)
        if is_budget(self.keep_rate):
            check_solvable(Method.parse(self.reducer).name)
        if bool(self.teacher) != bool(self.teacher_weights):
            raise UsageError(
                f"teacher={self.teacher!r} with teacher_weights={self.teacher_weights!r} is not possible; give both"
            )

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
        """Read a flat mapping of this class's and :class:`TrainConfig`'s attributes, and ``protocol`` to start from.

        Args:
            overrides: ``key=value``, each of which wins over the file.

        Raises:
            UsageError: no such file, no mapping, or an unknown key; the message lists what is allowed.
        """
        given = read_yaml(path)
        if not isinstance(given, dict):
            raise UsageError(f"config file {str(path)!r} holds no mapping; write lines of the form key: value")
        for text in overrides:
            key, equals, value = text.partition("=")
            if not equals:
                raise UsageError(f"override {text!r} is not allowed; write key=value")
            given[key] = parse_yaml(value, text)
        for key in PATHS & given.keys():
            path = given[key]
            if isinstance(path, str) and path not in NO_PATH:
                given[key] = str(from_cwd(path))
        return cls.from_dict(given)

    @classmethod
    def keys(cls) -> list[str]:
        """What :meth:`from_dict` takes: attributes of this class and of :class:`TrainConfig`, and ``protocol``."""
        return [*(name for name in field_kinds(cls) if name != "config"), *field_kinds(TrainConfig), "protocol"]

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Experiment:
        """The experiment of a flat mapping, see :meth:`from_yaml`."""
        own, settings = [name for name in field_kinds(cls) if name != "config"], field_kinds(TrainConfig)
        check_names(map(str, given), cls.keys(), "key")
        missing = [name for name in ("backbone", "dataset") if name not in given]
        if missing:
            raise UsageError(f"a training needs {' and '.join(missing)}; allowed: {', '.join(own)}")
        config = protocol(given.get("protocol", "tram"), **{key: given[key] for key in settings if key in given})
        return cls(config=config, **{key: given[key] for key in own if key in given})

    def datasets(self) -> tuple[LabelledDataset, LabelledDataset]:
        """Training and validation set."""
        return self._dataset("train", self.limit_train), self.val_set()

    def val_set(self) -> LabelledDataset:
        """The images that accuracy is measured on, without opening the training set."""
        return self._dataset("val", self.limit_val)

    def _dataset(self, split: str, limit: int | None) -> LabelledDataset:
        backbone, weights = (self.backbone, self.weights) if self.weights else (self.teacher, self.teacher_weights)
        expected = expected_norm(backbone, resolve_weights(weights, backbone))
        own = {key: value for key, value in (("mean", self.mean), ("std", self.std)) if value is not None}
        return load_dataset(
            self.dataset,
            split,
            img_size=self.img_size,
            train=split == "train",
            recipe=self.recipe,
            limit=limit,
            seed=self.config.seed if split == "train" else 0,  # all seeds are measured on the same images
            memory_gb=self.memory_gb,
            **{**expected, **own},
        )

    def with_head(self, dataset: LabelledDataset) -> Experiment:
        """The same with "auto" decided: "dataset" where the weights know all classes of ``dataset``, else "fresh"."""
        if self.head != "auto":
            return self
        vit = create_backbone(self.backbone, weights=resolve_weights(self.weights, self.backbone))
        try:
            head_classes(vit.num_classes, dataset)
        except UsageError:
            return replace(self, head="fresh")
        return replace(self, head="dataset" if self.weights else "fresh")

    def model(self, dataset: LabelledDataset | None = None) -> ReducedVisionTransformer:
        """The model before training, the same for the same seed; ``dataset`` saves opening the validation set again."""
        dataset = dataset or self.val_set()
        head = self.with_head(dataset).head
        method, weights = Method.parse(self.reducer), resolve_weights(self.weights, self.backbone)
        keep_rate = self._solved(dataset) if is_budget(self.keep_rate) else self.keep_rate
        torch.manual_seed(self.config.seed)
        model = create_model(
            self.backbone,
            reducer=method.name,
            keep_rate=keep_rate,
            reduction_loc=self.reduction_loc,
            weights=weights,
            num_classes=dataset.num_classes if head == "fresh" else None,
            img_size=self.img_size,
            drop_path=self.drop_path,
            **dict(method.seeded(self.config.seed).options),
        )
        if self.start == "published":
            start_pretrained(model, fresh_head=head == "fresh") if weights else start_random(model)
        if head == "dataset":
            restrict_head(model, dataset)
        return model

    def _solved(self, dataset: LabelledDataset) -> float:
        """The keep rate for the budget: that of the run in ``output_dir``, or a new one."""
        if (found := self._begun()) is not None and found.get(ASKED) == self.keep_rate:
            return found["experiment"]["keep_rate"]
        if read_budget(self.keep_rate).keys() & {"latency_ms", "speedup"} and not is_alone():
            raise UsageError(
                f"keep_rate={self.keep_rate!r} is measured by one process alone; find it first, and give it"
            )
        method, weights = Method.parse(self.reducer), resolve_weights(self.weights, self.backbone)
        vit = create_backbone(self.backbone, weights=weights, img_size=self.img_size)
        few = subset(dataset, min(COST_IMAGES, len(dataset)), 0)
        how = {"batch_size": self.config.batch_size, "device": str(torch_device(self.config.device))}
        how |= {"dtype": DTYPES[self.config.mixed_precision], "reduction_loc": self.reduction_loc}
        return solved(vit, method, self.keep_rate, few.stack, **how)

    def teacher_model(self, dataset: LabelledDataset) -> ReducedVisionTransformer | None:
        """The unreduced teacher with the dataset's classes, if there is one."""
        if not self.teacher:
            return None
        teacher = create_model(
            self.teacher, weights=resolve_weights(self.teacher_weights, self.teacher), img_size=self.img_size
        )
        restrict_head(teacher, dataset)
        return teacher

    def run(
        self,
        model: ReducedVisionTransformer | None = None,
        datasets: tuple[LabelledDataset, LabelledDataset] | None = None,
        *,
        on_resume: Callable[[list[Epoch]], None] | None = None,
    ) -> Iterator[Epoch]:
        """Train; yields what :func:`common.training.train` does and keeps it in ``output_dir``.

        Args:
            model: that of :meth:`model`, for who wants it afterwards.
            datasets: those of :meth:`datasets`, for who has them open.
            on_resume: see :func:`common.training.train`.
        """
        train_set, val_set = datasets or self.datasets()
        model, teacher = model or self.model(val_set), self.teacher_model(val_set)
        folder = resolve(self.output_dir) if self.output_dir else None
        if folder:
            self._record(folder, model)
        how = {"teacher": teacher, "output_dir": folder, "on_resume": on_resume}
        yield from train(model, train_set, val_set, self.config, **how)

    def clear(self) -> None:
        """Remove ``output_dir``, when what the training found is kept elsewhere."""
        if self.output_dir and is_main_process():
            shutil.rmtree(resolve(self.output_dir))

    def conditions(self) -> dict[str, Any]:
        """The condition columns of :mod:`common.results` that follow from the experiment."""
        method = Method.parse(self.reducer)
        return {
            "method": method.name,
            "options": method.options_text,
            "backbone": self.backbone,
            "weights": weights_label(self.weights, self.backbone),
            "dataset": self.dataset,
            "recipe": self.recipe,
            "img_size": self.img_size,
            "keep_rate": keep_rate_text(self.keep_rate),
            "seed": self.config.seed,
            "epochs": self.config.total_epochs,
            "lr": self.config.lr,
            "dtype": DTYPES[self.config.mixed_precision],
            "batch": self.config.batch_size,
        }

    def _begun(self) -> dict[str, Any] | None:
        """The record of the run in ``output_dir``, if one was begun there."""
        folder = resolve(self.output_dir) if self.output_dir else None
        # one that was refused before its first epoch left no state
        if folder is None or not (folder / RECORD).is_file() or not (folder / STATE).is_file():
            return None
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))

    def _record(self, folder: Path, model: ReducedVisionTransformer) -> None:
        """Write experiment.json, or refuse a folder of another experiment. A budget stands beside its keep rate."""
        asked = {ASKED: self.keep_rate} if is_budget(self.keep_rate) else {}
        same = replace(self, output_dir="", **({"keep_rate": model.reducer.schedule.keep_rate} if asked else {}))
        mine = json.loads(json.dumps(asdict(same)))
        path = folder / RECORD
        if (begun := self._begun()) is not None:
            refuse_difference(_comparable(begun["experiment"]), _comparable(mine), f"experiment {str(path)!r}")
        elif is_main_process():
            around = conditions(device=self.config.device)
            write_json(path, {"experiment": mine, **asked, **{key: around[key] for key in CIRCUMSTANCES}})


def restrict_head(model: nn.Module, dataset: LabelledDataset) -> None:
    """Keep of a head of 1000 ImageNet classes the rows that are the dataset's classes, in its order.

    A head that has the dataset's number of classes stays as it is. Raises UsageError when neither is the case.
    """
    rows = head_classes(model.num_classes, dataset)
    if rows is None:
        return
    heads = {name: getattr(model, name) for name in ("head", "head_dist") if hasattr(model, name)}
    model.reset_classifier(len(rows))
    for name, old in heads.items():
        getattr(model, name).load_state_dict({key: value[rows] for key, value in old.state_dict().items()})


def _comparable(experiment: Mapping[str, Any]) -> dict[str, Any]:
    config = {key: value for key, value in experiment["config"].items() if key not in ANYWHERE}
    ignored = ("config", "memory_gb")  # where the pictures come from changes none of them
    return {**{key: value for key, value in experiment.items() if key not in ignored}, **config}
