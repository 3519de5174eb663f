"""How nbval runs the notebooks: every cell as it is, but on fewer images and rounds than those who read them see.

A notebook takes up to a minute with its own defaults, most of it with more of the same. What a cell can do wrong shows
with less: all methods, explainers and backbones stay, numbers of them are smaller. Where a second backbone only stands
beside the first, it is not trained before.

nbval reads what a cell says only after the cell has ended, and until then a few thousand messages find room. A training
with its progress bars says more. The rest is lost, with it the last message, and nbval waits for that in vain ("Timeout
of 5 seconds exceeded waiting for output"). So the kernels that it starts show no bars.
"""

import os
from pathlib import Path
from typing import Any

import pytest

os.environ["TQDM_DISABLE"] = "1"

FOLDER = Path(__file__).parent
SMALLER: dict[str, dict[str, Any]] = {  # by notebook: parameters
    "Benchmark/serving": {"clients": [1, 4], "requests": 8, "rounds": 2},
    "Benchmark/throughput": {"keep_rates": [0.5], "rounds": 2},
    "Pretrained/explain": {"weights": ["digits", ""], "images": [0, 12]},
    "Pretrained/explain_benchmark": {"num_images": 16, "num_sensitive": 4},
    "Pretrained/finetune": {"epochs": 1},
    "Pretrained/idle_patches": {"epochs": 1, "limit_val": 128, "limit_states": 128},
    "Pretrained/idle_study": {"epochs": 1, "tune_rates": [1e-4, 3e-4], "limit_val": 128, "limit_study": 64},
    "Pretrained/leaderboard": {"mac_cuts": [0.2, 0.4], "seeds": [0, 1], "limit_val": 128},
    "Pretrained/method_grid": {"keep_rates": [0.5], "limit_train": 256, "limit_val": 128},
    "Pretrained/methods_gallery": {"limit_train": 256},
    "Pretrained/mutex_study": {"num_images": 12},
    "Pretrained/off_the_shelf": {"keep_rates": [1.0, 0.5, 0.25], "limit_val": 128},
    "Pretrained/patch_slimming": {"budgets": [0.8, 0.55], "epochs": 1, "gate_epochs": 2, "limit_val": 128},
    "Pretrained/patch_slimming_limits": {"tapers": [0.0, 0.35], "num_calibration": 128, "limit_val": 128},
    "Pretrained/patch_slimming_study": {"blocks": [0, 2], "random_masks": 2, "limit_val": 128},
    "Pretrained/pattern_proxies": {"keep_rates": [0.9, 0.5], "limit_val": 128},
    "Pretrained/patterns_across_data": {
        "weights": ["digits", ""],
        "keep_rates": [0.9, 0.5],
        "limits": [64, 64],
        "resamples": 10,
    },
    "Pretrained/reduction_patterns": {"keep_rates": [0.9, 0.5], "limit_val": 128},
    "Scratch/train_test": {"epochs": 3},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Write the smaller values behind the cell that declares the parameters."""
    for item in items:
        notebook = f"{item.path.parent.name}/{item.path.stem}" if FOLDER in item.path.parents else ""
        if notebook in SMALLER and "parameters" in item.cell.metadata.get("tags", []):
            item.cell.source += "".join(f"\n{name} = {value!r}" for name, value in SMALLER[notebook].items())
