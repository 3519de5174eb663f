"""The one transformer block that knows how to run with fewer tokens.

It owns no weights: it calls the modules of a timm ``Block`` (norm1, attn.qkv, attn.q_norm, attn.k_norm, attn.proj,
ls1, norm2, mlp, ls2 ...) in timm's order and gives the reducer its turn in between.
"""

from __future__ import annotations

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor

from common.models.attention import (
    MAPS,
    Heads,
    cheap_signals,
    cls_logits,
    is_gated,
    mix,
    mix_by_policy,
    mix_explicitly,
    project,
)
from common.models.tokens import Gate, Selection, Tokens, take_rows
from common.precision import without_autocast
from common.reducers.base import NOTHING, Reducer, Signal, Signals

AHEAD: frozenset[Signal] = frozenset({"output"})  # no part of the block's own attention
BY_KEYS: frozenset[Signal] = frozenset({"cls_logits"})
Choice = Selection | Gate | None


def reduced_block(block: Block, tokens: Tokens, layer: int, reducer: Reducer) -> Tokens:
    """Run ``block`` on ``tokens`` and let ``reducer`` drop, merge or idle some; timm's numbers where it does not."""
    tokens = reducer.before_block(tokens, layer)
    wanted = reducer.needs(layer, tokens)
    if wanted is None and tokens.policy is None:
        return tokens.with_x(block(tokens.x, attn_mask=tokens.attention_bias()))

    signals = Signals()
    if tokens.policy is None and wanted <= AHEAD:
        tokens, choice, output = _choose_ahead(block, tokens, layer, reducer, wanted)
        if isinstance(choice, Gate):
            if output is None or choice.keys != "all":
                output = block(tokens.x, attn_mask=tokens.bias_of_gate(choice, tokens.attention_bias()))
            return tokens.blend(choice, output)
        if choice is not None and choice.keys == "selected":
            active = tokens.keep(choice)
            active = active.with_x(block(active.x, attn_mask=active.attention_bias()))
            return tokens.put(choice, active.x) if choice.idle else active
        normed = block.norm1(tokens.x)
        mixed = _mix_chosen(block.attn, normed, tokens, choice)
    elif tokens.policy is None and wanted == BY_KEYS:
        normed = block.norm1(tokens.x)
        tokens, choice, mixed = _mix_by_keys(block.attn, normed, tokens, layer, reducer)
    else:
        normed = block.norm1(tokens.x)
        tokens, choice, signals, mixed = _mix_scored(block.attn, normed, tokens, layer, reducer, wanted or NOTHING)

    residual = tokens.x
    if isinstance(choice, Selection):
        rows = tokens.rows(choice)
        residual, normed = take_rows(residual, rows), take_rows(normed, rows) if is_gated(block.attn) else normed
    x = residual + block.drop_path1(block.ls1(project(block.attn, mixed, normed)))
    if isinstance(choice, Gate):
        return tokens.blend(choice, _mlp(block, x))
    if choice is not None and choice.idle:
        return tokens.put(choice, _mlp(block, x))
    tokens = tokens.with_x(x) if choice is None else tokens.keep(choice, x)
    tokens = reducer.after_attention(tokens, signals, layer)
    return tokens.with_x(_mlp(block, tokens.x))


def _mlp(block: Block, x: Tensor) -> Tensor:
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def _select(reducer: Reducer, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Choice]:
    with without_autocast(tokens.x.device):  # scores of half precision would tie
        return reducer.select_queries(tokens, signals, layer)


def _choose_ahead(
    block: Block, tokens: Tokens, layer: int, reducer: Reducer, wanted: frozenset[Signal]
) -> tuple[Tokens, Choice, Tensor | None]:
    """The choice before the block computes anything of its own, and its whole output where that was asked for."""
    output = None
    if "output" in wanted:
        with _learning(reducer):
            output = block(tokens.x, attn_mask=tokens.attention_bias())
    return *_select(reducer, tokens, Signals(output=output), layer), output


def _learning(reducer: Reducer) -> torch.set_grad_enabled:
    return torch.set_grad_enabled(torch.is_grad_enabled() and reducer.learns_from_signals)


def _mix_chosen(attn: Attention, normed: Tensor, tokens: Tokens, selection: Selection | None) -> Tensor:
    """A·V (B, K, H·d) of tokens that were chosen before attention: the others do not even get queries."""
    bias = tokens.attention_bias()
    if selection is None:
        return mix(attn, Heads.of(attn, normed), bias)
    if selection.keys == "prefix":
        bias = tokens.bias_of_selected(selection, bias)
    return mix(attn, Heads.of(attn, normed, tokens.rows(selection)), bias)


def _mix_by_keys(
    attn: Attention, normed: Tensor, tokens: Tokens, layer: int, reducer: Reducer
) -> tuple[Tokens, Selection, Tensor]:
    """Keys of all, then the choice, then queries, values and A·V (B, K, H·d) of the chosen, who see each other."""
    with _learning(reducer):
        logits, keys = cls_logits(attn, normed)
    tokens, selection = _select(reducer, tokens, Signals(cls_logits=logits), layer)
    return tokens, selection, mix(attn, Heads.around(attn, normed, tokens.rows(selection), keys), None)


def _mix_scored(
    attn: Attention, normed: Tensor, tokens: Tokens, layer: int, reducer: Reducer, wanted: frozenset[Signal]
) -> tuple[Tokens, Choice, Signals, Tensor]:
    """Signals first, then the choice, then A·V (B, K, H·d) of what was chosen."""
    bias = tokens.attention_bias()
    heads, mixed, maps = Heads.of(attn, normed), None, {}
    if tokens.policy is not None:
        mixed = mix_by_policy(attn, heads, tokens.policy)
    elif wanted & MAPS.keys():
        mixed, maps = mix_explicitly(attn, heads, bias, wanted)
    with _learning(reducer):
        signals = Signals(**maps, **cheap_signals(attn, heads, bias, wanted))

    tokens, choice = _select(reducer, tokens, signals, layer)
    if isinstance(choice, Gate):
        return tokens, choice, signals, mix(attn, heads, tokens.bias_of_gate(choice, bias))
    rows = None if choice is None else tokens.rows(choice)
    if mixed is None:
        mixed = mix(attn, heads.at(rows), bias)
    elif rows is not None:
        mixed = take_rows(mixed, rows)
    return tokens, choice, signals, mixed
