"""Plans of equal cost: their lengths, their patches, how they are compared; and the premise, how alike patches are."""

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from backbones import images, make
from small_slimming import DEPTH, PATCHES, noise, uneven_vit
from test_slimming_study import setup, table  # noqa: F401

from common import plots
from common.cost.closed_form import Shape
from common.cost.methods import slim_macs
from common.errors import UsageError
from common.models.factory import create_backbone
from common.models.reduced import reduce_tokens
from common.reducers.base import divergence
from common.reducers.slimming_plan import SlimmingPlan
from common.slimming import search
from common.slimming.allocation import TAPERS, best_tapered, tapered_lengths, uniform_lengths
from common.slimming.equal_cost import Variant, bottom_up, equal_cost_rows, similarities, similarity_rows, variants
from common.slimming.plans import best_first, nested, slimmed
from common.slimming.ranking import mean_scores
from common.slimming.scores import image_significances
from common.studies.slimming import Slimming
from references import significance_by_paths

SHAPES = {
    "tiny": Shape(196, 1, dim=192, heads=3, depth=12, mlp_dim=768, patch_dim=768, num_outputs=1000),
    "base": Shape(196, 2, dim=768, heads=12, depth=12, mlp_dim=3072, patch_dim=768, num_outputs=1000),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("budget", [0.3, 0.55, 0.8])
def test_lengths_of_every_taper_spend_the_budget_and_never_grow(name, budget):
    shape = SHAPES[name]
    one_more = shape.unreduced * 12 / 197 / 12  # a token in every block is a 197th
    for taper, floor in TAPERS:
        lengths = tapered_lengths(shape, budget, taper, floor)
        spent = slim_macs(shape, lengths, "compact")
        assert budget * shape.unreduced - one_more < spent <= budget * shape.unreduced
        assert all(a >= b for a, b in zip(lengths, lengths[1:], strict=False))
        assert lengths[-1] == shape.num_prefix_tokens and lengths[0] <= shape.num_tokens
        if lengths[0] < shape.num_tokens:
            mean = sum(lengths[:10]) / sum(1 + taper * (1 - 2 * block / 10) for block in range(10))
            assert lengths[0] == pytest.approx(mean * (1 + taper), abs=1)
            assert lengths[10] == pytest.approx(mean * (1 - taper) * floor, abs=1)


def test_no_taper_is_uniform_and_others_are_refused():
    shape = SHAPES["tiny"]
    assert tapered_lengths(shape, 0.55, 0) == uniform_lengths(shape, 0.55) == (*[119] * 11, 1)
    with pytest.raises(UsageError, match=r"taper=1\.5 is not allowed; give a number from 0 to 1"):
        tapered_lengths(shape, 0.55, 1.5)
    with pytest.raises(UsageError, match=r"mac_budget=0\.001"):
        tapered_lengths(shape, 0.001, 0.2)


def divergences(vit, plans, x):
    with torch.inference_mode():
        return {
            lengths: divergence(reduce_tokens(vit, "patch_slimming", plan=plan)(x), vit(x)).item()
            for lengths, plan in plans.items()
        }


def test_a_search_by_taper_takes_the_lengths_that_diverge_least_on_images_that_nothing_was_scored_on():
    vit, x = uneven_vit(), noise()
    whole, scores = reduce_tokens(vit, "none"), mean_scores(vit, x[:18], "significance")
    plans = {each: nested(scores, each) for each in {tapered_lengths(Shape.of(vit), 0.5, *each) for each in TAPERS}}
    found = divergences(vit, plans, x[18:])
    assert len(plans) > 4 and best_tapered(whole, x[18:], scores, 0.5) == min(found, key=found.get)
    plan = search(vit, x, mac_cut=0.5, sharing="tapered", epochs=0, score_images=18, error_images=6)
    assert plan.lengths in plans and plan.settings["sharing"] == "tapered"
    spent = slim_macs(Shape.of(vit), plan.lengths, "compact") / Shape.of(vit).unreduced
    assert 0.47 < spent <= 0.5


def test_class_probabilities_need_a_head():
    vit = create_backbone("vit_digits")
    vit.reset_classifier(0)
    with pytest.raises(UsageError, match=r"this backbone has no head; give 'falling', 'uniform', 'learned'$"):
        search(vit, noise(), mac_cut=0.5, sharing="tapered")


def test_a_search_shares_its_budget_out_as_it_is_told_and_by_falling_lengths_if_it_is_not():
    shape = Shape.of(uneven_vit())
    by_default, falling, uniform = (
        search(uneven_vit(), noise(), mac_cut=0.5, epochs=0, **how)
        for how in ({}, {"sharing": "falling"}, {"sharing": "uniform"})
    )
    assert by_default.lengths == falling.lengths == tapered_lengths(shape, 0.5, taper=0.2)
    assert uniform.lengths == uniform_lengths(shape, 0.5)


@pytest.mark.parametrize("family", ["vit", "deit-distilled"])
def test_what_a_slim_network_leaves_is_scored_path_by_path(family):
    """Against equation 6 written out: the blocks above compute all of what is left."""
    vit = make(family)
    count, x = vit.patch_embed.num_patches, images(vit)
    left, layer = list(range(0, count, 2)), len(vit.blocks) - 4
    plan = SlimmingPlan.of_patches([*[left] * (len(vit.blocks) - 1), []], count, vit.num_prefix_tokens)
    whole = reduce_tokens(vit, "none")
    with torch.inference_mode():
        entering = slimmed(whole, plan).advance(whole.embed(x), range(layer))
        found = image_significances(whole, entering, range(layer, layer + 1))[:, 0]
        expected = significance_by_paths(vit, x, plan, layer)
    assert found.shape == (len(x), len(left))
    shares, wanted = (each / each.sum(1, keepdim=True) for each in (found, expected))
    torch.testing.assert_close(shares, wanted, rtol=1e-4, atol=0)


def test_bottom_up_the_first_block_that_drops_chooses_by_its_own_scores_and_the_next_among_what_is_left():
    vit, x = uneven_vit(), noise()
    whole, scores = reduce_tokens(vit, "none"), mean_scores(vit, x, "significance")
    lengths = (65, 65, 41, 41, 21, 1)
    plan = bottom_up(whole, x, lengths, "significance")
    assert plan.lengths == lengths
    kept = [set(patches) for patches in plan.kept]
    assert kept[2] == set(best_first(scores[2])[:40]) == kept[3] > kept[4] and len(kept[4]) == 20
    open_end = SlimmingPlan.of_patches([range(64)] * 2 + [plan.kept[2]] * 3 + [[]], PATCHES, 1)
    with torch.inference_mode():
        entering = slimmed(whole, open_end).advance(whole.embed(x), range(4))
        own = image_significances(whole, entering, range(4, 5))[:, 0].double().mean(0)
    assert kept[4] == {plan.kept[2][place] for place in best_first(own)[:20]}
    assert bottom_up(whole, x, (*[65] * (DEPTH - 1), 1), "coverage").lengths == (*[65] * (DEPTH - 1), 1)


def test_patches_are_as_alike_as_the_mean_cosine_of_all_pairs():
    vit, x = uneven_vit(), noise()[:3]
    with torch.inference_mode():
        features = vit.forward_intermediates(x, indices=[0, 5], output_fmt="NLC", intermediates_only=True)
    found = similarities(reduce_tokens(vit, "none"), x)
    assert found.shape == (3, DEPTH) and found.dtype == torch.float64
    pairs = torch.triu_indices(PATCHES, PATCHES, 1)
    for block, patches in zip((0, 5), features, strict=True):
        cosines = F.cosine_similarity(patches[:, pairs[0]], patches[:, pairs[1]], dim=-1).mean(1)
        torch.testing.assert_close(found[:, block], cosines.double(), rtol=0, atol=1e-5)


def test_variants_differ_from_the_first_in_one_thing_or_in_where_they_begin():
    base = Variant(score="coverage")
    found = variants(base, [0, 0.2], [1, 0.6], ["coverage", "random"], [8])
    assert found[0] == base and len(found) == len(set(found)) == 1 + 3 + 2 + 1 + 1
    assert Variant(0.2, 1, "coverage", None, "bottom-up") in found and Variant(0, 1, "coverage", 8) in found


def test_plans_of_equal_cost_are_compared_with_the_first(setup, table):  # noqa: F811
    tried = variants(Variant(), [0, 0.35], [1.0], ["random"], [4])
    rows = list(equal_cost_rows(setup, 0.5, tried)) + list(similarity_rows(setup, 5))
    compared, alike = rows[: len(tried)], rows[len(tried) :]
    assert [row["block"] for row in alike] == list(range(DEPTH)) and all(row["similarity_sem"] > 0 for row in alike)
    assert compared[0]["gain"] == compared[0]["divergence_change"] == compared[0]["divergence_change_sem"] == 0
    x, vit = setup.calibration_images, setup.vit
    for each, row in zip(tried, compared, strict=True):
        assert 0.47 < 1 - row["mac_cut"] <= 0.5 and row["scored_on"] == (each.scored_on or len(x))
        lengths = tapered_lengths(Shape.of(vit), 0.5, each.taper)
        assert row["tokens"] == " ".join(map(str, lengths))
        if each.order == "top-down":
            plan = nested(mean_scores(vit, x[: each.scored_on], each.score), lengths)
            (expected,) = divergences(vit, {lengths: plan}, x).values()
            assert row["divergence"] == pytest.approx(expected, rel=1e-3)
    assert list(equal_cost_rows(setup, 0.5, [])) == []
    frame = table(rows)
    similar, equal = Slimming().sections(frame)
    assert similar.frame["Block"].tolist() == list("012345") and similar.frame["Cosine"].tolist()[0].startswith("0.")
    assert equal.frame["Order"].tolist().count("bottom-up") == 2 and equal.frame["Scored on"].tolist()[-1] == "4"
    (ax,) = plots.slimming_limits(frame[frame["part"] == "equal_cost"]).axes
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[::-1] == [
        "first blocks +35 %",
        "bottom-up",
        "first blocks +35 %, bottom-up",
        "random patches",
        "scored on 4 images",
    ]


def test_the_figure_has_a_point_for_every_draw(setup, table):  # noqa: F811
    rows = table(list(equal_cost_rows(setup, 0.5, variants(Variant(), [0, 0.35], [1.0], [], []))))
    draws = pd.concat([rows.assign(seed=seed, divergence_change=0.1 * seed * rows.index) for seed in (0, 1, 2)])
    ((_, fig),) = Slimming().figures(draws, {})
    (ax,) = fig.axes
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line, *_ in ax.containers]
    assert len(ax.get_yticks()) == len(rows) - 1 and len(points) == 3 * (len(rows) - 1)
    lowest = [x for x, y in points if abs(y) < 0.5]  # of the last plan, drawn at the bottom
    assert lowest == pytest.approx([0, 0.1 * (len(rows) - 1), 0.2 * (len(rows) - 1)])
    two = pd.concat([draws, draws.assign(backbone="vit_tiny_patch16_224")])
    ((_, fig),) = Slimming().figures(two, {})
    assert len(fig.axes) == 2 and fig.axes[1].get_title().startswith("ViT-Ti/16")


