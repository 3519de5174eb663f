"""Models whose decisions are void say so once, before the first evaluation, and only they do."""

import copy
import warnings

import pytest
import torch
from small_training import Pictures, config, lively

import common
from common.benchmark import compare_all
from common.cost.counter import count_macs
from common.cost.throughput import interleaved
from common.models.factory import load_own
from common.models.observe import untouched
from common.models.reduced import attach, reduce_tokens
from common.reducers import Schedule
from common.reducers.base import Reducer
from common.slimming import calibrate_thresholds, fit_gates
from common.training import train
from common.weights import save_state

RANDOM = "which patches idle is random: the predictors are untrained; common.idling.fit trains some"
BY_TRAINING = "python -m common.training trains them, weights= and common.load bring trained ones"
PREDICTORS = f"which patches stay is random: the predictors are untrained; {BY_TRAINING}"
MERGED = "what patches are merged into is random: the {} are untrained; " + BY_TRAINING
LEARNING = {"dynamicvit": PREDICTORS, "patchmerger": MERGED.format("queries"), "sinkhorn": MERGED.format("prototypes")}
LEARNING |= {"sit": MERGED.format("MLPs")}
GATES = "which patches stay is random: the gates are untrained; common.slimming.fit_gates trains them"
NOTHING = "idle_mlp with {} computes every patch and saves nothing; common.idling.fit makes one that saves"
NO_RATE, NO_THRESHOLD = (
    NOTHING.format("no score_threshold and keep_rate 1"),
    NOTHING.format("thresholds of 0 in all blocks"),
)
X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def said(call):
    """The warnings of ``call``, as often as they come."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in found]


def made(reducer, **options):
    return reduce_tokens(lively().eval(), reducer, **options)


@pytest.mark.parametrize(
    ("reducer", "options", "message"),
    [
        ("idle_mlp", {"score_threshold": 0.5}, RANDOM),
        ("idle_mlp", {"keep_rate": 0.5}, RANDOM),
        ("idle_mlp", {"keep_rate": 0.5, "last_block": "cls"}, RANDOM),
        ("idle_mlp", {"counts": (8, 8, 8, 8)}, RANDOM),
        ("idle_mlp", {}, NO_RATE),
        ("idle_mlp", {"keep_rate": (1.0, 1.0, 1.0)}, NO_RATE),
        ("idle_mlp", {"score_threshold": 0.0}, NO_THRESHOLD),
        ("dynamic_slimming", {"keep_rate": 0.5}, GATES),
        ("dynamic_slimming", {"keep_rate": 0.5, "gate": "mean"}, GATES),
        *((reducer, {"keep_rate": 0.5}, message) for reducer, message in LEARNING.items()),
        ("dynamicvit", {"keep_rate": 0.5, "last_block": "cls"}, PREDICTORS),
        ("patchmerger", {"keep_rate": 0.5, "parity": True}, MERGED.format("queries")),
    ],
)
@pytest.mark.parametrize(
    "way", [lambda model: model(X), lambda model: model.trace(X), lambda model: model.forward_features(X)]
)
def test_the_first_evaluation_says_it_in_one_line_and_no_other_does(reducer, options, message, way):
    model = made(reducer, **options)
    assert "\n" not in message and said(lambda: way(model)) == [message]
    assert said(lambda: way(model)) == said(lambda: model.trace(X)) == said(lambda: copy.deepcopy(model)(X)) == []


@pytest.mark.parametrize("reducer", ["none", "topk", "tram", "idle_topk", "idle_random", "dpcknn", "tome"])
def test_others_say_nothing(reducer):
    rate = {} if reducer == "none" else {"keep_rate": 0.5}
    assert said(lambda: made(reducer, **rate)(X)) == []


@pytest.mark.parametrize("reducer", ["dynamic_slimming", *LEARNING])
def test_parts_that_nothing_is_left_to_say_nothing(reducer):
    assert said(lambda: made(reducer, keep_rate=1.0)(X)) == []


@pytest.mark.parametrize("reducer", LEARNING)
def test_what_was_trained_or_loaded_says_nothing(reducer, tmp_path):
    model = made(reducer, keep_rate=0.5)
    assert said(lambda: list(train(model, Pictures(8), Pictures(4), config(epochs=1, lr=1e-4)))) == []
    assert said(lambda: model.eval()(X)) == []
    path = common.save(model, tmp_path / "model.safetensors")
    assert said(lambda: common.load(path, lively())(X)) == []
    again = made(reducer, keep_rate=0.5)
    again.load_state_dict(model.state_dict())
    assert said(lambda: again(X)) == []
    save_state(model, tmp_path / "weights.safetensors")
    other = reduce_tokens(lively(), reducer, keep_rate=0.5)
    assert load_own(other, tmp_path / "weights.safetensors")
    assert said(lambda: other.eval()(X)) == []


@pytest.mark.parametrize("reducer", LEARNING)
def test_measuring_says_nothing_and_leaves_it_to_be_said(reducer):
    model = made(reducer, keep_rate=0.5)
    times = {"whole": lively().eval(), "model": model}
    assert said(lambda: interleaved(times, X, baseline="whole", rounds=1)) == []
    assert said(lambda: model(X)) == [LEARNING[reducer]]
    once = {"batch_sizes": (1,), "rounds": 1, "device": "cpu"}
    assert said(lambda: compare_all("vit_digits", ["none", reducer], [0.5], **once)) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_number_format_and_back_trains_nothing(dtype):
    for reducer, message in LEARNING.items():
        assert said(lambda reducer=reducer: made(reducer, keep_rate=0.5).to(dtype).float()(X)) == [message]


def test_a_method_of_ones_own_says_it_by_one_attribute():
    class Mine(Reducer):
        untrained = "what I do is random: I am untrained"

        def __init__(self, vit, schedule):
            super().__init__(vit, schedule)
            self.layer = torch.nn.Linear(2, 2)

    vit = lively().eval()
    model = attach(vit, Mine(vit, Schedule(1.0, (1,))))
    assert said(lambda: model(X)) == ["what I do is random: I am untrained"] and said(lambda: model(X)) == []
    trained = Mine(vit, Schedule(1.0, (1,)))
    first = attach(vit, trained)
    torch.nn.init.ones_(trained.layer.bias)
    assert said(lambda: first(X)) == said(lambda: attach(vit, trained)(X)) == []


def test_training_and_what_only_tries_a_model_say_nothing_and_leave_it_to_be_said():
    model = made("idle_mlp", keep_rate=0.5)
    assert said(lambda: model.train()(X)) == []
    assert said(lambda: count_macs(model, 8)) == []
    model.eval()
    with untouched(model):
        assert said(lambda: model(X)) == []
    assert said(lambda: model(X)) == [RANDOM]


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_training_says_nothing_and_what_it_leaves_untrained_is_said_after_it(epochs):
    model = made("idle_mlp", keep_rate=0.5, learns="labels")
    how = config(epochs=epochs, label_weight=0.0, reducer_only=True)
    assert said(lambda: list(train(model, Pictures(8), Pictures(4), how))) == []
    assert said(lambda: model.eval()(X)) == ([] if epochs else [RANDOM])


def test_what_was_fitted_or_loaded_says_nothing(tmp_path):
    model = made("idle_mlp", score_threshold=0.5)
    for predictor in model.reducer.predictors.values():
        torch.nn.init.ones_(predictor.out.bias)
    assert said(lambda: model(X)) == []
    path = common.save(model, tmp_path / "model.safetensors")
    assert said(lambda: common.load(path, lively())(X)) == []
    again = made("idle_mlp", score_threshold=0.5)
    again.reducer.load_state_dict(model.reducer.state_dict())
    assert said(lambda: again.to(torch.bfloat16)(X.to(torch.bfloat16))) == []
    gated = made("dynamic_slimming", keep_rate=0.5, reduction_loc=(1, 2), budget="threshold")
    fit_gates(gated, torch.rand(4, 3, 8, 8), epochs=1)
    calibrate_thresholds(gated, torch.rand(4, 3, 8, 8))
    assert said(lambda: gated(X)) == []
    fitted = common.idling.fit(lively(), torch.rand(16, 3, 8, 8), mac_cut=0.1, epochs=1, hidden=4)
    assert said(lambda: fitted(X)) == []


def test_the_number_format_trains_nothing():
    assert said(lambda: made("idle_mlp", keep_rate=0.5).to(torch.bfloat16)(X.to(torch.bfloat16))) == [RANDOM]


@pytest.mark.parametrize(("reducer", "message"), [("idle_mlp", RANDOM), ("dynamic_slimming", GATES)])
def test_a_compiled_graph_has_no_trace_of_it(reducer, message):
    """The same graph whether it was said or not, by the number of its nodes, and nothing in it to guard."""
    nodes = []

    def note(graph, _):
        nodes.append(len(graph.graph.nodes))
        return graph.forward

    model = made(reducer, keep_rate=0.5)
    for _ in range(2):
        torch._dynamo.reset()
        fast = torch.compile(model, fullgraph=True, backend=note)
        with torch.inference_mode():
            assert said(lambda fast=fast: fast(X)) == []
        said(lambda: model(X))
        with torch.inference_mode(), torch.compiler.set_stance("fail_on_recompile"):
            fast(X)
    assert len(nodes) == 2 and nodes[0] == nodes[1] and model.cautioned
