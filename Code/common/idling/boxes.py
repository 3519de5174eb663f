"""Whether patches idle around the object, on data whose objects have boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from common.data.base import LabelledDataset


def patches_inside(dataset: LabelledDataset, grid: tuple[int, int]) -> Tensor | None:
    """Which patches (n, P) of every image the box of its object touches; None where the data have no boxes.

    >>> from common.data import load_dataset
    >>> digits = load_dataset("digits", "val", img_size=32)
    >>> x0, y0, x1, y1 = digits.box(0)
    >>> x0, y0, x1, y1, patches_inside(digits, (8, 8))[0].sum().item()  # patches of 4 x 4 pixels
    (6, 12, 18, 28, 16)

    Args:
        grid: rows and columns of the patches.
    """
    if not hasattr(dataset, "box"):
        return None
    height, width = dataset[0][0].shape[1:]
    x0, y0, x1, y1 = torch.tensor([dataset.box(place) for place in range(len(dataset))]).T[:, :, None]  # (n, 1) each
    top, left = (torch.arange(count) * side / count for count, side in zip(grid, (height, width), strict=True))
    rows = (top < y1) & (top + height / grid[0] > y0)  # (n, rows)
    columns = (left < x1) & (left + width / grid[1] > x0)  # (n, columns)
    return (rows[:, :, None] & columns[:, None, :]).flatten(1)


def idle_outside(active: Tensor, inside: Tensor | None) -> dict[str, Tensor]:
    """Of each image with idle patches: the share of them that lie outside the box, and that of all its patches.

    >>> active = torch.tensor([[[True, False, False, True], [True, True, False, True]]])
    >>> idle_outside(active, torch.tensor([[True, True, False, False]]))
    {'idle_outside': tensor([0.6667], dtype=torch.float64), 'outside': tensor([0.5000], dtype=torch.float64)}

    Args:
        active: (n, depth, P) whether each block computes each patch.
        inside: (n, P), see :func:`patches_inside`; None = nothing is known.
    """
    idle = (~active).double().sum(1)  # (n, P) in how many blocks
    some = idle.sum(1) > 0
    if inside is None or not some.any():
        return {}
    outside = (~inside).double()
    return {"idle_outside": ((idle * outside).sum(1) / idle.sum(1))[some], "outside": outside.mean(1)[some]}
