"""What a profile costs, known before anything runs: ./run_all.sh PROFILE --plan.

Compute is counted in passes (passes.py) of the unreduced backbone, whose multiply-accumulates are the closed form of
:mod:`common.cost`. Reduced models cost less and are counted in full, reading and augmenting images is left out, and a
GPU is taken to sustain TFLOPS. So hours tell a night from a month.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from notebooks import defaults_of
from passes import PASSES, Given
from plan import Run

GPU = "an A100"
TFLOPS = {"no": 12, "bf16": 100, "fp16": 100}  # sustained, by mixed precision: two and one third of the peak
GB = 1e9
OPTIMIZER_BYTES = 16  # weight, gradient and two moments of a parameter
CHECKPOINT_BYTES = 20  # of a parameter, in the folder of a training: weights, best weights, state with two moments
# data set -> GB that are downloaded; others, and those without a number, have to be there
DOWNLOADS = dict.fromkeys(("digits", "photo-tiles"), 0.0) | dict.fromkeys(("cifar10", "cifar100"), 0.17)
DOWNLOADS |= {"fashion-mnist": 0.03, "imagenette": 1.56}
CLEARED = ("Pretrained/finetune", "Scratch/train_test")  # remove what they kept of a training when it is done


@dataclass(frozen=True)
class Cost:
    """Of one run: hours on a GPU, memory of the GPU and disk in GB, the latter ``kept`` afterwards or not."""

    hours: float
    memory: float
    disk: float
    kept: bool = True


def is_known(run: Run) -> bool:
    """Whether the notebook of the run has an estimate; one that a user wrote has none."""
    return _notebook(run) in PASSES


def passes_of(run: Run) -> float:
    """The passes that a run makes, of all its backbones together."""
    given = {**defaults_of(run.notebook), **run.options}
    depth = max(size.depth for size in _sizes(run))
    return PASSES[_notebook(run)](Given(given, depth))


def cost_of(run: Run) -> Cost:
    """What one run costs; nothing where that is not known."""
    if not is_known(run):
        return Cost(0.0, 0.0, 0.0)
    sizes, passes = _sizes(run), passes_of(run)
    run = replace(run, options={**defaults_of(run.notebook), **run.options})
    trains = "epochs" in run.options or run.options.get("finetune_epochs", 0) > 0
    speed = TFLOPS[run.options.get("mixed_precision", "no")] * 1e12
    hours = sum(2 * size.macs * passes / len(sizes) for size in sizes) / speed / 3600
    memory = max(size.memory(max(run.values("batch_size"), default=1), trains=trains) for size in sizes)
    models = Given(run.options).models if {"keep_rates", "reducers"} <= run.options.keys() else 1
    disk = models * CHECKPOINT_BYTES * sizes[0].params if trains and run.options.get("checkpoints") else 0.0
    return Cost(hours, memory / GB, disk / GB, _notebook(run) not in CLEARED)


def _notebook(run: Run) -> str:
    return run.notebook.removeprefix("Code/").removesuffix(".py")


def _sizes(run: Run) -> list[Sizes]:
    run = replace(run, options={**defaults_of(run.notebook), **run.options})
    return [sizes_of(name, run.options.get("img_size")) for name in run.values("backbone")]


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
