"""The study of idle patches: alikeness by formula, candidates that are what they say, tables and figures of it."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fake_runs import BASE, answered, found_in
from small_training import Pictures, config, lively

from common import plots
from common.errors import UsageError
from common.idling.candidates import at_rate, build, fit, tau_for, tune, with_attention, within_budget
from common.idling.outcomes import outcomes
from common.idling.states import alikeness, pairwise_cosine
from common.idling.study import bounds, measure, prediction, try_rates
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


def test_alikeness_by_formula(setup):
    model, loader = build(setup, "idle_oracle:similarity=raw_cos"), setup.loader()
    images = torch.cat([batch for batch, _ in loader])
    found = alikeness(model, loader)
    x = model.embed(images).x
    y = model.blocks[0](x)
    torch.testing.assert_close(found.across[:, 0], F.cosine_similarity(x[:, 1:], y[:, 1:], dim=-1))
    u = F.normalize(y[:, 1:], dim=-1)
    gram, off = u @ u.mT, ~torch.eye(16, dtype=torch.bool)
    torch.testing.assert_close(found.within[1].float(), gram[:, off].mean(), rtol=0, atol=1e-5)
    assert (found.across > found.tau(0.25)).float().mean().item() == pytest.approx(0.25, abs=0.002)
    assert pairwise_cosine(torch.ones(1, 5, 3)).item() == pytest.approx(1.0)


def test_tau_of_weighted_labels_lets_the_share_idle(setup):
    """By the labels themselves, on the states of the model that computes everything."""
    text = "idle_mlp:similarity=rel_norm,influence=rollout"
    options = {"score_threshold": 0.5, "tau": tau_for(setup, text, 0.4), "learns": "labels", "on_policy": 0.0}
    model = build(setup, text, **options).train()
    _, tokens = model(torch.cat([batch for batch, _ in setup.loader()]), return_tokens=True)
    assert tokens.carry[LABELS].mean().item() == pytest.approx(0.6, abs=0.01)


def test_candidates_are_what_they_say(setup):
    """Thresholds for a budget, bounds with the same counts, and a tuned copy that leaves the backbone as it was."""
    before = {name: value.clone() for name, value in setup.vit.state_dict().items()}
    fitted = fit(setup, "idle_mlp:hidden=8", 0.75, config(epochs=2, lr=1e-2, label_weight=0.0, reducer_only=True))
    frozen = within_budget(setup, with_attention(setup, fitted, "standard"), 0.15)
    tuned = tune(setup, frozen, 0.15, config(lr=1e-3, label_weight=0.0))
    rows, found = measure(setup, [frozen, tuned], setup.calibration)
    assert [row["macs_cut"] for row in rows] == pytest.approx([15.0, 15.0], abs=1.0)
    assert [row["stage"] for row in rows] == ["frozen", "tuned"] and frozen.model.reducer.attention == "standard"
    assert all(torch.equal(value, before[name]) for name, value in setup.vit.state_dict().items())
    some = bounds(setup, fitted, found[0], [3, 4])
    assert [each.text.partition(":")[0] for each in some] == ["idle_oracle", "idle_mlp", "idle_random", "idle_random"]
    computed = outcomes({place: each.model for place, each in enumerate(some)}, setup.loader())[0]
    assert all((each.computed == torch.tensor(found[0].counts)).all() for each in computed.values())
    assert 0 <= prediction(setup, frozen, setup.val_set)["balanced_accuracy"] <= 1
    once = at_rate(setup, frozen, 0.5, re_entry=False)
    assert once.text == "idle_mlp:hidden=8,attention=standard,re_entry=false" and once.n_train == fitted.n_train > 0
    assert not once.model.reducer.re_entry and once.model.reducer.schedule.keep_rate == 0.5


def test_learning_rates_are_tried_on_images_that_nothing_is_trained_on(setup):
    """A rate of 0 changes nothing, so its row is that of the model it started from."""
    fitted = fit(setup, "idle_mlp:hidden=8", 0.75, config(lr=1e-2, label_weight=0.0, reducer_only=True))
    start = within_budget(setup, fitted, 0.15)
    rows = try_rates(setup, start, 0.15, config(label_weight=0.0), [1e-12, 1e-3], count=16)
    found, labels = outcomes({0: build(setup, "none"), 1: start.model}, setup.loader())
    wanted = F.kl_div(found[1].logits.log_softmax(1), found[0].logits.softmax(1), reduction="batchmean")
    assert [row["lr"] for row in rows] == [1e-12, 1e-3] and rows[0]["n_val"] == len(labels) == len(setup.calibration)
    assert rows[0]["divergence"] == pytest.approx(wanted.item(), rel=1e-3)
    assert rows[0]["macs_cut"] == pytest.approx(15.0, abs=1.0) and rows[1]["divergence"] != rows[0]["divergence"]


def fake_rows():
    model = {"attention": "modified", "stage": "frozen", "n_train": 0, "n_val": 500, "keep_rate": 1.0, "epochs": 0}
    shared = {**model, "backbone": "vit_tiny_patch16_224", "dataset": "imagenette", "img_size": 224, "batch": 32}

    def row(study, method, accuracy, cut, **more):
        return {
            **shared,
            "seed": 0,
            "part": study,
            "method": method,
            "accuracy_full": accuracy,
            "macs_cut": cut,
            **more,
        }

    rows = [row("thresholds", "none", 74.0, 0.0), row("thresholds", "idle_mlp", 70.0, 20.0, tau=0.84)]
    rows += [
        row("bounds", "idle_oracle", 72.0, 20.0, options="influence=rollout"),
        row("bounds", "idle_mlp", 70.0, 20.0),
    ]
    rows += [row("bounds", "idle_random", value, 20.0, seed=seed) for seed, value in enumerate((50.0, 52.0))]
    similar = {"layer": 1, "similarity": 0.5, "within_similarity": 0.25}
    return [*rows, {**shared, "seed": 0, "part": "similarity", "method": "none", **similar}]


def test_report_tells_losses_and_the_order_of_the_bounds(tmp_path):
    write_run(fake_rows(), find_study("idling"), tmp_path / "runs/idling/a.csv", **BASE)
    study = found_in(tmp_path, "idling")
    assert [section.title.partition(": ")[2] for section in study.sections] == [
        "how alike patches are, 500 images",
        "thresholds on the frozen backbone, 500 images",
        "oracle, predictor and random at equal counts, 500 images",
    ]
    assert study.sections[2].frame["Top-1, all classes"].tolist() == ["72.00", "70.00", "51.00 ± 1.41"]
    assert "Tau" not in study.sections[2].frame and study.sections[1].frame["Tau"].tolist() == ["-", "0.840"]
    (answer,) = answered("idling", study.table)
    assert answer.points == (
        "by change, modified attention, frozen, 20 % of the MAC saved: 70.00 %, -4.00 points",
        "equal numbers of patches in every block, by influence, 500 images: "
        "idling oracle 72.00, Idling MLP 70.00, random idling 51.00",
    )
    (change,) = answered("idling", study.table.replace("influence=rollout", "influence=none"))
    assert "every block, by change, 500 images" in change.points[1]
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
    shown = fig.subfigs[0].axes[1].get_images()[0].get_array()
    assert (shown[:2, :2] == 0).all() == (not computed[0, 0])
    fig = plots.idle_profile({"a": np.array([0.0, 8.0])}, 16)
    assert fig.axes[0].lines[0].get_ydata().tolist() == [0.0, 50.0]
    fig = plots.idle_tradeoff(pd.DataFrame(fake_rows()).query("part != 'similarity'").assign(accuracy=0.0))
    assert sorted(line.get_xdata().tolist()[0] for line in fig.axes[0].lines) == [0.0, 20.0, 20.0, 20.0]
