"""Reduced models as files: the same logits bit for bit, and one line for whatever does not fit."""

import copy
import json

import pytest
import torch
from backbones import ADAPTIVE, IDLING, VARIANTS, applicable_reducers, images, make, plan_for, reducing
from safetensors import safe_open
from small_training import same_weights, small_vit

import common
from common.errors import UsageError
from common.models.factory import create_backbone, create_model
from common.models.reduced import attach, reduce_tokens
from common.reducers import Method, Reducer, Schedule
from common.weights import save_state

METHODS = [
    *applicable_reducers(make("vit")),
    *VARIANTS,
    *IDLING,
    *ADAPTIVE,
    "dynamic_slimming:budget=threshold,gate=mean",
]


def drawn(model, x):
    """Logits, those that draw by the same random numbers."""
    torch.manual_seed(3)
    with torch.inference_mode():
        return model(x)


def restarted(vit):
    """The same network with other weights."""
    other = copy.deepcopy(vit)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return other


@pytest.mark.parametrize("text", METHODS)
def test_what_is_loaded_gives_the_same_logits_bit_for_bit(text, tmp_path):
    vit, method = make("vit"), Method.parse(text)
    by_scores = {"score_threshold", "tau"} & dict(method.options).keys()
    given = {} if by_scores else reducing(vit, method.name, 0.6)
    model = reduce_tokens(vit, method.name, **given, **dict(method.options)).eval()
    for value in model.reducer.parameters():
        torch.nn.init.normal_(value, std=0.2)
    if hasattr(model.reducer, "thresholds"):
        model.reducer.thresholds.fill_(0.4)
    other = restarted(vit)
    before, x = copy.deepcopy(other.state_dict()), images(vit)
    again = common.load(common.save(model, tmp_path / "model.safetensors"), other)
    assert torch.equal(drawn(again, x), drawn(model, x)) and same_weights(again, model)
    assert type(again.reducer) is type(model.reducer) and not again.training
    assert again.reducer.schedule == model.reducer.schedule
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("family", ["deit-distilled", "deit3-layerscale", "dinov2-registers", "simple-vit"])
def test_every_kind_of_backbone(family, tmp_path):
    vit = make(family)
    model = reduce_tokens(vit, "tome", keep_rate=(0.8, 0.6), reduction_loc=(1, 2)).eval()
    again = common.load(common.save(model, tmp_path / "model.safetensors"), restarted(vit))
    assert torch.equal(drawn(again, images(vit)), drawn(model, images(vit)))


def test_a_plan_travels_with_the_weights_also_where_it_came_from_a_file(tmp_path):
    vit = make("vit")
    plan_for(vit, 0.5).save(tmp_path / "plan.json")
    model = reduce_tokens(vit, "patch_slimming", plan=tmp_path / "plan.json").eval()
    common.save(model, tmp_path / "slim.safetensors")
    (tmp_path / "plan.json").unlink()
    assert common.load(tmp_path / "slim.safetensors", vit).reducer.plan == plan_for(vit, 0.5)


def test_a_keep_rate_that_a_budget_was_solved_for_is_kept(tmp_path):
    model = common.reduce_tokens(make("vit"), "topk", mac_cut=0.3).eval()
    again = common.load(common.save(model, tmp_path / "model.safetensors"), make("vit"))
    assert again.reducer.schedule == model.reducer.schedule and 0 < again.reducer.schedule.keep_rate < 1


def test_the_number_format_and_what_the_weights_expect_are_kept(tmp_path):
    vit = make("vit")
    vit.pretrained_cfg = {**vit.pretrained_cfg, "mean": (0.1, 0.2, 0.3)}
    model = reduce_tokens(vit, "topk", keep_rate=0.5).to(torch.bfloat16).eval()
    again = common.load(common.save(model, tmp_path / "model.safetensors"), make("vit"))
    x = images(vit).to(torch.bfloat16)
    assert torch.equal(drawn(again, x), drawn(model, x)) and drawn(again, x).dtype == torch.bfloat16
    assert again.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)


def test_the_file_is_one_of_weights_too_and_its_header_plain_json(tmp_path):
    model = create_model("vit_digits", reducer="idle_mlp", score_threshold=0.4, hidden=8).eval()
    path = common.save(model, tmp_path / "model.safetensors")
    again = create_model("vit_digits", reducer="idle_mlp", score_threshold=0.9, hidden=8, weights=path).eval()
    assert torch.equal(drawn(again, torch.ones(2, 3, 32, 32)), drawn(model, torch.ones(2, 3, 32, 32)))
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["reduced_model"])
    assert (record["method"], record["options"]) == ("idle_mlp", {"score_threshold": 0.4, "hidden": 8})
    assert record["backbone"]["depth"] == 6 and record["keep_rate"] == 1.0


OTHERS = {
    "embed_dim=64, this one has 16": {"img_size": 32, "patch_size": 4, "depth": 6, "num_heads": 2, "num_classes": 10},
    "depth=6, this one has 4": {},
}


def test_other_backbones_are_refused_by_what_differs(tmp_path):
    model = create_model("vit_digits", reducer="topk", keep_rate=0.5)
    path = common.save(model, tmp_path / "model.safetensors")
    for message, sizes in OTHERS.items():
        refused(message, path, small_vit(**sizes))
    refused(r"num_classes=10, this one has 7", path, create_backbone("vit_digits", num_classes=7))
    refused("img_size=.32, 32., this one has .64, 64.", path, create_backbone("vit_digits", img_size=64))
    scaled = create_backbone("vit_digits")
    scaled.blocks[2].ls1.gamma = torch.nn.Parameter(torch.ones(64))
    refused("is of another backbone: blocks.2.ls1.gamma is in one of the two only", path, scaled)
    refused("the model is reduced already", path, model)


def refused(message, path, vit):
    with pytest.raises(UsageError, match=message) as error:
        common.load(path, vit)
    assert "\n" not in str(error.value)


def test_files_that_hold_no_reduced_model(tmp_path):
    vit = create_backbone("vit_digits")
    refused("does not exist", tmp_path / "none.safetensors", vit)
    refused("reduced models are files that end in .safetensors; given: '.*model.pt'", tmp_path / "model.pt", vit)
    save_state(vit, tmp_path / "weights.safetensors")
    refused("holds no reduced model of common.save; weights alone go to", tmp_path / "weights.safetensors", vit)
    common.save(reduce_tokens(vit, "topk", keep_rate=0.5), tmp_path / "whole.safetensors")
    content = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(content[: len(content) // 2])
    refused("is damaged or truncated", tmp_path / "half.safetensors", vit)
    unknown = content.replace(b'method\\": \\"topk', b'method\\": \\"tokp')
    assert unknown != content
    (tmp_path / "unknown.safetensors").write_bytes(unknown)
    refused("unknown reducer 'tokp'; allowed", tmp_path / "unknown.safetensors", vit)


def test_what_cannot_be_saved(tmp_path):
    vit = small_vit()
    for model, message in (
        (vit, "a VisionTransformer cannot be saved; allowed: a model of reduce_tokens or create_model"),
        (attach(vit, Reducer(vit, Schedule(1.0, (0,)))), "Reducer is no registered reducer; allowed: .*topk"),
    ):
        with pytest.raises(UsageError, match=message):
            common.save(model, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())
