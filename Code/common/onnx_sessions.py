"""Exported models on onnxruntime, on CPU: opened as a call, and with the weights of their linear layers as int8."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from common.errors import UsageError

NEEDED = ("onnx", "onnxscript", "onnxruntime")
LINEAR = ("MatMul", "Gemm")


def require_onnx(what: str) -> None:
    """Refuse ``what`` where the packages are missing that it needs."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(f"{what} needs {', '.join(missing)}: pip install 'token-reduction[export]'")


def open_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Images (B, 3, H, W), float32 -> logits (B, classes), by the file ``path``, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    # threads that wait for the next pass by turning round would take the time of the models beside this one
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def quantised(path: Path) -> Path:
    """A file beside ``path`` with int8 in place of the weights of its linear layers, one scale for each output.

    What enters these layers is rounded to 8 bits, too, on a scale of its own in every pass (dynamic quantisation);
    attention, norms and the convolution that makes the patches stay as they are.

    Raises:
        RuntimeError: the weights of a linear layer are left in float32.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    whole, target = path.with_suffix(".shapes.onnx"), path.with_suffix(".int8.onnx")
    quant_pre_process(str(path), str(whole), skip_symbolic_shape=True)
    given = {"op_types_to_quantize": LINEAR, "per_channel": True, "weight_type": QuantType.QInt8}
    quantize_dynamic(str(whole), str(target), **given)
    whole.unlink()
    graph = onnx.load(target).graph
    constant = {each.name for each in graph.initializer}
    left = [node.name for node in graph.node if node.op_type in LINEAR and node.input[1] in constant]
    if left:
        raise RuntimeError(f"{len(left)} linear layers of {path} have no int8 weights: {', '.join(left)}")
    return target
