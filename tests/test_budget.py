"""The keep rate for a budget: its cost is the one that was asked for, to a token."""

from __future__ import annotations

import pytest
import timm
import torch
from backbones import applicable_reducers, images, make
from torch.utils.data import DataLoader, TensorDataset

import common
from common.budget import BudgetSolver, Solution, keep_rate_for, reduce_tokens, solver
from common.cost.counter import count_macs, mean_macs
from common.errors import UsageError
from common.models import reduced
from common.models.factory import create_backbone
from common.reducers import Schedule, list_reducers, reducer_class
from common.reducers.base import REDUCERS
from common.weights import save_state


def named_backbone(vit: torch.nn.Module, reducer: str, **options: object) -> torch.nn.Module:
    return common.create_model("vit_digits", reducer=reducer, **options)


FOLLOWS_NO_SCHEDULE = {"none", "patch_slimming", "dynamic_slimming"}
SOLVED = [
    name for name in list_reducers() if not (name in FOLLOWS_NO_SCHEDULE or reducer_class(name).idles or name == "ats")
]
COARSE = {"downsample", "l1", "l2", "linf"}  # grids and rings, not tokens


@pytest.fixture(scope="module")
def backbones() -> dict[str, torch.nn.Module]:
    """Four families with about 200 patches, narrow: what scoring costs weighs more in them than in any real one."""
    narrow = {"embed_dim": 48, "num_heads": 3, "depth": 8}
    names = {
        "deit": ("deit_tiny_patch16_224", {}),
        "deit3": ("deit3_small_patch16_224", {}),
        "dinov2-registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 196}),
        "simple-vit": ("simple_vit_tiny_patch16_160", {"img_size": 224}),
    }
    return {key: timm.create_model(name, **narrow, **more).eval() for key, (name, more) in names.items()}


@pytest.mark.parametrize("family", ["deit", "deit3", "dinov2-registers", "simple-vit"])
@pytest.mark.parametrize("name", SOLVED)
def test_the_cost_is_within_half_a_percent_of_the_budget(backbones, family, name):
    vit = backbones[family]
    if name not in applicable_reducers(vit):
        with pytest.raises(UsageError):
            keep_rate_for(vit, name, mac_cut=0.3)
        return
    found = keep_rate_for(vit, name, mac_cut=0.3)
    whole = count_macs(vit, vit.patch_embed.img_size).total
    model = reduce_tokens(vit, name, keep_rate=found.keep_rate)
    cost = count_macs(model, vit.patch_embed.img_size).total
    assert found.gmac == pytest.approx(cost / 1e9) and found.mac_cut == pytest.approx(1 - cost / whole)
    assert found.counts == Schedule(found.keep_rate, (2, 4, 6)).counts(vit.patch_embed.num_patches)
    assert abs(found.mac_cut - 0.3) <= (0.05 if name in COARSE else 0.005)


def test_nothing_nearer_is_left():
    """One step of the keep rate more or less is no nearer to the budget."""
    vit = make("vit")
    found = keep_rate_for(vit, "topk", mac_cut=0.35)
    whole = count_macs(vit, 64).total
    for rate in (found.keep_rate + 1e-4, found.keep_rate - 1e-4):
        cut = 1 - count_macs(reduce_tokens(vit, "topk", keep_rate=rate), 64).total / whole
        assert abs(cut - 0.35) >= abs(found.mac_cut - 0.35)


def test_nothing_is_counted_twice_for_the_budgets_of_a_method(monkeypatch):
    """The unreduced model once, and no token counts again: the second budget is bracketed by what the first one saw."""
    counted = []
    monkeypatch.setattr(solver, "count_macs", lambda model, size: counted.append(model) or count_macs(model, size))
    vit = make("vit")
    own = BudgetSolver(vit, "tome")
    found = [own.solve(mac_cut=cut) for cut in (0.2, 0.4, 0.2)]
    seen = [model.reducer.schedule.counts(16) for model in counted if model is not vit]
    assert counted.count(vit) == 1 and len(seen) == len(set(seen)) == len(counted) - 1
    counted.clear()
    assert own.solve(mac_cut=0.4) == found[1] == keep_rate_for(vit, "tome", mac_cut=0.4)
    assert len(own._costs) == len(seen)  # the free call has counted for itself, the solver nothing


def test_both_words_mean_the_same():
    vit = make("vit")
    whole = count_macs(vit, 64).total / 1e9
    assert keep_rate_for(vit, "tome", gmac=0.6 * whole).counts == keep_rate_for(vit, "tome", mac_cut=0.4).counts
    assert keep_rate_for(vit, "tome", mac_cut=0.0).keep_rate == 1.0


