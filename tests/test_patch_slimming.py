"""The reducer that follows a plan: exact rows, nested masks, closed-form costs, files that come back."""

import json
import math

import pytest
import torch
from backbones import FAMILIES, applicable_reducers, images, make, plan_for

from common.cost.closed_form import Shape
from common.cost.counter import count_macs
from common.cost.methods import slim_macs
from common.errors import UsageError
from common.models.factory import create_model
from common.models.reduced import reduce_tokens
from common.reducers import Method
from common.reducers.base import Teaching
from common.slimming import SlimmingPlan
from common.slimming.allocation import uniform_lengths
from common.slimming.plans import dropped_at, encode_all, nested, slimmed
from common.weights import save_state
from references import FIGURE_5

SLIM = [family for family in FAMILIES if "patch_slimming" in applicable_reducers(make(family))]
DEIT_S = Shape(
    num_patches=196, num_prefix_tokens=1, dim=384, heads=6, depth=12, mlp_dim=1536, patch_dim=768, num_outputs=1000
)


def masked_with_keys(vit, plan, x):
    """Logits of all N rows in every block, those outside the mask zeroed, their keys at minus infinity."""
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
    seen = torch.ones(plan.num_tokens, dtype=torch.bool)
    for block, mask in zip(vit.blocks, plan.masks, strict=True):
        attn, heads = block.attn, (3, block.attn.num_heads, -1)
        q, k, v = attn.qkv(block.norm1(x)).unflatten(-1, heads).permute(2, 0, 3, 1, 4)
        logits = (attn.q_norm(q) * attn.scale) @ attn.k_norm(k).transpose(-2, -1)
        mixed = logits.masked_fill(~seen, float("-inf")).softmax(-1) @ v
        kept = torch.zeros(plan.num_tokens, 1)
        kept[list(mask)] = 1
        x = kept * (x + block.ls1(attn.proj(mixed.transpose(1, 2).flatten(2))))
        x = kept * (x + block.ls2(block.mlp(block.norm2(x))))
        seen = kept[:, 0].bool()
    return vit.forward_head(vit.norm(x))


def test_families_that_read_their_patches_are_refused():
    assert SLIM == ["vit", "vit-rectangle-depth7", "deit-distilled", "deit3-layerscale", "dinov2-registers"]
    for family in sorted(FAMILIES.keys() - set(SLIM)):
        with pytest.raises(
            UsageError, match=r"may drop every patch, but this backbone's head reads them \(global_pool="
        ):
            reduce_tokens(make(family), "patch_slimming", plan=plan_for(make("vit"), 0.5))


@pytest.mark.parametrize("family", SLIM)
def test_compact_is_masked_with_masked_keys(family):
    vit, x = make(family), images(make(family))
    plan = plan_for(vit, 0.3)
    assert plan.lengths[0] > plan.lengths[1] > plan.lengths[-2] > plan.lengths[-1] == vit.num_prefix_tokens
    with torch.inference_mode():
        slim = reduce_tokens(vit, "patch_slimming", plan=plan)(x)
        torch.testing.assert_close(slim, masked_with_keys(vit, plan, x), rtol=0, atol=1e-5)
        assert (slim - vit(x)).abs().max() > 1e-3


@pytest.mark.parametrize("family", SLIM)
def test_a_last_block_of_prefix_tokens_alone_changes_nothing_and_costs_less(family):
    vit = make(family)
    x, plan = images(vit), SlimmingPlan.whole(vit)
    model = reduce_tokens(vit, "patch_slimming", plan=plan)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), vit(x), rtol=0, atol=1e-5)
    assert model.reducer.blocks == (len(vit.blocks) - 1,)
    assert slim_macs(Shape.of(vit), plan.lengths) < Shape.of(vit).unreduced


@pytest.mark.parametrize("family", SLIM)
def test_closed_form_is_what_is_counted(family):
    vit = make(family)
    shape, plan = Shape.of(vit), plan_for(vit, 0.3)
    model = reduce_tokens(vit, "patch_slimming", plan=plan)
    side = vit.patch_embed.img_size
    # the head reads one row of N; what norms and additions cost is in neither
    assert shape.unreduced == count_macs(vit, side).total
    assert slim_macs(shape, plan.lengths) == count_macs(model, side).total
    assert slim_macs(shape, plan.lengths, "paper") > slim_macs(shape, plan.lengths)


