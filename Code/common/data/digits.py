"""scikit-learn's handwritten digits on a larger canvas: real images that need neither network nor disk space."""

from __future__ import annotations

from functools import cache

import torch

from common.data.base import LabelledDataset
from common.data.transforms import Normalisation
from common.errors import UsageError

SOURCE_SIZE = 8
VAL_SIZE = 360
SPLIT_SEED = 0
CELLS = 8  # the canvas is divided into CELLS x CELLS; at 32 px a cell is a 4x4 patch
DIGIT_CELLS = 4
FIRST_CELL, PLACES = 1, 3  # rows and columns 1 to 3: the digit may start there, so a border cell always stays empty
SIZE_STEP = SOURCE_SIZE * CELLS // DIGIT_CELLS


class Digits(LabelledDataset):
    """1437 training or 360 validation digits (stratified, always the same), each on an empty square canvas.

    The 8x8 digit is enlarged to half the canvas by repeating pixels: at 32 px a 4x4 patch then holds exactly 2x2
    source pixels, so nothing is lost or blurred and the ink has whole-pixel bounds. Its place varies by whole patches
    around the middle, 3 x 3 places in all: a model has to find the digit. Three quarters of the patches are empty.

    With ``train`` the place is drawn from torch's random state each time an item is read; otherwise it follows from
    ``seed`` and the item's index. There is no other augmentation: a flipped or turned digit is another digit.

    Raises:
        UsageError: if ``img_size`` is not a multiple of 16, the sizes at which pixels can be repeated evenly.
    """

    def __init__(self, split: str, img_size: int, norm: Normalisation, *, train: bool, seed: int) -> None:
        if img_size % SIZE_STEP:
            raise UsageError(f"img_size {img_size} does not fit digits; allowed: multiples of {SIZE_STEP}")
        self._pictures, labels = _split(split)
        ids = [f"{split}-{i}" for i in range(len(labels))]
        super().__init__("digits", [str(digit) for digit in range(10)], labels, norm, image_ids=ids)
        self.img_size, self.train = img_size, train
        self._places = torch.randint(PLACES, (len(labels), 2), generator=torch.Generator().manual_seed(seed))

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        y, x = self._corner(torch.randint(PLACES, (2,)) if self.train else self._places[index])
        digit = self._enlarged(index)
        canvas = torch.zeros(self.img_size, self.img_size)
        canvas[y : y + len(digit), x : x + len(digit)] = digit
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (canvas - mean[:, None, None]) / std[:, None, None], int(self.labels[index])

    def box(self, index: int) -> tuple[int, int, int, int]:
        """Smallest rectangle (x0, y0, x1, y1) in pixels, x1 and y1 exclusive, that holds all ink of an item.

        Raises:
            UsageError: with ``train``, where an item has no place of its own.
        """
        if self.train:
            raise UsageError("training digits change their place at every read and have no box; load with train=False")
        y, x = self._corner(self._places[index])
        rows, columns = torch.nonzero(self._enlarged(index), as_tuple=True)
        x0, y0, x1, y1 = columns.min() + x, rows.min() + y, columns.max() + x + 1, rows.max() + y + 1
        return int(x0), int(y0), int(x1), int(y1)

    def select(self, indices: torch.Tensor) -> Digits:
        chosen = super().select(indices)
        chosen._pictures, chosen._places = self._pictures[indices], self._places[indices]
        return chosen

    def _corner(self, place: torch.Tensor) -> tuple[int, int]:
        y, x = ((place + FIRST_CELL) * (self.img_size // CELLS)).tolist()
        return y, x

    def _enlarged(self, index: int) -> torch.Tensor:
        factor = self.img_size // SIZE_STEP
        return self._pictures[index].repeat_interleave(factor, 0).repeat_interleave(factor, 1)


@cache
def _split(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (n, 8, 8) in [0, 1] and labels (n,) of one split."""
    from sklearn.datasets import load_digits  # takes as long to import as torch, and only this needs it
    from sklearn.model_selection import train_test_split

    data = load_digits()
    train, val = train_test_split(
        range(len(data.target)), test_size=VAL_SIZE, stratify=data.target, random_state=SPLIT_SEED
    )
    indices = sorted(train if split == "train" else val)
    return torch.tensor(data.images[indices] / 16, dtype=torch.float32), torch.tensor(data.target[indices])
