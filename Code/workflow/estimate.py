"""What a profile costs, known before anything runs: ./run_all.sh PROFILE --plan.

Compute is counted in passes: one image once through the unreduced backbone, whose multiply-accumulates are the closed
form of :mod:`common.cost`. A pass that trains counts three times. Reduced models cost less and are counted in full,
reading and augmenting images is left out, and a GPU is taken to sustain TFLOPS. So hours tell a night from a month.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from notebooks import defaults_of
from plan import Run

GPU = "an A100"
TFLOPS = {"no": 12, "bf16": 100, "fp16": 100}  # sustained, by mixed precision: two and one third of the peak
GB = 1e9
TRAINED = 3  # forward and backward pass
OPTIMIZER_BYTES = 16  # weight, gradient and two moments of a parameter
CHECKPOINT_BYTES = 20  # of a parameter, in the folder of a training: weights, best weights, state with two moments
# data set -> images to train on, to validate on, GB that are downloaded; None = never downloaded, has to be there
DATA = {
    "digits": (1_437, 360, 0.0),
    "photo-tiles": (260, 260, 0.0),
    "cifar10": (50_000, 10_000, 0.17),
    "cifar100": (50_000, 10_000, 0.17),
    "fashion-mnist": (60_000, 10_000, 0.03),
    "imagenette": (9_469, 3_925, 1.56),
    "imagenet": (1_281_167, 50_000, None),
    "nabirds": (23_929, 24_633, None),
    "coco": (82_081, 40_137, None),
    "nuswide": (150_000, 59_347, None),
}
UNKNOWN = (35_000, 4_000, None)  # of a folder: ImageNet-mini's
EXPLAINED = 100  # passes for an image and an explainer: its own, and the curves of insertion and deletion
CLEARED = ("Pretrained/finetune", "Scratch/train_test")  # remove what they kept of a training when it is done


@dataclass(frozen=True)
class Cost:
    """Of one run: hours on a GPU, memory of the GPU and disk in GB, the latter ``kept`` afterwards or not."""

    hours: float
    memory: float
    disk: float
    kept: bool = True


@dataclass(frozen=True)
class Given:
    """The parameters of a run, those of its notebook included, and its numbers of images."""

    options: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.options[name]

    def limited(self, name: str, split: int) -> int:
        """Images that the limit ``name`` leaves of the training (0) or validation set (1)."""
        return _limited(self["dataset"], split, self.options.get(name))

    @property
    def train(self) -> int:
        return self.limited("limit_train", 0)

    @property
    def val(self) -> int:
        return self.limited("limit_val", 1)

    @property
    def models(self) -> int:
        """Methods times keep rates."""
        return len(self["reducers"]) * len(self["keep_rates"])

    @property
    def training(self) -> int:
        """Passes of a training that validates after every epoch."""
        return self.val + self["epochs"] * (TRAINED * self.train + self.val)

    def explained(self, *names: str) -> int:
        """Passes for all explainers that the lists ``names`` name."""
        return self["num_images"] * sum(len(self[name]) for name in names) * EXPLAINED


def _limited(dataset: str, split: int, limit: int | None) -> int:
    there = DATA.get(dataset, UNKNOWN)[split]
    return min(limit or there, there)


def _across_data(given: Given) -> int:
    if given["trained"]:
        return 0
    images = sum(_limited(name, 1, limit) for name, limit in zip(given["datasets"], given["limits"], strict=True))
    return given.models * images * len(given["backbones"])


def _slimming(given: Given) -> int:
    search = given["num_calibration"] * len(given["scores"]) * len(given["lengths"]) * (20 + TRAINED * given["epochs"])
    tuning = given["distill_epochs"] * TRAINED * given.train + given["gate_epochs"] * TRAINED * given["gate_images"]
    budgets = len(given["budgets"]) * given.limited("limit_budgets", 1)
    return search + tuning + budgets + 4 * given.val + given.limited("limit_dynamic", 1)


def _slimming_study(given: Given) -> int:
    masks = len(given["blocks"]) * len(given["kept_shares"]) * len(given["pruning"])
    tolerances = len(given["tolerances"]) * (given.limited("limit_tolerances", 1) + 20 * given["num_calibration"])
    sensitivity = 12 * len(given["sensitivity_kept_shares"]) * given.limited("limit_sensitivity", 1)
    return masks * (len(given["scores"]) + given["random_masks"]) * given.val + tolerances + sensitivity


def _idle_study(given: Given) -> int:
    trained = len(given["labels"]) * (given["epochs"] + given["tune_epochs"] * len(given["tune_rates"]))
    return trained * TRAINED * given.train + 10 * (given.val + given.limited("limit_variants", 1))


PASSES: dict[str, Callable[[Given], int]] = {
    "Benchmark/sizing": lambda given: 0,
    "Benchmark/throughput": lambda given: (
        given.models * len(given["backbones"]) * sum(given["batch_sizes"]) * given["rounds"] * 20
    ),
    "Pretrained/explain": lambda given: 10 * EXPLAINED,
    "Pretrained/explain_agreement": lambda given: given.explained("explainers"),
    "Pretrained/explain_benchmark": lambda given: given.explained("explainers", "reduced_explainers"),
    "Pretrained/finetune": lambda given: given.training,
    "Pretrained/idle_patches": lambda given: (
        (given["epochs"] + 1) * len(given["labels"]) * TRAINED * given.train + 8 * given.val
    ),
    "Pretrained/idle_study": _idle_study,
    "Pretrained/method_grid": lambda given: given.models * given.training,
    "Pretrained/methods_gallery": lambda given: len(given["reducers"]) * given.training // 3,
    "Pretrained/mutex_study": lambda given: given.explained("min_cuts", "token_ratios", "starting_layers"),
    "Pretrained/off_the_shelf": lambda given: given.models * given.val,
    "Pretrained/patch_slimming": _slimming,
    "Pretrained/patch_slimming_study": _slimming_study,
    "Pretrained/pattern_proxies": lambda given: 0 if given["trained"] else given.models * given.val,
    "Pretrained/patterns_across_data": _across_data,
    "Pretrained/reduction_patterns": lambda given: 0 if given["trained"] else given.models * given.val,
    "Pretrained/visualize": lambda given: len(given["keep_rates"]) * given["num_images"],
    "Scratch/train_test": lambda given: given.training,
}


def cost_of(run: Run) -> Cost:
    """What one run costs."""
    run = replace(run, options={**defaults_of(run.notebook), **run.options})
    given, trains = Given(run.options), "epochs" in run.options
    notebook = run.notebook.removeprefix("Code/").removesuffix(".py")
    sizes = [sizes_of(name, run.options.get("img_size")) for name in run.values("backbone")]
    passes = PASSES[notebook](given) / len(sizes)
    speed = TFLOPS[run.options.get("mixed_precision", "no")] * 1e12
    hours = sum(2 * size.macs * passes for size in sizes) / speed / 3600
    memory = max(size.memory(max(run.values("batch_size"), default=1), trains=trains) for size in sizes)
    models = given.models if {"keep_rates", "reducers"} <= run.options.keys() else 1
    disk = models * CHECKPOINT_BYTES * sizes[0].params if trains and run.options.get("checkpoints") else 0.0
    return Cost(hours, memory / GB, disk / GB, notebook not in CLEARED)


@dataclass(frozen=True)
class Sizes:
    """Of a backbone: multiply-accumulates of an image, parameters, and floats that a block keeps for the way back."""

    macs: int
    params: int
    activations: int
    depth: int

    def memory(self, batch: int, *, trains: bool) -> float:
        """Bytes on the device, of float32."""
        blocks = self.depth if trains else 2
        return 4 * batch * blocks * self.activations + self.params * (OPTIMIZER_BYTES if trains else 4)


@cache
def sizes_of(backbone: str, img_size: int | None) -> Sizes:
    import torch

    from common import create_model
    from common.cost.closed_form import Shape

    with torch.device("meta"):
        model = create_model(backbone, img_size=img_size)
    shape = Shape.of(model)
    # two norms, queries, keys and values, attention, projection, both halves of the MLP, two sums
    floats = shape.num_tokens * (9 * shape.dim + 2 * shape.mlp_dim)
    return Sizes(shape.unreduced, sum(weight.numel() for weight in model.parameters()), floats, shape.depth)
