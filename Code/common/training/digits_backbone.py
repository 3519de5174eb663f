"""The small backbones that the offline notebooks start from: trained on the embedded digits where they are missing."""

from __future__ import annotations

from pathlib import Path

import torch

from common.data import load_dataset
from common.errors import require_choice
from common.models.factory import create_model
from common.results import from_cwd, resolve
from common.training import TrainConfig, train
from common.weights import HUB, save_state

NAME = "digits"
NO_PATH = ("", HUB, NAME)  # what ``weights`` may be besides a path
BACKBONES = ("vit_digits", "vit_digits_narrow", "simple_vit_digits")
FOLDER = Path("results/notebook/weights")
CONFIG = TrainConfig(epochs=16, lr=1e-3, optimizer="muon", schedule="cosine", warmup_epochs=1.6, batch_size=32, seed=42)


def resolve_weights(weights: str, backbone: str = BACKBONES[0]) -> str | None:
    """What a notebook's ``weights`` means to :func:`common.create_model`: "" none, "digits" the small one, else itself.

    A relative path starts from the repository's root.
    """
    if weights == NAME:
        return str(digits_checkpoint(backbone))
    if weights in NO_PATH:
        return weights or None
    return str(resolve(weights))


def from_here(weights: str) -> str:
    """``weights`` with a path made absolute, from the working directory: what a command line means by it."""
    return weights if weights in NO_PATH else str(from_cwd(weights))


def digits_checkpoint(backbone: str = BACKBONES[0]) -> Path:
    """The safetensors file of a small ``backbone``, trained now if it is missing: 40 s on two cores, about 90 %.

    The narrow one takes 30 s and reaches about 86 %.
    """
    require_choice(backbone, BACKBONES, "backbone of weights 'digits'")
    path = resolve(FOLDER / f"{backbone}.safetensors")
    if not path.is_file():
        torch.manual_seed(CONFIG.seed)
        model = create_model(backbone)
        train_set = load_dataset(NAME, "train", img_size=32, train=True)
        val_set = load_dataset(NAME, "val", img_size=32)
        for epoch in train(model, train_set, val_set, CONFIG):
            print(f"training {backbone}: epoch {epoch.epoch} of {CONFIG.epochs}, accuracy {epoch.val_accuracy:.1f} %")
        save_state(model, path)
    return path
