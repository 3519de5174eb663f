"""What runs the models of a benchmark: onnxruntime in place of PyTorch, also with int8 weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import int8_classes
from common import exporting, onnx_sessions
from common.benchmark import compare, compare_all, engines, measured
from common.benchmark.__main__ import main
from common.devices import FORMATS
from common.errors import UsageError
from common.models.factory import create_backbone, create_model
from common.onnx_int8 import quantised
from common.onnx_sessions import open_onnx
from common.precision import lacking

DIGITS = {"rounds": 2, "device": "cpu"}


@pytest.fixture
def installed() -> None:
    pytest.importorskip("onnxruntime")


@pytest.fixture
def no_compute(monkeypatch) -> None:
    monkeypatch.setattr(measured, "create_backbone", lambda *_, **__: pytest.fail("computed before it was refused"))


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_a_model_is_exported_once_for_all_batches_and_measured_against_the_exported_backbone(monkeypatch, capsys):
    """The backbone, Top-K and its ceiling; ATC, which no file can hold, is left out by name for each batch."""
    exported, seen = [], []

    def spy(model, path):
        file = exporting.export(model, path)
        exported.append(type(model).__name__)
        return file

    def watch(calls, images, *, baseline, **how):
        seen.append([call(images).shape for call in calls.values()])
        return found(calls, images, baseline=baseline, **how)

    found = measured.interleaved
    monkeypatch.setattr(engines, "export", spy)
    monkeypatch.setattr(measured, "interleaved", watch)
    rows = compare_all("vit_digits", ["topk", "atc"], [0.5], batch_sizes=(1, 2), runtimes=("onnxruntime",), **DIGITS)
    assert exported == ["VisionTransformer", "ReducedVisionTransformer", "FirstTokens"]
    assert seen == [[(batch, 10)] * 3 for batch in (1, 2)]
    assert [(row["runtime"], row["batch"], row["method"]) for row in rows] == [
        ("onnxruntime", batch, method) for batch in (1, 2) for method in ("none", "topk")
    ]
    assert rows[0]["speedup"] == 1 and rows[1]["compile_seconds"] > 0 and rows[1]["ceiling"] > 0
    reason = "UsageError: ATC cannot be exported: SciPy clusters each image"
    said = [f"atc, keep rate 0.5 does not run on onnxruntime (float32, batch {batch}): {reason}" for batch in (1, 2)]
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: ")]  # beside the bars
    assert told == [f"left out: {each}" for each in said]


@pytest.mark.usefixtures("installed")
def test_nothing_is_timed_where_onnxruntime_gives_other_logits(monkeypatch):
    monkeypatch.setattr(exporting, "open_onnx", lambda path: lambda images: model(images) + 1e-3)
    model = create_backbone("vit_digits").eval()
    monkeypatch.setattr(measured, "create_backbone", lambda *_, **__: model)
    monkeypatch.setattr(measured, "interleaved", lambda *_, **__: pytest.fail("timed before identity held"))
    with pytest.raises(
        UsageError, match=r"none, keep rate 1 does not run on onnxruntime .* 1\.0e-03 off at batch 1; 0"
    ):
        compare("vit_digits", ["topk"], [0.5], batch_size=2, runtime="onnxruntime", **DIGITS)


# int8


needs_units = pytest.mark.skipif(bool(lacking("int8", torch.device("cpu"))), reason="no units for int8: sums overflow")


@pytest.fixture(params=[nn.Identity(), nn.GELU()], ids=["linear", "after a GELU"])
def layer(request, tmp_path):
    """A linear layer of 16 inputs and 5 outputs, the first of which has large weights, what it is given for x, and what
    an int8 file gives."""
    torch.manual_seed(0)
    linear = nn.Linear(16, 5)
    linear.weight.data[0] *= 100
    given = {"dynamo": True, "external_data": False, "verbose": False}
    given["dynamic_shapes"] = ({1: torch.export.Dim("tokens")},)
    model = nn.Sequential(request.param, linear).eval()
    torch.onnx.export(model, (torch.randn(2, 7, 16),), str(tmp_path / "a.onnx"), **given)
    return linear.requires_grad_(False), request.param, open_onnx(quantised(tmp_path / "a.onnx"))


@needs_units
@pytest.mark.usefixtures("installed")
def test_int8_weights_and_tokens_are_a_rounding_off(layer):
    """Half a step at the most: of 127 to either side of zero for each output and for each token, of zeros nothing; and
    behind a GELU, whose least is -0.17, of 255."""
    linear, before, run = layer
    x = torch.randn(2, 9, 16) * torch.logspace(-6, 6, 9)[:, None]
    x[1, 4] = 0
    given, found = before(x), run(x)
    own = (given + 0.17).amax(-1) / 255 if isinstance(before, nn.GELU) else given.abs().amax(-1) / 127  # (2, 9)
    weight, steps, own = linear.weight, linear.weight.abs().amax(1) / 127, own[..., None]  # (5, 16), (5,), (2, 9, 1)
    most = given.abs().sum(-1, keepdim=True) * steps / 2 + weight.abs().sum(1) * own / 2 + 16 * steps * own / 4
    assert ((found - linear(given)).abs() <= 1.001 * most + 1e-5).all() and (found != linear(given)).any()
    if isinstance(before, nn.Identity):
        torch.testing.assert_close(found[1, 4], linear.bias)


@needs_units
@pytest.mark.usefixtures("installed")
def test_a_large_token_takes_nothing_from_the_others(layer):
    """On one scale for all tokens, those beside one that is a thousand times as large would round to zero."""
    _, _, run = layer
    x = torch.randn(2, 6, 16)
    large = torch.cat([1000 * x[:, :1], x[:, 1:]], 1)
    assert torch.equal(run(large)[:, 1:], run(x)[:, 1:])


@needs_units
@pytest.mark.usefixtures("installed")
def test_every_linear_layer_of_the_blocks_is_int8_and_nothing_else(tmp_path):
    """Four of each of the six blocks; the head, the patches and the products of attention stay in float32."""
    import onnx

    torch.manual_seed(0)
    model = create_model("vit_digits", reducer="topk", keep_rate=0.5).eval()
    file = quantised(exporting.export(model, tmp_path / "topk.onnx"))
    graph = onnx.load(file).graph
    kinds = [node.op_type for node in graph.node]
    assert (kinds.count("linear"), kinds.count("linear_after_gelu"), kinds.count("Gemm")) == (6 * 3, 6, 1)
    assert kinds.count("MatMul") >= 6 * 2
    stored = {tuple(each.dims) for each in graph.initializer if each.data_type == onnx.TensorProto.INT8}
    assert stored == {(64, 3 * 64), (64, 64), (64, 128), (128, 64)}
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        wanted, run = model(images), open_onnx(file)
    assert 0 < (run(images) - wanted).abs().max() < 0.1 * wanted.abs().max()
    torch.testing.assert_close(run(images)[2:3], run(images[2:3]), rtol=1e-5, atol=1e-5)  # whatever stands beside it


@needs_units
@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("reducer", "least"), [("none", 0.95), ("tome", 0.8)])
@pytest.mark.usefixtures("installed", "data_root")
def test_int8_names_the_class_that_float32_names(reducer, least):
    """Of 1000, on 100 photographs, by trained weights. With one scale for all tokens it did for 81 % of 200, and for
    65 % with TRAM at 50 %."""
    model = int8_classes.trained(reducer, int8_classes.MODELS[reducer])
    assert int8_classes.same_class(model, int8_classes.photographs(model, 100)) >= least


@pytest.mark.usefixtures("installed")
def test_a_file_without_linear_layers_has_nothing_to_quantise(tmp_path):
    given = {"dynamo": True, "external_data": False, "verbose": False}
    torch.onnx.export(nn.ReLU(), (torch.zeros(1, 3),), str(tmp_path / "a.onnx"), **given)
    with pytest.raises(RuntimeError, match="has no linear layer to be quantised"):
        quantised(tmp_path / "a.onnx")


# refusals, all before anything is computed


@pytest.mark.usefixtures("no_compute")
def test_a_missing_package_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(onnx_sessions, "find_spec", lambda name: None if name == "onnxruntime" else name)
    assert main(["--backbone", "vit_digits", "--runtime", "onnxruntime", "--device", "cpu"]) == 2
    said = "error: runtime 'onnxruntime' needs onnxruntime: pip install 'token-reduction[export]'\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("name", "dtype", "device", "said"),
    [
        ("eager", "int8", "cpu", "dtype 'int8' is not for runtime 'eager'; allowed: float32, bfloat16, float16"),
        ("compiled", "int8", "cpu", "dtype 'int8' is not for runtime 'compiled'; allowed: float32, bfloat16, float16"),
        ("onnxruntime", "bfloat16", "cpu", "dtype 'bfloat16' is not for runtime 'onnxruntime'; allowed: float32, int8"),
        ("onnxruntime", "float32", "cuda", "runtime 'onnxruntime' on cuda; allowed: cpu"),
    ],
)
def test_what_a_runtime_has_not_is_refused(name, dtype, device, said):
    with pytest.raises(UsageError) as refused:
        engines.engine_called(name).check(dtype, torch.device(device))
    assert str(refused.value) == said


@pytest.fixture
def old_processor(monkeypatch) -> None:
    """x86 with AVX2 and no more."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "avx2": True, "dot": False})


