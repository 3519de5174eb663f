"""What happened to every patch, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.errors import UsageError
from common.tokens import GONE, Tokens


class NoBlockError(UsageError, IndexError, KeyError):
    """A block that a trace has nothing of; also what a list and a dictionary would raise."""

    __str__ = Exception.__str__  # a KeyError puts its message in quotes


class _OfAll(list):
    """One value per block; a negative number counts from the last one."""

    def __getitem__(self, layer):
        try:
            return super().__getitem__(layer)
        except IndexError as error:
            allowed = f"blocks 0 to {len(self) - 1}, or -1 to -{len(self)} from the last" if self else "none"
            raise NoBlockError(f"block {layer} is not in the trace; allowed: {allowed}") from error


class _OfSome(dict):
    """Block -> value, of the blocks that have one."""

    def __missing__(self, layer):
        allowed = ", ".join(map(str, self)) or "none"
        raise NoBlockError(f"block {layer} has no such entry in the trace; allowed: {allowed}")


@dataclass(repr=False)
class Trace:
    """Where each of the P original patches of B images is after every block.

    >>> from common import create_model
    >>> model = create_model("vit_digits", reducer="topk", keep_rate=0.5).eval()
    >>> model.trace(torch.rand(2, 3, 32, 32))[1]  # the mean number of patch tokens after each block
    Trace(images=2, patches=64, num_tokens=[64, 32, 32, 16, 8, 8])

    Attributes:
        assignment: per block (B, P), position of the patch token that holds each patch; -1 = dropped.
        destination: per block (B, n), position of the patch token that each patch token which entered the block became,
            or was merged into; -1 = dropped. Soft merging: the one that it gives most, or weighs most in. What enters
            the first block are the patches of the image, n = P, also where it was resized.
        num_tokens: per block (B,), patch tokens alive (prefix tokens and padding not counted).
        origin: per block (B, n), the patch that each patch token is: a token that was selected, or the centre of a
            cluster; -1 = a mixture of patches without a centre, or padding.
        active: per block (B, P), patches whose token the block computed; the others were dropped before, or idle.
        scores: block -> (B, P), the score each patch's token got in that block; NaN = dropped before. Only
            blocks in which the reducer scored something have an entry.
        weights: block -> (B, n, P), with which weight each patch is in each patch token, followed through the stages;
            only of soft merging (PatchMerger, SiT: a token's weights sum to 1; Sinkhorn: a patch's do).
        cls: block -> (B, D), the CLS token after that block, before the final norm; only blocks in ``cls_at``.
        cls_at: the blocks whose CLS token is recorded.

    Blocks count from 0; where there is one value per block, also from the last one, which is -1.

    Raises:
        UsageError: of a block that has no value, here and in the methods; the message has those that have one. It is an
            ``IndexError`` and a ``KeyError``, too.
    """

    assignment: list[Tensor] = field(default_factory=_OfAll)
    destination: list[Tensor] = field(default_factory=_OfAll)
    num_tokens: list[Tensor] = field(default_factory=_OfAll)
    origin: list[Tensor] = field(default_factory=_OfAll)
    active: list[Tensor] = field(default_factory=_OfAll)
    scores: dict[int, Tensor] = field(default_factory=_OfSome)
    weights: dict[int, Tensor] = field(default_factory=_OfSome)
    cls: dict[int, Tensor] = field(default_factory=_OfSome)
    cls_at: Sequence[int] = ()

    def __repr__(self) -> str:
        images, patches = self.assignment[0].shape if self.assignment else (0, 0)
        tokens = ", ".join(f"{alive.float().mean().item():g}" for alive in self.num_tokens)
        return f"Trace(images={images}, patches={patches}, num_tokens=[{tokens}])"

    def kept(self, layer: int) -> Tensor:
        """Patches (B, P) still held by some token after block ``layer``, be it merged with others."""
        return self.assignment[layer] != GONE

    def selected(self, layer: int) -> Tensor:
        """Patches (B, P) that are a token, or the centre of one, after block ``layer``."""
        origin = self.origin[layer]
        padded = torch.zeros(len(origin), 1 + self.assignment[layer].shape[1], dtype=torch.bool, device=origin.device)
        return padded.scatter_(1, origin + 1, True)[:, 1:]  # (B, P)

    def fused(self, layer: int) -> Tensor:
        """Patches (B, P) in the last token after block ``layer`` where that is a mixture, as EViT's fused token is."""
        origin = self.origin[layer]
        return (self.assignment[layer] == origin.shape[1] - 1) & (origin[:, -1:] == GONE)

    def record(self, layer: int, tokens: Tokens) -> None:
        """Note the state after block ``layer``."""
        self.assignment.append(tokens.assignment)
        self.destination.append(tokens.destination)
        self.num_tokens.append(tokens.count())
        self.origin.append(tokens.origin)
        self.active.append(self.kept(layer) if tokens.active is None else tokens.active)
        if tokens.scores is not None:
            self.scores[layer] = tokens.scores
        if tokens.weights is not None:
            self.weights[layer] = tokens.weights
        if layer in self.cls_at:
            self.cls[layer] = tokens.x[:, 0]
