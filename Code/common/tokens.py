"""The tokens that travel through a reduced transformer, and where each original patch went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

GONE = -1
Keys = Literal["all", "selected", "prefix"]


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of ``x`` (B, N, ...) at ``index`` (B, K) -> (B, K, ...).

    On CPU one flat ``index_select`` instead of ``gather`` over an expanded index, three times faster; elsewhere the
    ``gather``, one kernel in place of four.
    """
    batch, length = x.shape[:2]
    if not torch.compiler.is_compiling() and batch == 1:  # a graph is for all batch sizes
        return x.index_select(1, index[0])
    if x.device.type != "cpu":
        return x.gather(1, index.unflatten(1, (-1, *[1] * (x.ndim - 2))).expand(-1, -1, *x.shape[2:]))
    offset = torch.arange(batch, device=x.device)[:, None] * length  # (B, 1)
    rows = x.reshape(batch * length, *x.shape[2:]).index_select(0, (index + offset).flatten())  # (B·K, ...)
    return rows.unflatten(0, index.shape)


def top_in_order(score: Tensor, k: int) -> Tensor:
    """Positions (B, k) of the k largest entries of ``score`` (B, n), in ascending position."""
    return score.topk(k, dim=1, sorted=False).indices.sort(dim=1).values


def look_up(table: Tensor, index: Tensor, missing: float) -> Tensor:
    """``table`` (B, n) at ``index`` (B, P), with ``missing`` wherever the index is :data:`GONE`."""
    return torch.where(index == GONE, missing, table.gather(1, index.clamp(min=0)))


@dataclass(frozen=True)
class Selection:
    """Which patch tokens a block computes; prefix tokens always are.

    Attributes:
        index: (B, K) positions among the patch tokens, prefix tokens not counted, none twice in a row.
        valid: (B, K) False where a row is padding, or None when every row is a token.
        idle: the other patch tokens skip the block and go on unchanged; False = they are dropped.
        keys: whom the selected tokens attend to: "all"; "selected", each other only; "prefix", as that, but prefix
            tokens attend to all. The latter two only where the reducer chooses before attention (``NO_SIGNALS``).
    """

    index: Tensor
    valid: Tensor | None = None
    idle: bool = False
    keys: Keys = "all"

    @classmethod
    def of_mask(cls, mask: Tensor, length: int | None = None, **how) -> Selection:
        """The True positions of ``mask`` (B, n) in order; rows are padded, at the end, to the longest, at least 1.

        With ``length``, which no row exceeds, they are padded to that: no shape depends on the values of ``mask``.
        """
        count = mask.sum(1)
        longest = max([1, *count.tolist()]) if length is None else length
        index = (~mask).byte().argsort(dim=1, stable=True)[:, :longest]  # (B, K)
        valid = torch.arange(index.shape[1], device=mask.device) < count[:, None]
        return cls(index, None if length is None and valid.all() else valid, **how)


@dataclass(frozen=True)
class Gate:
    """An idling :class:`Selection` that gradients can pass: all is computed, and a gate of 0 undoes the update.

    A token x goes on as x + gate (block(x) - x), so a selection and its gate of zeros and ones give the same numbers.

    Attributes:
        gate: (B, n) 1 = computed, 0 = idle, of every patch token.
        keys: whom the computed tokens attend to, as in :class:`Selection`.
    """

    gate: Tensor
    keys: Keys = "all"

    @property
    def computed(self) -> Tensor:
        """The patch tokens (B, n) that do not idle."""
        return self.gate > 0.5


Choice = Selection | Gate | None  # which patch tokens a block computes; None = all