@pytest.mark.usefixtures("old_processor", "no_compute")
@pytest.mark.parametrize(
    ("arguments", "units"),
    [
        (["--dtype", "bfloat16"], "bfloat16 on this processor, which has none of: avx512_bf16, amx_bf16, bf16"),
        (["--dtype", "float16"], "float16 on this processor, which has none of: avx512_fp16, amx_fp16, fp16_arith"),
        (
            ["--dtype", "int8", "--runtime", "onnxruntime"],
            "int8 on this processor, which has none of: avx512_vnni, avx_vnni, amx_int8, dot, i8mm",
        ),
    ],
)
def test_a_format_that_the_processor_lacks_is_refused(arguments, units, capsys, monkeypatch):
    monkeypatch.setattr(onnx_sessions, "find_spec", lambda name: name)
    assert main(["--backbone", "vit_digits", "--device", "cpu", *arguments]) == 2
    assert capsys.readouterr().err == f"error: not measured: {units}\n"


@pytest.mark.usefixtures("old_processor", "no_compute")
def test_the_classes_of_int8_are_not_compared_where_its_sums_overflow(capsys):
    assert int8_classes.main([]) == 2
    assert capsys.readouterr().err.startswith("error: not measured: int8 on this processor, which has none of: ")


@pytest.mark.usefixtures("old_processor")
def test_a_format_that_the_processor_lacks_is_left_out_beside_others(capsys):
    rows = compare_all("vit_digits", ["topk"], [0.5], dtypes=("float32", "bfloat16"), batch_sizes=(1,), **DIGITS)
    assert {row["dtype"] for row in rows} == {"float32"} and len(rows) == 2
    assert capsys.readouterr().err.startswith("left out: bfloat16 on this processor, which has none of: avx512_bf16, ")


@pytest.mark.parametrize(
    ("there", "device", "lacks"),
    [
        ({"avx512_bf16": True}, "cpu", {"float16", "int8"}),
        ({"avx512_vnni": True, "amx_fp16": True}, "cpu", {"bfloat16"}),
        ({"dot": True, "fp16_arith": True, "bf16": True}, "cpu", set()),
        ({}, "cuda", set()),
    ],
)
def test_any_of_its_units_makes_a_format(there, device, lacks, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: there)
    assert {dtype for dtype in FORMATS if lacking(dtype, torch.device(device))} == lacks


@pytest.mark.usefixtures("no_compute")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--runtime", "tensorrt"], "unknown runtime 'tensorrt'; allowed: compiled, eager, onnxruntime"),
        (["--dtype", "int8"], "dtype 'int8' is not for runtime 'eager'"),
        (["--compile", "--speedup", "1.5"], "keep_rate='speedup=1.5' holds for eager models; given runtime 'compiled'"),
    ],
)
def test_bad_input_is_one_line(arguments, said, capsys):
    assert main(["--backbone", "vit_digits", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {said}") and len(err.splitlines()) == 1
