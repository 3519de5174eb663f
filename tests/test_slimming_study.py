"""The rows of the slimming notebooks, and the sentences and tables made of them."""

import copy

import pandas as pd
import pytest
import torch
from backbones import images, make, plan_for
from test_evaluation import Noise

from common import plots
from common.cost.closed_form import Shape
from common.cost.counter import count_macs
from common.errors import UsageError
from common.models.factory import create_backbone
from common.models.reduced import reduce_tokens
from common.reducers.losses import divergence
from common.report.published import published_slimming
from common.setup import Setup
from common.slimming.one_block import PRUNED, one_block, one_block_cost, one_block_rows
from common.slimming.study import SIGNIFICANCES, correlation_rows, distilled, stage_rows
from common.slimming.tolerances import tolerance_rows
from common.slimming.top_down import search
from common.slimming.variants import budget_rows, dynamic_rows
from common.studies.slimming import Slimming

CONSTANT = {"dataset": "noise", "backbone": "vit_digits", "img_size": 32, "seed": 0}


@pytest.fixture(scope="module")
def setup():
    torch.manual_seed(2)
    vit = create_backbone("vit_digits").eval()
    with torch.no_grad():
        for block in vit.blocks:
            block.attn.qkv.weight *= 4
    data = Noise(torch.arange(12) % 10, 10)
    data.images = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return Setup.around(vit, dict.fromkeys(("train_set", "val_set", "calibration"), data), batch_size=5, device="cpu")


def test_stages_are_measured_on_the_models_they_name(setup):
    vit, x = setup.vit, setup.calibration_images
    plan = search(vit, x, lengths=(40, 30, 20, 10, 5, 1), epochs=0)
    rows = stage_rows(setup, {"learned": (plan, {"tuned": vit})}, 0.6)
    assert [(row["schedule"], row["stage"], row["method"]) for row in rows] == [
        ("", "unreduced", "none"),
        ("learned", "searched", "patch_slimming"),
        ("learned", "tuned", "patch_slimming"),
    ]
    assert {row["share"] for row in rows} == {0.6} and rows[0]["cut"] == 0
    assert rows[0]["gmac"] == Shape.of(vit).unreduced / 1e9
    assert rows[1]["tokens"] == "40 30 20 10 5 1" and rows[1]["cut"] > rows[1]["cut_paper"] > 0
    slim = reduce_tokens(vit, "patch_slimming", plan=plan)
    with torch.inference_mode():
        right = (slim(x).argmax(1) == setup.val_set.labels).double().mean().item()
    assert rows[1]["accuracy"] == rows[2]["accuracy"] == pytest.approx(100 * right)
    assert rows[1]["accuracy_full"] is None and rows[1]["n_val"] == 12


def test_distilled_networks_come_closer_to_their_teacher_and_leave_it_alone(setup):
    plan, x = plan_for(setup.vit, 0.3), setup.calibration_images
    before = copy.deepcopy(setup.vit.state_dict())
    learnt = distilled(setup, plan, setup.vit, epochs=6, lr=2e-4)
    assert all(torch.equal(value, before[key]) for key, value in setup.vit.state_dict().items())
    with torch.inference_mode():
        wanted = setup.vit(x)
        ends = [reduce_tokens(vit, "patch_slimming", plan=plan)(x) for vit in (setup.vit, learnt)]
    assert divergence(ends[1], wanted) < divergence(ends[0], wanted)


@pytest.mark.parametrize("family", ["vit", "deit-distilled", "dinov2-registers"])
def test_what_becomes_of_patches_that_one_block_does_not_compute(family):
    vit = make(family)
    model, patches, layer = reduce_tokens(vit, "none"), [1, 6, 11], 1
    rows = [*range(vit.num_prefix_tokens), *(vit.num_prefix_tokens + patch for patch in patches)]
    with torch.inference_mode():
        before = model.advance(model.embed(images(vit)), range(layer))
        computed, idle = vit.blocks[layer](before.x), before.x.clone()
        idle[:, rows] = computed[:, rows]
        zero = torch.zeros_like(idle)
        zero[:, rows] = computed[:, rows]
        for pruned, x in {"idle": idle, "zero": zero, "dropped": computed[:, rows]}.items():
            expected = vit.norm(vit.blocks[layer + 1 :](x))[:, : vit.num_prefix_tokens]
            found = one_block(model, layer, patches, pruned).encode(before, first=layer)
            torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-5)


