"""What every test may rely on."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from plan import state_folder
from profile_file import ROOT

TRAINS = "test_leaderboard.py"  # the small backbone of the digits, from which most notebooks start


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First the file that trains what others would train at the same time, then those that take long."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name != TRAINS, item.path not in slow))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers for a test whether it runs alone or after others."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def no_init(monkeypatch) -> None:
    """timm's vision transformers draw no weights, which takes most of the making of a model on the meta device."""
    from timm.models.vision_transformer import VisionTransformer

    monkeypatch.setattr(VisionTransformer, "init_weights", lambda *_, **__: None)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder DATA_ROOT with the data sets and weights; without it the test is skipped."""
    root = os.environ.get("DATA_ROOT")
    if not root or not Path(root).is_dir():
        pytest.skip("DATA_ROOT is not a folder")
    return Path(root)


@pytest.fixture
def results(tmp_path: Path) -> Iterator[Path]:
    """A results folder (its name has a space) whose traces in .snakemake are removed afterwards."""
    folder = tmp_path / "some results"
    yield folder
    shutil.rmtree(ROOT / state_folder(str(folder)), ignore_errors=True)
