"""The study of idle patches: similarity by formula, candidates that are what they say, tables and figures of it."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fake_runs import BASE, answered, found_in
from small_training import Pictures, config, killed_at, lively, same_weights, updates_of

from common import plots
from common.data import load_dataset
from common.errors import UsageError
from common.idling.boxes import idle_outside, patches_inside
from common.idling.candidates import Candidate, bounds, fit_predictors, oracle, tau_for, tune, variant, within_budget
from common.idling.outcomes import outcomes
from common.idling.rows import idle_shares_by_block, measure, prediction, similarity_rows, try_rates
from common.idling.similarity import pairwise_cosine, patch_similarities
from common.models.factory import create_backbone
from common.reducers.idle_mlp import LABELS
from common.report.published import published_sections
from common.report.tables import markdown
from common.results import write_run
from common.setup import Setup
from common.studies import find_study


@pytest.fixture
def setup():
    return Setup.around(
        lively().eval(),
        {"train_set": Pictures(24), "val_set": Pictures(12, seed=1), "calibration": Pictures(16)},
        batch_size=8,
        device="cpu",
    )


def test_similarity_by_formula(setup):
    model, loader = setup.reduced("idle_oracle:similarity=raw_cos"), setup.loader()
    images = torch.cat([batch for batch, _ in loader])
    found = patch_similarities(model, loader)
    x = model.embed(images).x
    y = model.blocks[0](x)
    torch.testing.assert_close(found.across[:, 0], F.cosine_similarity(x[:, 1:], y[:, 1:], dim=-1))
    u = F.normalize(y[:, 1:], dim=-1)
    gram, off = u @ u.mT, ~torch.eye(16, dtype=torch.bool)
    torch.testing.assert_close(found.within[:, 1], gram[:, off].mean(1), rtol=0, atol=1e-5)
    assert (found.across > found.tau(0.25)).float().mean().item() == pytest.approx(0.25, abs=0.002)
    assert pairwise_cosine(torch.ones(1, 5, 3)).item() == pytest.approx(1.0)
    start, *blocks = similarity_rows(found, seed=7)
    assert start["part"] == "input" and "block" not in start and [row["block"] for row in blocks] == [0, 1, 2, 3]
    each = F.cosine_similarity(x[:, 1:], y[:, 1:], dim=-1).mean(1)  # (n,)
    assert blocks[0]["similarity"] == pytest.approx(each.mean().item())
    assert blocks[0]["similarity_sem"] == pytest.approx(each.std().item() / len(each) ** 0.5, rel=1e-3)
    assert blocks[0]["within_similarity"] == pytest.approx(gram[:, off].mean().item(), abs=1e-5)


def test_tau_of_weighted_labels_lets_the_share_idle(setup):
    """By the labels themselves, on the states of the model that computes everything."""
    text = "idle_mlp:similarity=rel_norm,influence=rollout"
    options = {"score_threshold": 0.5, "tau": tau_for(setup, text, 0.4), "learns": "labels", "on_policy": 0.0}
    model = setup.reduced(text, **options).train()
    _, tokens = model(torch.cat([batch for batch, _ in setup.loader()]), return_tokens=True)
    assert tokens.carry[LABELS].mean().item() == pytest.approx(0.6, abs=0.01)


def test_candidates_are_what_they_say(setup):
    """Thresholds for a budget, bounds with the same counts, and a tuned copy that leaves the backbone as it was."""
    before = {name: value.clone() for name, value in setup.vit.state_dict().items()}
    fitted = fit_predictors(
        setup, "idle_mlp:hidden=8", config(epochs=2, lr=1e-2, label_weight=0.0, reducer_only=True), tau=0.75
    )
    frozen = within_budget(setup, variant(setup, fitted, {"attention": "standard"}, score_threshold=0.5), 0.15)
    tuned = tune(setup, frozen, 0.15, config(lr=1e-3, label_weight=0.0))
    rows, found = measure(setup, "tuning", [frozen, tuned], setup.calibration)
    assert [row["mac_cut"] for row in rows] == pytest.approx([0.15, 0.15], abs=0.01)
    assert [row["stage"] for row in rows] == ["frozen", "tuned"] and frozen.model.reducer.attention == "standard"
    assert [(row["lr"], row["epochs"]) for row in rows] == [(1e-2, 2), (1e-3, 1)] and "accuracy_change" not in rows[0]
    assert all(torch.equal(value, before[name]) for name, value in setup.vit.state_dict().items())
    some = bounds(setup, fitted, found[0].counts, [3, 4])
    assert [each.text.partition(":")[0] for each in some] == ["idle_oracle", "idle_mlp", "idle_random", "idle_random"]
    computed = outcomes([each.model for each in some], setup.loader())[0]
    assert all((each.active.sum(2) == torch.tensor(found[0].counts)).all() for each in computed)
    assert 1 < prediction(setup, frozen, setup.val_set)["balanced_accuracy"] <= 100
    once = variant(setup, frozen, {"re_entry": False}, keep_rate=0.5)
    assert once.text == "idle_mlp:attention=standard,hidden=8,re_entry=false" and once.n_train == fitted.n_train > 0
    assert not once.model.reducer.re_entry and once.model.reducer.schedule.keep_rate == 0.5
    assert once.model.reducer.tau == once.tau == 0.75 and once.cut is None


def test_bounds_idle_as_the_model_that_they_bound(setup):
    """Patches that stay out, and a last block for the head only, in the oracle and in chance as in the predictors."""
    text = "idle_mlp:attention=standard,hidden=8,influence=fisher,last_block=cls,re_entry=false"
    fitted = Candidate(text, setup.reduced(text, score_threshold=0.5), tau=0.5)
    models = [oracle(setup, fitted).model, *(each.model for each in bounds(setup, fitted, [8, 8, 5, 1], [3]))]
    assert len(models) == 4
    for reducer in (model.reducer for model in models):
        assert (reducer.attention, reducer.re_entry, reducer.last_block) == ("standard", False, "cls")
    same = "attention=standard,influence=fisher,last_block=cls,re_entry=false,similarity=blend"
    assert oracle(setup, fitted).text == f"idle_oracle:{same}"


def test_predictors_and_distillation_go_on_after_a_kill(tmp_path, monkeypatch):
    data = {"train_set": Pictures(24), "val_set": Pictures(12, seed=1), "calibration": Pictures(16)}
    kept = Setup.around(lively().eval(), data, batch_size=8, device="cpu", folder=str(tmp_path))
    none = Setup.around(kept.vit, data, batch_size=8, device="cpu")
    labels, task = (config(epochs=2, label_weight=0.0, **how) for how in ({"reducer_only": True}, {}))

    def resumed(training):
        killed_at(monkeypatch, 2, 3, training)  # 24 images in batches of 4: in the middle of the second epoch
        found, epochs = updates_of(monkeypatch, training)
        assert epochs == [2] * 6
        return found

    fitted = resumed(lambda: fit_predictors(kept, "idle_mlp:hidden=8", labels, idle_share=0.3))
    assert same_weights(fitted.model, fit_predictors(none, "idle_mlp:hidden=8", labels, idle_share=0.3).model)
    tuned = resumed(lambda: tune(kept, fitted, 0.15, task))
    assert same_weights(tuned.model, tune(none, fitted, 0.15, task).model)


def test_rows_tell_the_paired_difference_from_the_unreduced_model(setup):
    """Of the same images, with its error; and every mean with the error of the images it is the mean of."""
    dense = Candidate("none", setup.reduced("none"))
    few = Candidate("idle_random:seed=3", setup.reduced("idle_random:seed=3", keep_rate=0.5))
    rows, found = measure(setup, "thresholds", [dense, few])
    images, labels = (torch.cat(parts) for parts in zip(*setup.loader(setup.val_set), strict=True))
    right = [(model(images).argmax(1) == labels).double() for model in (dense.model, few.model)]
    change = 100 * (right[1] - right[0])
    assert rows[0]["accuracy_change"] == rows[0]["accuracy_change_sem"] == 0
    assert rows[1]["accuracy_change"] == pytest.approx(change.mean().item())
    assert rows[1]["accuracy_change_sem"] == pytest.approx(change.std().item() / 12**0.5) and change.any()
    assert rows[1]["accuracy_sem"] == pytest.approx(100 * right[1].std().item() / 12**0.5)
    (shares,) = idle_shares_by_block(rows, found).values()
    assert (
        shares.tolist() == [0.0, 1 - 8 / 16, 1 - 4 / 16, 1 - 2 / 16] and rows[1]["patches_idle"] == 16 * shares.mean()
    )


def test_learning_rates_are_tried_on_images_that_nothing_is_trained_on(setup):
    """A rate of 0 changes nothing, so its row is that of the model it started from."""
    fitted = fit_predictors(setup, "idle_mlp:hidden=8", config(lr=1e-2, label_weight=0.0, reducer_only=True), tau=0.75)
    start = within_budget(setup, fitted, 0.15)
    rows = try_rates(setup, start, 0.15, config(label_weight=0.0), [1e-12, 1e-3], count=16)
    found, labels = outcomes([setup.reduced("none"), start.model], setup.loader())
    wanted = F.kl_div(found[1].logits.log_softmax(1), found[0].logits.softmax(1), reduction="batchmean")
    assert [row["lr"] for row in rows] == [1e-12, 1e-3] and rows[0]["n_val"] == len(labels) == len(setup.calibration)
    assert rows[0]["divergence"] == pytest.approx(wanted.item(), rel=1e-3)
    assert rows[0]["mac_cut"] == pytest.approx(0.15, abs=0.01) and rows[1]["divergence"] != rows[0]["divergence"]


def fake_rows():
    shared = {"backbone": "vit_tiny_patch16_224", "dataset": "imagenette", "img_size": 224, "batch": 32, "epochs": 0}
    shared |= {"n_train": 0, "n_val": 500, "keep_rate": 1.0, "seed": 0}

    def row(part, method, accuracy, cut, **more):
        model = {"attention": "modified", "stage": "frozen", "patches_idle": 40.0, "gmac": 1.0, "accuracy": 90.0}
        return {**shared, **model, "part": part, "method": method, "accuracy_full": accuracy, "mac_cut": cut, **more}

    change = {"accuracy_change": -4.0, "accuracy_change_sem": 0.5, "mac_cut_target": 0.2}
    rows = [row("thresholds", "none", 74.0, 0.0), row("thresholds", "idle_mlp", 70.0, 0.2, tau=0.84, lr=2e-3, **change)]
    rows += [row("tuning", "idle_mlp", 70.0, 0.2, tau=0.84, lr=2e-3, **change, speedup=1.1)]  # measured once more
    rows += [row("bounds", "idle_oracle", 72.0, 0.2, options="influence=rollout")]
    rows += [row("bounds", "idle_mlp", 70.0, 0.2)]
    rows += [row("bounds", "idle_random", value, 0.2, seed=seed) for seed, value in enumerate((50.0, 52.0))]
    rows += [{**shared, "part": "input", "method": "none", "within_similarity": 0.75}]
    similar = {"block": 0, "similarity": 0.5, "within_similarity": 0.25}
    return [*rows, {**shared, "part": "similarity", "method": "none", **similar}]


def test_seeds_are_averaged_although_tau_differs_and_a_given_tau_is_a_condition(tmp_path):
    """A tau set for a share of idle patches comes out anew with every seed; a published one is what it is."""
    model, *_ = [row for row in fake_rows() if row["method"] == "idle_mlp"]
    rows = [
        {**model, "seed": s, "tau": 0.84 + s * 1e-4, "idle_share": 0.2, "accuracy_full": 70.0 + s} for s in (0, 1, 2)
    ]
    rows += [{**model, "tau": tau, "mac_cut_target": None} for tau in (0.95, 0.9)]
    write_run(rows, find_study("idling"), tmp_path / "runs/idling/a.csv", **BASE)
    table = found_in(tmp_path, "idling").table
    assert table["n"].tolist() == [3, 1, 1] and table["tau"].tolist() == pytest.approx([0.8401, 0.95, 0.9])
    assert table["accuracy_full"].tolist() == [71.0, 70.0, 70.0] and table["accuracy_full_sd"].iloc[0] == 1.0


def test_seeds_are_averaged_although_each_chose_its_learning_rate(tmp_path):
    """A distillation takes the best of the rates that were tried; where they are compared they are a condition."""
    model = {**fake_rows()[1], "part": "tuning", "stage": "tuned", "tau": None, "speedup": 1.1}
    rows = [
        {**model, "seed": seed, "lr": lr, "accuracy_full": 70.0 + seed} for seed, lr in enumerate((3e-5, 3e-5, 6e-5))
    ]
    tried = {**model, "part": "rates", "divergence": 0.1, "speedup": None}
    rows += [{**tried, "seed": seed, "lr": lr} for seed in (0, 1) for lr in (3e-5, 6e-5)]
    write_run(rows, find_study("idling"), tmp_path / "runs/idling/a.csv", **BASE)
    table = found_in(tmp_path, "idling").table
    assert table["n"].tolist() == [3, 2, 2] and table["lr"].tolist() == pytest.approx([4e-5, 3e-5, 6e-5])
    assert table["accuracy_full"].iloc[0] == 71.0 and "lr_given" not in table


def test_where_patches_idle_is_told_by_the_boxes_of_digits():
    """Exactly: what idles around the box lies outside, what idles in it does not, and chance gives the share of all."""
    digits = load_dataset("digits", "val", img_size=32, limit=60)
    inside = patches_inside(digits, (8, 8))
    images = digits.stack().mean(1).unfold(1, 4, 4).unfold(2, 4, 4)  # (n, 8, 8, 4, 4)
    inked = (images > images.flatten(1).min(1).values[:, None, None, None, None]).flatten(3).any(3).flatten(1)
    assert not (inked & ~inside).any() and (inside.sum(1) <= 16).all() and (inked.sum(1) / inside.sum(1)).mean() > 0.8
    for idle, expected in ((~inside, 1.0), (inside, 0.0), (torch.ones_like(inside), None)):
        active = torch.stack([torch.ones_like(idle), ~idle], dim=1)  # the first of two blocks computes all
        found = idle_outside(active, inside)
        assert torch.equal(found["outside"], (~inside).double().mean(1)) and len(found["outside"]) == 60
        assert torch.equal(
            found["idle_outside"], found["outside"] if expected is None else torch.full((60,), expected).double()
        )
    assert idle_outside(torch.ones(60, 2, 64, dtype=torch.bool), inside) == {}
    assert patches_inside(Pictures(3), (2, 2)) is None and idle_outside(active, None) == {}


def test_rows_and_sentences_of_boxes_stand_beside_chance(tmp_path):
    digits = load_dataset("digits", "val", img_size=32, limit=100)
    setup = Setup.around(create_backbone("vit_digits").eval(), {"val_set": digits, "calibration": digits}, device="cpu")
    dense = Candidate("none", setup.reduced("none"))
    chance = Candidate("idle_random", setup.reduced("idle_random", counts=[64, 40, 40, 40, 40, 40]))
    rows, _ = measure(setup, "thresholds", [dense, chance])
    assert "idle_outside" not in rows[0] and rows[1]["outside"] == pytest.approx(
        (~patches_inside(digits, (8, 8))).double().mean()
    )
    assert abs(rows[1]["idle_outside"] - rows[1]["outside"]) < 0.05  # one draw for all images
    sized = [{**row, "img_size": 32, "backbone": "vit_digits", "dataset": "digits", "batch": 32} for row in rows]
    write_run(sized, find_study("idling"), tmp_path / "runs/idling/a.csv", **BASE)
    study = found_in(tmp_path, "idling")
    outside, all_of_them = (f"{100 * rows[1][name]:.1f}" for name in ("idle_outside", "outside"))
    frame = study.sections[0].frame
    assert frame["Outside (%)"].tolist() == ["-", outside]
    assert frame["Outside by chance (%)"].tolist() == ["-", all_of_them]
    (answer,) = answered("idling", study.table)
    assert f"of its idle patches lie outside the box of the object, by chance {all_of_them} %" in answer.points[-1]


def test_report_tells_losses_and_the_order_of_the_bounds(tmp_path):
    write_run(fake_rows(), find_study("idling"), tmp_path / "runs/idling/a.csv", **BASE)
    study = found_in(tmp_path, "idling")
    assert [section.title.partition(": ")[2] for section in study.sections] == [
        "how similar patches are, 500 images",
        "thresholds on the frozen backbone, 500 images",
        "frozen and tuned backbone, 500 images",
        "oracle, predictor and random at equal counts, 500 images",
    ]
    assert study.sections[0].frame.values.tolist() == [["input", "-", "0.750"], ["0", "0.500", "0.250"]]
    assert study.sections[3].frame["Top-1, all classes"].tolist() == ["72.00", "70.00", "51.00 ± 1.41"]
    assert "Tau" not in study.sections[3].frame and study.sections[1].frame["Tau"].tolist() == ["-", "0.840"]
    shown = study.sections[1].frame[["Aim (%)", "MAC saved (%)", "Learning rate"]]
    assert shown.values.tolist() == [["-", "0.0", "-"], ["20", "20.0", "0.002"]]
    (answer,) = answered("idling", study.table)
    assert answer.points == (
        "by change, modified attention, frozen, 20 % of the MAC saved: 70.00 %, -4.00 ± 0.50 points",
        "equal numbers of patches in every block, by influence, 500 images: "
        "idling oracle 72.00, Idling MLP 70.00, random idling 51.00",
    )
    (change,) = answered("idling", study.table.replace("influence=rollout", "influence=none"))
    assert "every block, by change, 500 images" in change.points[1]
    assert "accuracy_sem" in study.table and "accuracy_sem_sd" not in study.table
    printed = markdown("Published", published_sections())
    assert "| ViT-B/16 | cifar100 | standard | 10 | 68 | 0.90 | 35 | 77 |" in printed


def test_figures(tmp_path):
    rng = np.random.default_rng(0)
    fig = plots.patch_similarity(rng.uniform(size=(6, 16)), rng.uniform(size=7))
    assert fig.axes[0].get_images()[0].get_array().shape == (6, 16) and len(fig.axes[1].patches) == 7
    with pytest.raises(UsageError, match=r"give \(blocks, P\), \(blocks \+ 1,\)"):
        plots.patch_similarity(np.zeros((6, 16)), np.zeros(6))
    computed = rng.uniform(size=(12, 16)) > 0.3
    fig = plots.idle_patches([rng.uniform(size=(3, 8, 8))] * 2, [computed] * 2, ["a", "b"], patch_grid=(4, 4))
    texts = [ax.get_xlabel() for part in fig.subfigs for ax in part.axes if ax.get_xlabel()]
    assert texts == 2 * [f"{count} idle" for count in (~computed).sum(1)]
    titles = [ax.get_title() for ax in fig.subfigs[0].axes]
    assert [title for title in titles if title] == ["a", *(f"block {block}" for block in range(12))]
    shown = fig.subfigs[0].axes[1].get_images()[0].get_array()
    assert (shown[:2, :2] == 0).all() == (not computed[0, 0])
    fig = plots.idle_profile({"a": np.array([0.0, 0.5])})
    assert fig.axes[0].lines[0].get_ydata().tolist() == [0.0, 50.0] and fig.axes[0].get_xticks().tolist() == [0, 1]
    fig = plots.idle_tradeoff(pd.DataFrame(fake_rows()).dropna(subset="mac_cut"))
    lines = {line.get_label(): line.get_xdata().tolist() for line in fig.axes[0].lines}
    modified = "modified attention"
    assert lines == {
        "unreduced": [0.0],
        f"oracle (labels as decisions), {modified}": [20.0],
        f"predictor, backbone frozen, {modified}": 3 * [20.0],
        f"random, {modified}": 2 * [20.0],
    }
