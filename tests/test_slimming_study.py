"""The rows of the slimming notebooks, and the sentences and tables made of them."""

import copy
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch
from backbones import images, make, plan_for
from small_slimming import uneven_vit
from small_training import killed_at, same_weights, updates_of
from test_evaluation import Noise

from common import plots
from common.cost.closed_form import Shape
from common.cost.counter import count_macs
from common.cost.methods import slim_macs
from common.cost.throughput import Throughput
from common.errors import UsageError
from common.models.factory import create_backbone
from common.models.reduced import reduce_tokens
from common.reducers.base import divergence
from common.report.published import published_slimming
from common.results import read_runs, write_run
from common.setup import Setup
from common.slimming.allocation import uniform_lengths
from common.slimming.measuring import measures
from common.slimming.plans import PRUNING, one_block, one_block_lengths
from common.slimming.ranking import SIGNIFICANCES
from common.slimming.rows import (
    budget_rows,
    correlation_rows,
    dynamic_rows,
    one_block_rows,
    stage_rows,
    tolerance_rows,
)
from common.slimming.stages import Stage, distilled, finetuned, searched
from common.slimming.top_down import search
from common.studies._slimming_seeds import over_seeds, seeds_point
from common.studies.slimming import Slimming

LENGTHS = (40, 30, 20, 10, 5, 1)
CONDITIONS = {"dataset": "noise", "backbone": "vit_digits", "img_size": 32, "seed": 0, "keep_rate": 1.0}


@pytest.fixture(scope="module")
def setup():
    vit = uneven_vit()
    data = Noise(torch.arange(12) % 10, 10)
    data.images = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return Setup.around(vit, dict.fromkeys(("train_set", "val_set", "calibration"), data), batch_size=5, device="cpu")


@pytest.fixture
def table(tmp_path):
    """What the study makes of rows that a run of it may hold, as they come back from its CSV."""

    def made(rows):
        rows = [{"n_calibration": 12, **row} for row in rows]
        run = {"profile": "test", "method": "patch_slimming", "epochs": 0, **CONDITIONS}
        write_run(rows, Slimming, tmp_path / "runs/slimming/a.csv", **run)
        return Slimming().summarise(read_runs(tmp_path, Slimming))

    return made


def right(model, setup):
    """Which images ``model`` has right (n,)."""
    with torch.inference_mode():
        return (model(setup.calibration_images).argmax(1) == setup.val_set.labels).double()


def test_stages_are_measured_on_the_models_they_name(setup):
    untrained, tuned = searched(setup, lengths=LENGTHS, epochs=1, lr=1e-3, held_out=0.5)
    assert untrained.vit is setup.vit and untrained.conditions == {} and untrained.training == "none"
    assert tuned.training == "blocks" and tuned.conditions == {"epochs": 1, "lr": 1e-3, "n_train": 6}
    network = distilled(setup, tuned, epochs=2, lr=1e-4)
    assert network.training == "network" and network.conditions == {"epochs": 3, "lr": 1e-4, "n_train": 12}
    stages = [untrained, tuned, network]
    rows = list(stage_rows(setup, {("learned", "significance"): stages}, 0.6))
    assert [(row["lengths"], row["score"], row["training"]) for row in rows] == [
        ("", "", "none"),
        ("learned", "significance", "none"),
        ("learned", "significance", "blocks"),
        ("learned", "significance", "network"),
    ]
    assert {row["mac_budget"] for row in rows} == {0.6} and {row["n_val"] for row in rows} == {12}
    assert rows[0]["method"] == "none" and rows[0]["gmac"] == Shape.of(setup.vit).unreduced / 1e9
    assert rows[0]["mac_cut"] == 0 and "epochs" not in rows[1] and rows[3]["epochs"] == 3
    assert rows[1]["tokens"] == "40 30 20 10 5 1" and rows[1]["mac_cut"] > rows[1]["mac_cut_paper"] > 0
    for stage, row in zip(stages, rows[1:], strict=True):
        slim = reduce_tokens(stage.vit, "patch_slimming", plan=untrained.plan)
        assert row["accuracy_full"] == pytest.approx(100 * right(slim, setup).mean().item())
        with torch.inference_mode():
            found, whole = (model(setup.calibration_images) for model in (slim, setup.vit))
        assert row["divergence"] == pytest.approx(divergence(found, whole).item(), rel=1e-3)
        assert row["agreement"] == pytest.approx((found.argmax(1) == whole.argmax(1)).float().mean().item())
    assert (rows[0]["agreement"], rows[0]["divergence"], rows[0]["divergence_sem"]) == (1, 0, 0)
    assert len(searched(setup, lengths=LENGTHS, epochs=0)) == 1


