"""Epochs, processes and random states of the loader."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from common.data import load_dataset, make_loader, set_epoch
from common.errors import UsageError


class Draws(Dataset):
    """Items (index, one draw of torch, numpy and ``random`` each)."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return index, torch.tensor([torch.rand(()).item(), np.random.rand(), random.random()], dtype=torch.float64)


def batches(loader: DataLoader) -> list[tuple[list[int], list[list[float]]]]:
    """One epoch as (indices, draws) per batch."""
    return [(indices.tolist(), draws.tolist()) for indices, draws in loader]


def indices(loader: DataLoader) -> list[int]:
    return [index for batch, _ in batches(loader) for index in batch]


def shuffled(size: int, batch_size: int, **options) -> DataLoader:
    return make_loader(Draws(size), batch_size, **{"shuffle": True, "seed": 7, **options})


# epochs


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_follows_from_seed_and_number_alone(workers):
    """Going on, going back and starting there give the same epoch, order and draws alike."""
    loader = shuffled(10, 4, workers=workers)
    first, second, third = batches(loader), batches(loader), batches(loader)
    assert first != second != third
    set_epoch(loader, 1)
    assert batches(loader) == second
    assert batches(loader) == third
    fresh = shuffled(10, 4)
    set_epoch(fresh, 2)
    assert batches(fresh) == third
    assert batches(shuffled(10, 4, seed=8)) != first


def test_neighbouring_seeds_and_epochs_share_nothing():
    """Seed 7 in epoch 1 is not seed 8 in epoch 0, as a sum of both would have it; any whole number is a seed."""
    late, next_seed = shuffled(50, 50), shuffled(50, 50, seed=8)
    set_epoch(late, 1)
    assert batches(late) != batches(next_seed)
    assert sorted(indices(shuffled(50, 50, seed=-1))) == list(range(50))


def test_augmentation_changes_between_epochs_where_the_order_does_not():
    loader = make_loader(Draws(6), 3, shuffle=False, seed=0)
    first, second = batches(loader), batches(loader)
    assert [batch for batch, _ in first] == [batch for batch, _ in second] == [[0, 1, 2], [3, 4, 5]]
    values = torch.tensor([draws for epoch in (first, second) for _, draws in epoch])
    assert values.unique().numel() == values.numel()


@pytest.mark.parametrize("workers", [0, 2])
def test_random_states_are_neither_read_nor_changed(workers):
    reference = batches(shuffled(5, 2))
    torch.manual_seed(1), np.random.seed(2), random.seed(3)
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    assert batches(shuffled(5, 2, workers=workers)) == reference
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert all(np.array_equal(*pair) for pair in zip(np.random.get_state(), numpy_state, strict=True))
    assert random.getstate() == python_state


def test_random_states_come_back_after_an_error():
    class Broken(Draws):
        def __getitem__(self, index):
            random.random(), np.random.rand(), torch.rand(1)
            raise OSError("unreadable")

    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    with pytest.raises(OSError, match="unreadable"):
        batches(make_loader(Broken(4), 2, shuffle=False, seed=0))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states


