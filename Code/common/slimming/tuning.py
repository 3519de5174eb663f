"""Tuning of one block at a time to what the original network computed, on cached features; no label is needed.

Block l gets the original input Z_(l-1), computes only the tokens of its mask, and learns so that block l + 1, slim and
tuned already and not learning any more, still gives the original output Z_(l+1) (Tang et al., CVPR 2022, section 4.3):
two blocks forward and back per image in place of the whole network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from common.data.unlabelled import Calibration, take
from common.errors import require_choice
from common.models.observe import untouched
from common.models.reduced import ReducedVisionTransformer
from common.options import Count, Positive, Whole, check_fields
from common.tokens import Tokens

ERRORS = {
    "rel": lambda difference, target: difference.sum((1, 2)) / target.square().sum((1, 2)),
    "token": lambda difference, target: (difference.sum(2) / target.square().sum(2)).mean(1),
    "mse": lambda difference, target: difference.mean((1, 2)),
    "raw": lambda difference, target: difference.sum((1, 2)),
}
ErrorNorm = Literal[tuple(ERRORS)]
ERROR_NORM = "token"


def errors(found: Tensor, target: Tensor, norm: str = ERROR_NORM) -> Tensor:
    """Error (B,) of ``found`` against ``target`` (B, n, D), in float32.

    "raw" is the squared Frobenius norm of the difference, "mse" that per element, "rel" that as a share of the squared
    norm of the target; the paper does not say which its tolerances of 0.01 and 0.02 are about. "token" is the mean over
    tokens of each one's own share: some networks have a few tokens a hundred times larger than all others, and there
    the other norms see nothing else.
    """
    require_choice(norm, ERRORS, "error_norm")
    target = target.float()
    return ERRORS[norm]((found.float() - target).square(), target)


@dataclass(frozen=True)
class Tuning:
    """How a block is tuned: by AdamW without weight decay at a constant learning rate.

    Args:
        epochs: passes over the images to tune on; 0 leaves the weights alone.
        lr, batch_size: of AdamW.
        error_norm: "token", "rel", "mse" or "raw", see :func:`errors`.
    """

    epochs: Whole = 3
    lr: Positive = 1e-4
    batch_size: Count = 32
    error_norm: ErrorNorm = ERROR_NORM

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass
class LayerFeatures:
    """Inputs (c, N, D) of block ``layer`` in the original network, and outputs (c, n, D) of the block after it.

    A sequence of such pairs, one for each chunk of c images.

    Args:
        teacher: the original network, unreduced, in eval mode.
        places: (n,) which of the images.
        rows: tokens of the output that count.
        chunk: images in a chunk; no more of them are held at once than these and what ``cache`` allows.
        cache: bytes of features to keep; what does not fit is computed again in every pass.
    """

    teacher: ReducedVisionTransformer
    images: Calibration
    places: Tensor
    layer: int
    rows: Sequence[int]
    chunk: int
    cache: int

    def __post_init__(self) -> None:
        self._parts, self._room = self.places.split(self.chunk), self.cache
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._parts)

    @torch.no_grad()
    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        if number in self._kept:
            return self._kept[number]
        teacher, layer = self.teacher, self.layer
        images = take(self.images, self._parts[number]).to(next(teacher.parameters()))
        before = teacher.advance(teacher.embed(images), range(layer))
        after = teacher.advance(before, range(layer, layer + 2))
        pair = before.x, after.x[:, list(self.rows)]
        size = sum(part.numel() * part.element_size() for part in pair)
        if size <= self._room:
            self._room -= size
            self._kept[number] = pair
        return pair


def two_blocks(model: ReducedVisionTransformer, inputs: Tensor, layer: int) -> Tensor:
    """Original inputs (B, N, D) of block ``layer`` -> what slim blocks ``layer`` and ``layer`` + 1 make of them."""
    tokens = Tokens(inputs, model.num_prefix_tokens, model.patch_embed.grid_size)
    return model.advance(tokens, range(layer, layer + 2)).x


@torch.inference_mode()
def measure(model: ReducedVisionTransformer, layer: int, features: LayerFeatures) -> dict[str, float]:
    """Mean error over the images of ``features`` by every norm."""
    found = {norm: [] for norm in ERRORS}
    for inputs, targets in features:
        outputs = two_blocks(model, inputs, layer)
        for norm, values in found.items():
            values.append(errors(outputs, targets, norm).double())
    return {norm: torch.cat(values).mean().item() for norm, values in found.items()}


def tune_block(
    model: ReducedVisionTransformer, layer: int, features: LayerFeatures, how: Tuning, generator: torch.Generator
) -> None:
    """Tune block ``layer`` of ``model``, slimmed by its reducer, in place; nothing else learns, and nothing drops out.

    Args:
        generator: of the order of the images.
    """
    block = model.blocks[layer]
    with untouched(model):
        block.requires_grad_(True)
        optimizer = torch.optim.AdamW(block.parameters(), lr=how.lr, weight_decay=0.0)
        for inputs, targets in _shuffled(features, how, generator):
            loss = errors(two_blocks(model, inputs, layer), targets, how.error_norm).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _shuffled(features: LayerFeatures, how: Tuning, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of all epochs, chunks in random order and images within them too."""
    for _ in range(how.epochs):
        for number in torch.randperm(len(features), generator=generator).tolist():
            inputs, targets = features[number]
            for part in torch.randperm(len(inputs), generator=generator).split(how.batch_size):
                yield inputs[part], targets[part]