def test_every_accuracy_has_its_own_error():
    """The unreduced ViT-Ti of the imagenette profile: 98.96 % among ten classes, 74.17 % among 1000, of 3925 images."""
    hits = torch.zeros(3925, 5, dtype=torch.float64)
    hits[:3884, 0] = hits[:2911, 1] = 1
    hits[:3925, 2] = 1
    row = measures(hits, None)
    assert (row["top5"], row["top5_sem"]) == (100, 0)
    found = [row[name] for name in ("accuracy", "accuracy_sem", "accuracy_full", "accuracy_full_sem")]
    assert found == pytest.approx([98.955, 0.1623, 74.166, 0.6988], abs=1e-3) and "gain" not in row
    other = hits.clone()
    other[2900:2911, 1], other[:, 4] = 0, 0.5
    assert measures(hits, other)["divergence_change"] == -0.5 and measures(hits, other)["divergence_change_sem"] == 0
    assert measures(hits, other)["gain"] == pytest.approx(1100 / 3925)
    assert measures(hits, other)["gain_sem"] == pytest.approx(100 * (11 / 3925 * 3914 / 3925 / 3924) ** 0.5)


def test_committed_rows_have_these_errors():
    rows = read_runs("results/gpu/nvidia_h100_80gb_hbm3", Slimming)
    whole = rows[rows["method"] == "none"]
    assert len(whole) == 6 and set(whole["accuracy"].round(2)) == {98.96}
    assert set(whole["accuracy_sem"].round(2)) == {0.16}
    assert set(whole["accuracy_full"].round(2)) == {74.17}
    assert set(whole["accuracy_full_sem"].round(2)) == {0.70}


def test_accuracies_are_among_the_classes_of_the_dataset_and_all_of_the_head(setup, monkeypatch):
    monkeypatch.setattr(setup.val_set, "labels", torch.arange(12) % 2)
    monkeypatch.setattr("common.training.metrics.head_classes", lambda outputs, dataset: [1, 0])
    (row,) = stage_rows(setup, {}, 0.6)
    with torch.inference_mode():
        logits = setup.vit(setup.calibration_images)
    wanted = 1 - setup.val_set.labels  # class 0 of the dataset is output 1 of the head
    assert row["accuracy"] == pytest.approx(100 * (logits[:, :2].argmax(1) == wanted).double().mean().item())
    assert row["accuracy_full"] == pytest.approx(100 * (logits.argmax(1) == wanted).double().mean().item())
    best = logits.argsort(1, descending=True)[:, :5]
    assert row["top5"] == pytest.approx(100 * (best == wanted[:, None]).any(1).double().mean().item())
    assert row["accuracy"] > row["accuracy_full"] < row["top5"] < 100


def test_distilled_networks_come_closer_to_their_teacher_and_leave_it_alone(setup):
    plan, x = plan_for(setup.vit, 0.3), setup.calibration_images
    before = copy.deepcopy(setup.vit.state_dict())
    learnt = distilled(setup, Stage(plan, setup.vit), epochs=6, lr=2e-4)
    assert all(torch.equal(value, before[key]) for key, value in setup.vit.state_dict().items())
    with torch.inference_mode():
        wanted = setup.vit(x)
        ends = [reduce_tokens(vit, "patch_slimming", plan=plan)(x) for vit in (setup.vit, learnt.vit)]
    assert divergence(ends[1], wanted) < divergence(ends[0], wanted)


