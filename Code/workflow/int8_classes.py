"""How often int8 names the class that float32 names: the shares that results/README.md prints.

python Code/workflow/int8_classes.py prints them, of 1,000 classes on 500 Imagenette photographs by a trained ViT-Ti/16;
that takes some minutes, and a processor with units for int8: without them sums overflow, and fewer agree.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from common.data import load_dataset, subset
from common.data.sources import data_root
from common.errors import UsageError, command
from common.exporting import export
from common.leaderboard.answers import called_simply
from common.models.factory import create_model
from common.onnx_int8 import quantised
from common.onnx_sessions import open_onnx
from common.precision import lacking

BACKBONE = "vit_tiny_patch16_224"
MODELS = {"none": 1.0, "tram": 0.5, "topk:head_fusion=mean": 0.5, "tome": 0.5}  # with their keep rates
IMAGES, BATCH = 500, 20


def trained(reducer: str, keep_rate: float) -> nn.Module:
    """ViT-Ti/16 with its trained weights, reduced."""
    weights = data_root() / "weights" / f"{BACKBONE}.safetensors"
    return create_model(BACKBONE, weights=weights, reducer=reducer, keep_rate=keep_rate).eval()


def photographs(model: nn.Module, count: int) -> Tensor:
    """``count`` of Imagenette's validation images (count, 3, 224, 224), as the weights of ``model`` expect them."""
    norm = {name: model.pretrained_cfg[name] for name in ("mean", "std")}
    return subset(load_dataset("imagenette", "val", img_size=224, recipe="center_crop", **norm), count, 0).stack()


def same_class(model: nn.Module, images: Tensor) -> float:
    """Share of ``images`` (n, 3, H, W) of which ``model`` names the same class in int8 as in float32."""
    with TemporaryDirectory() as folder, torch.inference_mode():
        run = open_onnx(quantised(export(model, Path(folder) / "model.onnx")))
        named = [torch.cat([call(batch).argmax(1) for batch in images.split(BATCH)]) for call in (model, run)]
    return (named[0] == named[1]).double().mean().item()


@command
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=IMAGES, help=f"photographs; default: {IMAGES}")
    count = parser.parse_args(arguments).images
    if reason := lacking("int8", torch.device("cpu")):
        raise UsageError(f"not measured: {reason}")
    models = {reducer: trained(reducer, keep_rate) for reducer, keep_rate in MODELS.items()}
    images = photographs(models["none"], count)
    for reducer, model in models.items():
        share = same_class(model, images)
        print(f"{called_simply(reducer.partition(':')[0])}, keep {100 * MODELS[reducer]:.0f} %: {100 * share:.0f} %")


if __name__ == "__main__":
    sys.exit(main())
