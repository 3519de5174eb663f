"""The search: grows by steps, ends, tunes one block at a time, resumes, keeps to its budget."""

import copy
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backbones import images, make
from small_slimming import DEPTH, PATCHES, noise, uneven_vit

from common.cost.closed_form import Shape
from common.cost.methods import slim_macs
from common.data.unlabelled import split
from common.errors import UsageError
from common.models.factory import create_backbone
from common.models.reduced import reduce_tokens
from common.slimming import SlimmingPlan, search, top_down, tuning
from common.slimming.allocation import SHARES, added_error, allocate, error_curves, sensitivity, uniform_lengths
from common.slimming.plans import dropped_at, slimmed
from common.slimming.scores import significances
from common.slimming.tuning import LayerFeatures, Tuning, errors, measure, tune_block, two_blocks
from common.training.checkpoint import RunFolder

FAST = {"epochs": 1, "step": 16, "batch_size": 8, "chunk": 8}


@pytest.fixture
def vit():
    return uneven_vit()


@pytest.fixture
def x():
    return noise()


def tried(plan, layer):
    return [candidate.num_tokens for candidate in plan.layers[layer].candidates]


def test_growth_by_steps_until_the_tolerance_holds(vit, x):
    plan = search(vit, x, tolerance=0.05, error_norm="token", **FAST)
    assert plan.lengths[-1] == 1 and len(plan.masks) == DEPTH
    assert [record.layer for record in plan.layers] == [0, 1, 2, 3, 4]
    for layer, record in enumerate(plan.layers):
        start, found = plan.lengths[layer + 1], [candidate.after["token"] for candidate in record.candidates]
        assert tried(plan, layer) == [min(start + 16 * k, PATCHES + 1) for k in range(len(found))]
        assert record.reached and found[-1] <= 0.05 < min(found[:-1], default=1)
        assert plan.lengths[layer] == tried(plan, layer)[-1]
    assert len(tried(plan, 4)) > 1  # the last but one had to grow
    assert sum(len(record.candidates) for record in plan.layers) <= PATCHES / 16 + DEPTH - 1


def test_the_most_significant_patches_are_added(vit, x):
    plan = search(vit, x, lengths=(30, 20, 15, 10, 5, 1), **FAST)
    assert plan.lengths == (30, 20, 15, 10, 5, 1)
    for layer, record in enumerate(plan.layers):
        above, mine = set(plan.kept[layer + 1]), set(plan.kept[layer])
        worst = min(record.scores[patch] for patch in mine - above)
        assert above < mine and worst >= max(record.scores[patch] for patch in set(range(PATCHES)) - mine)


def test_an_unreachable_tolerance_ends_with_the_best_candidate(vit, x):
    plan = search(vit, x, tolerance=0.0, **{**FAST, "step": 32})
    for layer, record in enumerate(plan.layers):
        found = {c.num_tokens: c.after["token"] for c in record.candidates}
        assert not record.reached and plan.lengths[layer] == min(found, key=found.get)
    assert tried(plan, 4) == [1, 33, 65]


def test_the_weights_are_those_of_the_best_candidate(vit, x):
    original = reduce_tokens(copy.deepcopy(vit), "none")
    settings = {**FAST, "step": 32, "held_out": 0.25, "seed": 0}
    plan = search(vit, x, tolerance=0.0, **settings)
    _, places = split(x, 0.25, 0)
    for layer in (4, 2):
        features = LayerFeatures(original, x, places, layer, plan.masks[layer + 1], chunk=4, cache=0)
        kept = [range(PATCHES)] * layer + list(plan.kept[layer:])
        model = slimmed(reduce_tokens(vit, "none"), SlimmingPlan.of_patches(kept, PATCHES))
        best = min(candidate.after["token"] for candidate in plan.layers[layer].candidates)
        assert measure(model, layer, features)["token"] == pytest.approx(best, rel=1e-4)


def test_without_epochs_nothing_is_tuned(vit, x):
    before = copy.deepcopy(vit.state_dict())
    plan = search(vit, x, lengths=(30, 20, 15, 10, 5, 1), **{**FAST, "epochs": 0})
    assert all(torch.equal(value, before[key]) for key, value in vit.state_dict().items())
    assert all(c.before == c.after for record in plan.layers for c in record.candidates)


