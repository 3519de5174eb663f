"""Models as files that run without this package."""

from __future__ import annotations

import pytest
import timm
import torch
from test_compile import PLANNED, WHOLE, model

import common
from common.errors import UsageError
from common.exporting import export, main
from common.models.factory import create_backbone
from common.reducers import list_reducers

ONE_GRAPH = [name for name in list_reducers() if name not in PLANNED | {"atc"}]
LEAN = "topk:last_block=cls"
USUAL = ("none", "topk", "tram", "ats", LEAN)  # one for each way through a block; the others, and ONNX, when asked for
CASES = [(name, ending) for name in (*ONE_GRAPH, LEAN) for ending in ("pt2", "onnx")]
FULL = [case for case in CASES if case[0] not in USUAL or case[1] == "onnx"]


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
@pytest.mark.parametrize(
    ("name", "ending"), [pytest.param(*case, marks=pytest.mark.full if case in FULL else ()) for case in CASES]
)
def test_a_file_gives_the_logits_at_any_batch_size(name, ending, tmp_path) -> None:
    reduced, file = model(WHOLE.get(name, name)).train(), tmp_path / f"model.{ending}"
    if ending == "onnx":
        pytest.importorskip("onnxruntime")
    with torch.no_grad():
        for parameter in reduced.reducer.parameters():
            parameter.mul_(20)  # as they start, scores of patches nearly tie
    assert export(reduced, file) == file and reduced.training
    images = torch.rand(16, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(file)(images), reduced.eval()(images), rtol=0, atol=1e-4)


def loaded(file):
    if file.suffix == ".pt2":
        return torch.export.load(file).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file))
    return lambda images: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


def test_a_fixed_batch_is_fixed(tmp_path) -> None:
    run = loaded(export(model("topk"), tmp_path / "four.pt2", batch=4))
    assert run(torch.rand(4, 3, 32, 32)).shape == (4, 10)
    with pytest.raises(AssertionError, match="4"):
        run(torch.rand(5, 3, 32, 32))


@pytest.mark.parametrize(
    ("text", "file", "said"),
    [
        ("atc", "a.pt2", "ATC cannot be exported: SciPy clusters each image"),
        ("ats", "a.pt2", "padding='budget' gives one graph"),
        ("idle_mlp:score_threshold=0.5", "a.pt2", "IdleMlp cannot be exported: how many patches pass a threshold"),
        ("topk", "a.pth", "cannot export to .*a.pth'; allowed: a file that ends in .pt2 or .onnx"),
    ],
)
def test_what_cannot_be_exported_is_one_line(text, file, said, tmp_path) -> None:
    with pytest.raises(UsageError, match=said):
        export(model(text), tmp_path / file)
    assert not list(tmp_path.iterdir())


def test_what_is_no_vision_transformer_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="a Linear is given; allowed: a timm VisionTransformer, reduced or not"):
        export(torch.nn.Linear(2, 2), tmp_path / "a.pt2")


def test_images_of_one_channel_are_exported(tmp_path) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, in_chans=1, embed_dim=48, depth=4, num_heads=3).eval()
    grey, fast = torch.rand(2, 1, 32, 32), common.reduce_tokens(vit, "topk", keep_rate=0.5)
    again = torch.export.load(export(fast, tmp_path / "grey.pt2")).module()
    torch.testing.assert_close(again(grey), fast(grey), atol=1e-5, rtol=0)


def test_half_precision_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"a model in torch\.bfloat16 on cpu is given; allowed: float32 on cpu"):
        export(model("topk").bfloat16(), tmp_path / "a.pt2")


def test_command_line(tmp_path, capsys) -> None:
    file = tmp_path / "digits.pt2"
    main([str(file), "--backbone", "vit_digits", "--reducer", "tome", "--keep-rate", "0.5"])
    assert capsys.readouterr().out.strip() == str(file)
    wanted = common.create_model("vit_digits", reducer="tome", keep_rate=0.5)
    run = loaded(file)
    assert run(torch.rand(3, 3, 32, 32)).shape == (3, wanted.num_classes)
    assert main(["a.pt2", "--backbone", "vit_digits", "--reducer", "atc", "--keep-rate", "0.5"]) == 2


def test_command_line_solves_a_budget(tmp_path, monkeypatch) -> None:
    found = []
    monkeypatch.setattr("common.exporting.export", lambda model, path, batch: found.append(model))
    main(["a.pt2", "--backbone", "vit_digits", "--reducer", "tome:parity=true", "--keep-rate", "mac_cut=0.2"])
    wanted = common.keep_rate_for(create_backbone("vit_digits"), "tome:parity=true", mac_cut=0.2)
    assert found[0].reducer.schedule.keep_rate == wanted.keep_rate < 1 and found[0].reducer.parity
