"""What runs the models of a benchmark: onnxruntime in place of PyTorch, also with int8 weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from common import exporting, onnx_sessions
from common.benchmark import compare, compare_all, engines, measured
from common.benchmark.__main__ import main
from common.devices import FORMATS
from common.errors import UsageError
from common.models.factory import create_backbone, create_model
from common.onnx_sessions import open_onnx, quantised
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
    assert [f"left out: {each}" for each in said] == capsys.readouterr().err.splitlines()[:2]


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


@pytest.mark.usefixtures("installed")
def test_int8_weights_are_a_rounding_off(tmp_path):
    """Weights on a scale of 127 steps for each output, what enters on one of 255: half a step each at the most."""
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 5).eval(), torch.randn(7, 16)
    layer.weight.data[0] *= 100  # its scale is its own
    torch.onnx.export(layer, (x,), str(tmp_path / "a.onnx"), dynamo=True, external_data=False, verbose=False)
    wanted, found = layer(x).detach(), open_onnx(quantised(tmp_path / "a.onnx"))(x)
    weight, steps = layer.weight.detach(), layer.weight.detach().abs().amax(1, keepdim=True) / 127  # (5, 16), (5, 1)
    step = (x.max() - x.min()) / 255
    most = x.abs().sum(1, keepdim=True) * steps.T / 2 + weight.abs().sum(1) * step / 2 + 16 * steps.T * step / 4
    assert (found != wanted).any() and ((found - wanted).abs() <= most + 1e-5).all()


@pytest.mark.usefixtures("installed")
def test_every_linear_layer_of_a_reduced_model_is_int8(tmp_path):
    """Four of each of the six blocks, and the head; the products of attention are none."""
    import onnx

    model = create_model("vit_digits", reducer="topk", keep_rate=0.5).eval()
    file = quantised(exporting.export(model, tmp_path / "topk.onnx"))
    kinds = [node.op_type for node in onnx.load(file).graph.node]
    assert kinds.count("MatMulInteger") == 6 * 4 + 1 and kinds.count("MatMul") >= 6 * 2
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        wanted, found = model(images).numpy(), open_onnx(file)(images).numpy()
    assert 0 < np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


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
