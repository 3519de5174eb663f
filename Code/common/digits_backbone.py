"""The small ViT that the offline notebooks start from: trained on the embedded digits where it is missing."""

from __future__ import annotations

from pathlib import Path

import torch

from common.data import load_dataset
from common.models.factory import create_model
from common.results import resolve
from common.training import TrainConfig, train
from common.weights import save_state

NAME = "digits"
CHECKPOINT = Path("results/notebook/weights/vit_digits.safetensors")
CONFIG = TrainConfig(epochs=16, lr=1e-3, optimizer="muon", schedule="cosine", warmup_epochs=1.6, batch_size=32, seed=42)


def resolve_weights(weights: str) -> str | None:
    """What a notebook's ``weights`` means to :func:`common.create_model`: "" none, "digits" the small ViT, else itself.

    A relative path starts from the repository's root.
    """
    if weights == NAME:
        return str(digits_checkpoint())
    if weights in ("", "timm"):
        return weights or None
    return str(resolve(weights))


def digits_checkpoint(path: Path = CHECKPOINT) -> Path:
    """The safetensors file of ``vit_digits``, trained now (40 s on two cores, about 90 % accuracy) if it is missing."""
    path = resolve(path)
    if not path.is_file():
        torch.manual_seed(CONFIG.seed)
        model = create_model("vit_digits")
        train_set, val_set = (
            load_dataset(NAME, split, img_size=32, train=split == "train") for split in ("train", "val")
        )
        for epoch in train(model, train_set, val_set, CONFIG):
            print(f"training vit_digits: epoch {epoch.epoch} of {CONFIG.epochs}, accuracy {epoch.val_accuracy:.1f} %")
        save_state(model, path)
    return path