def test_only_the_blocks_below_the_last_learn_and_the_model_is_left_in_its_mode(vit, x):
    vit.train()
    before = copy.deepcopy(vit.state_dict())
    search(vit, x, lengths=(30, 20, 15, 10, 5, 1), **FAST)
    changed = {key.split(".")[1] for key, value in vit.state_dict().items() if not torch.equal(value, before[key])}
    same = [key for key in before if not key.startswith("blocks.")]
    assert changed == {"0", "1", "2", "3", "4"} and all(torch.equal(vit.state_dict()[key], before[key]) for key in same)
    assert vit.training and all(parameter.requires_grad for parameter in vit.parameters())


def test_tuning_lowers_the_error_and_gives_gradient_to_its_block_alone(vit, x, monkeypatch):
    teacher, student = reduce_tokens(copy.deepcopy(vit), "none"), reduce_tokens(vit, "none")
    model = slimmed(student, dropped_at(student, 2, range(0, 64, 4)))
    features = LayerFeatures(teacher, x, torch.arange(24), 2, model.reducer.plan.masks[3], chunk=8, cache=2**30)
    seen = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: (seen.append(_with_gradient(vit)), step(self)))
    before = copy.deepcopy(vit.state_dict()), measure(model, 2, features)
    tune_block(model, 2, features, Tuning(epochs=4, lr=1e-3, batch_size=8), torch.Generator().manual_seed(0))
    assert measure(model, 2, features)["token"] < 0.9 * before[1]["token"]
    assert len(seen) == 12 and set.union(*seen) == {"2"}
    changed = {key for key, value in vit.state_dict().items() if not torch.equal(value, before[0][key])}
    assert changed and all(key.startswith("blocks.2.") for key in changed)


def _with_gradient(vit):
    return {name.split(".")[1] for name, parameter in vit.named_parameters() if parameter.grad is not None}


def test_cached_and_recomputed_features_are_the_same(vit, x):
    teacher = reduce_tokens(vit, "none")
    places = torch.tensor([3, 1, 20, 7, 9])
    made = [LayerFeatures(teacher, x, places, 2, [0, 5], chunk=2, cache=cache) for cache in (0, 2**30, 100_000)]
    for _ in range(2):
        for parts in zip(*made, strict=True):
            for inputs, targets in parts:
                assert torch.equal(inputs, parts[0][0]) and torch.equal(targets, parts[0][1])
    inputs, targets = made[0][0]
    with torch.inference_mode():
        z = [teacher.embed(x[[3, 1]]).x]
        for block in vit.blocks:
            z.append(block(z[-1]))
    torch.testing.assert_close(inputs, z[2], rtol=0, atol=1e-5)  # as it enters block 2
    torch.testing.assert_close(targets, z[4][:, [0, 5]], rtol=0, atol=1e-5)  # as it leaves block 3


def test_a_block_that_keeps_all_makes_no_error(vit, x):
    teacher = reduce_tokens(vit, "none")
    model = slimmed(teacher, SlimmingPlan.whole(vit))
    features = LayerFeatures(teacher, x, torch.arange(4), 4, [0], chunk=4, cache=0)
    assert all(error < 1e-9 for norm, error in measure(model, 4, features).items() if norm != "raw")
    inputs, targets = features[0]
    torch.testing.assert_close(two_blocks(model, inputs, 4), targets, rtol=0, atol=1e-5)


def test_the_norms_of_an_error():
    target = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])
    found = target + torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])
    values = {norm: errors(found, target, norm).item() for norm in tuning.ERRORS}
    assert values == pytest.approx({"raw": 6.0, "mse": 1.5, "rel": 6 / 29, "token": (5 / 25 + 1 / 4) / 2})