def test_both_counters_on_the_published_schedule():
    """2.66 G (42.2 % less) and 2.33 G (49.4 %); even schedule 2.55 and 2.16; DeiT-S itself 4.6."""
    assert DEIT_S.unreduced / 1e9 == pytest.approx(4.599, abs=1e-3)
    found = [slim_macs(DEIT_S, FIGURE_5, counter) / 1e9 for counter in ("paper", "compact")]
    assert found == pytest.approx([2.66, 2.33], abs=5e-3)
    assert [1 - macs * 1e9 / DEIT_S.unreduced for macs in found] == pytest.approx([0.422, 0.494], abs=1e-3)
    even = [slim_macs(DEIT_S, [100] * 11 + [1], counter) / 1e9 for counter in ("paper", "compact")]
    assert even == pytest.approx([2.55, 2.16], abs=6e-3)


def test_uniform_spends_the_budget_and_no_more():
    for counter in ("compact", "paper"):
        lengths = uniform_lengths(DEIT_S, 0.6, counter)
        more = (*(length + 1 for length in lengths[:-1]), 1)
        assert set(lengths[:-1]) == {lengths[0]} and lengths[-1] == 1
        assert slim_macs(DEIT_S, lengths, counter) <= 0.6 * DEIT_S.unreduced < slim_macs(DEIT_S, more, counter)


@pytest.mark.parametrize("budget", [0.0, 0.01, 1.1, True, "half"])
def test_budgets_that_cannot_be(budget):
    with pytest.raises(UsageError, match=r"mac_budget=.* is not allowed; give the share .* from 0\.\d\d to 1"):
        uniform_lengths(DEIT_S, budget)


def test_every_image_has_the_same_tokens_and_the_trace_names_them():
    vit = make("vit")
    plan = plan_for(vit, 0.3)
    model = reduce_tokens(vit, "patch_slimming", plan=plan)
    for batch in (1, 4):
        _, trace = model.trace(images(vit, batch))
        for layer, kept in enumerate(plan.kept):
            assert trace.num_tokens[layer].tolist() == [len(kept)] * batch
            for row in trace.kept(layer):
                assert row.nonzero()[:, 0].tolist() == list(kept)


def test_square_attention_sees_less():
    vit = make("vit")
    x, plan = images(vit), plan_for(vit, 0.3)
    all_keys = reduce_tokens(vit, "patch_slimming", plan=plan)
    square = reduce_tokens(vit, "patch_slimming", plan=plan, keys="selected")
    assert count_macs(square, 64).total < count_macs(all_keys, 64).total
    assert count_macs(square, 64).total == slim_macs(Shape.of(vit), plan.lengths, "square")
    with torch.inference_mode():
        assert (square(x) - all_keys(x)).abs().max() > 1e-3
        first = square.embed(x)
        alone = vit.blocks[0](first.x[:, list(plan.masks[0])])
        torch.testing.assert_close(square.advance(first, range(1)).x, alone, rtol=0, atol=1e-5)


def test_what_models_share_runs_once_and_changes_no_logits():
    vit = make("vit")
    x = images(vit)
    whole = reduce_tokens(vit, "none")
    plans = {"a": plan_for(vit, 0.3), "late": dropped_at(whole, 9, [3, 5]), "none": SlimmingPlan.whole(vit)}
    with torch.inference_mode():
        slim = {key: slimmed(whole, plan) for key, plan in plans.items()}
        found = {key: whole.classify(tokens) for key, tokens in encode_all(whole, slim, x)}
        for key, plan in plans.items():
            expected = reduce_tokens(vit, "patch_slimming", plan=plan)(x)
            torch.testing.assert_close(found.pop(key), expected, rtol=0, atol=1e-5)
    assert not found


def test_nested_blocks_keep_those_above_and_add_their_own_best():
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    assert nested(scores, (4, 2, 1)).kept == ((0, 1, 3), (3,), ())
    assert nested(scores, (3, 3, 1)).kept == ((2, 3), (2, 3), ())


