"""The images that a slimming is measured and tuned on; nobody asks for their labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from common.data.base import LabelledDataset
from common.errors import UsageError
from common.models.reduced import SUPPORTED, obstacle

Calibration = Tensor | LabelledDataset  # (n, 3, H, W), or a dataset whose images are decoded when they are needed


def take(images: Calibration, places: Tensor) -> Tensor:
    """The images (k, 3, H, W) at ``places`` (k,)."""
    if isinstance(images, Tensor):
        return images[places]
    return images.stack(places.tolist())


class Batches:
    """``images`` in order, ``size`` at a time; has a length, so that progress can be shown."""

    def __init__(self, images: Calibration, size: int) -> None:
        self.images, self._parts = images, torch.arange(len(images)).split(size)

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Tensor]:
        return (take(self.images, part) for part in self._parts)


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


def check_backbone(vit: VisionTransformer) -> None:
    """Refuse backbones of which nothing can be slimmed, with the reason."""
    if not isinstance(vit, VisionTransformer):
        raise UsageError(f"backbone {type(vit).__name__} is not supported; allowed: {SUPPORTED}")
    reason = obstacle(vit, "patch_slimming")
    if reason:
        raise UsageError(reason)
