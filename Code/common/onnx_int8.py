"""Exported models whose linear layers multiply integers of 8 bits: one scale for each output, and one for each token.

One scale for all that enters a layer, as onnxruntime's own dynamic quantisation has it, is too coarse for the second
layer of an MLP: a few tokens are so much larger there that the others round to a few steps. With a scale of its own
(Yao et al., ZeroQuant, NeurIPS 2022, section 4.1) a token takes nothing from the others, and the logits of an image do
not depend on those beside it in a batch. What comes from a GELU is hardly ever negative, so its steps are all above the
least that a GELU gives: twice as fine.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

STEPS, BYTES = 127, 255  # of weights, to either side of zero; of all that a byte has
LEAST = 0.17  # below zero; a GELU gives no less: -0.16997
SMALLEST = 1e-12  # scale; of a token that is all zero
DOMAIN, CONTRIB = "token_reduction", "com.microsoft"  # of the functions below; of onnxruntime's own operators
# x (..., K), weight (K, N), scales (N,), and for what comes from a GELU what its shift gives (N,) -> (..., N).
# Bytes without a sign for x: their products with signed ones have the fastest instructions.
FUNCTION = """
<domain: "{domain}", opset_import: ["" : 18, "{contrib}" : 1]>
{name} (x, weight, scales{given}) => (y) {{
    flat = Flatten <axis = -1> (x)
    {size}
    columns = Constant <value_ints = [1]> ()
    largest = ReduceMax <keepdims = 0> (size, columns)
    steps = Constant <value_float = {steps}> ()
    smallest = Constant <value_float = {smallest}> ()
    exact = Div (largest, steps)
    own = Max (exact, smallest)
    zero = Constant <value = uint8 {{{zero}}}> ()
    tokens = Shape (own)
    zeros = Expand (zero, tokens)
    bytes = QuantizeLinear <axis = 0> ({rounded}, own, zeros)
    one = Constant <value_float = 1.0> ()
    product = {contrib}.MatMulIntegerToFloat (bytes, weight, one, scales, zero)
    column = Unsqueeze (own, columns)
    whole = Mul (product, column)
    {moved}
    before = Shape <end = -1> (x)
    rest = Constant <value_ints = [-1]> ()
    shape = Concat <axis = 0> (before, rest)
    y = Reshape (moved, shape)
}}
"""
PARTS = ("int8", "scales", "shift")  # of a weight, behind its name
COMMON = {"domain": DOMAIN, "contrib": CONTRIB, "smallest": SMALLEST}
LINEAR = FUNCTION.format(
    name="linear",
    given="",
    size="size = Abs (flat)",
    steps=float(STEPS),
    zero=STEPS + 1,
    rounded="flat",
    moved="moved = Identity (whole)",
    **COMMON,
)
AFTER_GELU = FUNCTION.format(
    name="linear_after_gelu",
    given=", shift",
    size=f"least = Constant <value_float = {LEAST}> ()\n    size = Add (flat, least)",
    steps=float(BYTES),
    zero=0,
    rounded="size",
    moved="moved = Add (whole, shift)",
    **COMMON,
)


def quantised(path: Path) -> Path:
    """A file beside ``path`` that has int8 in place of the weights of the linear layers of its blocks.

    A weight is ``round(w / s)``, ``s`` a 127th of the largest of its output; what enters is ``round(x / t)``, ``t`` a
    127th of the largest of its token, in every pass; behind a GELU ``round((x + 0.17) / t)``, ``t`` a 255th. All the
    rest stays in float32: the convolution that makes the patches, norms, attention, the scores of tokens, and the head.

    Raises:
        RuntimeError: there is no such layer.
    """
    import onnx

    model = onnx.load(path)
    graph, weights = model.graph, {each.name: each for each in model.graph.initializer}
    activated = {name for node in graph.node if node.op_type == "Gelu" for name in node.output}
    layers = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    if not layers:
        raise RuntimeError(f"{path} has no linear layer to be quantised")
    stored: dict[str, np.ndarray] = {}
    for name in {node.input[1] for node in layers}:
        parts = rounded(onnx.numpy_helper.to_array(weights[name]))
        stored |= {f"{name}_{part}": values for part, values in zip(PARTS, parts, strict=True)}
        graph.initializer.remove(weights[name])
    for node in layers:
        after = node.input[0] in activated
        node.domain, node.op_type = DOMAIN, "linear_after_gelu" if after else "linear"
        node.input[1:] = [f"{node.input[1]}_{part}" for part in PARTS[: 3 if after else 2]]
    used = {name for node in layers for name in node.input[1:]}
    graph.initializer.extend(onnx.numpy_helper.from_array(stored[name], name) for name in sorted(used))
    model.functions.extend(map(onnx.parser.parse_function, (LINEAR, AFTER_GELU)))
    model.opset_import.extend(onnx.helper.make_opsetid(domain, 1) for domain in (DOMAIN, CONTRIB))
    target = path.with_suffix(".int8.onnx")
    onnx.save(model, target)
    return target


def rounded(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of ``weight`` (K, N) the nearest steps, int8 (K, N); what a step of each output is, float32 (N,); and what these
    steps give for inputs that all are ``-LEAST``, float32 (N,).

    >>> steps, scales, shift = rounded(np.array([[1.27, 0.0], [-0.5, 254.0]]))
    >>> steps.tolist(), scales.astype(float).round(2).tolist(), shift.astype(float).round(4).tolist()
    ([[127, 0], [-50, 127]], [0.01, 2.0], [-0.1309, -43.18])
    """
    scales = np.maximum(np.abs(weight).max(0) / STEPS, SMALLEST)  # (N,)
    steps = np.round(weight / scales)
    return steps.astype(np.int8), scales.astype(np.float32), (-LEAST * steps.sum(0) * scales).astype(np.float32)
