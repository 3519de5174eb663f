"""The start of TRAM's authors: what it changes of a timm model, what it leaves, and how its weights are drawn."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from common import create_model
from common.errors import UsageError
from common.models.factory import create_backbone
from common.models.published import EPS, as_published, start_pretrained, start_random
from common.models.simple_vit import NormalizedPatchEmbed
from common.training import TrainConfig
from common.training.experiment import Experiment
from common.weights import save_state

MERGER = {"reducer": "patchmerger", "keep_rate": 0.5, "parity": True}


def images(side: int = 32) -> torch.Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))


def random_model(name: str = "vit_digits", **given) -> nn.Module:
    """A model whose biases and norms are as far from their start as those of a trained one."""
    torch.manual_seed(0)
    model = create_model(name, **given).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.LayerNorm)):
                module.weight.add_(0.1 * torch.randn_like(module.weight))
                if module.bias is not None:
                    module.bias.add_(0.1 * torch.randn_like(module.bias))
    return model


def set_eps(model: nn.Module, eps: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps


# from pretrained weights


@pytest.mark.parametrize(("reducer", "keep_rate"), [("none", 1.0), ("tram", 0.5), ("topk", 0.5)])
def test_without_qkv_biases_and_with_the_same_eps_it_is_timm_s_network(reducer, keep_rate):
    model = random_model(reducer=reducer, keep_rate=keep_rate)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.bias.zero_()
    set_eps(model, EPS)
    wanted = model(images())
    start_pretrained(model)
    torch.testing.assert_close(model(images()), wanted, rtol=0, atol=1e-6)


def test_each_of_the_differences_reaches_the_logits():
    """The biases more than another eps, which matters where features are small."""
    model = random_model()
    before = model(images())
    set_eps(model, EPS)
    with_eps = model(images())
    as_published(model)
    after = model(images())
    assert 1e-4 < (with_eps - before).abs().max() < (after - with_eps).abs().max()


def test_only_the_qkv_biases_are_missing():
    model = random_model()
    before = model.state_dict()
    start_pretrained(model)
    after = model.state_dict()
    assert set(before) - set(after) == {f"blocks.{block}.attn.qkv.bias" for block in range(6)}
    assert all(torch.equal(before[name], value) for name, value in after.items())
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-5}


def test_patchmerger_reads_the_position_of_the_patch_before():
    model = random_model(**MERGER)
    table, head = model.pos_embed.detach().clone(), model.head.weight.detach().clone()
    seen = {}
    model.reducer.mergers["1"].register_forward_pre_hook(lambda _, given: seen.setdefault("x", given[0]))
    start_pretrained(model, fresh_head=False)
    assert torch.equal(model.pos_embed[0, 1:], table[0, :-1]), "row i - 1 for row i, the CLS token's for the first"
    assert torch.equal(model.head.weight, head)
    patches = model.patch_embed(images()) + table[:, :-1]  # (B, P, D)
    model(images())
    torch.testing.assert_close(seen["x"], model.blocks[0](patches), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("given", "shifts"), [(MERGER, True), ({**MERGER, "parity": False}, False), ({}, False)])
def test_only_a_network_without_cls_token_reads_shifted_positions(given, shifts):
    model = random_model(**given)
    table, head = model.pos_embed.detach().clone(), model.head.weight.detach().clone()
    start_pretrained(model)
    assert torch.equal(model.pos_embed, table) != shifts
    assert torch.equal(model.head.weight, head) != shifts, "PatchMerger's head is new, those of the others are timm's"
    bound = 64**-0.5
    assert not shifts or 0.95 * bound < model.head.weight.abs().max() <= bound


def test_simple_vit_is_the_authors_network_already():
    model = random_model("simple_vit_digits", **MERGER)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start_pretrained(model, fresh_head=False)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


# from random weights


def test_the_published_network_from_scratch_has_the_published_parameters():
    """ViT-B, 160 px, ten classes, as thop counts, without positions and CLS token."""
    with torch.device("meta"):
        model = create_model("vit_base_patch16_224", img_size=160, num_classes=10)
        counts = []
        for normalized in (False, True):
            as_published(model, normalized_embed=normalized)
            counts.append(sum(p.numel() for name, p in model.named_parameters() if "." in name))
    assert counts == [85_626_634, 85_629_706]


@pytest.fixture(scope="module")
def fresh():
    torch.manual_seed(0)
    model = create_model("vit_tiny_patch16_224", img_size=160, num_classes=10, reducer="tram", keep_rate=0.5)
    start_random(model)
    return model


def test_positions_and_cls_token_are_standard_normal(fresh):
    for table in (fresh.pos_embed, fresh.cls_token):
        error = 5 / math.sqrt(2 * table.numel())
        assert table.mean().item() == pytest.approx(0, abs=1.5 * error)
        assert table.std().item() == pytest.approx(1, abs=error)


def test_linear_layers_are_uniform_up_to_the_root_of_their_inputs(fresh):
    layers = [module for module in fresh.modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 12 * 4 + 2
    for layer in layers:
        bound = layer.in_features**-0.5
        for values in filter(lambda values: values is not None, (layer.weight, layer.bias)):
            assert values.abs().max() <= bound
            assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=5 / math.sqrt(values.numel()))


def test_patches_are_embedded_between_two_norms(fresh):
    assert type(fresh.patch_embed) is NormalizedPatchEmbed and fresh.patch_embed.grid_size == (10, 10)
    assert fresh.eval()(torch.randn(2, 3, 160, 160)).shape == (2, 10)


def test_what_a_method_learns_starts_as_it_always_does():
    torch.manual_seed(0)
    model = create_model("vit_digits", reducer="dynamicvit", keep_rate=0.5)
    before = {name: value.clone() for name, value in model.reducer.state_dict().items()}
    start_random(model)
    assert before and all(torch.equal(value, model.reducer.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("given", [{"reducer": "tram", "keep_rate": 0.5}, MERGER])
def test_simple_vit_keeps_its_positions(given):
    torch.manual_seed(0)
    model = create_model("simple_vit_digits", **given)
    position, weight = model.pos_embed.clone(), model.blocks[0].mlp.fc1.weight.clone()
    start_random(model)
    assert torch.equal(model.pos_embed, position) and not torch.equal(model.blocks[0].mlp.fc1.weight, weight)
    assert model.blocks[0].mlp.fc1.bias.abs().max() > 0.1  # 64^-1/2 = 0.125; timm's start is 0


# refusals


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("deit3_small_patch16_224", "blocks.0.ls1.gamma"),
        ("deit_tiny_distilled_patch16_224", "dist_token"),
        ("vit_small_patch14_reg4_dinov2", "reg_token"),
    ],
)
def test_backbones_that_the_network_has_no_place_for(name, what):
    with torch.device("meta"):
        vit = create_backbone(name)
    with pytest.raises(UsageError, match=f"has no place for '{what}' of this backbone; allowed: a plain ViT") as caught:
        as_published(vit)
    assert len(str(caught.value).splitlines()) == 1


# as a run


def experiment(**given) -> Experiment:
    config = TrainConfig(epochs=1, batch_size=8, device="cpu", seed=3)
    limits = {"limit_train": 16, "limit_val": 8, "img_size": 32}
    return Experiment("vit_digits", "digits", config, **limits, **given)


def test_an_experiment_starts_as_it_says(tmp_path):
    save_state(random_model(), tmp_path / "vit.safetensors")
    weights = {"weights": str(tmp_path / "vit.safetensors"), "head": "dataset"}
    names = [f"blocks.{block}.attn.qkv.bias" for block in range(6)]
    for given in ({}, weights):
        timm, published = (experiment(start=start, **given).model() for start in ("timm", "published"))
        assert set(names) <= set(timm.state_dict()) and not set(names) & set(published.state_dict())
        assert isinstance(published.patch_embed, NormalizedPatchEmbed) == (not given)
        assert torch.equal(timm.pos_embed, published.pos_embed) == bool(given)
        again = experiment(start="published", **given).model()
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in published.state_dict().items())
    assert len(list(experiment(start="published", **weights).run())) == 2
    with pytest.raises(UsageError, match="unknown start 'old'; allowed: published, timm"):
        experiment(start="old")


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("given", [{"reducer": "tram", "keep_rate": 0.5}, MERGER])
def test_a_checkpoint_of_the_network_gives_the_same_logits(given, pretrained, tmp_path):
    """Its header says what it is; a start from it changes nothing once more."""
    model = random_model(**given)
    (start_pretrained if pretrained else start_random)(model)
    save_state(model, tmp_path / "model.safetensors")
    again = create_model("vit_digits", weights=tmp_path / "model.safetensors", **given).eval()
    torch.testing.assert_close(again(images()), model(images()), rtol=0, atol=0)
    start_pretrained(again)
    torch.testing.assert_close(again(images()), model(images()), rtol=0, atol=0)
    larger = create_backbone("vit_digits", weights=tmp_path / "model.safetensors", img_size=48, num_classes=3)
    assert larger.eval()(images(48)).shape == (3, 3)
    assert torch.equal(larger.blocks[2].mlp.fc1.weight, model.blocks[2].mlp.fc1.weight)


def test_a_checkpoint_of_another_size_is_refused(tmp_path):
    model = random_model()
    start_pretrained(model)
    save_state(model, tmp_path / "model.safetensors")
    for name, words in (("vit_digits_narrow", "size mismatch"), ("vit_tiny_patch16_224", "size mismatch")):
        with pytest.raises(UsageError, match=f"does not fit backbone {name!r}: .*{words}") as caught:
            create_model(name, weights=tmp_path / "model.safetensors")
        assert len(str(caught.value).splitlines()) == 1


def test_methods_share_the_head_that_is_drawn():
    heads = [experiment(weights="", start="published", reducer=name).model().head.weight for name in ("none", "tram")]
    assert torch.equal(*heads)
