"""torch.compile takes every method as one graph, and gives the same logits."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch._dynamo.exc import TorchDynamoException

import common
from common.reducers import list_reducers

IN_PIECES = ["atc", "ats", "idle_mlp:score_threshold=0.5", "idle_oracle:tau=0.5"]  # as their reducers say
WHOLE = {"ats": "ats:padding=budget"}
PLANNED = {"patch_slimming", "dynamic_slimming"}  # not made without a plan


def model(text: str) -> torch.nn.Module:
    """Two blocks, of which the second reduces to half of 64 patches."""
    torch.manual_seed(0)
    method = common.reducers.Method.parse(text)
    vit = VisionTransformer(img_size=32, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=10)
    solved = {"score_threshold", "tau"} & dict(method.options).keys()  # they say how many, no keep rate does
    rate = 1.0 if method.name == "none" or solved else 0.5
    options = {"keep_rate": rate, "reduction_loc": (1,), **dict(method.options)}
    return common.reduce_tokens(vit, method.name, **options).eval()


def compiled(reduced: torch.nn.Module, **how: object) -> torch.nn.Module:
    torch._dynamo.reset()
    return torch.compile(reduced, fullgraph=True, backend="eager", **how)


@pytest.mark.parametrize("name", [name for name in list_reducers() if name not in PLANNED | {"atc"}])
def test_a_method_is_one_graph_with_the_same_logits(name) -> None:
    reduced, images = model(WHOLE.get(name, name)), torch.rand(2, 3, 32, 32)
    assert not reduced.reducer.in_pieces
    with torch.inference_mode():
        torch.testing.assert_close(compiled(reduced)(images), reduced(images), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("text", IN_PIECES)
def test_what_is_no_graph_of_fixed_shapes_is_known(text) -> None:
    reduced = model(text)
    assert reduced.reducer.in_pieces
    with pytest.raises(TorchDynamoException), torch.inference_mode():
        compiled(reduced)(torch.rand(2, 3, 32, 32))


@pytest.mark.parametrize(
    "name", ["none", "none:last_block=cls", "topk", "tome", "tome:resize=24", "tram", "ats:padding=budget"]
)
def test_two_graphs_are_enough_for_all_batch_sizes(name) -> None:
    reduced = model(name)
    graphs = []

    def note(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    fast = torch.compile(reduced, fullgraph=True, backend=note)
    with torch.inference_mode():
        for batch in (3, 8, 64, 5):
            images = torch.rand(batch, 3, 32, 32)
            torch.testing.assert_close(fast(images), reduced(images), rtol=0, atol=1e-5)
    assert len(graphs) <= 2


def test_ats_padded_to_the_budget_is_ats() -> None:
    """The same logits, and traces that differ in nothing; every image has as many rows as the budget allows."""
    texts, images = ("ats", "ats:padding=budget"), torch.rand(4, 3, 32, 32)
    logits, traces = zip(*(model(text).trace(images) for text in texts), strict=True)
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)
    assert torch.equal(*(trace.kept(1) for trace in traces))
    assert torch.equal(*(trace.num_tokens[-1] for trace in traces))
