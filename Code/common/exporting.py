"""A reduced model as one file that runs without this package: torch.export's .pt2, or ONNX.

``python -m common.exporting slim.onnx --backbone vit_small_patch16_224 --reducer tome --keep-rate 0.5 --weights timm``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from common.budget import create_model
from common.errors import UsageError, command
from common.models.reduced import ReducedVisionTransformer
from common.models.support import check_vit
from common.onnx_operators import translations
from common.onnx_sessions import open_onnx, require_onnx
from common.options import checked
from common.reducers import Method, list_reducers
from common.schedule import read_keep_rate

FORMATS = (".pt2", ".onnx")
TOLERANCE = 1e-4  # of logits, which are of the order of 1 to 10
TRACED, TRIED = 2, (1, 3)  # images of the batch that is traced, and of those that the file is tried on
Batch = Annotated[int, Ge(1)] | Literal["dynamic"]


@checked
def export(model: nn.Module, path: str | Path, *, batch: Batch = "dynamic") -> Path:
    """Write ``model`` as a file, and try that it gives the same logits.

    The file is for images (B, 3, H, W), float32, of the size that the model was made for.

    Args:
        model: of :func:`common.reduce_tokens` or :func:`common.create_model`, or a timm ViT, or a module that runs one
            in its own way and has it as ``vit``, on CPU in float32; it is exported in eval mode.
        path: its ending decides: ``.pt2`` (``torch.export.load(path).module()``), or ``.onnx`` (needs the packages of
            ``pip install 'token-reduction[export]'``).
        batch: "dynamic", any number of images; or a fixed one, which some runtimes are faster with.

    Returns:
        ``path``.

    Raises:
        UsageError: another ending, a missing package, a model that is elsewhere, or a method that one graph of fixed
            shapes cannot hold; the message says why.
        RuntimeError: the file does not give the model's logits to 1e-4.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import common
        >>> model = common.create_model("vit_digits", reducer="topk", keep_rate=0.5).eval()
        >>> with TemporaryDirectory() as folder:
        ...     file = export(model, f"{folder}/topk.pt2")
        ...     torch.export.load(file).module()(torch.rand(5, 3, 32, 32)).shape
        torch.Size([5, 10])
    """
    path = Path(path)
    _check(model, path)
    training = model.training
    model.eval()
    try:
        program = _program(model, TRACED if batch == "dynamic" else batch, dynamic=batch == "dynamic")
        runs = _write_onnx(program, path) if path.suffix == ".onnx" else _write_pt2(program, path)
        for size in TRIED if batch == "dynamic" else (batch,):
            _compare(model, runs, _images(model, size), path)
    finally:
        model.train(training)
    return path


def _check(model: nn.Module, path: Path) -> None:
    if path.suffix not in FORMATS:
        raise UsageError(f"cannot export to {str(path)!r}; allowed: a file that ends in {' or '.join(FORMATS)}")
    if path.suffix == ".onnx":
        require_onnx(path.suffix)
    check_vit(getattr(model, "vit", model))
    parameter = next(model.parameters())
    if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
        raise UsageError(f"a model in {parameter.dtype} on {parameter.device} is given; allowed: float32 on cpu")
    reason = model.reducer.in_pieces if isinstance(model, ReducedVisionTransformer) else ""
    if reason:
        raise UsageError(f"{type(model.reducer).__name__} cannot be exported: {reason}")


def _images(model: nn.Module, count: int) -> Tensor:
    return torch.rand(
        count, model.in_chans, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(count)
    )


def _program(model: nn.Module, count: int, *, dynamic: bool) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim("batch", min=1, max=4096)},) if dynamic else None
    with torch.no_grad():
        return torch.export.export(model, (_images(model, count),), dynamic_shapes=shapes, strict=True)


def _write_pt2(program: torch.export.ExportedProgram, path: Path) -> Callable[[Tensor], Tensor]:
    torch.export.save(program, path)
    return torch.export.load(path).module()


def _write_onnx(program: torch.export.ExportedProgram, path: Path) -> Callable[[Tensor], Tensor]:
    given = {"dynamo": True, "external_data": False, "verbose": False}
    torch.onnx.export(program, f=str(path), custom_translation_table=translations(), **given)
    return open_onnx(path)


def _compare(model: nn.Module, runs: Callable[[Tensor], Tensor], images: Tensor, path: Path) -> None:
    with torch.no_grad():
        worst = (runs(images) - model(images)).abs().max().item()
    if not worst <= TOLERANCE:
        raise RuntimeError(
            f"{path} gives logits that are {worst:.1e} off at batch {len(images)}; {TOLERANCE:g} allowed"
        )


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: one model, one file."""
    parser = argparse.ArgumentParser(prog="python -m common.exporting", description=__doc__.splitlines()[0])
    parser.add_argument("path", help=f"file to write, which ends in {' or '.join(FORMATS)}")
    parser.add_argument("--backbone", default="vit_small_patch16_224", help="a timm VisionTransformer")
    parser.add_argument("--weights", help="timm, or a .safetensors file; default: random ones")
    parser.add_argument("--reducer", default="none", help=f"of: {', '.join(list_reducers())}; options after a colon")
    parser.add_argument("--keep-rate", help="default: 1; one per stage in quotes: '0.9 0.7 0.5'; or mac_cut=0.4")
    parser.add_argument("--img-size", type=int, help="pixels; default: the backbone's")
    parser.add_argument("--batch", default="dynamic", help="dynamic (default), or a fixed number of images")
    args = parser.parse_args(arguments)
    method = Method.parse(args.reducer)
    rate = 1.0 if args.keep_rate is None else read_keep_rate(args.keep_rate)
    sizes = {"weights": args.weights, "img_size": args.img_size}
    model = create_model(args.backbone, reducer=str(method), keep_rate=rate, **sizes)
    batch = int(args.batch) if args.batch.isdigit() else args.batch
    print(export(model, args.path, batch=batch))


if __name__ == "__main__":
    sys.exit(main())