def test_fine_tuning_learns_the_labels_keeps_the_plan_and_goes_on_where_it_was_stopped(setup, tmp_path):
    even = Setup.around(
        setup.vit, dict.fromkeys(("train_set", "val_set", "calibration"), setup.val_set), batch_size=6, device="cpu"
    )
    before, start = copy.deepcopy(setup.vit.state_dict()), Stage(plan_for(setup.vit, 0.3), setup.vit)
    tuned = replace(start, training="blocks", conditions={"epochs": 2, "lr": 1e-3, "n_train": 6})
    learnt = finetuned(even, tuned, epochs=12, lr=1e-3, folder=tmp_path / "labels")
    assert learnt.training == "labels" and learnt.plan is tuned.plan and not learnt.vit.training
    assert learnt.conditions == {"epochs": 14, "lr": 1e-3, "n_train": 12, "dtype": "float32"}
    assert all(torch.equal(value, before[key]) for key, value in setup.vit.state_dict().items())
    assert right(learnt.model, even).mean() > right(tuned.model, even).mean()
    again = finetuned(even, tuned, epochs=12, lr=1e-3, folder=tmp_path / "labels")
    assert all(torch.equal(value, learnt.vit.state_dict()[key]) for key, value in again.vit.state_dict().items())
    rows = list(tolerance_rows(even, [0.5], error_norm="token", step=16, finetuning={"epochs": 1, "lr": 1e-3}))
    assert [(row["training"], row["epochs"], row["n_train"]) for row in rows] == [("labels", 1, 12)]


@pytest.mark.parametrize("trained", [distilled, finetuned])
def test_a_network_that_was_killed_in_an_epoch_goes_on_from_the_one_before(setup, tmp_path, monkeypatch, trained):
    data = dict.fromkeys(("train_set", "val_set", "calibration"), setup.val_set)
    even, start = Setup.around(setup.vit, data, batch_size=4, device="cpu"), Stage(plan_for(setup.vit, 0.3), setup.vit)
    whole = trained(even, start, epochs=3, lr=1e-3)
    again = partial(trained, even, start, epochs=3, lr=1e-3, folder=tmp_path)
    killed_at(monkeypatch, 2, 1, again)  # before the second of three updates of 4 images
    found, epochs = updates_of(monkeypatch, again)
    assert epochs == [2, 2, 2, 3, 3, 3] and same_weights(found.vit, whole.vit) and found.conditions == whole.conditions


def test_speed_is_measured_when_asked_for_on_the_networks_that_the_rows_name(setup, table, monkeypatch):
    called = []

    def fake(models, images, *, baseline, rounds):
        called.append((list(models), tuple(images.shape), baseline, rounds))
        return {key: Throughput(90.0 + n, 80.0, 99.0, 1.0 + n, 0.9, 3.0, rounds) for n, key in enumerate(models)}

    monkeypatch.setattr("common.slimming.measuring.interleaved", fake)
    found = {("learned", "significance"): searched(setup, lengths=LENGTHS, epochs=0)}
    assert "fps" not in list(stage_rows(setup, found, 0.6))[1] and not called
    rows = list(stage_rows(setup, found, 0.6, rounds=3))
    whole, slim = ("", "", "none"), ("learned", "significance", "none")
    assert called == [([whole, slim], (5, 3, 32, 32), whole, 3)]
    assert [(row["fps"], row["speedup"], row["rounds"]) for row in rows] == [(90, 1, 3), (91, 2, 3)]
    (section,) = Slimming().sections(table(rows))
    assert section.frame["Speed-up"].tolist() == ["1.00 [0.90, 3.00]", "2.00 [0.90, 3.00]"]
    assert section.frame["Images/s"].tolist()[1] == "91 [80, 99]"


def test_a_budget_of_what_the_authors_count_meets_their_gflops():
    """Of uniform lengths at the budget of the profile, and of DeiT-Ti, -S and -B as table 1 prints them."""
    for size, printed in (("tiny", 0.7), ("small", 2.6), ("base", 9.8)):
        with torch.device("meta"):
            shape = Shape.of(create_backbone(f"deit_{size}_patch16_224"))
        assert round(slim_macs(shape, uniform_lengths(shape, 0.56, "paper"), "paper") / 1e9, 1) == printed


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
        for pruning, x in {"idle": idle, "zero": zero, "dropped": computed[:, rows]}.items():
            expected = vit.norm(vit.blocks[layer + 1 :](x))[:, : vit.num_prefix_tokens]
            found = one_block(model, layer, patches, pruning).encode(before, first=layer)
            torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-5)


