"""Which tokens each block still computes, the same for every image, and how that was found: the plan of patch slimming.

Tang et al., "Patch Slimming for Efficient Vision Transformers", CVPR 2022.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from common.errors import UsageError
from common.results import write_atomically

FORMAT = "slimming plan 1"


@dataclass(frozen=True)
class Candidate:
    """One number of tokens that was tried for a block.

    Attributes:
        num_tokens: tokens that the block computes, prefix tokens included.
        before, after: error on held-out images by its norm ("mse", "rel" ...), without and with tuning of the block.
    """

    num_tokens: int
    before: Mapping[str, float]
    after: Mapping[str, float]


@dataclass(frozen=True)
class LayerRecord:
    """How the mask of one block was found.

    Attributes:
        scores: (P,) significance of every patch.
        candidates: in the order in which they were tried.
        reached: False where no candidate met the tolerance, and the best one was taken.
    """

    layer: int
    scores: tuple[float, ...]
    candidates: tuple[Candidate, ...]
    reached: bool = True


@dataclass(frozen=True)
class SlimmingPlan:
    """The tokens that every block computes.

    >>> plan = SlimmingPlan.of_patches([(0, 1, 2, 3), (1, 3), ()], num_patches=4)
    >>> plan.masks, plan.lengths
    (((0, 1, 2, 3, 4), (0, 2, 4), (0,)), (5, 3, 1))

    Attributes:
        masks: per block the tokens it computes, increasing; prefix tokens come first, patch p of the image is
            ``num_prefix_tokens + p`` in every block. Masks are nested: what is dropped never comes back.
        num_tokens: N of the image, prefix tokens included.
        num_prefix_tokens: they are in every mask.
        settings: how the plan was searched, plain values.
        layers: the search's records, in the order of the blocks.

    Raises:
        UsageError: masks that are no such thing.
    """

    masks: tuple[tuple[int, ...], ...]
    num_tokens: int
    num_prefix_tokens: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[LayerRecord, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "masks", tuple(tuple(int(token) for token in mask) for mask in self.masks))
        if not self.masks:
            raise UsageError("a slimming plan of 0 blocks is not allowed; give a mask for each block")
        everything = tuple(range(self.num_tokens))
        prefix = everything[: self.num_prefix_tokens]
        for layer, (outer, mask) in enumerate(pairwise((everything, *self.masks))):
            if not set(mask) <= set(outer):
                back = min(set(mask) - set(outer))
                what = f"computes token {back}, which is not there" if layer == 0 else f"brings token {back} back"
                raise UsageError(f"block {layer} of the slimming plan {what}; allowed: a part of the mask before it")
            if list(mask) != sorted(set(mask)) or mask[: len(prefix)] != prefix:
                raise UsageError(
                    f"mask of block {layer} of the slimming plan is not allowed; give increasing token numbers that "
                    f"start with the {self.num_prefix_tokens} prefix tokens"
                )

    @classmethod
    def of_patches(cls, kept: Sequence[Sequence[int]], num_patches: int, num_prefix_tokens: int = 1) -> SlimmingPlan:
        """The plan that keeps the patches ``kept`` (per block, numbers from 0 on) of ``num_patches``."""
        prefix = range(num_prefix_tokens)
        masks = [(*prefix, *(num_prefix_tokens + patch for patch in sorted(patches))) for patches in kept]
        return cls(tuple(masks), num_prefix_tokens + num_patches, num_prefix_tokens)

    @classmethod
    def whole(cls, vit: VisionTransformer) -> SlimmingPlan:
        """Every patch up to the last block, of which only the prefix tokens are read."""
        patches = vit.patch_embed.num_patches
        kept = [range(patches)] * (len(vit.blocks) - 1) + [()]
        return cls.of_patches(kept, patches, vit.num_prefix_tokens)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens that each block computes, prefix tokens included."""
        return tuple(len(mask) for mask in self.masks)

    @cached_property
    def kept(self) -> tuple[tuple[int, ...], ...]:
        """Patches that each block computes, counted from 0."""
        prefix = self.num_prefix_tokens
        return tuple(tuple(token - prefix for token in mask[prefix:]) for mask in self.masks)

    @cached_property
    def drops(self) -> dict[int, int]:
        """Block -> patches that it computes, of the blocks that drop some."""
        before, counts = self.num_tokens - self.num_prefix_tokens, {}
        for layer, kept in enumerate(self.kept):
            if len(kept) < before:
                counts[layer] = before = len(kept)
        return counts

    def rows(self, layer: int) -> list[int]:
        """Where the tokens of block ``layer`` stand in the sequence that enters it."""
        entering = self.masks[layer - 1] if layer else range(self.num_tokens)
        place = {token: row for row, token in enumerate(entering)}
        return [place[token] for token in self.masks[layer]]

    @property
    def digest(self) -> str:
        """Changes with the masks and with nothing else."""
        return hashlib.sha256(repr((self.masks, self.num_tokens)).encode()).hexdigest()[:12]

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all."""
        write_atomically(Path(path), lambda file: file.write(json.dumps(self.content) + "\n"))

    @property
    def content(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def load(cls, path: str | Path) -> SlimmingPlan:
        """Read what :meth:`save` wrote.

        Raises:
            UsageError: no such file, or not a slimming plan.
        """
        path = Path(path)
        try:
            return cls.of_content(json.loads(path.read_text(encoding="utf-8")))
        except UsageError:
            raise
        except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"slimming plan {str(path)!r} cannot be read: {reason}") from error

    @classmethod
    def of_content(cls, content: Mapping[str, Any]) -> SlimmingPlan:
        """The plan of :attr:`content`.

        Raises:
            UsageError: masks that are no such thing.
            KeyError, TypeError, ValueError: not a slimming plan.
        """
        content = dict(content)
        if content.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        content["layers"] = tuple(record_of(layer) for layer in content["layers"])
        return cls(**content)


def record_of(given: dict[str, Any]) -> LayerRecord:
    """The record whose ``dataclasses.asdict`` is ``given``."""
    candidates = tuple(Candidate(**candidate) for candidate in given["candidates"])
    return LayerRecord(**{**given, "scores": tuple(given["scores"]), "candidates": candidates})
