"""Images that a network does not take are refused in one line that says which were given, and which it takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch._dynamo.exc import Unsupported

import common
from common.errors import UsageError
from common.explain import create_explainer
from common.training import predict

ALLOWED = "not allowed; give a tensor (B, 3, 32, 32) of floating-point numbers"
BAD = {
    "smaller": (torch.rand(2, 3, 24, 24), "images of shape (2, 3, 24, 24) and torch.float32 are"),
    "channels last": (torch.rand(2, 32, 32, 3), "images of shape (2, 32, 32, 3) and torch.float32 are"),
    "one image": (torch.rand(3, 32, 32), "images of shape (3, 32, 32) and torch.float32 are"),
    "grey": (torch.rand(2, 1, 32, 32), "images of shape (2, 1, 32, 32) and torch.float32 are"),
    "bytes": (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "images of shape (2, 3, 32, 32) and torch.uint8 are"),
    "an array": (np.zeros((2, 3, 32, 32), np.float32), "images of type ndarray are"),
    "nothing": (None, "images of type NoneType are"),
}


def network(**options) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 10}
    return VisionTransformer(**{**sizes, **options}).eval()


def fast(method="tome", **options):
    return common.reduce_tokens(network(**options), method, keep_rate=0.5)


WAYS = {
    "call": lambda images: fast()(images),
    "resized": lambda images: fast("tome:resize=24")(images),
    "downsampled": lambda images: fast("downsample")(images),
    "last block": lambda images: fast("topk:last_block=cls")(images),
    "trace": lambda images: fast().trace(images),
    "features": lambda images: fast().forward_features(images),
    "tokens": lambda images: fast()(images, return_tokens=True),
    "explain": lambda images: create_explainer("rollout", network())(images),
    "explain reduced": lambda images: create_explainer("mutex", fast())(images),
    "search": lambda images: common.search_schedule(network(), "tome", images, mac_cut=0.3),
    "fit": lambda images: common.idling.fit(network(), images, mac_cut=0.1),
    "evaluate": lambda images: predict({"": network()}, _Loader(images), quiet=True),
    "compiled": lambda images: torch.compile(fast(), backend="eager")(images),
}


class _Loader(list):
    def __init__(self, images):
        super().__init__([(images, torch.zeros(2))])
        self.sampler = range(2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", BAD)
def test_every_way_in_says_what_was_given_and_what_is_allowed(way, case):
    images, given = BAD[case]
    with pytest.raises(UsageError) as refused:
        WAYS[way](images)
    said = str(refused.value)
    assert said.startswith(f"{given} {ALLOWED}") and "\n" not in said
    assert said.removeprefix(f"{given} {ALLOWED}") in ("", ", a Dataset of such images or a DataLoader")


def test_images_of_a_dynamic_size_have_whole_patches():
    model = fast(dynamic_img_size=True, patch_size=(8, 4))
    assert model(torch.rand(2, 3, 24, 12)).shape == (2, 10)
    allowed = r"give a tensor \(B, 3, H, W\) of floating-point numbers \(H a multiple of 8, W of 4\)$"
    for size in ((24, 13), (23, 12), (0, 12)):
        with pytest.raises(UsageError, match=rf"images of shape \(2, 3, {size[0]}, {size[1]}\) [^\n]*{allowed}"):
            model(torch.rand(2, 3, *size))
    padded = fast(dynamic_img_size=True, dynamic_img_pad=True)
    assert padded(torch.rand(2, 3, 23, 13)).shape == (2, 10)


def test_a_whole_graph_ends_before_it_runs_and_holds_no_question():
    """torch itself says why there is none for other images; where there is one, nothing in it asks."""
    graphs = []

    def note(graph, _):
        graphs.append({node.target for node in graph.graph.nodes})
        return graph.forward

    torch._dynamo.reset()
    whole = torch.compile(fast(), fullgraph=True, backend=note)
    with torch.inference_mode():
        assert whole(torch.rand(2, 3, 32, 32)).shape == (2, 10)
        with pytest.raises(Unsupported, match="UsageError"):
            whole(torch.rand(2, 3, 24, 24))
    assert len(graphs) == 1 and not any("assert" in str(target) for target in graphs[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_numbers_are_the_models_own_affair(dtype):
    model = fast().to(dtype)
    assert model(torch.rand(2, 3, 32, 32, dtype=dtype)).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert fast()(torch.rand(2, 3, 32, 32)).shape == (2, 10)