def test_one_block_costs_what_it_computes(setup):
    model, shape = reduce_tokens(setup.vit, "none"), Shape.of(setup.vit)
    for pruning in PRUNING:
        for layer in (1, 5):
            patches = range(0, 64, 4) if layer < 5 else ()
            lengths = one_block_lengths(shape, layer, len(patches), pruning)
            counted = count_macs(one_block(model, layer, patches, pruning), 32).total
            assert slim_macs(shape, lengths, "compact" if pruning == "dropped" else "paper") == counted
    with pytest.raises(UsageError, match="unknown pruning 'gone'; allowed: dropped, idle, zero"):
        one_block(model, 1, [0], "gone")


def test_gain_is_the_difference_to_random_masks_and_tables_show_it(setup, table):
    choice = {"blocks": [1, 4], "kept_shares": [0.25], "scores": ["significance"], "pruning": ["dropped"]}
    rows = list(one_block_rows(setup, **choice, random_masks=2))
    assert [(row["part"], row["block"], row["score"]) for row in rows] == [
        ("single_block", block, name) for block in (1, 4) for name in ("significance", "random")
    ]
    for scored, chance in zip(rows[::2], rows[1::2], strict=True):
        assert scored["gain"] == pytest.approx(scored["accuracy_full"] - chance["accuracy_full"])
        assert chance["gain"] == chance["gain_sem"] == 0 and scored["tokens"] == chance["tokens"]
    rows += correlation_rows(setup, [1, 4])
    frame = table(rows)
    correlations = frame["rank_correlation"].dropna()
    assert len(correlations) == 18 and correlations.between(-1, 1).all()
    single, heads = Slimming().sections(frame)
    assert single.frame["Block"].tolist() == ["1", "1", "4", "4"] and single.notes[0].endswith("Blocks count from 0.")
    assert set(heads.frame["Score"]) == {*SIGNIFICANCES, "coverage", "attention", "single_block"}
    (panel,) = plots.one_block_gain(frame[frame["part"] == "single_block"]).axes
    assert panel.get_title().startswith("75 % are")
    assert [label.get_text() for label in panel.get_xticklabels()] == ["1", "4"]


def test_where_no_patch_matters_the_accuracy_is_that_of_the_whole_network(setup, table):
    choice = {"blocks": range(6), "kept_shares": [0.5, 0.2], "scores": ["significance"]}
    frame = table(one_block_rows(setup, **choice))
    whole = 100 * right(setup.vit, setup).mean().item()
    assert frame.loc[frame["block"] == 5, "accuracy_full"].tolist() == pytest.approx([whole] * 2)
    assert frame["gain"].isna().all() and set(frame["pruning"]) == {"idle"} and set(frame["part"]) == {"sensitivity"}
    (section,) = Slimming().sections(frame)
    assert section.frame.columns.tolist() == ["Pruned", *"012345"]
    assert section.frame["Pruned"].tolist() == ["50 %", "80 %"]
    figure = plots.block_sensitivity(frame).axes[0]
    assert len(figure.containers) == 2 and figure.get_xticks().tolist() == list(range(6))


def test_plans_of_a_budget_cost_the_same_and_are_compared_with_uniform_ones(setup, table):
    rows = list(budget_rows(setup, [0.6, 0.4], error_images=4))
    names = [("learned", "significance", "all")]
    names += [("uniform", score, "all") for score in ("significance", "coverage", "single_block", "random")]
    names.append(("uniform", "single_block", "selected"))
    assert [(row["mac_budget"], row["lengths"], row["score"], row["keys"]) for row in rows] == [
        (budget, *name) for budget in (0.6, 0.4) for name in names
    ]
    for row in rows:
        uniform = rows[1] if row["mac_budget"] == 0.6 else rows[7]
        assert row["mac_budget"] - 0.03 < 1 - row["mac_cut"] <= row["mac_budget"]
        assert row["gain"] == pytest.approx(row["accuracy_full"] - uniform["accuracy_full"])
    assert rows[2]["tokens"] == rows[1]["tokens"]
    assert len(set(rows[5]["tokens"].split())) == 2 and int(rows[5]["tokens"][:2]) > int(rows[1]["tokens"][:2])
    (section,) = Slimming().sections(table(rows))
    assert section.frame["Cut, at least"].tolist() == ["40 %"] * 6 + ["60 %"] * 6


