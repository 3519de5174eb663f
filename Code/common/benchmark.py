"""Throughput against the honest baseline: the same backbone with fused attention, measured in turn.

``python -m common.benchmark --backbone vit_small_patch16_224 --reducer tram --keep-rate 0.5`` prints the same numbers
as the throughput notebook.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from common.errors import UsageError, require_choice
from common.macs import count_macs
from common.models.factory import create_backbone
from common.models.reduced import reduce_tokens
from common.reducers import list_reducers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Throughput:
    """Images per second of one model, and its speed-up over the baseline, pair by pair in one run.

    Attributes:
        fps, fps_q1, fps_q3: median and quartiles of images per second over the rounds.
        speedup, speedup_q1, speedup_q3: median and quartiles of baseline seconds / own seconds of the same round.
        rounds: how often each model ran.
    """

    fps: float
    fps_q1: float
    fps_q3: float
    speedup: float
    speedup_q1: float
    speedup_q3: float
    rounds: int


def default_device() -> str:
    """ "cuda" when there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def interleaved(
    models: dict[str, nn.Module], images: Tensor, *, baseline: str, rounds: int = 10, warmup: int = 2
) -> dict[str, Throughput]:
    """Time all ``models`` in turn, A B C A B C ..., on the same batch.

    Taking turns makes a drift of the machine hit all of them alike; the speed-up is computed inside each round.

    Args:
        models: by name, on the device and in the dtype of ``images``, in eval mode.
        images: (B, 3, H, W).
        baseline: name of the model that is the 1.0 of the speed-up.
        rounds: measured passes of each model.
        warmup: passes of each model before, not counted.
    """
    require_choice(baseline, models, "baseline")
    seconds = {name: [] for name in models}
    with torch.inference_mode():
        for turn in range(-warmup, rounds):
            for name, model in models.items():
                elapsed = _seconds(model, images)
                if turn >= 0:
                    seconds[name].append(elapsed)
    return {name: _summary(own, seconds[baseline], len(images)) for name, own in seconds.items()}


def _seconds(model: nn.Module, images: Tensor) -> float:
    _synchronize(images)
    start = time.perf_counter()
    model(images)
    _synchronize(images)
    return time.perf_counter() - start


def _synchronize(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


def _summary(own: Sequence[float], baseline: Sequence[float], batch: int) -> Throughput:
    fps = [batch / seconds for seconds in own]
    speedup = [base / seconds for base, seconds in zip(baseline, own)]
    return Throughput(*_quartiles(fps), *_quartiles(speedup), rounds=len(own))


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, first and third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return median, q1, q3


@dataclass(frozen=True)
class Variant:
    """One reduced model to measure: a method, its keep rate and its options."""

    reducer: str
    keep_rate: float = 1.0
    options: tuple[tuple[str, object], ...] = ()

    @property
    def label(self) -> str:
        """Unique name within one comparison."""
        return f"{self.reducer} {self.keep_rate:g}"


def compare(
    backbone: str,
    variants: Sequence[Variant],
    *,
    img_size: int | None = None,
    dtype: str = "float32",
    batch_size: int = 16,
    device: str | None = None,
    rounds: int = 10,
    seed: int = 0,
    num_classes: int = 10,
) -> list[dict[str, object]]:
    """Measure ``variants`` of a randomly initialised ``backbone`` against the backbone itself.

    Before anything is timed, the reduced model that keeps everything must give the backbone's logits.

    Returns:
        One dict per variant and one for the baseline (method "none"): method, keep_rate, options, params (millions are
        not rounded), gmac (attention included), gmac_thop_compat, and the fields of :class:`Throughput`.
    """
    require_choice(dtype, DTYPES, "dtype")
    device = device or default_device()
    torch.manual_seed(seed)
    vit = create_backbone(backbone, num_classes=num_classes, img_size=img_size).eval()
    reduced = {
        variant: reduce_tokens(vit, variant.reducer, keep_rate=variant.keep_rate, **dict(variant.options))
        for variant in variants
    }
    side = vit.patch_embed.img_size
    macs = {variant: count_macs(model, side) for variant, model in reduced.items()}
    macs[BASELINE] = count_macs(vit, side)
    params = {variant: _num_parameters(model) for variant, model in {**reduced, BASELINE: vit}.items()}
    images = torch.randn(batch_size, 3, *side, generator=torch.Generator().manual_seed(seed))
    _assert_identity(vit, images[:1])

    images = images.to(device, DTYPES[dtype])
    models = {BASELINE: vit, **reduced}
    models = {variant: model.to(device, DTYPES[dtype]).eval() for variant, model in models.items()}
    names = {variant: variant.label for variant in models}
    times = interleaved(
        {names[v]: model for v, model in models.items()}, images, baseline=names[BASELINE], rounds=rounds
    )
    return [
        {
            "method": variant.reducer,
            "keep_rate": variant.keep_rate,
            "options": dict(variant.options),
            "params": params[variant],
            "gmac": macs[variant].total / 1e9,
            "gmac_thop_compat": macs[variant].thop_compat / 1e9,
            **asdict(times[names[variant]]),
        }
        for variant in models
    ]


BASELINE = Variant("none")


def _num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _assert_identity(vit: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        torch.testing.assert_close(reduce_tokens(vit, "tram", keep_rate=1.0)(images), vit(images), rtol=0, atol=1e-5)


def sweep(
    backbones: Sequence[str], dtypes: Sequence[str], batch_sizes: Sequence[int], run: Callable[..., list[dict]]
) -> Iterator[dict[str, object]]:
    """Rows of ``run(backbone, dtype=..., batch_size=...)`` over a grid, with a progress bar."""
    grid = [(backbone, dtype, batch) for backbone in backbones for dtype in dtypes for batch in batch_sizes]
    for backbone, dtype, batch in tqdm(grid, desc="throughput"):
        for row in run(backbone, dtype=dtype, batch_size=batch):
            yield {"backbone": backbone, "dtype": dtype, "batch": batch, **row}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: one backbone, any methods and keep rates; exit code 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m common.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--reducer", nargs="+", default=["tram"], help=f"of: {', '.join(list_reducers())}")
    parser.add_argument("--keep-rate", nargs="+", type=float, default=[0.75, 0.5])
    parser.add_argument("--img-size", type=int, help="pixels; default: the backbone's")
    parser.add_argument("--batch-size", nargs="+", type=int, default=[16])
    parser.add_argument("--dtype", nargs="+", default=["float32"], help=f"of: {', '.join(DTYPES)}")
    parser.add_argument("--device", help="default: cuda when there is one, else cpu")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    variants = [Variant(reducer, rate) for reducer in args.reducer for rate in args.keep_rate]
    header = f"{'method':<12} {'keep':>5} {'dtype':>9} {'batch':>5} {'FPS':>9} {'speed-up':>9} {'quartiles':>13} {'GMAC':>8} {'ideal':>6}"
    try:
        rows = sweep(
            [args.backbone],
            args.dtype,
            args.batch_size,
            lambda backbone, **where: compare(
                backbone, variants, img_size=args.img_size, device=args.device, rounds=args.rounds, **where
            ),
        )
        print(header)
        base = None
        for row in rows:
            base = row["gmac"] if row["method"] == "none" else base
            print(
                f"{row['method']:<12} {row['keep_rate']:>5g} {row['dtype']:>9} {row['batch']:>5} {row['fps']:>9.2f} "
                f"{row['speedup']:>8.2f}x {row['speedup_q1']:>6.2f}-{row['speedup_q3']:<6.2f} {row['gmac']:>8.4f} "
                f"{base / row['gmac']:>5.2f}x"
            )
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