def test_one_block_costs_what_it_computes(setup):
    model = reduce_tokens(setup.vit, "none")
    for pruned in PRUNED:
        for layer in (1, 5):
            patches = range(0, 64, 4) if layer < 5 else ()
            found = one_block_cost(setup.vit, layer, len(patches), pruned)["gmac"]
            assert found == count_macs(one_block(model, layer, patches, pruned), 32).total / 1e9
    with pytest.raises(UsageError, match="unknown pruned 'gone'; allowed: dropped, idle, zero"):
        one_block(model, 1, [0], "gone")


def test_gain_is_the_difference_to_random_masks_and_tables_show_it(setup):
    choice = {"layers": [1, 4], "shares": [0.25], "scores": ["significance"], "pruned": ["dropped"]}
    rows = [{"part": "single_block", **row} for row in one_block_rows(setup, **choice, random_masks=2)]
    assert [(row["layer"], row["schedule"]) for row in rows] == [
        (layer, name) for layer in (1, 4) for name in ("significance", "random")
    ]
    for scored, chance in zip(rows[::2], rows[1::2], strict=True):
        assert scored["gain"] == pytest.approx(scored["accuracy"] - chance["accuracy"]) and chance["gain"] == 0
        assert scored["tokens"] == chance["tokens"]
    rows += correlation_rows(setup, [1, 4])
    frame = pd.DataFrame(rows).assign(**CONSTANT)
    correlations = frame["rank_correlation"].dropna()
    assert len(correlations) == 18 and correlations.between(-1, 1).all()
    single, heads = Slimming().sections(frame)
    assert single.frame["Block"].tolist() == ["2", "2", "5", "5"]
    assert set(heads.frame["Score"]) == {*SIGNIFICANCES, "coverage", "attention", "single_block"} - {"significance"}
    assert plots.one_block_gain(frame[frame["part"] == "single_block"]).axes[0].get_title().startswith("75 % are")


def test_where_no_patch_matters_the_accuracy_is_that_of_the_whole_network(setup):
    choice = {"layers": range(6), "shares": [0.5, 0.2], "scores": ["significance"], "random_masks": 0}
    rows = [{"part": "sensitivity", **row} for row in one_block_rows(setup, **choice)]
    with torch.inference_mode():
        right = (setup.vit(setup.calibration_images).argmax(1) == setup.val_set.labels).double().mean().item()
    assert [row["accuracy"] for row in rows if row["layer"] == 5] == pytest.approx([100 * right] * 2)
    assert all(row["gain"] is None and row["pruned"] == "idle" for row in rows)
    frame = pd.DataFrame(rows).assign(**CONSTANT)
    (section,) = Slimming().sections(frame)
    assert section.frame.columns.tolist() == ["Pruned", *"123456"] and section.frame["Pruned"].tolist() == [
        "50 %",
        "80 %",
    ]
    assert len(plots.block_sensitivity(frame).axes[0].containers) == 2


def test_plans_of_a_budget_cost_the_same_and_are_compared_with_uniform_ones(setup):
    rows = list(budget_rows(setup, [0.6, 0.4], error_images=4))
    names = ["learned", "uniform", "uniform, coverage", "uniform, single_block", "uniform, random"]
    names.append("uniform, single_block, square")
    assert [(row["share"], row["schedule"]) for row in rows] == [
        (share, name) for share in (0.6, 0.4) for name in names
    ]
    for row in rows:
        uniform = rows[1] if row["share"] == 0.6 else rows[7]
        assert row["share"] - 0.03 < 1 - row["cut"] <= row["share"]
        assert row["gain"] == pytest.approx(row["accuracy"] - uniform["accuracy"])
    assert rows[2]["tokens"] == rows[1]["tokens"]
    assert len(set(rows[5]["tokens"].split())) == 2 and int(rows[5]["tokens"][:2]) > int(rows[1]["tokens"][:2])
    (section,) = Slimming().sections(pd.DataFrame(rows).assign(**CONSTANT))
    assert section.frame["Budget"].tolist() == ["60 %"] * 6 + ["40 %"] * 6


def test_gates_compute_as_many_patches_as_the_plan(setup):
    plan = plan_for(setup.vit, 0.3)
    rows = list(dynamic_rows(setup, plan, epochs=1, num_images=12))
    assert [row["schedule"] for row in rows] == ["static", "gates, fixed", "gates, threshold"]
    assert rows[0]["gain"] == 0 and rows[0]["tokens"] == rows[1]["tokens"] == " ".join(map(str, plan.lengths))
    means = [float(text.split("±")[0]) for text in rows[2]["tokens"].split()]
    assert means == pytest.approx(plan.lengths, abs=1)
    (section,) = Slimming().sections(pd.DataFrame(rows).assign(**CONSTANT))
    assert section.frame["Patches chosen by"].tolist() == ["plan", "gates, fixed", "gates, threshold"]


