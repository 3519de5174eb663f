"""The images that patches are scored and blocks are tuned on, without their labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from common.data.base import LabelledDataset
from common.errors import UsageError
from common.training.accelerator import progress

Calibration = Tensor | LabelledDataset  # (n, 3, H, W), or a dataset whose images are decoded when they are needed


def take(images: Calibration, places: Tensor) -> Tensor:
    """The images (k, 3, H, W) at ``places`` (k,)."""
    if isinstance(images, Tensor):
        return images[places]
    return images.stack(places.tolist())


def batches(images: Calibration, size: int, model: VisionTransformer, title: str) -> Iterator[Tensor]:
    """``images`` in order, ``size`` at a time, on the device and in the dtype of ``model``, with a progress bar."""
    parameter = next(model.parameters())
    for places in progress(torch.arange(len(images)).split(size), title, quiet=False):
        yield take(images, places).to(parameter)


def split(images: Calibration, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Places of the images to tune on, and of those to measure errors on, drawn by ``seed``.

    Raises:
        UsageError: one of the two would be empty.
    """
    count = round(len(images) * held_out)
    if not 0 < count < len(images):
        raise UsageError(f"held_out={held_out} of {len(images)} images leaves one side empty; give a share between")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return order[count:].sort().values, order[:count].sort().values


def digest(vit: VisionTransformer, images: Calibration) -> str:
    """Changes with the weights or the images: by it a stopped search knows that it is the same one."""
    found = hashlib.sha256()
    for value in vit.state_dict().values():
        found.update(value.detach().cpu().float().numpy().tobytes())
    if isinstance(images, Tensor):
        found.update(images.cpu().float().contiguous().numpy().tobytes())
    else:
        found.update(repr((images.name, images.image_ids)).encode())
    return found.hexdigest()[:16]
