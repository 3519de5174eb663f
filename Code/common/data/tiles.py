"""Tiles of the two photographs that come with scikit-learn: real images of no digit, without network or disk space."""

from __future__ import annotations

from functools import cache

import torch
from PIL import Image

from common.data.base import Source

SIDE = 32
CLASSES = ("china", "flower")


def open_tiles(split: str) -> Source:
    """Squares of 32 pixels, side by side, of china.jpg and flower.jpg: 260 in each split, 130 a photograph.

    Like the squares of a chessboard they belong to ``train`` and ``val`` in turn. The label says which photograph. Made
    for what needs no labels, such as comparing which patches a model keeps on images that are nothing like those it
    was trained on: a tile has no middle that would matter more than its rim.
    """
    chosen = [tile for tile in _tiles() if (tile[1] + tile[2]) % 2 == (split == "val")]
    ids = [f"{CLASSES[label]}-{row}-{column}" for label, row, column, _ in chosen]
    labels = torch.tensor([label for label, *_ in chosen])
    return Source([(picture,) for *_, picture in chosen], CLASSES, labels, ids)


@cache
def _tiles() -> list[tuple[int, int, int, Image.Image]]:
    """Photograph, row, column and picture of all tiles; what is left at the lower edge is no tile."""
    from sklearn.datasets import load_sample_images  # as for the digits, takes long to import

    found = []
    for label, photograph in enumerate(load_sample_images().images):
        rows, columns = (side // SIDE for side in photograph.shape[:2])
        for row, column in ((row, column) for row in range(rows) for column in range(columns)):
            y, x = row * SIDE, column * SIDE
            found.append((label, row, column, Image.fromarray(photograph[y : y + SIDE, x : x + SIDE])))
    return found
