"""Loaders and subsets which a seed decides completely."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from common.data.base import LabelledDataset
from common.errors import UsageError


def subset(dataset: LabelledDataset, n: int | None, seed: int) -> LabelledDataset:
    """``n`` items, the classes as evenly filled as the data allow, in the dataset's own order; None means all.

    The choice depends on ``seed`` and the labels only. Every attribute of ``dataset`` stays.

    Raises:
        UsageError: if ``n`` is below 1 or above the size of the dataset.
    """
    if n is None:
        return dataset
    if not 1 <= n <= len(dataset):
        raise UsageError(f"a subset of {n} images of {dataset.name!r} is not possible; allowed: 1 to {len(dataset)}")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    chosen = order[one_class_after_the_other(dataset.labels[order])[:n]]
    return dataset.select(chosen.sort().values)


def one_class_after_the_other(labels: torch.Tensor) -> torch.Tensor:
    """Positions of ``labels`` (n,): every class's first item, then every class's second, and so on.

    Any beginning of this order fills the classes at the same pace.
    """
    return torch.argsort(_rank_in_class(labels) * (labels.max() + 1) + labels)


def _rank_in_class(labels: torch.Tensor) -> torch.Tensor:
    """How many earlier entries of ``labels`` (n,) equal each entry."""
    by_class = torch.argsort(labels, stable=True)
    counts = labels.bincount()
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    rank = torch.empty_like(labels)
    rank[by_class] = torch.arange(len(labels)) - first
    return rank


def make_loader(
    dataset: Dataset, batch_size: int, *, shuffle: bool, seed: int, workers: int = 0, drop_last: bool = False
) -> DataLoader:
    """Batches of (images (B, 3, H, W), labels (B,)), the same for the same ``seed`` whatever the number of workers.

    Order and augmentation of each epoch follow from ``seed`` alone: the global random state is neither read nor
    changed. Each iteration over the loader is a new epoch; a fresh loader starts again with the first.

    Raises:
        UsageError: if ``batch_size`` is below 1, ``workers`` below 0, or the dataset holds less than one batch to give.
    """
    if batch_size < 1 or workers < 0:
        raise UsageError(f"batch_size must be >= 1 and workers >= 0; given {batch_size} and {workers}")
    if len(dataset) < (batch_size if drop_last else 1):
        raise UsageError(f"a dataset of {len(dataset)} images gives no batch of {batch_size}")
    # The loader draws its workers' seeds from a generator of its own: how often depends on the number of workers.
    order, worker_seeds = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    return DataLoader(
        _SeededItems(dataset),
        batch_size,
        sampler=_SeededSampler(len(dataset), shuffle, order),
        num_workers=workers,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        generator=worker_seeds,
    )


class _SeededSampler(Sampler):
    """(index, seed of that item's augmentation), both drawn anew each epoch."""

    def __init__(self, size: int, shuffle: bool, generator: torch.Generator) -> None:
        self._size, self._shuffle, self._generator = size, shuffle, generator

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = torch.randperm(self._size, generator=self._generator) if self._shuffle else torch.arange(self._size)
        seeds = torch.randint(2**31, (self._size,), generator=self._generator)
        return zip(order.tolist(), seeds.tolist(), strict=True)


class _SeededItems(Dataset):
    """Draws each item under its own seed, so that it does not matter which worker draws it."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, item: tuple[int, int]) -> tuple[torch.Tensor, int]:
        index, seed = item
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            return self._dataset[index]
        finally:
            torch.set_rng_state(state)