def test_gates_compute_as_many_patches_as_the_plan(setup, table):
    plan = plan_for(setup.vit, 0.3)
    rows = list(dynamic_rows(setup, plan, epochs=1, num_images=12))
    assert [row["gates"] for row in rows] == ["none", "fixed", "threshold"]
    assert rows[0]["gain"] == 0 and rows[0]["tokens"] == rows[1]["tokens"] == " ".join(map(str, plan.lengths))
    assert list(map(int, rows[2]["tokens"].split())) == pytest.approx(plan.lengths, abs=1)
    gated = reduce_tokens(setup.vit, "dynamic_slimming", plan=plan)
    whole = count_macs(setup.vit, 32).total
    spent = count_macs(gated, 32).total  # that of the plan, and what its gates cost: on small tokens not little
    assert rows[1]["gmac"] * 1e9 == pytest.approx(spent)
    assert spent > 1.05e9 * rows[0]["gmac"]
    assert rows[1]["mac_cut"] == pytest.approx(1 - spent / whole)
    assert rows[1]["mac_cut"] < rows[0]["mac_cut"]
    assert rows[2]["gmac"] == pytest.approx(rows[1]["gmac"], rel=0.03)
    frame = table(rows)
    deeper = replace(plan, settings={"mac_budget": 0.4})  # gates of two budgets are rows of their own
    assert len(table(rows + list(dynamic_rows(setup, deeper, epochs=1, num_images=12)))) == 6
    assert frame["method"].tolist() == ["patch_slimming", "dynamic_slimming", "dynamic_slimming"]
    (section,) = Slimming().sections(frame)
    assert section.frame["Chosen by"].tolist() == ["plan", "gates, fixed", "gates, threshold"]
    cells = section.frame["Tokens by block"]
    assert cells[0] == rows[0]["tokens"] and cells[2].split()[0].split("±") == [rows[2]["tokens"][:2], "0"]


def test_answers_and_tables_say_what_is_lost_at_every_stage_of_every_budget(table):
    stages = [("none", "", "none", 74.0, 0.0, 0.55), ("patch_slimming", "learned", "none", 60.0, 0.45, 0.55)]
    stages += [("patch_slimming", "learned", "blocks", 72.5, 0.45, 0.55)]
    stages += [("patch_slimming", "learned", "network", 73.0, 0.45, 0.55)]
    stages += [("patch_slimming", "uniform", "labels", 73.8, 0.45, 0.55)]
    stages += [("none", "", "none", 74.0, 0.0, 0.67), ("patch_slimming", "learned", "blocks", 73.5, 0.33, 0.67)]
    names = ("method", "lengths", "training", "accuracy_full", "mac_cut", "mac_budget")
    same = {"part": "stages", "accuracy": 98.9, "gmac": 1.0, "gmac_paper": 1.0, "mac_cut_paper": 0.5, "tokens": "9 1"}
    rows = [same | {"n_val": 4, "score": "significance"} | dict(zip(names, stage, strict=True)) for stage in stages]
    frame = table([row if row["lengths"] else row | {"score": ""} for row in rows])
    (answer,) = Slimming().answers(frame)
    text, points = answer.text, answer.points
    assert text.endswith("74.00 % without reduction, among all classes of the head.")
    assert points[0].startswith(
        "learned tokens, 45 % of the multiplications saved: change in points -14.00 before tuning, -1.50"
    )
    assert (
        "-1.00 after distillation; on images only" in points[0]
        and "33 %" in points[2]
        and "-0.50 after block tuning" in points[2]
    )
    assert points[1].endswith("change in points -0.20 after fine-tuning on labels")
    (section,) = Slimming().sections(frame)
    assert section.frame["Stage"].tolist().count("unreduced") == 1 and len(section.frame) == 6
    assert plots.slimming_tradeoff(frame).axes[0].get_legend_handles_labels()[1] == [
        "learned, blocks tuned",
        "learned, distilled",
        "uniform, fine-tuned on labels",
        "unreduced",
    ]


