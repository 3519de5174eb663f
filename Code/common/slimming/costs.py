"""Multiplications of a slimmed transformer by closed form, two ways, and the schedule that a budget allows.

``compact`` is what the slim model executes: block l has n queries and n' keys, the tokens that block l - 1 computed.
``paper`` is how the authors count their savings: keys and values are paid, and attended to, for all N tokens.
(Tang et al., CVPR 2022, section 4.5.) ``square`` is what a model executes whose blocks see no more than they compute,
as the reducer's ``keys="selected"`` has it. None is thop's way of counting, see :mod:`common.macs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from common.errors import UsageError, require_choice

COUNTERS = ("compact", "paper", "square")


@dataclass(frozen=True)
class Costs:
    """The sizes of a backbone that its multiplications depend on.

    Attributes:
        num_tokens: N, prefix tokens included.
        dim: width D.
        hidden: width of the MLP.
        fixed: multiplications of patch embedding and heads.
    """

    depth: int
    num_tokens: int
    num_prefix_tokens: int
    dim: int
    hidden: int
    fixed: int

    @classmethod
    def of(cls, vit: VisionTransformer) -> Costs:
        """The sizes of ``vit``."""
        patches = vit.patch_embed.num_patches
        heads = [head for name in ("head", "head_dist") if isinstance(head := getattr(vit, name, None), nn.Linear)]
        fixed = patches * vit.patch_embed.proj.weight.numel() + sum(head.weight.numel() for head in heads)
        prefix, hidden = vit.num_prefix_tokens, vit.blocks[0].mlp.fc1.out_features
        return cls(len(vit.blocks), prefix + patches, prefix, vit.embed_dim, hidden, fixed)

    def macs(self, lengths: Sequence[int], counter: str = "compact") -> int:
        """Multiplications per image when the blocks compute ``lengths`` tokens, by one of ``COUNTERS``."""
        require_choice(counter, COUNTERS, "counter")
        keys = {
            "compact": [self.num_tokens, *lengths[:-1]],
            "paper": [self.num_tokens] * self.depth,
            "square": lengths,
        }[counter]
        return self.fixed + sum(self.block(n, k) for n, k in zip(lengths, keys, strict=True))

    def block(self, queries: int, keys: int) -> int:
        """Of one block: Q and projection, K and V, both products of attention, MLP."""
        d = self.dim
        return 2 * queries * d**2 + 2 * keys * d**2 + 2 * queries * keys * d + 2 * queries * d * self.hidden

    @property
    def unreduced(self) -> int:
        """Multiplications per image of the backbone itself."""
        return self.macs([self.num_tokens] * self.depth)

    def cut(self, lengths: Sequence[int], counter: str = "compact") -> float:
        """Share of the multiplications that is saved."""
        return 1 - self.macs(lengths, counter) / self.unreduced

    def uniform(self, budget: float, counter: str = "compact") -> tuple[int, ...]:
        """Lengths that are the same in every block but the last: the most that ``budget``, a share, allows."""
        prefix = self.num_prefix_tokens
        self.check_budget(budget, [prefix] * self.depth, counter)
        every = [(*[length] * (self.depth - 1), prefix) for length in range(prefix, self.num_tokens + 1)]
        return max(lengths for lengths in every if self.macs(lengths, counter) <= budget * self.unreduced)

    def check_budget(self, budget: float, fewest: Sequence[int], counter: str) -> None:
        """Refuse a budget that is no share, or that not even the lengths ``fewest`` fit into."""
        least = self.macs(fewest, counter) / self.unreduced
        if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not least <= budget <= 1:
            raise UsageError(
                f"mac_budget={budget!r} is not allowed; give the share of the multiplications to spend by the counter "
                f"{counter!r}, from {least:.2f} to 1"
            )
