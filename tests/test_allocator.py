"""Memory that a pass frees: the next pass gets it back, in everything that is timed."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

ELEMENTS = 10_000_000  # 40 MB, which glibc returns to the system whenever it is freed
PAGES = 4 * ELEMENTS // resource.getpagesize()
# A process of its own, since any test may have told this one to keep its memory: the page faults of nine passes.
PROGRAM = f"""
import resource, torch
from common.cost.throughput import interleaved
from common.serving.load import Load, in_turn

torch.set_num_threads(1)
found, images = [], torch.zeros(2, 3, 4, 4)

def model(images):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones({ELEMENTS})
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return images

%s
print(*found)
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc returns memory after each pass")


def faults_of(timed: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", PROGRAM % timed], capture_output=True, text=True, check=True)
    return [int(count) for count in done.stdout.split()]


def test_every_pass_asks_for_its_memory_anew_by_default():
    assert min(faults_of("for _ in range(9): model(images)")) > 0.9 * PAGES


@pytest.mark.parametrize(
    "timed",
    ["interleaved({'a': model}, images, baseline='a', rounds=9)", "in_turn([model], images, [Load(1, 9, 1, 0.0)], 1)"],
    ids=["in turn", "serving"],
)
def test_what_is_timed_gets_its_memory_back(timed):
    assert max(faults_of(timed)[-4:]) < 0.01 * PAGES
