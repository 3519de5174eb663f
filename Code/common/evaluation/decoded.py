"""A dataset whose images are decoded once and kept in memory, for many models that see the same ones."""

from __future__ import annotations

import torch

from common.data import make_loader
from common.data.base import LabelledDataset
from common.data.transforms import Normalisation
from common.rows import Rows
from common.training.accelerator import progress

BATCH = 64
FLOAT = 4  # bytes


class Decoded(LabelledDataset):
    """``dataset`` with all its images decoded: 0.6 MB for each of 224 x 224 pixels.

    Args:
        workers: processes that decode.
    """

    def __init__(self, dataset: LabelledDataset, workers: int = 0) -> None:
        norm = Normalisation(dataset.mean, dataset.std)
        known = dataset.imagenet_indices, dataset.image_ids
        super().__init__(dataset.name, dataset.classes, dataset.labels, norm, *known)
        loader, rows = make_loader(dataset, BATCH, shuffle=False, seed=0, workers=workers), Rows(len(dataset))
        for images, _ in progress(loader, "decoding", False):
            rows.add(images)
        self.images = rows.rows  # (n, 3, H, W)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int | torch.Tensor]:
        label = self.labels[index]
        return self.images[index], label if self.multi_label else int(label)

    def select(self, indices: torch.Tensor) -> Decoded:
        chosen = super().select(indices)
        chosen.images = self.images[indices]
        return chosen


def decoded_size(dataset: LabelledDataset) -> float:
    """What :class:`Decoded` would keep of ``dataset``, in GB (10^9 bytes)."""
    return len(dataset) * dataset[0][0].numel() * FLOAT / 1e9