def test_answers_and_tables_say_what_is_lost_at_every_stage_of_every_budget():
    stages = [("", "unreduced", 74.0, 0.0), ("learned", "searched", 60.0, 0.45), ("learned", "tuned", 72.5, 0.45)]
    stages += [("learned", "distilled", 73.0, 0.45), ("", "unreduced", 74.0, 0.0), ("learned", "tuned", 73.5, 0.33)]
    frame = pd.DataFrame(stages, columns=["schedule", "stage", "accuracy_full", "cut"])
    (answer,) = Slimming().answers(frame.assign(part="stages", accuracy=90.0, **CONSTANT))
    text, points = answer.text, answer.points
    assert text.endswith("74.00 % without reduction, among all classes of the head.")
    assert points[0].startswith(
        "learned tokens, 45 % of the multiplications saved: points lost 14.00 before tuning, 1.50"
    )
    assert "1.00 after distillation" in points[0] and "33 %" in points[1] and "0.50 after block tuning" in points[1]
    measures = dict.fromkeys(("accuracy_sem", "gain", "gain_sem", "gmac", "gmac_paper", "cut_paper"), 0.5)
    (section,) = Slimming().sections(
        frame.assign(part="stages", accuracy=90.0, tokens="9 1", n_val=4, **measures, **CONSTANT)
    )
    assert section.frame["Stage"].tolist().count("unreduced") == 1 and len(section.frame) == 5


def test_published_numbers_stand_as_printed():
    section = published_slimming()
    assert len(section.frame) == 38 and section.folded
    assert section.frame.query("Model == 'DeiT-S' and Method == 'PS'")["Top-1"].tolist() == ["79.4", "79.4"]


def test_searches_by_tolerance_are_compared_with_the_whole_network(setup):
    found = list(tolerance_rows(setup, [0.5, 0.0], error_norm="token", step=16))
    assert [row["tolerance"] for row in found] == [0.0, 0.5]
    assert found[0]["cut"] < found[1]["cut"] and all(row["stage"] == "searched" for row in found)
    x = setup.calibration_images
    plan = search(copy.deepcopy(setup.vit), x, tolerance=0.5, epochs=0, error_norm="token", step=16, seed=0)
    slim = reduce_tokens(setup.vit, "patch_slimming", plan=plan)
    with torch.inference_mode():
        right = [(model(x).argmax(1) == setup.val_set.labels).double() for model in (slim, setup.vit)]
    assert found[1]["tokens"] == " ".join(map(str, plan.lengths))
    assert found[1]["accuracy"] == pytest.approx(100 * right[0].mean().item())
    assert found[1]["gain"] == pytest.approx(100 * (right[0] - right[1]).mean().item())
    frame = pd.DataFrame(found).assign(**CONSTANT)
    (section,) = Slimming().sections(frame)
    assert section.frame["Tolerance"].tolist() == ["0", "0.5"]
    published = pd.DataFrame({"model": ["DeiT-S"], "cut": [43.0], "drop": [-0.4], "tolerance": [0.02]})
    panels = plots.slimming_tolerances(frame, published).axes
    assert [[text.get_text() for text in ax.texts] for ax in panels] == [["0", "0.5"], ["0.02"]]
    assert panels[1].get_title().startswith("Published: DeiT-S") and len(plots.slimming_tolerances(frame).axes) == 1
    assert list(tolerance_rows(setup, [])) == []


def test_gain_of_a_stage_is_that_over_uniform_lengths(setup):
    x = setup.calibration_images
    lengths = {"learned, coverage": (40, 30, 20, 10, 5, 1), "uniform, coverage": (20, 20, 20, 20, 20, 1)}
    plans = {name: search(copy.deepcopy(setup.vit), x, lengths=each, epochs=0) for name, each in lengths.items()}
    whole, learned, uniform = stage_rows(setup, {name: (plan, {}) for name, plan in plans.items()}, 0.6)
    assert whole["gain"] is None and uniform["gain"] == uniform["gain_sem"] == 0
    assert learned["gain"] == pytest.approx(learned["accuracy"] - uniform["accuracy"])
    with torch.inference_mode():
        slim = (reduce_tokens(setup.vit, "patch_slimming", plan=plan) for plan in plans.values())
        first, second = ((model(x).argmax(1) == setup.val_set.labels).double() for model in slim)
    alone = stage_rows(setup, {"learned": (plans["learned, coverage"], {})}, 0.6)[1]
    assert alone["gain"] is alone["gain_sem"] is None
    assert learned["gain_sem"] == pytest.approx(100 * (first - second).std().item() / 12**0.5)