def test_a_reduced_model_for_a_budget_is_that_of_its_keep_rate():
    vit = make("vit")
    blocks = {"reduction_loc": (2, 5)}
    rate = keep_rate_for(vit, "evit", mac_cut=0.4, **blocks).keep_rate
    ours, same = (common.reduce_tokens(vit, "evit", **how, **blocks) for how in ({"mac_cut": 0.4}, {"keep_rate": rate}))
    with torch.inference_mode():
        assert torch.equal(ours(images(vit)), same(images(vit)))


@pytest.mark.parametrize("re_entry", [True, False])
def test_idling_by_attention_follows_its_keep_rate(re_entry):
    """Idle patches cost what their attention looks at; whether they come back does not change it."""
    vit = make("vit")
    found = keep_rate_for(vit, "idle_topk", mac_cut=0.3, re_entry=re_entry)
    model = reduce_tokens(vit, "idle_topk", keep_rate=found.keep_rate, re_entry=re_entry)
    assert count_macs(model, 64).total / 1e9 == pytest.approx(found.gmac) and found.mac_cut == pytest.approx(
        0.3, abs=0.02
    )


def test_what_depends_on_the_images_is_solved_on_them():
    vit = make("vit")
    x = images(vit)
    found = keep_rate_for(vit, "ats", mac_cut=0.2, images=x)
    cost = mean_macs(reduce_tokens(vit, "ats", keep_rate=found.keep_rate).eval(), x)
    assert found.gmac == pytest.approx(cost / 1e9) and found.mac_cut == pytest.approx(0.2, abs=0.02)
    each = [count_macs_of(vit, found, image) for image in x]
    assert cost == pytest.approx(sum(each) / len(each))


def test_images_of_ones_own_may_be_a_dataset_or_a_loader():
    vit = make("vit")
    pairs = TensorDataset(images(vit), torch.arange(len(images(vit))))
    given = (images(vit), pairs, DataLoader(pairs, batch_size=1))
    tensor, *others = (keep_rate_for(vit, "ats", mac_cut=0.2, images=each) for each in given)
    assert others == [tensor, tensor]
    with pytest.raises(UsageError, match="images of type str are not allowed; give a tensor"):
        keep_rate_for(vit, "ats", mac_cut=0.2, images="photos/")


@pytest.mark.parametrize("make_model", [reduce_tokens, reduced.reduce_tokens, named_backbone])
def test_a_method_may_be_given_in_its_written_form(make_model):
    """Everywhere the same one: options in the text, beside it, or some of both."""
    vit, how = make("vit"), {"keep_rate": 0.5}
    written = make_model(vit, "topk:head_fusion=mean", last_block="cls", **how)
    beside = reduced.reduce_tokens(vit, "topk", head_fusion="mean", last_block="cls", **how)
    assert (
        REDUCERS.asked(written.reducer)
        == REDUCERS.asked(beside.reducer)
        == ("topk", {"head_fusion": "mean", "last_block": "cls"})
    )
    with pytest.raises(UsageError, match="option 'head_fusion' is given twice: in 'topk:head_fusion=mean' and as hea"):
        make_model(vit, "topk:head_fusion=mean", head_fusion="max", **how)
    with pytest.raises(UsageError, match="reducer 'topk': unknown head_fusion 'men'; allowed: max, mean"):
        make_model(vit, "topk:head_fusion=men", **how)


def test_a_budget_is_solved_for_the_written_form_and_for_blocks_in_a_list():
    vit = make("vit")
    written = keep_rate_for(vit, "tome:last_block=cls", mac_cut=0.3, reduction_loc=[2, 5])
    assert written == keep_rate_for(vit, "tome", last_block="cls", mac_cut=0.3, reduction_loc=(2, 5))
    assert written != keep_rate_for(vit, "tome", mac_cut=0.3, reduction_loc=(2, 5))


