"""Calibration images in batches, as they are scored and tuned on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from common.data.unlabelled import Calibration, take
from common.training.accelerator import progress


def batches(images: Calibration, size: int, model: VisionTransformer, title: str) -> Iterator[Tensor]:
    """``images`` in order, ``size`` at a time, on the device and in the dtype of ``model``, with a progress bar."""
    parameter = next(model.parameters())
    for places in progress(torch.arange(len(images)).split(size), title, quiet=False):
        yield take(images, places).to(parameter)