# processes


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("size", "kept"), [(24, 6), (21, 6), (20, 4), (17, 4), (16, 4)])
def test_two_processes_see_the_micro_batches_of_one(size, kept, workers):
    """21 images are six micro-batches of 4, the last of one image; 20 and 17 are five, of which the last is dropped."""
    single = batches(shuffled(size, 4))
    ranks = [batches(shuffled(size, 4, rank=rank, world_size=2, workers=workers)) for rank in (0, 1)]
    assert [len(rank) for rank in ranks] == [kept // 2] * 2
    assert [batch for pair in zip(*ranks, strict=True) for batch in pair] == single[:kept]


@pytest.mark.parametrize(
    ("size", "world_size", "drop_last", "sizes"),
    [
        (10, 1, False, [[4, 4, 2]]),
        (10, 1, True, [[4, 4]]),
        (10, 3, False, [[4], [4], [2]]),
        (10, 2, False, [[4], [4]]),
        (14, 2, False, [[4, 4], [4, 2]]),
        (14, 2, True, [[4], [4]]),
    ],
)
def test_an_incomplete_round_is_dropped(size, world_size, drop_last, sizes):
    loaders = [shuffled(size, 4, rank=rank, world_size=world_size, drop_last=drop_last) for rank in range(world_size)]
    assert [[len(batch) for batch, _ in batches(loader)] for loader in loaders] == sizes
    assert [len(loader) for loader in loaders] == [len(rank) for rank in sizes]


@pytest.mark.parametrize("size", [9, 10, 11, 12])
def test_processes_share_an_evaluation_without_duplicates(size):
    def drawn(**options) -> list[tuple[int, list[float]]]:
        loader = make_loader(Draws(size), 2, shuffle=False, seed=0, **options)
        epoch = [item for batch in batches(loader) for item in zip(*batch, strict=True)]
        assert len(loader) == -(-len(epoch) // 2)
        return epoch

    single = drawn()
    assert [index for index, _ in single] == list(range(size))
    for rank in range(3):
        assert drawn(rank=rank, world_size=3) == single[rank::3]


# repeated augmentation


@pytest.mark.parametrize(("size", "length"), [(10, 10), (255, 255), (256, 256), (600, 512)])
def test_repeats_keep_the_length_of_an_epoch(size, length):
    loader = shuffled(size, 64, repeats=3)
    epoch = batches(loader)
    order = torch.tensor([index for batch, _ in epoch for index in batch])
    assert len(order) == length and len(loader) == len(epoch)
    assert torch.equal(order, order[::3].repeat_interleave(3)[:length])
    assert len(order.unique()) == -(-length // 3)
    draws = torch.tensor([draw for _, draws in epoch for draw in draws])
    assert len(draws.unique(dim=0)) == length


def test_repeats_show_other_images_in_the_next_epoch_and_are_shared_by_processes():
    loader = shuffled(90, 30, repeats=3)
    first, second = set(indices(loader)), set(indices(loader))
    assert len(first) == len(second) == 30 and first != second
    single = batches(shuffled(600, 32, repeats=3))
    ranks = [batches(shuffled(600, 32, repeats=3, rank=rank, world_size=4)) for rank in range(4)]
    assert [batch for group in zip(*ranks, strict=True) for batch in group] == single
    assert len(single) == 16


# refusals


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"workers": -1}, "workers=-1 is not allowed; give a whole number >= 0"),
        ({"repeats": 0}, "repeats must be >= 1, and 1 without shuffle; given 0 with shuffle=True"),
        ({"repeats": 3, "shuffle": False}, "given 3 with shuffle=False"),
        ({"rank": 2, "world_size": 2}, "rank must be one of 0 to world_size - 1; given rank 2 and world_size 2"),
        ({"rank": -1}, "given rank -1 and world_size 1"),
        ({"world_size": 0}, "given rank 0 and world_size 0"),
        ({"world_size": 4}, "a dataset of 10 images gives no batch of 4 for each of 4 processes"),
        ({"rank": 3, "world_size": 4}, "a dataset of 10 images gives no batch of 4 for each of 4 processes"),
        ({"world_size": 11, "shuffle": False}, "gives no batch of 4 for each of 11 processes"),
        ({"world_size": 3, "drop_last": True}, "gives no batch of 4 for each of 3 processes"),
    ],
)
def test_a_loader_that_cannot_be_is_refused_in_every_process(options, wanted):
    with pytest.raises(UsageError) as error:
        shuffled(10, 4, **options)
    assert str(error.value).endswith(wanted)


@pytest.mark.parametrize("epoch", [-1, 1.0, True])
def test_an_epoch_that_is_none_is_refused(epoch):
    with pytest.raises(UsageError, match=f"epoch={epoch} is not allowed; give a whole number >= 0"):
        set_epoch(shuffled(4, 2), epoch)


def test_a_loader_of_another_kind_has_no_epochs():
    with pytest.raises(UsageError, match="needs a loader of make_loader; given one with SequentialSampler"):
        set_epoch(DataLoader(Draws(4)), 0)


# ids


def test_digits_are_numbered_within_their_split():
    data = load_dataset("digits", "val", img_size=32)
    assert data.image_ids[17] == "val-17" and len(set(data.image_ids)) == 360
    some = load_dataset("digits", "val", img_size=32, limit=20, seed=1)
    for i, name in enumerate(some.image_ids):
        assert some.labels[i] == data.labels[int(name.removeprefix("val-"))]
    assert not some.multi_label
