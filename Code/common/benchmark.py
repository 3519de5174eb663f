"""Throughput against the honest baseline: the same backbone with fused attention, measured in turn.

``python -m common.benchmark --backbone vit_small_patch16_224 --reducer tram --keep-rate 0.5`` prints the same numbers
as the throughput notebook.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common.cost.counter import count_macs
from common.cost.throughput import interleaved
from common.errors import command
from common.models.factory import create_backbone
from common.models.reduced import attach, reduce_tokens
from common.options import Count, check, checked
from common.reducers import Method, Reducer, Schedule, Signals, list_reducers
from common.reducers.base import Signal
from common.tokens import Selection, Tokens
from common.training import torch_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@checked
def compare(
    backbone: str,
    methods: Sequence[str],
    keep_rates: Sequence[float],
    *,
    img_size: Count | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    batch_size: Count = 16,
    device: str | None = None,
    rounds: Count = 10,
    seed: int = 0,
) -> list[dict[str, object]]:
    """Measure ``methods`` at ``keep_rates`` on a randomly initialised ``backbone`` against the backbone itself.

    Before anything is timed, a model that selects every patch in every block, through the same code as the methods,
    must give the backbone's logits to 1e-5.

    Args:
        methods: written as for :class:`common.reducers.Method`; "none" is always measured.
        keep_rates: see :class:`common.reducers.Schedule`.
        img_size: pixels; default that of the backbone.
        dtype: of weights and images.
        device: default "cuda" when there is one.
        rounds: passes of each model.
        seed: of weights, images and samplers.

    Returns:
        One row for the baseline (method "none") and one per method and keep rate: method, options, keep_rate,
        img_size, params, gmac (attention included), gmac_thop_compat, and the fields of
        :class:`common.cost.throughput.Throughput`.
    """
    where, parsed = torch_device(device), [Method.parse(method) for method in methods]
    torch.manual_seed(seed)
    vit = create_backbone(backbone, num_classes=10, img_size=img_size).eval()
    variants = [(Method("none"), 1.0)]
    variants += [(m, rate) for m in parsed if m.name != "none" for rate in keep_rates]
    models = {(m, rate): reduce_tokens(vit, m.name, keep_rate=rate, **dict(m.options)) for m, rate in variants}
    baseline, side = variants[0], vit.patch_embed.img_size
    images = torch.randn(batch_size, 3, *side, generator=torch.Generator().manual_seed(seed))
    assert_identity(vit, images[:1])
    costs = {variant: _cost(model, side) for variant, model in models.items()}

    models[baseline] = vit
    models = {variant: model.to(where, DTYPES[dtype]).eval() for variant, model in models.items()}
    times = interleaved(models, images.to(where, DTYPES[dtype]), baseline=baseline, rounds=rounds)
    return [
        {
            "method": method.name,
            "options": method.options_text,
            "keep_rate": rate,
            "img_size": side[0],
            **costs[method, rate],
            **asdict(times[method, rate]),
        }
        for method, rate in variants
    ]


def _cost(model: nn.Module, side: tuple[int, int]) -> dict[str, float]:
    macs = count_macs(model, side)
    return {
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "gmac": macs.total / 1e9,
        "gmac_thop_compat": macs.thop_compat / 1e9,
    }


class SelectAll(Reducer):
    """Scores as TRAM does and selects every patch in every block: all of a method's path, none of its effect."""

    def needs(self, layer: int, tokens: Tokens) -> frozenset[Signal]:
        return frozenset({"head_max", "value_norm", "key_mean"})

    def select_queries(self, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Selection | None]:
        everything = torch.arange(tokens.num_patch_tokens, device=tokens.x.device)
        return tokens, Selection(everything.expand(len(tokens.x), -1))


def assert_identity(vit: VisionTransformer, images: Tensor) -> None:
    """Refuse to compare with ``vit`` unless selecting every patch of ``images`` gives its logits to 1e-5."""
    model = attach(vit, SelectAll(vit, Schedule(1.0, (0,))))
    with torch.inference_mode():
        torch.testing.assert_close(model(images), vit(images), rtol=0, atol=1e-5)


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: one backbone, any methods and keep rates."""
    parser = argparse.ArgumentParser(prog="python -m common.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_small_patch16_224", help="a timm VisionTransformer")
    parser.add_argument("--reducer", nargs="+", default=["tram"], help=f"of: {', '.join(list_reducers())}")
    parser.add_argument("--keep-rate", nargs="+", type=float, default=[0.75, 0.5])
    parser.add_argument("--img-size", type=int, help="pixels; default: the backbone's")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", default="float32", help=f"of: {', '.join(DTYPES)}")
    parser.add_argument("--device", help="default: cuda when there is one, else cpu")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    args = parser.parse_args(arguments)
    if args.threads is not None:
        torch.set_num_threads(check("threads", args.threads, Count))
    settings = {name: getattr(args, name) for name in ("img_size", "dtype", "batch_size", "device", "rounds")}
    rows = compare(args.backbone, args.reducer, args.keep_rate, **settings)
    print(f"{args.backbone}, {args.dtype}, batch {args.batch_size}, {args.rounds} rounds, median and quartiles")
    print(f"{'method':<24}{'keep':>6}{'FPS':>10}{'speed-up':>10}{'quartiles':>14}{'GMAC':>10}{'MAC ratio':>11}")
    for row in rows:
        name = row["method"] + (f":{row['options']}" if row["options"] else "")
        quartiles = f"{row['speedup_q1']:.2f}-{row['speedup_q3']:.2f}"
        print(
            f"{name:<24}{row['keep_rate']:>6g}{row['fps']:>10.2f}{row['speedup']:>9.2f}x{quartiles:>14}"
            f"{row['gmac']:>10.4f}{rows[0]['gmac'] / row['gmac']:>10.2f}x"
        )


if __name__ == "__main__":
    sys.exit(main())
