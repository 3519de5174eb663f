"""Memory that a pass frees: the next pass gets it back, in everything that is timed."""

from __future__ import annotations

import ctypes
import multiprocessing
import platform
import resource

import pytest
import torch

from common.cost.allocator import keep_freed_memory
from common.cost.throughput import interleaved
from common.serving.load import Load, in_turn

ELEMENTS = 10_000_000  # 40 MB, which glibc returns to the system whenever it is freed
GLIBC = {-1: 128 * 1024, -3: 128 * 1024, -4: 65536, -8: 0}  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, _MAX, M_ARENA_MAX
PAGES = 4 * ELEMENTS // resource.getpagesize()

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc returns memory after each pass")


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def faults_of(timed) -> list[int]:
    """Page faults of each pass of a model that needs 40 MB, in a process of its own that runs ``timed(model)``."""
    ours, theirs = multiprocessing.Pipe()

    def watched(images: torch.Tensor) -> torch.Tensor:
        before = page_faults()
        logits = torch.ones(ELEMENTS)[: len(images)]
        del logits
        found.append(page_faults() - before)
        return images

    def run() -> None:
        torch.set_num_threads(1)
        keep_freed_memory.cache_clear()  # other tests of this process have called it
        for parameter, value in GLIBC.items():
            assert ctypes.CDLL(None).mallopt(parameter, value) == 1
        timed(watched)
        theirs.send(found)

    found: list[int] = []
    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == 0
    return ours.recv()


IMAGES = torch.zeros(2, 3, 4, 4)


def test_every_pass_asks_for_its_memory_anew_by_default():
    faults = faults_of(lambda model: [model(IMAGES) for _ in range(9)])
    assert min(faults) > 0.9 * PAGES


@pytest.mark.parametrize(
    "timed",
    [
        lambda model: interleaved({"a": model}, IMAGES, baseline="a", rounds=9),
        lambda model: in_turn([model], IMAGES, [Load(1, 9, 1, 0.0)], 1),
    ],
    ids=["in turn", "serving"],
)
def test_what_is_timed_gets_its_memory_back(timed):
    assert max(faults_of(timed)[-4:]) < 0.01 * PAGES
