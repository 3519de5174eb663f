"""What happened to every patch, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from common.models.tokens import GONE, Tokens


@dataclass
class Trace:
    """Where each of the P original patches of B images is after every block.

    Attributes:
        assignment: per block (B, P), position of the patch token that holds each patch; -1 = dropped.
        num_tokens: per block (B,), patch tokens alive (prefix tokens and padding not counted).
        scores: block -> (B, P), the score each patch's token got in that block; NaN = dropped before. Only
            blocks in which the reducer scored something have an entry.
    """

    assignment: list[Tensor] = field(default_factory=list)
    num_tokens: list[Tensor] = field(default_factory=list)
    scores: dict[int, Tensor] = field(default_factory=dict)

    def kept(self, layer: int) -> Tensor:
        """Patches (B, P) still held by some token after block ``layer``."""
        return self.assignment[layer] != GONE

    def record(self, layer: int, tokens: Tokens) -> None:
        """Note the state after block ``layer``."""
        self.assignment.append(tokens.assignment)
        self.num_tokens.append(tokens.count())
        if tokens.scores is not None:
            self.scores[layer] = tokens.scores