def test_published_numbers_stand_as_printed():
    tables, figures = published_slimming()
    assert (len(tables.frame), len(figures.frame)) == (32, 28) and tables.folded and figures.folded
    slim = tables.frame.query("Model == 'DeiT-S' and Method == 'PS'")
    assert slim["Top-1"].tolist() == ["79.4", "79.4"] and slim["Faster by (%)"].tolist() == ["40.5", "-"]
    assert figures.frame["Top-1"].tolist().count("-") == 1  # the tokens of figure 5


DEIT = {"dataset": "imagenet", "backbone": "deit_small_patch16_224.fb_in1k", "img_size": 224, "weights": "timm fb_in1k"}


def measured(part, **given):
    """A row of DeiT-S on all of ImageNet, as its study measures it."""
    row = {"part": part, "accuracy": 79.0, "accuracy_full": 79.0, "gmac": 2.3, "mac_cut": 0.5, "gmac_paper": 2.61}
    return {**DEIT, **row, "mac_cut_paper": 0.43, "tokens": "197 1", "n_val": 50000, "score": "significance", **given}


def test_printed_accuracies_stand_beside_the_same_experiment_only(table):
    slim = {"lengths": "learned", "training": "labels", "mac_budget": 0.56, "method": "patch_slimming"}
    whole = slim | {"method": "none", "lengths": "", "score": "", "training": "none", "gmac_paper": 4.6}
    cases = [whole, slim, slim | {"lengths": "uniform"}, slim | {"training": "network"}]
    frame = table([measured("stages", **case) for case in cases])
    assert frame["published_accuracy"].tolist()[:3] == [79.8, 79.4, 77.2] and frame["differs"].tolist()[:3] == [""] * 3
    assert frame["differs"][3] == "training network instead of labels" and frame["published_accuracy"].isna()[3]
    assert frame["published_top5"].tolist()[:3] == [95.0, 94.7, 93.8] and frame["published_top5"].isna()[3]
    assert [text.startswith("197 197 160") for text in frame["published_tokens"]] == [False, True, False, True]
    (section,) = Slimming().sections(frame)
    assert section.frame["Published (%)"].tolist() == ["79.8", "79.4", "77.2", "-"]
    assert section.frame["Published top-5 (%)"].tolist() == ["95.0", "94.7", "93.8", "-"]
    assert "training network instead of labels" in section.notes[-1] and "figure 5" in section.notes[-2]
    (other,) = table([measured("stages", **slim, gmac_paper=2.8)])["differs"]
    assert other == "gflops 2.8 instead of 2.6"


def test_figures_stand_beside_blocks_that_alone_compute_fewer_patches(table):
    fragile = [
        measured("sensitivity", block=block, kept_share=share, pruning="idle")
        for block in (0, 1, 2)
        for share in (0.8, 0.2)
    ]
    alone = {"block": 6, "kept_share": 0.1, "pruning": "idle", "gain": 0.0}
    frame = table([*fragile, measured("single_block", **alone), measured("single_block", **alone, score="random")])
    assert frame["published_accuracy"].tolist()[:4] == [74, 35, 78, 71]
    assert frame["published_accuracy"].tolist()[6:] == [78.4, 77.3] and (frame["differs"] == "").all()
    by_block, choice = Slimming().sections(frame)
    assert by_block.frame.iloc[2].tolist() == ["20 %, published", "74", "78", "-"]
    assert choice.frame["Published (%)"].tolist() == ["78.4", "77.3"] and "figure 7" in choice.notes[-1]
    few = table([measured("sensitivity", block=0, kept_share=0.8, pruning="idle", n_val=1000)])
    assert few["differs"].tolist() == ["n_val 1,000 instead of 50,000"]


def test_tolerances_of_an_unknown_norm_are_never_the_same(table):
    frame = table([measured("tolerances", tolerance=0.02, training="labels")])
    assert frame["differs"].tolist() == ["error_norm a share of the output instead of not stated"]
    (section,) = Slimming().sections(frame)
    assert "Published (%)" not in section.frame and "another experiment" in section.notes[-1]


def test_the_student_reproduction_is_told_apart(table):
    deit3 = {"backbone": "deit3_small_patch16_224.fb_in1k", "dataset": "folder:/data/imagenet-mini"}
    slim = {"lengths": "learned", "training": "blocks", "mac_budget": 0.67, "method": "patch_slimming"}
    (differs,) = table([measured("stages", **slim, **deit3)])["differs"]
    assert differs == (
        "lengths learned instead of ten more per block; score significance instead of single_block; "
        "training blocks instead of blocks, on labels"
    )


