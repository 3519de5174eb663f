"""What every method of a board keeps of six photographs, as small pictures and one byte a patch."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from common.data import load_dataset
from common.data.loading import one_class_after_the_other
from common.data.sources import data_root
from common.errors import UsageError
from common.leaderboard.board import Board
from common.leaderboard.lines import Line
from common.models.factory import create_backbone, expected_norm
from common.models.grids import merged_patches
from common.models.observe import untouched
from common.models.reduced import reduce_tokens
from common.models.trace import Trace
from common.results import resolve
from common.schedule import read_keep_rate
from common.training.digits_backbone import NAME as DIGITS
from common.training.digits_backbone import resolve_weights
from common.weights import HUB, NORM

COUNT = 6
BUDGETS = 2  # of each method at most, spread over those that were measured
SIDE, QUALITY = 144, 66  # of a JPEG: pixels, percent
GONE, FUSED, GROUPS = 0, 255, 254  # bytes: dropped; in the one token of what was left over; numbers of other tokens
# (photograph, left, top, side) of squares in scikit-learn's two photographs, 427 x 640 pixels
SQUARES = (("china", 0, 0, 427), ("china", 213, 0, 427), ("china", 330, 90, 300))
SQUARES += (("flower", 0, 0, 427), ("flower", 213, 0, 427), ("flower", 260, 60, 260))
PHOTOGRAPHS = (
    "Cut from two photographs in scikit-learn (load_sample_images), CC BY 2.0: china.jpg, flickr.com/photos/"
    "danielbuechele; flower.jpg, flickr.com/photos/vultilion."
)


def find_weights(label: str, results_dir: str | Path, backbone: str = "") -> str | None:
    """The weights that tables call ``label``: those of the results, a file in DATA_ROOT/weights, "timm", or None.

    "digits" are the small ones of the ``backbone``.
    """
    if label.split(" ")[0] == HUB:
        return HUB
    if label == DIGITS:
        return resolve_weights(label, backbone)
    places = [resolve(results_dir) / "weights" / label, data_root() / "weights" / label]
    return next((str(path) for path in places if path.is_file()), None)


@torch.inference_mode()
def pictures(board: Board, weights: str | Path) -> dict[str, Any]:
    """Six images, and what the untrained models of ``board`` leave of them, for the page.

    Args:
        weights: those of the board, see :func:`common.create_model`.
    """
    place = board.contest.place
    vit = create_backbone(place["backbone"], weights=weights, img_size=int(place["img_size"])).eval()
    norm = expected_norm(place["backbone"], weights)
    digits = place["dataset"] == "digits"
    images = _digits(int(place["img_size"])) if digits else _photographs(int(place["img_size"]))  # (6, 3, H, W)
    mean, std = (torch.tensor(norm[name]).view(3, 1, 1) for name in NORM)
    kept = {
        line.key: [_kept(vit, line, number, (images - mean) / std) for number in _spread(len(line.points))]
        for line in board.contest.lines
        if not line.trained
    }
    return {
        "images": [_jpeg(image) for image in images],
        "grid": list(vit.patch_embed.grid_size),
        "about": "Validation digits." if digits else PHOTOGRAPHS,
        "kept": kept,
    }


def _spread(points: int) -> list[int]:
    """Up to :data:`BUDGETS` of so many, the last one among them."""
    return sorted({round(points * (number + 1) / BUDGETS) - 1 for number in range(BUDGETS)} - {-1})


def _kept(vit: torch.nn.Module, line: Line, number: int, images: Tensor) -> dict[str, Any]:
    point = line.points.iloc[number]
    method = line.parsed.seeded(0)
    model = reduce_tokens(vit, method.name, keep_rate=read_keep_rate(point["keep_rate"]), **dict(method.options))
    with untouched(model):
        _, trace = model.trace(images)
    holders = merged_patches(vit.patch_embed.grid_size, model.grid_size).numpy()  # those of a shrunk image
    groups = patch_bytes(trace, fuses=model.reducer.fuses)[:, holders]
    return {
        "saved": round(100 * float(point["saved"]), 1),
        "groups": [base64.b64encode(each.tobytes()).decode() for each in groups],
    }


def patch_bytes(trace: Trace, *, fuses: bool) -> np.ndarray:
    """(B, P) uint8 after the last block: :data:`GONE`, :data:`FUSED`, or equal numbers for patches of one token.

    Where patches idle, those that the last block did not compute count as gone.

    Args:
        fuses: whether the method makes one token of all that is left over, its last one.
    """
    groups = 1 + trace.assignment[-1] % GROUPS
    groups = groups.masked_fill(trace.fused(-1) & fuses, FUSED)
    groups = groups.masked_fill(~trace.kept(-1) | ~trace.active[-1], GONE)
    return groups.to(torch.uint8).cpu().numpy()


def _photographs(side: int) -> Tensor:
    """(6, 3, side, side) in [0, 1]."""
    found = load_sample_images()
    whole = {Path(name).stem: Image.fromarray(image) for name, image in zip(found.filenames, found.images, strict=True)}
    squares = [whole[name].crop((left, top, left + size, top + size)) for name, left, top, size in SQUARES]
    resized = [np.asarray(square.resize((side, side), Image.Resampling.BICUBIC)) for square in squares]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255


def _digits(side: int) -> Tensor:
    """(6, 3, side, side) in [0, 1], of six classes."""
    found = load_dataset("digits", "val", img_size=side, mean=(0.0,) * 3, std=(1.0,) * 3)
    return torch.stack([found[place][0] for place in one_class_after_the_other(found.labels)[:COUNT].tolist()])


def _jpeg(image: Tensor) -> str:
    """A data URI of one of the images (3, H, W) in [0, 1]."""
    pixels = (255 * image).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    small, stream = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS), io.BytesIO()
    small.save(stream, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def traced(
    boards: Sequence[Board], results_dir: str | Path, weights: str | Path | None = None
) -> Iterator[dict[str, Any] | None]:
    """:func:`pictures` of each board; None, and a printed line, where its weights are not to be had.

    Args:
        results_dir: where the runs are; their weights may be beside them.
        weights: of all boards, in place of those that are found by their name.
    """
    known: dict[tuple, dict[str, Any] | None] = {}
    for board in boards:
        place = board.contest.place
        key = tuple(place[name] for name in ("backbone", "weights", "img_size", "dataset"))
        if key not in known:
            known[key] = _pictures_or_reason(board, weights or find_weights(key[1], results_dir, key[0]))
        yield known[key]


def _pictures_or_reason(board: Board, weights: str | Path | None) -> dict[str, Any] | None:
    """The page stands without photographs too, so that what is missing is printed and no error."""
    if weights is None:
        label = board.contest.place["weights"]
        print(f"no photographs: no file {label} in {data_root() / 'weights'}; give it as --weights")
        return None
    try:
        return pictures(board, weights)
    except UsageError as refusal:
        print(f"no photographs: {refusal}")
        return None
