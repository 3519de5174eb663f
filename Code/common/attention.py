"""Attention of a timm block in parts: projections, products, and the signals that a reducer may look at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import _has_any_global_hook

from common.precision import without_autocast
from common.rows import Rows
from common.tokens import take_rows

if TYPE_CHECKING:
    from common.reducers.base import Signal

# On CPU attention maps are made for a few images at a time, so that they stay in the cache: 4 MB of float32.
MAP_CHUNK_ELEMENTS = 2**20
MAPS = {
    "attention": lambda attention: attention,  # as it is used: gradients reach it
    "head_max": lambda attention: attention.detach().amax(1),
    "received": lambda attention: attention.detach().sum((1, 2), dtype=torch.float32),  # half precision would tie
}
POLICY_EPS = 1e-6


@dataclass(frozen=True)
class Heads:
    """Queries (B, H, K, d), keys and values (B, H, N, d) of one block; queries are not scaled yet."""

    q: Tensor
    k: Tensor
    v: Tensor

    @classmethod
    def of(cls, attn: Attention, normed: Tensor, asking: Tensor | None = None) -> Heads:
        """From the normalised tokens (B, N, D), with queries only of those ``asking`` (B, K, D) if these are given."""
        if asking is None:
            q, k, v = _heads(attn, normed, 0, 3)  # (B, H, N, d) each
        else:
            (q,) = _heads(attn, asking, 0, 1)  # (B, H, K, d)
            k, v = _heads(attn, normed, 1, 3)  # (B, H, N, d) each
        return cls(attn.q_norm(q), attn.k_norm(k), v)

    @classmethod
    def around(cls, attn: Attention, normed: Tensor, rows: Tensor, k: Tensor, count: int | None = None) -> Heads:
        """Of the ``rows`` (B, K) of the normalised tokens only, whose keys are among ``k`` (B, H, N, d) of all.

        Args:
            count: queries of the first so many of them; None = of all.
        """
        chosen = take_rows(normed, rows)  # (B, K, D)
        (q,), (v,) = _heads(attn, chosen[:, :count], 0, 1), _heads(attn, chosen, 2, 3)  # (B, H, K, d) each
        return cls(attn.q_norm(q), take_rows(k.transpose(1, 2), rows).transpose(1, 2), v)

    def at(self, rows: Tensor | None) -> Heads:
        """With queries only of the ``rows`` (B, K); of all when that is None."""
        return self if rows is None else replace(self, q=take_rows(self.q.transpose(1, 2), rows).transpose(1, 2))


def _heads(attn: Attention, x: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
    """Those of queries, keys and values numbered ``first`` to ``last`` - 1, (B, H, N, d) each, of ``x`` (B, N, D).

    Only these are computed, unless ``attn.qkv`` is more than a plain linear layer (an adapter, one that is quantised or
    pruned). Its hooks see the call where there are any.
    """
    dim = attn.num_heads * attn.head_dim
    wanted = slice(first * dim, last * dim)
    qkv = attn.qkv
    plain = type(qkv) is nn.Linear and all(name in ("weight", "bias") for name, _ in qkv.named_parameters())
    if plain and last - first < 3:
        part = {name: value[wanted] for name, value in qkv.named_parameters()}
        projected = functional_call(qkv, part, (x,)) if _watched(qkv) else F.linear(x, **part)  # (B, N, parts·H·d)
    else:
        projected = attn.qkv(x)[..., wanted]
    return projected.unflatten(-1, (last - first, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def _watched(module: nn.Module) -> bool:
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(own) or _has_any_global_hook()


def cls_logits(attn: Attention, normed: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over heads of the first token's query times all keys (B, N), float32; and the keys (B, H, N, d)."""
    (q,) = _heads(attn, normed[:, :1], 0, 1)  # (B, H, 1, d)
    (k,) = _heads(attn, normed, 1, 2)  # (B, H, N, d)
    q, k = attn.q_norm(q), attn.k_norm(k)
    with without_autocast(normed.device):
        return _logit_mean(attn, q.float(), k.float())[:, 0], k


def _logit_mean(attn: Attention, q: Tensor, k: Tensor) -> Tensor:
    """Mean over heads (B, K, N) of the scaled products of queries (B, H, K, d) and keys (B, H, N, d)."""
    q, k = (each.transpose(1, 2).flatten(2) for each in (q, k))  # (B, K, H·d), (B, N, H·d)
    return (q * (attn.scale / attn.num_heads)) @ k.transpose(-2, -1)


def is_gated(attn: Attention) -> bool:
    """Whether the attention output is multiplied by a gate computed from its input."""
    return getattr(attn, "gate", None) is not None