def test_a_massive_token_hides_errors_from_rel_and_not_from_the_default():
    """One patch ten times larger than the others is most of what "rel" divides by: plans err by four times as much."""
    x = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    how = {"tolerance": 0.02, "epochs": 0, "step": 8}
    for massive in (0.0, 300.0):
        vit = create_backbone("vit_digits").eval()
        for block in vit.blocks:
            torch.nn.init.normal_(block.attn.qkv.weight, std=0.2)
            torch.nn.init.normal_(block.attn.proj.weight, std=0.3)
        with torch.no_grad():
            vit.pos_embed[:, 21] += massive * F.normalize(torch.randn(64), dim=0)
            plans = [search(vit, x, **how, **norm) for norm in ({"error_norm": "rel"}, {})]
            whole, *slim = (
                reduce_tokens(vit, "patch_slimming", plan=plan)(x) for plan in (SlimmingPlan.whole(vit), *plans)
            )
        error = [(logits - whole).norm() / whole.norm() for logits in slim]
        assert all(layer.candidates[-1].after["rel"] <= 0.02 for plan in plans for layer in plan.layers)
        assert all(layer.candidates[-1].after["token"] <= 0.02 for layer in plans[1].layers)
        if not massive:
            assert plans[0].masks == plans[1].masks
            continue
        assert plans[0].layers[0].candidates[-1].after["token"] > 4 * 0.02 and error[0] > 1.5 * error[1]
        assert sum(plans[1].lengths) > 1.3 * sum(plans[0].lengths)


