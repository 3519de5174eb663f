"""Ragged batches without padding: the tokens of all images as one matrix, and attention image by image.

Padded to the longest image of its batch, an image pays for tokens that it does not have in every linear layer. Here
linear layers, norms and the MLP run on the tokens of all images as one sequence (1, T, D); only attention, where tokens
meet, is computed for each image alone, without a mask. On CPU one fused call per image beats groups of images of
similar length (they copy, and compute what padding is left) and torch's jagged tensors (six times slower), and taking
tokens out before a block and back after it costs less than carrying two layouts from block to block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor

from common import attention
from common.attention import Heads
from common.tokens import Selection, Tokens, take_rows

COPIES = 0.05  # moving tokens costs about as much as computing this share of them
CALL_MACS = 500_000  # that a core computes while one more attention is called


@dataclass(frozen=True)
class Packing:
    """Where the T tokens of a ragged batch are, image by image.

    Attributes:
        rows: (T,) positions among the B·N rows that enter a block.
        places: (T,) positions among the B·K rows, padding included, that go on; ``rows`` where all do.
        lengths: tokens of each image.
        longest: K.
    """

    rows: Tensor
    places: Tensor
    lengths: list[int]
    longest: int

    @classmethod
    def of(cls, block: Block, tokens: Tokens, selection: Selection | None = None) -> Packing | None:
        """The prefix tokens and the selected ones, or all; None where padding is no slower, or is what is wanted.

        That is in training and wherever gradients are needed, in graphs, whose shapes are fixed, where merged tokens
        weigh by their size, and on a GPU: what is faster there was not measured.
        """
        valid = tokens.valid if selection is None else selection.valid
        if valid is None or block.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        if tokens.size is not None or tokens.x.device.type != "cpu":
            return None
        packing = cls.of_all(tokens) if selection is None else cls._of_selected(tokens, selection)
        return packing if packing._pays(12 * tokens.x.shape[-1] ** 2) else None

    @classmethod
    def of_all(cls, tokens: Tokens) -> Packing:
        """All tokens that are no padding."""
        rows = tokens.valid.flatten().nonzero()[:, 0]
        return cls(rows, rows, tokens.valid.sum(1).tolist(), tokens.x.shape[1])

    @classmethod
    def _of_selected(cls, tokens: Tokens, selection: Selection) -> Packing:
        valid = F.pad(selection.valid, (tokens.num_prefix_tokens, 0), value=True)  # (B, K)
        start = torch.arange(len(valid))[:, None] * tokens.x.shape[1]  # (B, 1)
        rows = (tokens.rows(selection) + start)[valid]
        return cls(rows, valid.flatten().nonzero()[:, 0], valid.sum(1).tolist(), valid.shape[1])

    def _pays(self, macs: int) -> bool:
        """Whether the padding, at ``macs`` a row, costs more than moving the tokens and one attention per image."""
        images, count = len(self.lengths), len(self.rows)
        padding = images * self.longest - count
        return images > 1 and (padding - COPIES * count) * macs > images * CALL_MACS

    def take(self, x: Tensor) -> Tensor:
        """The tokens (1, T, ...) of ``x`` (B, N, ...)."""
        return x.flatten(0, 1).index_select(0, self.rows)[None]

    def put(self, x: Tensor, packed: Tensor) -> Tensor:
        """``x`` (B, N, ...) with the tokens ``packed`` (1, T, ...) in their places."""
        return x.flatten(0, 1).index_copy(0, self.rows, packed[0].to(x.dtype)).unflatten(0, x.shape[:2])

    def pad(self, packed: Tensor) -> Tensor:
        """The tokens ``packed`` (1, T, ...) as rows that go on, (B, K, ...), padded with zeros."""
        x = packed.new_zeros(len(self.lengths) * self.longest, *packed.shape[2:])
        return x.index_copy_(0, self.places, packed[0]).unflatten(0, (-1, self.longest))

    def split(self, heads: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys or values (1, H, T, d) of the tokens -> (1, H, n, d) of each image."""
        return heads.split(self.lengths, dim=2)

    def take_heads(self, heads: Tensor) -> Tensor:
        """Queries, keys or values (B, H, N, d) of all rows -> (1, H, T, d) of the tokens."""
        return self.take(heads.transpose(1, 2)).transpose(1, 2)

    def pad_heads(self, heads: Tensor) -> Tensor:
        """Queries, keys or values (1, H, T, d) of the tokens -> (B, H, K, d), padded with zeros."""
        return self.pad(heads.transpose(1, 2)).transpose(1, 2)