def test_searches_by_tolerance_are_compared_with_the_whole_network(setup, table):
    found = list(tolerance_rows(setup, [0.5, 0.0], error_norm="token", step=16))
    assert [row["tolerance"] for row in found] == [0.0, 0.5]
    assert found[0]["mac_cut"] < found[1]["mac_cut"] and all(row["training"] == "none" for row in found)
    plan = search(
        copy.deepcopy(setup.vit), setup.calibration_images, tolerance=0.5, epochs=0, error_norm="token", step=16
    )
    slim, whole = right(reduce_tokens(setup.vit, "patch_slimming", plan=plan), setup), right(setup.vit, setup)
    assert found[1]["tokens"] == " ".join(map(str, plan.lengths))
    assert found[1]["accuracy_full"] == pytest.approx(100 * slim.mean().item())
    assert found[1]["gain"] == pytest.approx(100 * (slim - whole).mean().item())
    frame = table(found)
    (section,) = Slimming().sections(frame)
    assert section.frame["Tolerance"].tolist() == ["0", "0.5"]
    published = pd.DataFrame({"model": ["DeiT-S"], "cut": [43.0], "drop": [-0.4], "tolerance": [0.02]})
    panels = plots.slimming_tolerances(frame, published).axes
    assert [[text.get_text() for text in ax.texts] for ax in panels] == [["0", "0.5"], ["0.02"]]
    assert panels[1].get_title().startswith("Published: DeiT-S") and len(plots.slimming_tolerances(frame).axes) == 1
    assert list(tolerance_rows(setup, [])) == []


def test_a_search_that_tunes_is_measured_with_all_its_tuned_blocks(setup):
    """Also those before the first block that drops anything."""
    how = {"epochs": 2, "lr": 5e-3, "error_norm": "token", "step": 64}
    (row,) = tolerance_rows(setup, [0.0], **how)
    vit = copy.deepcopy(setup.vit)
    plan = search(vit, setup.calibration_images, tolerance=0.0, **how)
    hits = right(reduce_tokens(vit, "patch_slimming", plan=plan), setup)
    assert row["training"] == "blocks" and row["epochs"] == 2 and row["n_train"] == 9
    assert row["accuracy_full"] == pytest.approx(100 * hits.mean().item())


def test_gain_of_a_stage_is_that_over_uniform_lengths(setup):
    name = {"learned": LENGTHS, "uniform": (20, 20, 20, 20, 20, 1)}
    found = {(each, "coverage"): searched(setup, lengths=lengths, epochs=0) for each, lengths in name.items()}
    whole, learned, uniform = stage_rows(setup, found, 0.6)
    assert "gain" not in whole and uniform["gain"] == uniform["gain_sem"] == 0
    assert learned["gain"] == pytest.approx(learned["accuracy_full"] - uniform["accuracy_full"])
    first, second = (right(stages[0].model, setup) for stages in found.values())
    assert learned["gain_sem"] == pytest.approx(100 * (first - second).std().item() / 12**0.5)
    uniform = found["uniform", "coverage"]
    elsewhere = {("learned", "significance"): found["learned", "coverage"], ("uniform", "coverage"): uniform}
    assert "gain" not in list(stage_rows(setup, elsewhere, 0.6))[1]


def test_a_run_measured_twice_is_refused(setup, table):
    rows = list(stage_rows(setup, {}, 0.6))
    with pytest.raises(UsageError, match=r"the same condition \(dataset=noise, .*mac_budget=0\.6.* more than once"):
        table(rows * 2)