def test_a_plan_learns_from_a_teacher_alone():
    vit = make("vit")
    model = reduce_tokens(vit, "patch_slimming", plan=plan_for(vit, 0.5), distill_weight=2.0)
    own, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]]).add(torch.tensor([1.0, 3.0]).log())
    assert model.reducer.training_loss(None, own, None) == 0
    divergence = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert model.reducer.training_loss(None, own, Teaching(teacher, None, None)).item() == pytest.approx(2 * divergence)


def test_plan_and_weights_come_back_from_files(tmp_path):
    torch.manual_seed(0)
    vit = create_model("vit_digits").eval()
    plan = plan_for(vit, 0.4)
    plan.save(tmp_path / "plan.json")
    assert SlimmingPlan.load(tmp_path / "plan.json") == plan
    model = create_model("vit_digits", reducer="patch_slimming", plan=plan).eval()
    save_state(model, tmp_path / "weights.safetensors")
    paths = {"plan": str(tmp_path / "plan.json"), "weights": tmp_path / "weights.safetensors"}
    twin = create_model("vit_digits", reducer="patch_slimming", **paths).eval()
    assert torch.equal(twin(images(vit)), model(images(vit)))
    text = f"patch_slimming:plan={tmp_path / 'plan.json'}"
    assert Method.parse(text).options == (("plan", str(tmp_path / "plan.json")),)


def test_token_numbers_are_those_of_the_whole_image():
    plan = SlimmingPlan.of_patches([(0, 2, 3), (3, 0), ()], num_patches=4, num_prefix_tokens=2)
    assert plan.masks == ((0, 1, 2, 4, 5), (0, 1, 2, 5), (0, 1))
    assert plan.kept == ((0, 2, 3), (0, 3), ()) and plan.lengths == (5, 4, 2)
    assert plan.rows(0) == [0, 1, 2, 4, 5] and plan.rows(1) == [0, 1, 2, 4] and plan.rows(2) == [0, 1]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ((), "a slimming plan of 0 blocks"),
        (((0, 1, 5), (0,)), "block 0 of the slimming plan computes token 5, which is not there"),
        (((0, 1), (0, 2)), "block 1 of the slimming plan brings token 2 back"),
        (((1, 2), (1,)), "mask of block 0 of the slimming plan is not allowed; give increasing token numbers"),
        (((0, 2, 1), (0,)), "mask of block 0"),
        (((0, 1, 1), (0,)), "mask of block 0"),
    ],
)
def test_masks_that_are_no_plan(masks, message):
    with pytest.raises(UsageError, match=message) as error:
        SlimmingPlan(masks, num_tokens=4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: "{", "cannot be read"),
        (lambda plan: "[]", "cannot be read"),
        (lambda plan: json.dumps({**plan, "format": "other"}), "its format is not 'slimming plan 1'"),
        (lambda plan: json.dumps({key: value for key, value in plan.items() if key != "masks"}), "cannot be read"),
        (lambda plan: json.dumps({**plan, "masks": [[0, 1], [0, 2]]}), "brings token 2 back"),
    ],
)
def test_files_that_are_no_plan(change, message, tmp_path):
    SlimmingPlan(((0, 1), (0,)), num_tokens=4).save(tmp_path / "p.json")
    (tmp_path / "p.json").write_text(change(json.loads((tmp_path / "p.json").read_text())))
    with pytest.raises(UsageError, match=message):
        SlimmingPlan.load(tmp_path / "p.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "reducer 'patch_slimming' needs the option 'plan'"),
        ({"plan": "nowhere.json"}, "slimming plan .*nowhere.json' cannot be read"),
        ({"plan": plan_for(make("deit3-layerscale"), 0.5)}, "the plan is for 4 blocks, 17 tokens, .* has 12 blocks"),
        ({"plan": plan_for(make("vit"), 0.5), "keep_rate": 0.5}, "keep_rate=0.5 must stay 1.0"),
        ({"plan": plan_for(make("vit"), 0.5), "keys": "none"}, "unknown keys 'none'; allowed: all, selected"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(UsageError, match=message) as error:
        reduce_tokens(make("vit"), "patch_slimming", **options)
    assert "\n" not in str(error.value)