Rows = Tensor | Packing | None  # of the tokens that go on: (B, K), packed, or all of them as they stand


def chosen_rows(block: Block, tokens: Tokens, selection: Selection | None) -> Rows:
    """Where the prefix tokens and the selected ones are."""
    packing = Packing.of(block, tokens, selection)
    return tokens.rows(selection) if packing is None and selection is not None else packing


def take(x: Tensor, rows: Rows) -> Tensor:
    """Of ``x`` (B, N, ...) the ``rows``: (B, K, ...), or (1, T, ...) where they are packed."""
    if rows is None:
        return x
    return rows.take(x) if isinstance(rows, Packing) else take_rows(x, rows)


def put(tokens: Tokens, selection: Selection, x: Tensor, rows: Rows) -> Tokens:
    """:meth:`common.tokens.Tokens.put` of the features ``x`` of ``rows``."""
    if isinstance(rows, Packing):
        return tokens.computed(selection, rows.put(tokens.x, x))
    return tokens.put(selection, x, rows)


def keep(tokens: Tokens, selection: Selection | None, x: Tensor, rows: Rows) -> Tokens:
    """:meth:`common.tokens.Tokens.keep` of ``rows``, whose features are ``x``; None = of all."""
    if isinstance(rows, Packing):
        x, rows = rows.pad(x), None
    return tokens.with_x(x) if selection is None else tokens.keep(selection, x, rows)


def one_by_one(block: Block, function: Callable[[Tensor], Tensor], tokens: Tokens) -> Tensor:
    """What ``function`` makes of each of the ``tokens`` alone, (B, N, D)."""
    packing = Packing.of(block, tokens)
    return function(tokens.x) if packing is None else packing.put(tokens.x, function(packing.take(tokens.x)))


def heads_of(block: Block, tokens: Tokens, normed: Tensor, asking: Tensor | None = None) -> Heads:
    """:meth:`common.attention.Heads.of` the normalised tokens (B, N, D); where padding is left out, it has zeros."""
    packing = Packing.of(block, tokens)
    if packing is None:
        return Heads.of(block.attn, normed, asking)
    heads = Heads.of(block.attn, packing.take(normed), asking)
    q = packing.pad_heads(heads.q) if asking is None else heads.q
    return Heads(q, packing.pad_heads(heads.k), packing.pad_heads(heads.v))


def at(heads: Heads, rows: Rows) -> Heads:
    """``heads`` with queries only of the ``rows``."""
    return replace(heads, q=rows.take_heads(heads.q)) if isinstance(rows, Packing) else heads.at(rows)


def mix(
    attn: Attention, heads: Heads, tokens: Tokens, selection: Selection | None, rows: Rows, bias: Tensor | None
) -> Tensor:
    """A·V (B, K, H·d) of ``rows``, (1, T, H·d) where they are packed.

    Args:
        heads: queries of the rows, keys and values of all ``tokens``.
        selection: what the rows are of; None = all.
        bias: (B, 1, 1, N) what to add to logits where they are not packed.
    """
    keys = "all" if selection is None else selection.keys
    if not isinstance(rows, Packing):
        bias = tokens.bias_of_selected(selection, bias) if keys == "prefix" else bias
        return attention.mix(attn, heads, bias)
    queries, seen = rows.split(heads.q), _seen(heads, None if tokens.valid is None else Packing.of_all(tokens))
    if keys == "all":
        return _mix(attn, ((q, *every) for q, every in zip(queries, seen, strict=True)))
    prefix, images = tokens.num_prefix_tokens, zip(queries, seen, _seen(heads, rows), strict=True)
    parts = ([(q[:, :, :prefix], *every), (q[:, :, prefix:], *own)] for q, every, own in images)
    return _mix(attn, chain.from_iterable(parts))


def mix_within(attn: Attention, heads: Heads, packing: Packing) -> Tensor:
    """A·V (1, T, H·d) of packed tokens who see those of their own image, from their ``heads`` (1, H, T, d)."""
    return _mix(attn, zip(*map(packing.split, (heads.q, heads.k, heads.v)), strict=True))


def _seen(heads: Heads, packing: Packing | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Keys and values (1, H, n, d) of each image, of the tokens that are packed; None = all rows."""
    if packing is None:
        return zip(heads.k.split(1), heads.v.split(1), strict=True)
    return zip(*(packing.split(packing.take_heads(each)) for each in (heads.k, heads.v)), strict=True)


def _mix(attn: Attention, heads: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """A·V (1, T, H·d), one after the other, of queries and the keys and values that they see."""
    return torch.cat([attention.mix(attn, Heads(*each), None) for each in heads], dim=1)
