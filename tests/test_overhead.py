"""What a method costs beside the multiplications that it saves, counted: operators, and what they write to memory.

Both are what its speed falls short of its MAC ratio by; how much that is on one machine, ``./run_all.sh bench`` tells.
"""

import pytest
import timm
from backbones import applicable_reducers, images, make, reducing
from counting import operators

from common.cost.counter import count_macs
from common.models.reduced import reduce_tokens

# at keep rate 0.5: operators more than the 173 of ViT-Ti, elements written as a share of what ViT-Ti writes, MAC share
EXTRA = {
    "ats": (147, 0.500, 0.484),
    "dpcknn": (126, 0.559, 0.476),
    "dynamic_slimming": (46, 0.505, 0.482),
    "dynamicvit": (75, 0.519, 0.481),
    "evit": (51, 0.517, 0.500),
    "idle_mlp": (162, 0.647, 0.575),
    "idle_topk": (180, 0.589, 0.502),
    "kmedoids": (240, 0.627, 0.472),
    "l1": (9, 0.449, 0.437),
    "l2": (9, 0.479, 0.465),
    "linf": (9, 0.454, 0.443),
    "patch_slimming": (66, 0.726, 0.668),
    "patchmerger": (30, 0.499, 0.472),
    "random": (36, 0.494, 0.478),
    "sinkhorn": (60, 0.511, 0.472),
    "sit": (36, 0.505, 0.475),
    "tome": (94, 0.537, 0.497),
    "topk": (33, 0.500, 0.484),
    "tram": (151, 0.733, 0.492),
}


@pytest.fixture(scope="module")
def vit():
    return timm.create_model("vit_tiny_patch16_224").eval()


@pytest.fixture(scope="module")
def dense(vit):
    return operators(vit, images(vit, 1))


def reduced(vit, reducer):
    model = reduce_tokens(vit, reducer, **reducing(vit, reducer, 0.5)).eval()
    model(images(vit, 1))  # the first evaluation looks for what is untrained
    return model


@pytest.mark.parametrize("reducer", EXTRA)
def test_a_method_adds_so_many_operators_and_writes_so_much(vit, dense, reducer):
    """And makes no tensor larger than the hidden layer of an MLP."""
    added, written, macs = EXTRA[reducer]
    model = reduced(vit, reducer)
    found = operators(model, images(vit, 1))
    assert found.calls.total() - dense.calls.total() <= added
    assert found.written / dense.written <= written and found.largest <= dense.largest
    assert macs - 0.01 < count_macs(model, 224).total / count_macs(vit, 224).total <= macs


@pytest.mark.parametrize("reducer", applicable_reducers(make("vit")))
def test_operators_do_not_grow_with_the_batch(reducer):
    """No method loops over images of as many tokens each."""
    model = reduced(make("vit"), reducer)
    few, more = (operators(model, images(model, batch)).calls for batch in (2, 5))
    assert few == more


@pytest.mark.usefixtures("no_init")
@pytest.mark.parametrize(("keep_rate", "ratio"), [(0.75, 1.45), (0.5, 2.04)])
def test_tram_executes_the_share_of_the_macs_that_the_readme_says(keep_rate, ratio):
    vit = timm.create_model("vit_small_patch16_224", num_classes=10)
    model = reduce_tokens(vit, "tram", keep_rate=keep_rate)
    assert count_macs(vit, 224).total / count_macs(model, 224).total == pytest.approx(ratio, abs=0.005)
