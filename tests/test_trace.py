"""What a trace says of blocks that it has nothing of."""

import copy
import pickle

import pytest
import torch

import common
from common.errors import UsageError
from common.models.trace import Trace

ALL = "allowed: blocks 0 to 5, or -1 to -6 from the last"


@pytest.fixture(scope="module")
def trace():
    torch.manual_seed(0)
    model = common.create_model("vit_digits", reducer="topk", keep_rate=0.5).eval()
    return model.trace(torch.rand(2, 3, 32, 32), cls_at=(2,))[1]


@pytest.mark.parametrize("layer", [6, 9, -7])
@pytest.mark.parametrize(
    "ask",
    [
        Trace.kept,
        Trace.selected,
        Trace.fused,
        *(lambda trace, layer, name=name: getattr(trace, name)[layer] for name in ("assignment", "destination")),
        *(lambda trace, layer, name=name: getattr(trace, name)[layer] for name in ("num_tokens", "origin", "active")),
    ],
)
def test_a_block_that_there_is_not_is_refused_with_those_that_there_are(trace, ask, layer):
    with pytest.raises(UsageError) as refused:
        ask(trace, layer)
    assert str(refused.value) == f"block {layer} is not in the trace; {ALL}" and isinstance(refused.value, IndexError)


@pytest.mark.parametrize(
    ("name", "layer", "allowed"),
    [("scores", 0, "1, 3, 4"), ("scores", -1, "1, 3, 4"), ("cls", 1, "2"), ("weights", 1, "none")],
)
def test_a_block_of_which_nothing_is_noted_is_refused_with_those_that_have_something(trace, name, layer, allowed):
    with pytest.raises(UsageError) as refused:
        getattr(trace, name)[layer]
    assert str(refused.value) == f"block {layer} has no such entry in the trace; allowed: {allowed}"
    assert isinstance(refused.value, KeyError) and getattr(trace, name).get(layer) is None


def test_blocks_count_from_the_last_too_and_copies_do_as_well(trace):
    for same in (trace, copy.deepcopy(trace), pickle.loads(pickle.dumps(trace))):
        for ask in (Trace.kept, Trace.selected, Trace.fused):
            assert torch.equal(ask(same, -1), ask(same, 5)) and torch.equal(ask(same, -6), ask(same, 0))
        with pytest.raises(UsageError, match=ALL):
            same.kept(6)
        assert [len(part) for part in (same.origin, same.origin[1:3], list(same.scores))] == [6, 2, 3]


def test_an_empty_trace_allows_nothing():
    with pytest.raises(UsageError, match="block 0 is not in the trace; allowed: none"):
        Trace().kept(0)
