"""Batches made on the device: remembered pictures lie there once, and are flipped and normalised there."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from torchvision.transforms.transforms import ToTensor

from common.data.base import ImageData
from common.data.loading import SeededSampler

FREE_SHARE = 0.25  # of the device's free memory that the pictures of one loader may take
TENSOR_STEPS = (ToTensor, v2.RGB, v2.Normalize)


def on_device(loader: DataLoader, device: torch.device) -> DataLoader | DeviceLoader:
    """``loader`` of :func:`common.data.make_loader`, or one that gives the same batches with images on ``device``.

    The latter where ``device`` is a CUDA device on which the pictures fit into a quarter of the free memory, where they
    are remembered (``memory_gb`` of :func:`common.data.load_dataset`), and where nothing but flips is drawn for each
    image anew: other augmentations work on the processor's pictures.
    """
    data = getattr(loader.dataset, "data", None)
    if device.type != "cuda" or not takes(data):
        return loader
    free, _ = torch.cuda.mem_get_info(device)
    return DeviceLoader(loader, device) if data.remembered_bytes <= FREE_SHARE * free else loader


def takes(data: object) -> bool:
    """Whether the pictures of ``data`` are remembered, and only flips are drawn."""
    if not isinstance(data, ImageData) or not data.remembers:
        return False
    return all(isinstance(step, (v2.RandomHorizontalFlip, *TENSOR_STEPS)) for step in data.remaining_steps)


class DeviceLoader:
    """The batches of ``loader``, image for image and bit for bit on a CPU, without a worker: see :func:`on_device`.

    Attributes:
        sampler: that of ``loader``, which :func:`common.data.set_epoch` moves to an epoch.
    """

    def __init__(self, loader: DataLoader, device: torch.device) -> None:
        data = loader.dataset.data
        self.sampler: SeededSampler = loader.sampler
        self._batches = loader.batch_sampler
        self._labels = data.labels
        self._pictures = torch.from_numpy(data.pixels(threads=os.cpu_count() or 1)).to(device)
        steps = data.remaining_steps
        self._flips = [step.p for step in steps if isinstance(step, v2.RandomHorizontalFlip)]
        norm = next(step for step in steps if isinstance(step, v2.Normalize))
        # tensors, as dividing by a number is multiplying by its rounded inverse on a GPU
        self._white = torch.tensor(255.0, device=device)
        self._mean, self._std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (norm.mean, norm.std))

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for items in self._batches:
            places, seeds = zip(*items, strict=True)
            yield self._images(torch.tensor(places), seeds), self._labels[list(places)]

    def _images(self, places: Tensor, seeds: tuple[int, ...]) -> Tensor:
        """(B, 3, H, W), float32."""
        device = self._pictures.device
        bytes_ = self._pictures[places.to(device)]  # (B, H, W) or (B, H, W, 3)
        channels = bytes_.unsqueeze(1).expand(-1, 3, -1, -1) if bytes_.ndim == 3 else bytes_.permute(0, 3, 1, 2)
        images = channels.float().div_(self._white).sub_(self._mean).div_(self._std)
        if not self._flips:
            return images
        flipped = torch.tensor([self._draw(seed) for seed in seeds]).to(device)
        return torch.where(flipped.view(-1, 1, 1, 1), images.flip(3), images)

    def _draw(self, seed: int) -> bool:
        """Whether an image is flipped: what torchvision draws after ``seed``."""
        generator = torch.Generator().manual_seed(seed)
        return sum(torch.rand(1, generator=generator).item() < share for share in self._flips) % 2 == 1