def count_macs_of(vit: torch.nn.Module, found: Solution, image: torch.Tensor) -> float:
    return mean_macs(reduce_tokens(vit, "ats", keep_rate=found.keep_rate).eval(), image[None])


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("tome", {}, "give one budget: mac_cut, gmac, latency_ms, speedup; given none"),
        ("tome", {"mac_cut": 0.1, "gmac": 1.0}, "give one budget"),
        ("tome", {"mac_cut": 1.0}, "mac_cut=1.0 is not allowed; give a number from 0 to below 1"),
        ("tome", {"gmac": 5.0}, "gmac=5.0 is more than the unreduced model costs: "),
        ("tome", {"mac_cut": 0.9}, r"tome in blocks \[3, 6, 9\] cannot save 90.0% of the MAC; at most 6"),
        ("tome:resize=64", {"mac_cut": 0.95}, r"tome:resize=64 in blocks \[3, 6, 9\] cannot save 95.0% of the MAC; at"),
        ("topk", {"mac_cut": 0.95, "last_block": "cls"}, r"topk:last_block=cls in blocks \[3, 6, 9\] cannot save 95"),
        ("tome", {"mac_cutt": 0.4}, "'tome' has no option 'mac_cutt'; allowed: parity, .*; did you mean 'mac_cut'\\?$"),
        ("tome", {"mac_cut": 0.4, "batchsize": 2}, "has no option 'batchsize'; .*; did you mean 'batch_size'\\?$"),
        (
            "tome:mac_cut=0.4",
            {},
            "has no option 'mac_cut'; .*mac_cut is no option of a reducer, it is given beside one$",
        ),
        ("ats", {"mac_cut": 0.2}, "what 'ats' keeps depends on the images; give some of yours"),
        ("none", {"mac_cut": 0.2}, "'none' has no keep rate to solve for"),
        ("idle_mlp", {"mac_cut": 0.2}, "'idle_mlp' has no keep rate to solve for"),
        ("idle_oracle", {"mac_cut": 0.2}, "'idle_oracle' has no keep rate to solve for"),
        ("patch_slimming", {"mac_cut": 0.2}, "'patch_slimming' has no keep rate to solve for"),
        ("tame", {"mac_cut": 0.2}, "unknown reducer 'tame'; allowed: "),
        ("tome", {"mac_cut": 0.2, "paritty": True}, "reducer 'tome' has no option 'paritty'; allowed: parity"),
    ],
)
def test_what_cannot_be_solved_is_one_line(name, given, message):
    with pytest.raises(UsageError, match=message) as caught:
        keep_rate_for(make("vit"), name, **given)
    assert "\n" not in str(caught.value)


def test_a_keep_rate_and_a_budget_are_too_much():
    with pytest.raises(UsageError, match=r"give a keep_rate, or one of mac_cut, gmac, .*; given keep_rate, mac_cut"):
        reduce_tokens(make("vit"), "tome", keep_rate=0.5, mac_cut=0.2)


def test_a_budget_may_stand_where_a_model_is_made_by_name(tmp_path):
    sizes = {"img_size": 64, "num_classes": 3}
    vit = create_backbone("vit_digits", **sizes)
    wanted = reduce_tokens(vit, "topk", mac_cut=0.3, head_fusion="mean", reduction_loc=(2, 4)).reducer
    for how in ({"mac_cut": 0.3}, {"keep_rate": "mac_cut=0.3"}):
        made = common.create_model("vit_digits", reducer="topk:head_fusion=mean", reduction_loc=(2, 4), **how, **sizes)
        assert made.reducer.schedule == wanted.schedule and REDUCERS.asked(made.reducer) == REDUCERS.asked(wanted)
        assert (made.num_classes, made.patch_embed.img_size) == (3, (64, 64))
    with pytest.raises(UsageError, match=r"give a keep_rate, or one of mac_cut, .*; given keep_rate, mac_cut$"):
        common.create_model("vit_digits", reducer="topk", keep_rate=0.5, mac_cut=0.3)
    with pytest.raises(UsageError, match=r"give a keep_rate, or one of mac_cut, .*; given batch_size$"):
        common.create_model("vit_digits", reducer="topk", batch_size=4)
    with pytest.raises(UsageError, match=r"has no option 'mac_cutt'; .*; did you mean 'mac_cut'\?$"):
        common.create_model("vit_digits", reducer="topk", mac_cutt=0.3)


def test_a_model_made_for_a_budget_has_the_weights_of_its_file(tmp_path):
    first = common.create_model("vit_digits", reducer="dynamicvit", mac_cut=0.3)
    save_state(first, tmp_path / "w.safetensors")
    again = common.create_model("vit_digits", reducer="dynamicvit", mac_cut=0.3, weights=tmp_path / "w.safetensors")
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in again.state_dict().items())
    plain = common.create_model("vit_digits", reducer="topk", keep_rate=0.5)
    assert plain.training and plain.reducer.schedule.keep_rate == 0.5
    assert common.create_model("vit_digits").reducer.schedule.keep_rate == 1.0
