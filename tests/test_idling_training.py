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
from common.idling.candidates import fit_predictors
from common.idling.outcomes import acting_blocks, outcomes, predictor_quality
from common.models.reduced import reduce_tokens
from common.setup import Setup

TEXT = "idle_mlp:hidden=8,context=cls"


@pytest.fixture
def model():
    model = reduce_tokens(lively(), "idle_mlp", score_threshold=0.5, hidden=8, tau=0.75, context="cls")
    for predictor in model.reducer.predictors.values():
        torch.nn.init.normal_(predictor.own.weight, std=1.0)
    return model


def loader(n=24):
    return make_loader(Pictures(n), 8, shuffle=False, seed=0)


@pytest.mark.parametrize("attention", ["standard", "modified"])
@pytest.mark.parametrize("cut", [0.1, 0.25])
def test_thresholds_meet_the_budget(model, attention, cut):
    model.reducer.attention = attention
    solve_thresholds(model, loader(), cut)
    (found,), _ = outcomes([model], loader())
    dense = Shape.of(model).unreduced
    assert 1 - found.macs.mean().item() / dense == pytest.approx(cut, abs=0.003)
    asked = [threshold > 0 for threshold in model.reducer.thresholds.tolist()]
    assert asked == [count > 0 for count in found.idle.mean(0).tolist()] and any(asked)


def test_the_output_of_the_last_block_is_not_computed_for_thresholds(model):
    """Nothing is decided on it; the blocks before run once unreduced and once in each round of the search."""
    calls, cut = [0, 0, 0, 0], 0.2
    for place, block in enumerate(model.blocks):
        block.norm1.register_forward_hook(lambda *_, place=place: calls.__setitem__(place, calls[place] + 1))
    solve_thresholds(model, loader(), cut)
    batches = 3
    assert calls[3] == 0 and calls[0] == calls[1] == calls[2] >= 2 * batches and calls[0] % batches == 0


def test_a_budget_beyond_reach_is_refused(model):
    with pytest.raises(UsageError, match=r"cut=0.9 is not possible with modified attention; give less"):
        solve_thresholds(model, loader(), 0.9)
    with pytest.raises(UsageError, match="IdleTopK has no thresholds to solve"):
        solve_thresholds(reduce_tokens(small_vit(), "idle_topk", keep_rate=0.5), loader(), 0.2)


def test_outcomes_are_the_models_own(model):
    """MAC of every image as the counter has it; patches idled, over all blocks; patches reactivated."""
    model.reducer.thresholds[0] = 0.0
    (found, dense), _ = outcomes([model, reduce_tokens(lively(), "none")], loader())
    images = torch.cat([batch for batch, _ in loader()])
    logits, trace = model.trace(images)
    torch.testing.assert_close(found.logits, logits, rtol=0, atol=1e-5)
    active = torch.stack(trace.active, 1)
    assert found.idle.mean().item() == pytest.approx((~active).double().sum(2).mean().item())
    back = (~active[:, :-1] & active[:, 1:]).sum() / (~active[:, :-1]).sum()
    assert found.reactivated == pytest.approx(back.item()) and 0 < back < 1
    assert acting_blocks(model) == [1, 2, 3] and dense.idle.sum() == 0 and dense.reactivated is None
    counts = {layer: int(active[0, layer].sum()) for layer in (1, 2, 3)}
    by_hand = idle_macs(Shape.of(model), counts, "modified") + deciding_macs(model, [1, 2, 3])
    assert found.macs[0] == by_hand
    assert dense.macs[0] == count_macs(lively(), 8).total


def test_predictor_quality_by_hand(model):
    """Shares of labels and decisions of the first block, whose states no decision has touched yet."""
    quality = predictor_quality(model, loader())
    images = torch.cat([batch for batch, _ in loader()])
    tokens = model.eval().embed(images)
    label = model.reducer.labels(tokens, model.blocks[0](tokens.x), 0) > 0
    decided = model.trace(images)[1].active[0]
    table = [[((label == a) & (decided == b)).double().mean().item() for b in (False, True)] for a in (False, True)]
    torch.testing.assert_close(quality[0].confusion, torch.tensor(table).double())
    assert quality[0].accuracy == pytest.approx(100 * (table[0][0] + table[1][1]))
    recall = [table[0][0] / sum(table[0]), table[1][1] / sum(table[1])]
    assert quality[0].balanced_accuracy == pytest.approx(50 * sum(recall)) and 0 <= quality[0].auroc <= 1


def test_stage_one_trains_the_predictors_alone_and_they_learn():
    data = {"train_set": Pictures(48), "val_set": Pictures(12)}
    setup = Setup.around(lively().eval(), data, batch_size=8, device="cpu")
    before = {name: value.clone() for name, value in setup.vit.state_dict().items()}
    torch.manual_seed(setup.seed)
    start = predictor_quality(setup.reduced(TEXT, score_threshold=0.5, tau=0.75), loader(48))
    fitted = fit_predictors(setup, TEXT, config(epochs=12, lr=1e-2, label_weight=0.0, reducer_only=True), tau=0.75)
    assert all(torch.equal(value, before[name]) for name, value in setup.vit.state_dict().items())
    end = predictor_quality(fitted.model, loader(48))
    mean = [sum(q[layer].auroc for layer in q) / len(q) for q in (start, end)]
    assert mean[1] > mean[0] + 0.2 and fitted.model.reducer.learns == "task"
    assert all(parameter.requires_grad for parameter in fitted.model.parameters())
