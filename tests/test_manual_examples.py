"""What the texts show of Python runs, as it is printed, on small data; their lists name all that there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from documents import MANUAL, code_blocks, rows_below, section, text_of
from timm.models.vision_transformer import VisionTransformer

import common
from common.cost.closed_form import Shape
from common.data import load_dataset, make_loader
from common.explain import list_explainers
from common.idling.outcomes import outcomes
from common.models.factory import create_backbone
from common.reducers import list_reducers
from common.reducers.base import REDUCERS
from common.training.experiment import Experiment

FITTING = ("common.idling.fit", "common.slimming.search")
OWN_MODEL = "Use it on your own timm model"


@pytest.fixture
def digits_network() -> VisionTransformer:
    """A small network whose patches differ; trained ones take a minute to make."""
    vit = create_backbone("vit_digits").eval()
    for block in vit.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.2)
    return vit


@pytest.mark.parametrize(("call", "cut"), list(zip(FITTING, (0.2, 0.45), strict=True)))
def test_examples_of_fitting_run(
    call: str, cut: float, digits_network: VisionTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are printed, on digits: the cut is met, and what is loaded is what was saved."""
    (example,) = (code for text in map(text_of, MANUAL) for code in code_blocks(text, "python") if call in code)
    assert f"mac_cut={cut}" in example and example.count("\n") == 3
    monkeypatch.chdir(tmp_path)
    data = load_dataset("digits", "train", img_size=32, limit=200)
    names = {"common": common, "vit": digits_network, "images": data.stack()}
    exec(example, names)
    model, (file,) = names.get("fast") or names["slim"], tmp_path.iterdir()
    again, others = common.load(file, digits_network), load_dataset("digits", "val", img_size=32, limit=100)
    assert torch.equal(again(others.stack()), model(others.stack()))
    (found,), _ = outcomes([model], make_loader(others, 50, shuffle=False, seed=0))
    saved = 1 - found.macs.mean().item() / Shape.of(digits_network).unreduced
    if "slim" in names:
        saved = 1 - common.count_macs(model, 32).total / Shape.of(digits_network).unreduced
    assert saved == pytest.approx(cut, abs=0.02)


def test_examples_on_a_model_of_your_own_run(
    digits_network: VisionTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other in one session, on a network of four blocks in place of DeiT's twelve."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: digits_network)
    blocks = [code for code in code_blocks(section(OWN_MODEL), "python") if not any(call in code for call in FITTING)]
    names: dict[str, object] = {}
    for code in blocks:
        exec(code.replace("224, 224", "32, 32").replace("fast, 224", "fast, 32").replace("kept(9)", "kept(3)"), names)
    images, found = names["images"], names["found"]
    assert len(blocks) == 4 and images.shape == (8, 3, 32, 32)
    assert names["logits"].shape == (8, 10) and names["trace"].kept(3).float().mean() < 0.5  # 0.7 three times
    whole = Shape.of(digits_network).unreduced
    assert common.count_macs(names["fast"], 32).total == pytest.approx(0.6 * whole, rel=0.02)
    assert common.count_macs(names["better"], 32).total == pytest.approx(0.6 * whole, rel=0.02)
    assert found.masks.shape[:2] == (8, 54) and found.heatmaps.shape[0] == 8
    again = torch.export.load(tmp_path / "tome.pt2").module()
    torch.testing.assert_close(again(images), names["fast"](images), atol=1e-4, rtol=0)


def test_the_method_that_the_manual_adds_keeps_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one stage of half: those of the largest norm before the block; with nothing to drop the untouched model."""
    (code,) = code_blocks(section("Add a method"), "python")
    monkeypatch.setattr(REDUCERS, "_classes", dict(REDUCERS._classes))
    exec(code, {})
    vit, images = create_backbone("vit_digits").eval(), torch.randn(2, 3, 32, 32)
    same = common.reduce_tokens(vit, "longest", keep_rate=1.0)
    torch.testing.assert_close(same(images), vit(images), atol=1e-5, rtol=0)
    half = common.reduce_tokens(vit, "longest", keep_rate=0.5, reduction_loc=[1])
    kept = half.trace(images)[1].kept(1)
    norms = vit.blocks[0](vit._pos_embed(vit.patch_embed(images)))[:, vit.num_prefix_tokens :].norm(dim=-1)
    for row, norm in zip(kept, norms, strict=True):
        assert row.sum() == row.numel() // 2 and norm[row].min() >= norm[~row].max()


def test_every_program_knows_the_method_that_the_manual_keeps_outside(tmp_path: Path) -> None:
    """As its environment says; a module that is not there is one line."""
    text = section("Add a method")
    (code,), (shell,) = code_blocks(text, "python"), code_blocks(text, "bash")
    module, name = re.search(r"METHOD_MODULES=(\w+)", shell)[1], re.search(r"--reducer (\w+)", shell)[1]
    (tmp_path / f"{module}.py").write_text(code)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), str(Path(common.__file__).parents[1])])

    def export(modules: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "common.exporting",
            f"{name}.pt2",
            "--backbone",
            "vit_digits",
            "--reducer",
            name,
        ]
        found = {**os.environ, "PYTHONPATH": paths, "METHOD_MODULES": modules}
        return subprocess.run([*command, "--keep-rate", "0.5"], cwd=tmp_path, env=found, capture_output=True, text=True)

    done, missing = export(module), export(f"{module} other_methods")
    assert done.stdout == f"{name}.pt2\n" and (tmp_path / f"{name}.pt2").is_file(), done.stderr
    assert missing.returncode == 2 and missing.stderr == (
        "error: METHOD_MODULES names the module 'other_methods', which is not there; is its folder in PYTHONPATH?\n"
    )


def test_the_training_that_the_manual_shows_is_one(tmp_path: Path) -> None:
    """Names and values are checked when a file is read; ImageNet is not opened."""
    (code,) = (code for code in code_blocks(section("Train"), "bash") if "YAML" in code)
    (tmp_path / "topk.yaml").write_text(re.search(r"<<'YAML'\n(.*?)YAML\n", code, re.DOTALL)[1])
    found = Experiment.from_yaml(tmp_path / "topk.yaml", ["lr=5e-4"])
    assert (found.backbone, found.reducer, found.keep_rate) == ("deit_small_patch16_224", "topk:head_fusion=mean", 0.7)
    assert found.config.lr == 5e-4 and Path(found.output_dir).parts[-2:] == ("runs", "topk-0.7")


def named(header: str) -> list[str]:
    """What stands in backticks in the first cells of a table."""
    return sorted(name for first, *_ in rows_below(header) for name in re.findall(r"`(\w+)`", first))


def test_the_manual_lists_every_method_and_explainer() -> None:
    assert named("| method | decides by | what becomes of the other patches |") == sorted(list_reducers())
    assert named("| `list_explainers()` | rests on |") == sorted(list_explainers())
