"""A model without a head: what needs no class works, the rest is refused in one line before any compute."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn import Linear, Sequential

import common
from common.errors import UsageError
from common.explain import create_explainer, insertion_deletion, list_explainers

ALLOWED = ["random", "raw_attention", "rollout", "tram"]
NO_HEAD = "the model has no head (num_classes=0)"
X = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(num_classes=0) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
    return VisionTransformer(**sizes, num_classes=num_classes).eval()


def beheaded() -> VisionTransformer:
    vit = network(10)
    vit.head = torch.nn.Identity()
    return vit


def of(vit: VisionTransformer, method: str) -> VisionTransformer:
    return vit if method == "none" else common.reduce_tokens(vit, method, keep_rate=0.5)


def refused(call) -> str:
    with pytest.raises(UsageError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("method", ["none", "topk", "tome"])
@pytest.mark.parametrize("name", ALLOWED)
def test_heatmaps_of_no_class_are_those_of_the_same_model_with_a_head(name, method):
    headed = network(10)
    bare = network()
    bare.load_state_dict({key: value for key, value in headed.state_dict().items() if not key.startswith("head.")})
    found, expected = (create_explainer(name, of(vit, method))(X) for vit in (bare, headed))
    torch.testing.assert_close(found.heatmaps, expected.heatmaps)
    assert found.labels is None and expected.labels.shape == (3,)


@pytest.mark.parametrize("vit", [network, beheaded])
@pytest.mark.parametrize("name", sorted({*list_explainers()} - {*ALLOWED}))
def test_an_explainer_of_a_class_is_refused_when_it_is_made(name, vit):
    message = f"explainer {name!r} explains a class, and {NO_HEAD}; allowed: {', '.join(ALLOWED)}"
    assert refused(lambda: create_explainer(name, vit())) == message


def test_labels_of_no_class_are_refused():
    explainer = create_explainer("rollout", network())
    assert refused(lambda: explainer(X, 3)) == f"labels are given, and {NO_HEAD}; allowed: labels=None"


@pytest.mark.parametrize("head", [Linear(32, 4), Sequential(Linear(32, 8), torch.nn.ReLU(), Linear(8, 4))])
def test_labels_are_those_of_a_head_that_was_replaced(head):
    vit = network(10)
    vit.head = head
    assert refused(lambda: create_explainer("chefer", vit)(X, 4)) == "label 4 is not allowed; allowed: 0 to 3"
    assert create_explainer("chefer", vit)(X, 3).labels.tolist() == [3, 3, 3]


def test_what_compares_classes_is_refused(monkeypatch):
    for vit in (network(), beheaded()):
        monkeypatch.setattr(vit.patch_embed, "forward", lambda *_: pytest.fail("ran before it was refused"))
        told = refused(lambda vit=vit: common.search_schedule(vit, "tome", X, mac_cut=0.3))
        assert (
            told == f"a search of schedules compares class probabilities, and {NO_HEAD}; allowed: a model with classes"
        )
        told = refused(lambda vit=vit: insertion_deletion(vit, X, torch.rand(3, 4, 4), torch.zeros(3).long(), 0 * X))
        assert told.startswith(f"insertion and deletion follow the probability of a class, and {NO_HEAD}")


def test_what_needs_no_class_fits_and_searches():
    images = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    fitted = common.idling.fit(network(), images, mac_cut=0.1, epochs=1, hidden=4)
    assert fitted(X).shape == (3, 32)
    fast = common.reduce_tokens(network(), "tome", mac_cut=0.3)
    assert 0.25 < 1 - common.count_macs(fast, 32).total / common.count_macs(network(), 32).total < 0.35
