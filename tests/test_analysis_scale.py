"""The methods and rates of "Which Tokens to Use?" on as many images: what comparing them takes and holds."""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from decided import record_of_stages

from common.analysis import compare_all
from common.evaluation import Stage

SELECTING = ("topk", "evit", "ats", "dynamicvit", "l1", "l2", "linf")
CLUSTERING = ("kmedoids", "dpcknn")  # with centres that are patches
MERGING = ("tome", "sinkhorn", "patchmerger", "sit")
METHODS = SELECTING + CLUSTERING + MERGING
RATES = (0.9, 0.7, 0.5, 0.25)
BLOCKS, PATCHES = (3, 6, 9), 196


def write_record(folder: Path, method: str, rate: float, images: int) -> Path:
    """What a method that chooses at random would leave after three reductions of 196 patches."""
    rng = np.random.default_rng([METHODS.index(method), int(100 * rate)])
    order = rng.random((images, PATCHES), dtype=np.float32).argsort(1)
    counts, stages = [PATCHES, *(int(PATCHES * rate**stage) for stage in (1, 2, 3))], {}
    for block, before, count in zip(BLOCKS, counts, counts[1:], strict=False):
        parts = {} if method in MERGING else {"kept": order[:, :count]}
        if method not in SELECTING:
            parts["destination"] = rng.integers(0, count, (images, before))
        stages[block] = Stage(np.full(images, count), **parts)
    what = {"backbone": "deit_small_patch16_224", "weights": "timm", "dataset": "imagenet", "depth": 12, "seed": 0}
    ids = tuple(f"ILSVRC2012_val_{image:08d}" for image in range(images))
    given = {"keep_rate": rate, "img_size": (224, 224), "image_ids": ids, "accuracy": {"top1": 70.0 + rng.random()}}
    record = record_of_stages(stages, method, (14, 14), images, **what, **given)
    return record.save(folder / f"{method}_{rate}" / "decisions.npz")


@pytest.mark.parametrize(("methods", "of_a_patch"), [(SELECTING[:6], 1 / 8), (MERGING, 1)], ids=["kept", "merged"])
def test_a_further_run_is_held_in_its_bits_or_labels_alone(tmp_path, methods, of_a_patch):
    """A bit for a patch that is kept or not, a byte for one that is merged, and the names of the images."""
    images, names = 1000, 90  # bytes of a name, its place in a tuple included
    paths = [write_record(tmp_path, method, 0.5, images) for method in methods]
    peaks = []
    for runs in (2, len(paths)):
        tracemalloc.start()
        assert len(compare_all(paths[:runs], "methods"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    held = images * (len(BLOCKS) * PATCHES * of_a_patch + names)
    assert peaks[1] - peaks[0] < 1.2 * held * (len(paths) - 2)


# The peak of the process itself: ru_maxrss begins with what its parent held when it started it.
MEASURED = """\
import sys
from common.analysis.__main__ import main
status = main(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(status)
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("images", "seconds", "gigabytes"), [(2_000, 60, 1.5), pytest.param(50_000, 600, 4, marks=pytest.mark.full)]
)
def test_all_methods_at_all_rates_are_compared_in_time(tmp_path, images, seconds, gigabytes):
    """13 methods at 4 rates, three reductions: IoU of 36 pairs and NMI of 15 at each rate, tables and figures.

    Seconds are those of a processor core, which others on the machine do not lengthen.
    """
    folder, out = tmp_path / "records", tmp_path / "out"
    for method in METHODS:
        for rate in RATES:
            write_record(folder, method, rate, images)
    arguments = [str(folder), "--axis", "methods", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", MEASURED, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    said = process.stdout.read().splitlines()
    _, status, used = os.wait4(process.pid, 0)
    took, held = used.ru_utime + used.ru_stime, int(said[-1]) / 1e6
    print(f"{images} images: {took:.0f} s of a core, {held:.2f} GB")
    assert status == 0
    table = pd.read_csv(out / "comparisons_methods.csv")
    counts = table.groupby("metric").size()
    assert counts["iou"] == 36 * len(RATES) * len(BLOCKS) and counts["nmi"] == 15 * len(RATES) * len(BLOCKS)
    for metric in ("iou", "nmi"):
        rows = table[table["metric"] == metric]
        assert (rows["mean"] - rows["chance"]).abs().max() < 0.005, "methods that choose at random agree by chance"
    assert took < seconds and held < gigabytes
