"""What users of timm do with a model works with a reduced one, or is refused."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.utils import prune

import common
from common.errors import UsageError

DECAY = 0.5
HOOKED = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp")


def network(**options: object) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 10}
    return timm.create_model("vit_tiny_patch16_224", **{**sizes, **options}).eval()


def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("reducer", ["topk", "dynamicvit", "sinkhorn", "idle_mlp"])
def test_layer_decay_is_that_of_the_unreduced_model_and_a_method_learns_as_the_head(reducer):
    vit = network()
    model = common.reduce_tokens(vit, reducer, keep_rate=0.5)

    def scales(of: nn.Module) -> dict[str, float]:
        optimizer = create_optimizer_v2(of, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=DECAY)
        found = {id(each): group["lr_scale"] for group in optimizer.param_groups for each in group["params"]}
        return {name: found.pop(id(each)) for name, each in of.named_parameters()}

    unreduced, found = scales(vit), scales(model)
    assert found.items() >= unreduced.items() and found["blocks.0.mlp.fc1.weight"] == DECAY**4
    own = {name: scale for name, scale in found.items() if name.startswith("reducer.")}
    assert own.keys() == found.keys() - unreduced.keys() and set(own.values()) <= {found["head.weight"]} == {1.0}


def test_averaged_weights_are_a_model_of_their_own():
    model = common.reduce_tokens(network(), "dynamicvit", keep_rate=0.5)
    averaged, before = ModelEmaV3(model, decay=0.75), deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    averaged.update(model)
    for name, value in averaged.module.state_dict().items():
        torch.testing.assert_close(value, before[name] + (0.25 if value.is_floating_point() else 0))


def test_a_backbone_without_a_head_gives_its_features():
    vit = network(num_classes=0)
    same, fast = (common.reduce_tokens(vit, "topk", keep_rate=rate) for rate in (1.0, 0.5))
    torch.testing.assert_close(same(images()), vit(images()), atol=1e-5, rtol=0)
    features = fast.forward_head(fast.forward_features(images()))
    assert features.shape == (2, 48) and torch.equal(fast(images()), features)
    fast.reset_classifier(7)
    assert fast(images()).shape == (2, 7) and vit(images()).shape == (2, 48)


@pytest.mark.parametrize("reducer", ["topk", "tome", "tram", "idle_topk", "patchmerger"])
def test_hooks_on_the_parts_of_a_block_fire_in_every_block(reducer):
    vit, fired = network(), Counter()
    for layer, block in enumerate(vit.blocks):
        for name in HOOKED:
            block.get_submodule(name).register_forward_hook(lambda *_, key=(layer, name): fired.update([key]))
    with torch.no_grad():
        common.reduce_tokens(vit, reducer, keep_rate=0.5)(images())
    assert fired.keys() == {(layer, name) for layer in range(4) for name in HOOKED}
    assert {count for (_, name), count in fired.items() if name != "attn.qkv"} == {1}


@pytest.mark.parametrize("reducer", ["none", "random", "topk", "idle_topk"])
def test_backward_hooks_of_projections_fire_in_every_block(reducer):
    """Also where only a part of them is computed."""
    vit, fired = network(), set()
    for layer, block in enumerate(vit.blocks):
        block.attn.qkv.register_full_backward_hook(lambda *_, layer=layer: fired.add(layer))
    model = common.reduce_tokens(vit, reducer, keep_rate=1.0 if reducer == "none" else 0.5)
    model(images()).sum().backward()
    assert fired == {0, 1, 2, 3}


HALF = ["tome", "dpcknn", "l2", "dynamicvit", "sit", "idle_mlp:score_threshold=0.5,attention=standard"]
HALF += ["idle_oracle:attention=standard,influence=rollout", "idle_oracle:attention=standard,influence=fisher"]


@pytest.mark.filterwarnings("ignore:.*untrained")
@pytest.mark.parametrize("method", HALF)
def test_tokens_of_half_precision_meet_parameters_of_single(method):
    """Under autocast tokens are in half precision from the first block on where nothing is added to the patches."""
    vit = network(class_token=False, global_pool="avg", pos_embed="none")
    model = common.reduce_tokens(vit, method, keep_rate=1.0 if "score_threshold" in method else 0.5).eval()
    whole = model(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(images())
    assert rough.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(rough.float(), whole).min() > 0.95


ADAPTED = ["none", "none:last_block=cls", "topk", "tram", "tome:last_block=cls", "idle_topk", "dynamicvit"]


class Adapter(nn.Module):
    """A layer and a low-rank change of it, without a ``weight`` of its own."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.down = layer, nn.Linear(layer.in_features, 2)
        self.up = nn.Linear(2, layer.out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.up(self.down(x))

    def merged(self) -> nn.Linear:
        whole = deepcopy(self.layer)
        with torch.no_grad():
            whole.weight += self.up.weight @ self.down.weight
            whole.bias += self.up.weight @ self.down.bias + self.up.bias
        return whole


def reduced(vit: nn.Module, method: str) -> nn.Module:
    torch.manual_seed(0)  # of what a method draws for its own parameters
    return common.reduce_tokens(vit, method, keep_rate=1.0 if method.startswith("none") else 0.5)


@pytest.mark.parametrize("method", ADAPTED)
def test_adapters_in_the_backbone_count_whether_they_come_before_the_method_or_after(method, tmp_path):
    before, merged = network(), network()
    for block, other in zip(before.blocks, merged.blocks, strict=True):
        block.attn.qkv, block.mlp.fc1 = Adapter(block.attn.qkv), Adapter(block.mlp.fc1)
        other.attn.qkv, other.mlp.fc1 = block.attn.qkv.merged(), block.mlp.fc1.merged()
    wanted, model, after = reduced(merged, method)(images()), reduced(before, method), reduced(network(), method)
    torch.testing.assert_close(model(images()), wanted, rtol=0, atol=1e-5)
    assert (wanted - after(images())).abs().max() > 1e-3
    for block, adapted in zip(after.blocks, before.blocks, strict=True):
        block.attn.qkv, block.mlp.fc1 = adapted.attn.qkv, adapted.mlp.fc1
    torch.testing.assert_close(after(images()), wanted, rtol=0, atol=1e-5)
    again = common.load(common.save(model, tmp_path / "m.safetensors"), before)
    torch.testing.assert_close(again(images()), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ADAPTED)
def test_pruned_weights_are_used_pruned(method):
    """torch keeps the mask beside the weight, and multiplies them in a hook before the call."""
    vit = network()
    for block in vit.blocks:
        prune.l1_unstructured(block.attn.qkv, "weight", 0.5)
    masked = reduced(vit, method)(images())
    for block in vit.blocks:
        prune.remove(block.attn.qkv, "weight")
    torch.testing.assert_close(masked, reduced(vit, method)(images()), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # torch says that another package will have it
@pytest.mark.parametrize("method", ADAPTED)
def test_a_quantised_backbone_is_reduced_as_a_reduced_one_is_quantised(method):
    quantised = torch.ao.quantization.quantize_dynamic(network(), {nn.Linear})
    linear = {name for name, each in network().named_modules() if isinstance(each, nn.Linear)}
    other = torch.ao.quantization.quantize_dynamic(
        reduced(network(), method), dict.fromkeys(linear, torch.ao.quantization.default_dynamic_qconfig)
    )
    torch.testing.assert_close(reduced(quantised, method)(images()), other(images()), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda model: model.prune_intermediate_layers([1]),
            "the blocks of a reduced model cannot be pruned; prune the",
        ),
        (
            lambda model: model.set_input_size(img_size=64),
            "the image size of a reduced model is fixed; set that of the",
        ),
        (lambda model: model.get_intermediate_layers(images(), 2), "has no forward_intermediates"),
    ],
)
def test_what_would_leave_method_and_backbone_apart_is_refused(call, message):
    vit = network()
    model = common.reduce_tokens(vit, "topk", keep_rate=0.5)
    expected = model(images())
    with pytest.raises(UsageError, match=message):
        call(model)
    assert torch.equal(model(images()), expected) and vit(images()).shape == (2, 10)
    vit.set_input_size(img_size=64)
    assert common.reduce_tokens(vit, "topk", keep_rate=0.5)(torch.rand(2, 3, 64, 64)).shape == (2, 10)


