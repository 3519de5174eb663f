"""Thresholds for a budget, training on labels, and what a model with idle patches is judged by."""

import pytest
import torch
from small_training import Pictures, config, lively, small_vit

from common.cost.closed_form import Shape
from common.cost.counter import count_macs
from common.cost.methods import deciding_macs, idle_macs
from common.data import make_loader
from common.errors import UsageError
from common.idling.budget import solve_thresholds
from common.idling.outcomes import acting_blocks, outcomes, pruner_quality
from common.idling.training import fit_pruners
from common.models.reduced import reduce_tokens


@pytest.fixture
def model():
    model = reduce_tokens(lively(), "idle_mlp", score_threshold=0.5, hidden=8, tau=0.75, context="cls")
    for pruner in model.reducer.pruners.values():
        torch.nn.init.normal_(pruner.own.weight, std=1.0)
    return model


def loader(n=24):
    return make_loader(Pictures(n), 8, shuffle=False, seed=0)


@pytest.mark.parametrize("attention", ["standard", "modified"])
@pytest.mark.parametrize("cut", [0.1, 0.25])
def test_thresholds_meet_the_budget(model, attention, cut):
    model.reducer.attention = attention
    solve_thresholds(model, loader(), cut)
    found = outcomes({"m": model}, loader())[0]["m"]
    dense = Shape.of(model).unreduced
    assert 1 - found.macs.mean().item() / dense == pytest.approx(cut, abs=0.003)
    asked = [threshold > 0 for threshold in model.reducer.thresholds.tolist()]
    assert asked == [count > 0 for count in found.idle_per_layer.tolist()] and any(asked)


def test_a_budget_beyond_reach_is_refused(model):
    with pytest.raises(UsageError, match=r"cut=0.9 is not possible with modified attention; give less"):
        solve_thresholds(model, loader(), 0.9)
    with pytest.raises(UsageError, match="IdleTopK has no thresholds to solve"):
        solve_thresholds(reduce_tokens(small_vit(), "idle_topk", keep_rate=0.5), loader(), 0.2)


def test_outcomes_are_the_models_own(model):
    """MAC of every image as the counter has it; patches idled, over all blocks; patches that came back."""
    model.reducer.thresholds[0] = 0.0
    found = outcomes({"m": model, "dense": reduce_tokens(lively(), "none")}, loader())[0]
    images = torch.cat([batch for batch, _ in loader()])
    logits, trace = model.trace(images)
    torch.testing.assert_close(found["m"].logits, logits, rtol=0, atol=1e-5)
    active = torch.stack(trace.active, 1)
    assert found["m"].patches_idled == pytest.approx((~active).double().sum(2).mean().item())
    back = (~active[:, :-1] & active[:, 1:]).sum() / (~active[:, :-1]).sum()
    assert found["m"].came_back == pytest.approx(back.item()) and 0 < back < 1
    assert acting_blocks(model) == [1, 2, 3] and found["dense"].patches_idled == 0
    counts = {layer: int(active[0, layer].sum()) for layer in (1, 2, 3)}
    by_hand = idle_macs(Shape.of(model), counts, "modified") + deciding_macs(model, [1, 2, 3])
    assert found["m"].macs[0] == by_hand
    assert found["dense"].macs[0] == count_macs(lively(), 8).total


def test_pruner_quality_by_hand(model):
    """Shares of labels and decisions of the first block, whose states no decision has touched yet."""
    quality = pruner_quality(model, loader())
    images = torch.cat([batch for batch, _ in loader()])
    tokens = model.eval().embed(images)
    label = model.reducer.labels(tokens, model.blocks[0](tokens.x), 0) > 0
    decided = model.trace(images)[1].active[0]
    table = [[((label == a) & (decided == b)).double().mean().item() for b in (False, True)] for a in (False, True)]
    torch.testing.assert_close(quality[0].confusion, torch.tensor(table).double())
    assert quality[0].accuracy == pytest.approx(table[0][0] + table[1][1])
    recall = [table[0][0] / sum(table[0]), table[1][1] / sum(table[1])]
    assert quality[0].balanced_accuracy == pytest.approx(sum(recall) / 2) and 0 <= quality[0].auroc <= 1


def test_stage_one_trains_the_pruners_alone_and_they_learn(model):
    data = Pictures(48), Pictures(12)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = pruner_quality(model, loader(48))
    list(fit_pruners(model, data, config(epochs=12, lr=1e-2, label_weight=0.0, reducer_only=True)))
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after if not name.startswith("reducer."))
    end = pruner_quality(model, loader(48))
    mean = [sum(q[layer].auroc for layer in q) / len(q) for q in (start, end)]
    assert mean[1] > mean[0] + 0.2 and model.reducer.learns == "task"
    assert all(parameter.requires_grad for parameter in model.parameters())