def test_over_seeds_the_change_of_divergence_has_its_interval(setup, table):  # noqa: F811
    rows = list(equal_cost_rows(setup, 0.5, variants(Variant(), [0, 0.35], [1.0], [], [])))
    for row, change in zip(rows, (0.0, -0.1, 0.2, 0.3), strict=True):
        row["divergence_change"] = change
    frame = table(rows)
    again = frame.assign(seed=1, divergence_change=frame["divergence_change"] - 0.02)
    section = next(Slimming().sections(type(frame)([*frame.to_dict("records"), *again.to_dict("records")])))
    assert section.title.endswith("plans of equal cost of 2 seeds")
    # -0.1 and -0.12: mean -0.11, half a width of 12.706 standard errors of 0.01
    assert section.frame["Change [95 %]"].tolist()[1] == "-0.1100 [-0.2371, +0.0171]"


def test_a_mean_over_seeds_is_said_of_the_plans_that_have_them(table):  # noqa: F811
    """Three seeds of one budget and one of another: neither has four."""
    whole = {"part": "stages", "method": "none", "lengths": "", "score": "", "training": "none", "tokens": "9 1"}
    costs = {"gmac": 1.0, "gmac_paper": 1.0, "mac_cut_paper": 0.5, "n_val": 4, "accuracy": 99.0}
    slim = {"method": "patch_slimming", "lengths": "learned", "score": "significance", "accuracy_full": 70.0}
    rows = [
        {**whole, **costs, "accuracy_full": 74.0, "mac_cut": 0.0, "mac_budget": 0.55},
        {**whole, **costs, **slim, "mac_cut": 0.45, "mac_budget": 0.55},
        {**whole, **costs, **slim, "mac_cut": 0.2, "mac_budget": 0.8},
    ]
    frame = table(rows)
    same = [frame.iloc[[0, 1]].assign(seed=seed) for seed in (1, 2, 3)]
    mixed, alike = (next(Slimming().answers(pd.concat(each))) for each in ([frame.iloc[[0, 2]], *same], same))
    assert "seeds" not in mixed.text and [", mean of 3 seeds" in point for point in mixed.points] == [False, True]
    assert ", mean of 3 seeds: 74.00 %" in alike.text and "mean of" not in alike.points[0]