def test_another_pooling_that_reads_what_is_left_out_is_refused():
    lean = common.reduce_tokens(network(), "topk:last_block=cls", keep_rate=0.5)
    with pytest.raises(UsageError, match="last_block='cls' leaves patches out, but with reducer 'topk' the head reads"):
        lean.reset_classifier(3, global_pool="avg")
    assert lean(images()).shape == (2, 10)
    masking = common.reduce_tokens(network(), "dynamicvit", keep_rate=0.5)
    with pytest.raises(UsageError, match="'dynamicvit' masks tokens; global_pool='max' is not allowed; allowed: token"):
        masking.reset_classifier(3, global_pool="max")
    for model in (lean, masking, common.reduce_tokens(network(), "topk", keep_rate=0.5)):
        model.reset_classifier(3)
        assert model(images()).isfinite().all() and model(images()).shape == (2, 3)
    model.reset_classifier(4, "avg")
    unreduced = common.reduce_tokens(network(), "none")
    unreduced.reset_classifier(4, "avg")
    unreduced.head = model.head
    assert model(images()).isfinite().all() and not torch.allclose(model(images()), unreduced(images()), atol=1e-4)


def test_the_word_of_timm_for_weights_is_answered_with_ours():
    with pytest.raises(UsageError, match=r"pretrained=True is not allowed; give weights='timm', or a file"):
        common.create_model("vit_digits", reducer="topk", pretrained=True)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, nn.Sequential])
def test_a_wrapped_model_is_refused(wrap):
    with pytest.raises(UsageError, match=r"backbone (OptimizedModule|DataParallel|Sequential) is not supported"):
        common.reduce_tokens(wrap(network()), "topk", keep_rate=0.5)
