"""Plans with the backbones that were trained to follow them: blocks one by one, then the whole network."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from common.models.reduced import ReducedVisionTransformer, reduce_tokens
from common.reducers.slimming_plan import SlimmingPlan
from common.setup import Setup
from common.slimming.top_down import search
from common.training import TrainConfig, protocol
from common.training.distillation import DISTILLATION
from common.training.experiment import DTYPES

Row = dict[str, object]
# DeiT's recipe, as far as it is one of fine-tuning: no average of weights, which a few epochs leave where it started.
FINETUNING = protocol(
    "which_tokens", epochs=1, lr=1e-4, lr_batch_normalizer=None, grad_accum_steps=1, warmup_epochs=0.1, ema_decay=None
)


@dataclass(frozen=True)
class Stage:
    """A plan and a backbone that was trained to follow it.

    Attributes:
        training: "none", of the "blocks" one by one, of the whole "network" from its old logits, or on "labels".
        conditions: epochs, learning rate, number of images and number format of all training.
    """

    plan: SlimmingPlan
    vit: VisionTransformer
    training: str = "none"
    conditions: Row = field(default_factory=dict)

    @property
    def model(self) -> ReducedVisionTransformer:
        return reduce_tokens(self.vit, "patch_slimming", plan=self.plan)


def searched(setup: Setup, folder: Path | None = None, **settings: Any) -> list[Stage]:
    """The plan that a search finds, before the tuning of blocks and, where blocks are tuned, after it.

    Args:
        folder: where a stopped search goes on from.
        **settings: of :class:`common.slimming.top_down.SearchSettings`.
    """
    vit = copy.deepcopy(setup.vit)
    plan = search(vit, setup.calibration_images, output_dir=folder, seed=setup.seed, **settings)
    how, images = plan.settings, plan.settings["images"]
    given = {"epochs": how["epochs"], "lr": how["lr"], "n_train": images - round(images * how["held_out"])}
    return [Stage(plan, setup.vit), Stage(plan, vit, "blocks", given)][: 2 if how["epochs"] else 1]


def distilled(setup: Setup, stage: Stage, epochs: int, lr: float, *, folder: Path | None = None) -> Stage:
    """``stage`` after its whole network learnt, on images alone, to agree with the unreduced one.

    In place of the last step of Tang et al. (CVPR 2022), which is :func:`finetuned`.

    Args:
        folder: where a stopped training goes on from.
    """
    config = replace(DISTILLATION, epochs=epochs, lr=lr, batch_size=setup.batch_size)
    return _trained(setup, stage, "network", config, folder)


def finetuned(
    setup: Setup, stage: Stage, epochs: int, lr: float, *, mixed_precision: str = "no", folder: Path | None = None
) -> Stage:
    """``stage`` after its whole network learnt again on labels, its plan as it is: the last step of Tang et al.

    The paper takes DeiT's recipe and does not say for how long. A head of 1000 classes keeps all of them.

    Args:
        folder: where a stopped training goes on from.
    """
    how = {"epochs": epochs, "lr": lr, "mixed_precision": mixed_precision}
    config = replace(FINETUNING, **how, batch_size=setup.batch_size, workers=setup.workers)
    return _trained(setup, stage, "labels", config, folder)


def _trained(setup: Setup, stage: Stage, training: str, config: TrainConfig, folder: Path | None) -> Stage:
    """A copy of ``stage`` whose whole network went through ``training``, its plan as it is."""
    after = replace(stage, vit=copy.deepcopy(stage.vit), training=training)
    learn = setup.distil if training == "network" else setup.learn
    images = learn(after.model, setup.training(), config, folder=folder)
    after.vit.eval()
    how = {"epochs": stage.conditions.get("epochs", 0) + config.epochs, "lr": config.lr, "n_train": images}
    how |= {"dtype": DTYPES[config.mixed_precision]} if training == "labels" else {}
    return replace(after, conditions=how)