def test_a_killed_search_goes_on_where_it_was(vit, x, tmp_path, monkeypatch):
    twin = copy.deepcopy(vit)
    how = {"mac_budget": 0.5, **FAST, "error_images": 4}
    whole = search(vit, x, **how)

    def killed(self, state, history):
        save(self, state, history)
        if len(history) == 3:
            raise KeyboardInterrupt

    save = RunFolder.save
    monkeypatch.setattr(RunFolder, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        search(copy.deepcopy(twin), x, output_dir=tmp_path, **how)
    monkeypatch.undo()
    asked = []
    monkeypatch.setattr(top_down, "measure", lambda *args: asked.append(args[1]) or measure(*args))
    plan = search(twin, x, output_dir=tmp_path, **how)
    assert plan == whole and sorted(set(asked)) == [0, 1]
    assert all(torch.equal(value, vit.state_dict()[key]) for key, value in twin.state_dict().items())
    again = copy.deepcopy(make("vit"))
    with pytest.raises(UsageError, match="was made with"):
        search(again, images(again, 24), output_dir=tmp_path, **how)


def test_budgets_are_spent_by_either_counter(vit, x):
    shape = Shape.of(vit)
    model = reduce_tokens(vit, "none")
    scores = significances(model, x[:8], range(DEPTH - 1))
    found = sensitivity(model, x[:8], scores)
    assert found.shape == (DEPTH - 1, len(SHARES)) and (found > 0).all()
    curves = error_curves(found, PATCHES)
    for counter in ("compact", "paper", "square"):
        for budget in (0.75, 0.6, 0.45):
            lengths = allocate(curves, shape, budget, counter)
            assert lengths[-1] == 1 and all(a >= b for a, b in zip(lengths, lengths[1:], strict=False))
            assert budget - 0.03 < slim_macs(shape, lengths, counter) / shape.unreduced <= budget
            assert added_error(curves, lengths) <= added_error(curves, uniform_lengths(shape, budget, counter))


@pytest.mark.parametrize("counter", ["compact", "paper", "square"])
def test_no_lengths_that_cost_as_little_make_less_error(counter):
    """Against all lengths of three blocks and six patches."""
    assert added_error(np.array([[3.0, 1.0, 0.0], [2.0, 0.5, 0.0]]), (2, 1, 1)) == (1 - 0) + (2 - 0.5)
    shape = Shape(num_patches=6, num_prefix_tokens=1, dim=8, heads=2, depth=3, mlp_dim=32, patch_dim=2, num_outputs=1)
    curves = np.array([[9.0, 5, 3, 2, 1, 0.4, 0], [4.0, 3, 2.2, 1.5, 0.9, 0.4, 0]])
    every = [(a + 1, b + 1, 1) for a in range(7) for b in range(a + 1)]
    for budget in (0.4, 0.6, 0.9):
        found = allocate(curves, shape, budget, counter)
        spent = slim_macs(shape, found, counter)
        assert spent <= budget * shape.unreduced
        least = min(added_error(curves, each) for each in every if slim_macs(shape, each, counter) <= spent)
        assert added_error(curves, found) == pytest.approx(least)


def test_sensitivity_is_the_error_of_the_pruned_model(vit, x):
    model = reduce_tokens(vit, "none")
    scores = significances(model, x[:8], range(DEPTH - 1))
    found = sensitivity(model, x[:4], scores, (0.5,))
    kept = scores[2].argsort(descending=True)[:32].tolist()
    slim = slimmed(model, dropped_at(model, 2, kept))
    with torch.inference_mode():
        ends = [each.encode(each.embed(x[:4])).prefix for each in (slim, model)]
    assert found[2, 0].item() == pytest.approx(errors(*ends).mean().item(), rel=1e-5)


def test_curves_pass_through_their_points_and_never_rise():
    curves = error_curves(torch.tensor([[0.8, 0.4], [0.2, 0.1], [0.5, 0.625]]), 100, (0.0, 0.5))
    assert curves.shape == (3, 101) and (np.diff(curves, axis=1) <= 0).all()
    assert curves[:, [0, 50, 100]].ravel().tolist() == pytest.approx([0.8, 0.4, 0, 0.2, 0.1, 0, 0.625, 0.625, 0])


def test_a_dataset_is_as_good_as_a_tensor(vit, x):
    from test_evaluation import Noise

    data = Noise(torch.zeros(24, dtype=torch.long), 10)
    data.images = x
    how = {"lengths": (30, 20, 15, 10, 5, 1), **FAST}
    plans = [search(copy.deepcopy(vit), given, **how) for given in (x, data)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"a search needs one of tolerance, mac_budget, mac_cut, lengths; given: none"),
        ({"tolerance": 0.1, "mac_budget": 0.5}, r"given: tolerance, mac_budget"),
        ({"tolerance": -0.1}, r"tolerance=-0.1 is not allowed; give a number >= 0"),
        ({"tolerance": 0.1, "step": 0}, r"step=0 is not allowed; give a whole number >= 1"),
        ({"tolerance": 0.1, "error_norm": "l1"}, r"unknown error_norm 'l1'; allowed: mse, raw, rel, token"),
        ({"tolerance": 0.1, "score": "luck"}, r"unknown score 'luck'; allowed: attention, coverage, random"),
        ({"tolerance": 0.1, "speed": 3}, r"unknown setting of a search 'speed'; allowed: batch_size"),
        ({"tolerance": 0.1, "held_out": 1.0}, r"held_out=1.0 of 24 images leaves one side empty"),
        ({"mac_budget": 0.01}, r"mac_budget=0.01 \(mac_cut=0.99\) is not allowed"),
        ({"lengths": (20, 30, 15, 10, 5, 1)}, r"lengths=.* are not allowed; give 6 numbers of tokens"),
        ({"lengths": (20, 15, 1)}, r"lengths=.* are not allowed"),
        ({"lengths": (20, 15, 15, 10, 5, 5)}, r"lengths=.* down to 1 in the last block"),
    ],
)
def test_searches_that_cannot_be(vit, x, settings, message):
    with pytest.raises(UsageError, match=message) as error:
        search(vit, x, **settings)
    assert "\n" not in str(error.value)


def test_mean_pooled_and_reduced_models_are_refused(vit, x):
    with pytest.raises(UsageError, match=r"may drop every patch, but this backbone's head reads them"):
        search(make("simple-vit"), x, tolerance=0.1)
    with pytest.raises(UsageError, match="the model is reduced already"):
        search(reduce_tokens(vit, "none"), x, tolerance=0.1)


def test_the_plan_is_plain_data(vit, x, tmp_path):
    plan = search(vit, x, mac_budget=0.5, **FAST, error_images=4)
    plan.save(tmp_path / "plan.json")
    assert asdict(SlimmingPlan.load(tmp_path / "plan.json")) == asdict(plan)
    assert plan.settings["mac_budget"] == 0.5 and plan.settings["images"] == 24
    assert plan.settings["lengths"] == list(plan.lengths)
