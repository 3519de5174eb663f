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


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, nn.Sequential])
def test_a_wrapped_model_is_refused(wrap):
    with pytest.raises(UsageError, match=r"backbone (OptimizedModule|DataParallel|Sequential) is not supported"):
        common.reduce_tokens(wrap(network()), "topk", keep_rate=0.5)