def test_seeds_are_one_row_with_the_interval_of_the_mean_gain(tmp_path) -> None:
    """Student's t of three differences 1, 2, 3: 2 +- 4.303 / sqrt(3); tokens are compared at the last stage."""
    rows = [
        {"seed": seed, "method": "patch_slimming", "mac_budget": 0.55, "lengths": lengths, "score": "significance"}
        | {"training": training, "accuracy": 98.0, "accuracy_full": 70.0 + seed, "mac_cut": 0.45, "gain": gain}
        for seed in (1, 2, 3)
        for lengths, gain in (("learned", float(seed)), ("uniform", 0.0))
        for training in ("none", "network")
    ]
    table = over_seeds(pd.DataFrame(rows)).set_index(["lengths", "training"])
    learned = table.loc[("learned", "network")]
    assert (learned["n"], learned["gain"], learned["accuracy_full"], learned["accuracy_full_sd"]) == (3, 2, 72, 1)
    assert [learned["gain_low"], learned["gain_high"]] == pytest.approx([2 - 2.4842, 2 + 2.4842], abs=1e-3)
    cells = table.loc[["learned"]].reset_index()
    said = seeds_point(cells, 74.0, {"none": "before", "network": "after"})
    assert said == (
        "learned tokens, 45 % of the multiplications saved: change in points -2.00 before, -2.00 after; not told "
        "apart from uniform lengths at the last stage (+2.00 [-0.48, +4.48])"
    )
    cells["gain_low"] = 0.1
    assert "; told apart from uniform" in seeds_point(cells, 74.0, {"none": "before", "network": "after"})
    one = over_seeds(pd.DataFrame(rows[:4])).query("lengths == 'learned'")
    assert seeds_point(one, 74.0, {"none": "before", "network": "after"}).endswith(
        "change in points -3.00 before, -3.00 after"
    )


def test_every_part_is_averaged_over_its_seeds_whatever_each_of_them_found(table):
    """Lengths, cuts and tokens come out anew with every seed; what was asked for is one row."""
    same = {"n_val": 4, "gmac": 1.0, "gmac_paper": 1.0, "mac_cut_paper": 0.4, "accuracy": 90.0}
    asked = [
        {"part": "tolerances", "tolerance": 0.02, "score": "significance", "training": "none"},
        {"part": "budgets", "mac_budget": 0.55, "lengths": "learned", "score": "coverage", "keys": "all"},
        {"part": "dynamic", "gates": "threshold", "score": "significance"},
        {"part": "single_block", "pruning": "idle", "block": 2, "kept_share": 0.1, "score": "coverage"},
    ]
    found = [
        {"accuracy_full": 70.0 + s, "gain": float(s), "mac_cut": 0.4 + s / 100, "tokens": f"{9 + s} 1"}
        for s in range(3)
    ]
    rows = [{**same, **row, **each, "seed": s} for row in asked for s, each in enumerate(found)]
    rows += [
        {"part": "heads", "score": "coverage", "block": 1, "rank_correlation": 0.5 + s / 10, "seed": s} for s in (0, 1)
    ]
    frame = table(rows)
    for row in asked:
        averaged = over_seeds(frame[frame["part"] == row["part"]], row["part"])
        assert len(averaged) == 1 and averaged.iloc[0]["n"] == 3 and averaged.iloc[0]["accuracy_full"] == 71.0
        assert averaged.iloc[0][["gain", "gain_low"]].tolist() == pytest.approx([1, 1 - 2.4842], abs=1e-3)
    sections = {section.title.rpartition(": ")[2]: section.frame for section in Slimming().sections(frame)}
    shown = sections["patches for each image of 3 seeds"].to_dict("records")
    assert shown == [
        {
            "Chosen by": "gates, threshold",
            "Seeds": "3",
            "Accuracy (%)": "90.00 ± 0.00",
            "All classes (%)": "71.00 ± 1.00",
        }
        | {"Gain [95 %]": "+1.00 [-1.48, +3.48]", "Cut": "41 %"}
    ]
    heads = next(each for title, each in sections.items() if title.endswith("of 2 seeds"))
    assert heads["Correlation"].tolist() == ["0.55 ± 0.07"] and heads["Block"].tolist() == ["1"]
    assert [section.folded for section in Slimming().sections(frame)][:5] == [False] * 5


def test_seeds_of_other_images_are_no_seeds_of_one_measurement(table):
    row = {"part": "dynamic", "gates": "fixed", "score": "significance", "gmac": 1.0, "gmac_paper": 1.0, "mac_cut": 0.4}
    row |= {"mac_cut_paper": 0.4, "tokens": "9 1", "accuracy_full": 70.0, "gain": 0.0}
    frame = table([{**row, "n_val": 4, "seed": 0}, {**row, "n_val": 8, "seed": 1}])
    assert over_seeds(frame, "dynamic")["n"].tolist() == [1, 1]