def _attention(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    logits = (q * scale) @ k.transpose(-2, -1)  # (B, H, K, N)
    return (logits if bias is None else logits + bias).softmax(-1)


def mean_map(attn: Attention, normed: Tensor) -> Tensor:
    """The attention map (B, N, N), mean over heads, of the normalised tokens (B, N, D); float32."""
    with without_autocast(normed.device):
        heads = Heads.of(attn, normed.to(next(attn.parameters(), normed).dtype))
        return _attention(heads.q.float(), heads.k.float(), None, attn.scale).mean(1)


def cheap_signals(attn: Attention, heads: Heads, bias: Tensor | None, wanted: frozenset[Signal]) -> dict[str, Tensor]:
    signals = {}
    with without_autocast(heads.q.device):
        if "cls_attention" in wanted:
            query, key = heads.q[:, :, :1].float(), heads.k.float()  # (B, H, 1, d), (B, H, N, d)
            signals["cls_attention"] = _attention(query, key, bias, attn.scale)[:, :, 0]
        if "logit_mean" in wanted:
            signals["logit_mean"] = _logit_mean(attn, heads.q.float(), heads.k.float())
    if "key_mean" in wanted:
        signals["key_mean"] = heads.k.mean(1)
    if "value_norm" in wanted:
        signals["value_norm"] = heads.v.float().norm(dim=-1)
    return signals


def mix(attn: Attention, heads: Heads, bias: Tensor | None) -> Tensor:
    """A·V (B, K, H·d) of all K queries by the fused kernel."""
    dropout = attn.attn_drop.p if attn.training else 0.0
    mixed = F.scaled_dot_product_attention(heads.q, heads.k, heads.v, bias, dropout, scale=attn.scale)  # (B, H, K, d)
    return mixed.transpose(1, 2).flatten(2)


def mix_explicitly(
    attn: Attention, heads: Heads, bias: Tensor | None, wanted: frozenset[Signal]
) -> tuple[Tensor, dict[str, Tensor]]:
    """A·V (B, N, H·d) of all rows together with the maps that were asked for.

    All rows, because gathering rows of the maps costs more than multiplying them. Half precision is raised to
    float32 on CPU, where its small batched products are two times slower.
    """
    q, k, v = heads.q, heads.k, heads.v
    batch, num_heads, length, _ = q.shape
    chunk = batch
    if q.device.type == "cpu":
        q, k, v = q.float(), k.float(), v.float()
        if not torch.is_grad_enabled() and not torch.compiler.is_exporting():  # which is for all batch sizes
            chunk = max(1, MAP_CHUNK_ELEMENTS // (num_heads * length * length))

    def chunk_of(part: slice) -> tuple[Tensor, dict[str, Tensor]]:
        attention = _attention(q[part], k[part], None if bias is None else bias[part].to(q.dtype), attn.scale)
        mixed = (attn.attn_drop(attention).to(v.dtype) @ v[part]).transpose(1, 2).flatten(2)  # (b, N, H·d)
        return mixed.to(heads.v.dtype), {name: MAPS[name](attention) for name in wanted & MAPS.keys()}

    with without_autocast(q.device):
        if chunk >= batch:
            return chunk_of(slice(None))
        mixed, maps = Rows(batch), {name: Rows(batch) for name in wanted & MAPS.keys()}
        for start in range(0, batch, chunk):
            part, found = chunk_of(slice(start, start + chunk))
            mixed.add(part)
            for name, rows in found.items():
                maps[name].add(rows)
    return mixed.rows, {name: found.rows for name, found in maps.items()}


def mix_by_policy(attn: Attention, heads: Heads, policy: Tensor) -> Tensor:
    """A·V (B, N, H·d) where patch j is seen by others only as far as ``policy`` (B, n) lets it, with gradient.

    A_ij = (exp(z_ij) G_ij + eps / N) / (sum_k exp(z_ik) G_ik + eps), G_ij = policy_j, but 1 for i = j and for prefix
    tokens (Rao et al., "DynamicViT", NeurIPS 2021, equations 10 and 11). In float32: exp and eps need its range.
    """
    q, k, v = heads.q.float(), heads.k.float(), heads.v.float()
    length = q.shape[2]
    with without_autocast(q.device):
        logits = (q * attn.scale) @ k.transpose(-2, -1)  # (B, H, N, N)
        seen = torch.cat([policy.new_ones(len(policy), length - policy.shape[1]), policy], dim=1)[:, None, None].float()
        seen = seen + (1 - seen) * torch.eye(length, device=q.device)  # (B, 1, N, N)
        weight = (logits - logits.detach().amax(-1, keepdim=True)).exp() * seen
        attention = (weight + POLICY_EPS / length) / (weight.sum(-1, keepdim=True) + POLICY_EPS)
        mixed = attn.attn_drop(attention) @ v  # (B, H, N, d)
    return mixed.transpose(1, 2).flatten(2).to(heads.v.dtype)


def project(attn: Attention, mixed: Tensor, normed: Tensor) -> Tensor:
    mixed = attn.norm(mixed)
    if is_gated(attn):
        mixed = mixed * attn.gate(normed).sigmoid()
    return attn.proj_drop(attn.proj(mixed))