@dataclass(frozen=True)
class Tokens:
    """A batch of token sequences: prefix tokens (CLS, registers, distillation) first, then patch tokens.

    Attributes:
        x: (B, N, D) features.
        num_prefix_tokens: how many of the N are not patches.
        grid_size: rows and columns of the P patches that the image was cut into.
        valid: (B, N) False at padding, or None when there is none.
        size: (B, N) number of patches that each token stands for, or None when that is one.
        carry: per-token values (B, n, ...) of a reducer; they follow their tokens.
        assignment: (B, P) position of the patch token that now holds each patch, -1 = dropped; only when traced.
        destination: (B, n') where each patch token that entered the block is now, -1 = dropped; only when traced.
        scores: (B, P) score that each patch's token got last, NaN = dropped; only when traced.
        origin: (B, n) the patch that each patch token is, -1 = a mixture of patches or padding; only when traced.
        active: (B, P) the patches whose token the last block computed; only when traced.
        weights: (B, n, P) with which weight each patch is in each patch token; only when traced, of soft merging.
        policy: (B, n) 1 = kept, 0 = masked, with gradient; a training-time stand-in for dropping, else None.
    """

    x: Tensor
    num_prefix_tokens: int
    grid_size: tuple[int, int]
    valid: Tensor | None = None
    size: Tensor | None = None
    carry: dict[str, Tensor] = field(default_factory=dict)
    assignment: Tensor | None = None
    destination: Tensor | None = None
    scores: Tensor | None = None
    origin: Tensor | None = None
    active: Tensor | None = None
    weights: Tensor | None = None
    policy: Tensor | None = None

    @property
    def num_patches(self) -> int:
        """Number P of patches that the image was cut into."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    def num_patch_tokens(self) -> int:
        """Length n of the patch part of the sequence, padding included."""
        return self.x.shape[1] - self.num_prefix_tokens

    @property
    def patches(self) -> Tensor:
        """Patch tokens (B, n, D)."""
        return self.x[:, self.num_prefix_tokens :]

    @property
    def prefix(self) -> Tensor:
        """Prefix tokens (B, N - n, D)."""
        return self.x[:, : self.num_prefix_tokens]

    @property
    def valid_patches(self) -> Tensor | None:
        """Validity (B, n) of the patch tokens, or None when all are valid."""
        return None if self.valid is None else self.valid[:, self.num_prefix_tokens :]

    def count(self) -> Tensor:
        """Number of patch tokens alive in each image (B,)."""
        if self.valid is None:
            return torch.full((len(self.x),), self.num_patch_tokens, device=self.x.device)
        return self.valid_patches.sum(1)

    def with_x(self, x: Tensor) -> Tokens:
        """The same tokens with other features."""
        return replace(self, x=x)

    def with_carry(self, **values: Tensor) -> Tokens:
        """The same tokens with per-token ``values`` (B, n, ...) that later selections carry along."""
        return replace(self, carry={**self.carry, **values})

    def entering(self) -> Tokens:
        """The same tokens before a block, of which nothing is noted yet."""
        places = torch.arange(self.num_patch_tokens, device=self.x.device).expand(len(self.x), -1)
        return replace(self, scores=None, active=None, destination=places)

    def with_scores(self, scores: Tensor) -> Tokens:
        """Note the reducer's ``scores`` (B, n) for the trace; free when nothing is traced."""
        if self.assignment is None:
            return self
        return replace(self, scores=look_up(scores.float(), self.assignment, float("nan")))

    def attention_bias(self) -> Tensor | None:
        """What to add to attention logits: -inf at padded keys, log of the size at merged ones; (B, 1, 1, N)."""
        if self.valid is None and self.size is None:
            return None
        bias = self.x.new_zeros(self.x.shape[:2]) if self.size is None else self.size.log().to(self.x.dtype)
        if self.valid is not None:
            bias = bias.masked_fill(~self.valid, float("-inf"))
        return bias[:, None, None]

    def bias_of_selected(self, selection: Selection, bias: Tensor | None) -> Tensor:
        """``bias`` (B, 1, 1, N) or None -> that of prefix and selected queries (B, 1, K, N), for keys "prefix"."""
        chosen = torch.ones_like(selection.index, dtype=torch.bool) if selection.valid is None else selection.valid
        computed = torch.zeros_like(self.x[:, self.num_prefix_tokens :, 0], dtype=torch.bool)  # (B, n)
        computed = computed.scatter(1, selection.index, chosen)
        return self._hide(~computed, bias, self.num_prefix_tokens + selection.index.shape[1])

    def bias_of_gate(self, gate: Gate, bias: Tensor | None) -> Tensor | None:
        """``bias`` (B, 1, 1, N) or None -> that of all queries, (B, 1, 1, N) or for keys "prefix" (B, 1, N, N)."""
        if gate.keys == "all":
            return bias
        return self._hide(~gate.computed, bias, self.x.shape[1] if gate.keys == "prefix" else None)

    def _hide(self, idle: Tensor, bias: Tensor | None, queries: int | None) -> Tensor:
        """Hide ``idle`` (B, n) patches from all queries; or, given their number, from those that are not prefix."""
        hidden = F.pad(idle, (self.num_prefix_tokens, 0))[:, None]  # (B, 1, N)
        if not self.num_prefix_tokens:  # with nobody left to see, the softmax would be NaN and so would its gradient
            hidden = hidden & ~hidden.all(-1, keepdim=True)
        if queries is not None:
            hidden = hidden.repeat(1, queries, 1)  # (B, queries, N)
            hidden[:, : self.num_prefix_tokens] = False
        return torch.where(hidden[:, None], float("-inf"), self.x.new_zeros(()) if bias is None else bias)

    def blend(self, gate: Gate, x: Tensor) -> Tokens:
        """Features ``x`` (B, N, D) of a whole block, as far as ``gate`` lets each patch token change."""
        opened = F.pad(gate.gate.to(x.dtype), (self.num_prefix_tokens, 0), value=1.0)[..., None]  # (B, N, 1)
        active = None if self.assignment is None else look_up(gate.computed.long(), self.assignment, 0) > 0
        return replace(self, x=self.x + opened * (x - self.x), active=active)

    def put(self, selection: Selection, x: Tensor, rows: Tensor | None = None) -> Tokens:
        """Features ``x`` (B, prefix + K, D) of prefix and selected patch tokens in their places, others as before.

        Args:
            rows: (B, prefix + K) their :meth:`rows`, if they are at hand already.
        """
        if selection.valid is not None:
            padded = selection.valid.logical_not()[..., None]
            patches = torch.where(padded, take_rows(self.patches, selection.index), x[:, self.num_prefix_tokens :])
            x = torch.cat([x[:, : self.num_prefix_tokens], patches], dim=1)  # (B, prefix + K, D)
        rows = self.rows(selection) if rows is None else rows
        return self.computed(
            selection, self.x.scatter(1, rows[..., None].expand(-1, -1, x.shape[-1]), x.to(self.x.dtype))
        )

    def computed(self, selection: Selection, x: Tensor) -> Tokens:
        """Features ``x`` (B, N, D), of which those of prefix and selected patch tokens are new."""
        active = None if self.assignment is None else look_up(self._places(selection), self.assignment, GONE) != GONE
        return replace(self, x=x, active=active)

    def rows(self, selection: Selection) -> Tensor:
        """Positions (B, prefix + K) in the whole sequence of the prefix tokens and the selected patch tokens."""
        if self.num_prefix_tokens <= 1:  # the padding, 0, is the place of the only one
            return F.pad(selection.index + self.num_prefix_tokens, (self.num_prefix_tokens, 0))
        prefix = torch.arange(self.num_prefix_tokens, device=self.x.device).expand(len(self.x), -1)
        return torch.cat([prefix, selection.index + self.num_prefix_tokens], dim=1)

    def keep(self, selection: Selection, x: Tensor | None = None, rows: Tensor | None = None) -> Tokens:
        """Only the prefix tokens and the selected patch tokens.

        Args:
            x: (B, prefix + K, D) their features, if they are at hand already.
            rows: (B, prefix + K) their :meth:`rows`, likewise.
        """
        rows = self.rows(selection) if rows is None else rows
        if selection.valid is None:
            valid = None if self.valid is None else self.valid.gather(1, rows)
        else:
            always = torch.ones_like(rows[:, : self.num_prefix_tokens], dtype=torch.bool)
            valid = torch.cat([always, selection.valid], dim=1)  # (B, prefix + K)
        return replace(
            self,
            x=take_rows(self.x, rows) if x is None else x,
            valid=valid,
            size=None if self.size is None else self.size.gather(1, rows),
            carry={name: take_rows(value, selection.index) for name, value in self.carry.items()},
            origin=None if self.origin is None else self._origin(selection),
            weights=None if self.weights is None else take_rows(self.weights, selection.index),
            **({} if self.assignment is None else self._followed(self._places(selection))),
        )

    def _places(self, selection: Selection) -> Tensor:
        """Place (B, n) of every patch token among the selected ones, -1 = not one of them."""
        batch, kept = selection.index.shape
        length = self.num_patch_tokens
        target = selection.index if selection.valid is None else selection.index.masked_fill(~selection.valid, length)
        places = torch.full((batch, length + 1), GONE, device=self.x.device)
        places.scatter_(1, target, torch.arange(kept, device=self.x.device).expand(batch, -1))
        return places[:, :length]

    def _followed(self, places: Tensor) -> dict[str, Tensor]:
        """The trace once every patch token went to its one of ``places`` (B, n); what is not traced is left out."""
        traced = {"assignment": self.assignment, "destination": self.destination}
        return {name: look_up(places, at, GONE) for name, at in traced.items() if at is not None}

    def _origin(self, selection: Selection) -> Tensor:
        origin = self.origin.gather(1, selection.index)
        return origin if selection.valid is None else origin.masked_fill(~selection.valid, GONE)

    def merged(
        self,
        patches: Tensor,
        assignment: Tensor | Callable[[], Tensor],
        *,
        size: Tensor | None = None,
        centers: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tokens:
        """New patch tokens in place of the old ones.

        Args:
            patches: (B, K, D) their features.
            assignment: (B, n) the new token that each old patch token went to; or what gives it, called when traced.
            size: (B, K) patches that each new token stands for, where attention shall weigh that.
            centers: (B, K) the old patch token that each new one is or represents, -1 = none; None = none at all.
            weights: (B, K, n) with which weight each old patch token is in each new one, where that is a soft choice.
        """
        traced = self.assignment is not None
        if traced and weights is not None and self.weights is not None:
            weights = weights @ self.weights  # (B, K, P)
        if traced and centers is not None:
            origin = look_up(self.origin, centers, GONE)
        else:
            origin = torch.full(patches.shape[:2], GONE, device=patches.device) if traced else None
        return replace(
            self,
            x=torch.cat([self.prefix, patches], dim=1),  # (B, prefix + K, D)
            valid=None,
            size=None if size is None else torch.cat([size.new_ones(self.prefix.shape[:2]), size], dim=1),
            carry={},
            origin=origin,
            weights=weights if traced else None,
            **(self._followed(assignment() if callable(assignment) else assignment) if traced else {}),
        )
