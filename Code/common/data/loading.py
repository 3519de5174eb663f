"""Loaders and subsets which a seed decides completely."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from common.data.base import LabelledDataset
from common.errors import UsageError
from common.options import Count, Whole, check

REPEATED_MULTIPLE = 256  # DeiT's sampler cuts an epoch of repeated images to a multiple of this


def subset(dataset: LabelledDataset, n: int | None, seed: int, skip: int = 0) -> LabelledDataset:
    """``n`` items, the classes as evenly filled as the data allow, in the dataset's own order; None means all.

    The choice depends on ``seed`` and the labels only. Every attribute of ``dataset`` stays. Images with several
    labels each are chosen at random: the classes are then about as frequent as in the whole dataset, not even.

    Args:
        skip: items of which none is taken: those that ``n=skip`` and the same seed choose.

    Raises:
        UsageError: if ``n`` is below 1 or above the number of items that are left.
    """
    if n is None and not skip:
        return dataset
    left = len(dataset) - skip
    if not 1 <= (left if n is None else n) <= left:
        beside = f", beside {skip} others," if skip else ""
        raise UsageError(f"a subset of {n} images of {dataset.name!r}{beside} is not possible; allowed: 1 to {left}")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    if not dataset.multi_label:
        order = order[one_class_after_the_other(dataset.labels[order])]
    return dataset.select(order[skip:][:n].sort().values)


def one_class_after_the_other(labels: torch.Tensor) -> torch.Tensor:
    """Positions of ``labels`` (n,): every class's first item, then every class's second, and so on.

    Any beginning of this order fills the classes at the same pace.
    """
    earlier = pd.Series(labels.numpy()).groupby(labels.numpy()).cumcount()  # items of the same class before each
    return torch.argsort(torch.tensor(earlier.to_numpy()) * (labels.max() + 1) + labels)


def make_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int,
    workers: int = 0,
    drop_last: bool = False,
    repeats: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Batches of (images (B, 3, H, W), labels), the same for the same ``seed`` whatever the number of workers.

    Order and augmentation follow from ``seed`` and the number of the epoch alone: the global random states (torch,
    numpy, ``random``) are neither read nor changed. Iterating over the loader again is the next epoch; a fresh loader
    starts with epoch 0, and :func:`set_epoch` goes to any other.

    Of ``world_size`` processes, ``rank`` gets with ``shuffle`` the micro-batches rank, rank + world_size, ... of those
    that a single process sees, so that W processes train on what one process with W accumulation steps trains on.
    All processes get equally many: an incomplete last round is dropped. Without ``shuffle`` it gets the items rank,
    rank + world_size, ..., every item exactly once over all processes.

    Args:
        repeats: repeated augmentation as DeiT trains (Touvron et al. 2021, after Hoffer et al. 2020): each image comes
            ``repeats`` times in a row, differently augmented, while the epoch keeps its length, so it shows
            1/``repeats`` of the images. As there, the length is rounded down to a multiple of 256 where possible.

    Raises:
        UsageError: if ``batch_size`` or ``repeats`` is below 1, ``workers`` below 0, ``rank`` not among the processes,
            ``repeats`` asked for without ``shuffle``, or a process would get no batch.
    """
    check("batch_size", batch_size, Count)
    check("workers", workers, Whole)
    if not 0 <= rank < world_size:
        raise UsageError(f"rank must be one of 0 to world_size - 1; given rank {rank} and world_size {world_size}")
    if repeats < 1 or (repeats > 1 and not shuffle):
        raise UsageError(f"repeats must be >= 1, and 1 without shuffle; given {repeats} with shuffle={shuffle}")
    sampler = SeededSampler(len(dataset), batch_size, shuffle, drop_last, repeats, rank, world_size, seed)
    fewest = len(sampler.places(world_size - 1))  # the last process gets no more items than any other
    if fewest < (batch_size if drop_last else 1):
        processes = f" for each of {world_size} processes" if world_size > 1 else ""
        raise UsageError(f"a dataset of {len(dataset)} images gives no batch of {batch_size}{processes}")
    return DataLoader(
        SeededItems(dataset),
        batch_size,
        sampler=sampler,
        num_workers=workers,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        # The loader draws its workers' seeds, which decide nothing here; without a generator of its own it would
        # draw them from torch's global state.
        generator=torch.Generator().manual_seed(seed),
    )


def set_epoch(loader: DataLoader, epoch: int) -> None:
    """Make ``epoch`` (0, 1, ...) the next one that ``loader``, made by :func:`make_loader`, goes through."""
    check("epoch", epoch, Whole)
    if not isinstance(loader.sampler, SeededSampler):
        raise UsageError(f"set_epoch needs a loader of make_loader; given one with {type(loader.sampler).__name__}")
    loader.sampler.next_epoch = epoch


@dataclass(eq=False)
class SeededSampler(Sampler):
    """(index, seed of that item's augmentation) of this process's part of the dataset, drawn anew each epoch."""

    size: int
    batch_size: int
    shuffle: bool
    drop_last: bool
    repeats: int
    rank: int
    world_size: int
    seed: int
    next_epoch: int = 0

    @property
    def epoch_length(self) -> int:
        """Items of all processes together, before an incomplete round is dropped."""
        if self.repeats > 1 and self.size >= REPEATED_MULTIPLE:
            return self.size // REPEATED_MULTIPLE * REPEATED_MULTIPLE
        return self.size

    def __len__(self) -> int:
        return len(self.places(self.rank))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # neighbouring seeds and epochs have nothing in common
        mixed = np.random.SeedSequence([self.seed % 2**64, self.next_epoch]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        self.next_epoch += 1
        # every process draws the whole epoch, so that an item has the same seed whoever gets it
        items = torch.randperm(self.size, generator=generator) if self.shuffle else torch.arange(self.size)
        items = items.repeat_interleave(self.repeats)[: self.epoch_length]
        seeds = torch.randint(2**31, (self.epoch_length,), generator=generator)
        places = self.places(self.rank)
        return zip(items[places].tolist(), seeds[places].tolist(), strict=True)

    def places(self, rank: int) -> torch.Tensor:
        """Where in the epoch the items of ``rank`` stand."""
        places = torch.arange(self.epoch_length)
        if not self.shuffle:
            return places[rank :: self.world_size]
        batch = places // self.batch_size
        batches = self.epoch_length // self.batch_size if self.drop_last else int(batch[-1]) + 1
        whole_rounds = batches // self.world_size * self.world_size
        return places[(batch % self.world_size == rank) & (batch < whole_rounds)]


class SeededItems(Dataset):
    """Draws each item of ``data`` under its own seed, so that it does not matter which worker draws it."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, items: list[tuple[int, int]]) -> list[tuple[torch.Tensor, int | torch.Tensor]]:
        drawn = []
        with _own_randomness():
            for index, seed in items:
                torch.default_generator.manual_seed(seed)
                np.random.seed(seed)
                random.seed(seed)  # timm's augmentations draw from all three
                drawn.append(self.data[index])
        return drawn


@contextmanager
def _own_randomness() -> Iterator[None]:
    """The global random states are afterwards as they were before."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
