"""The significance score: the recursion is the sum over all paths, its estimates are unbiased, its states are right."""

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
import timm
import torch
from backbones import images, make, plan_for
from counting import executed_macs

from common.cost.closed_form import Shape
from common.errors import UsageError
from common.models.reduced import reduce_tokens
from common.slimming import SlimmingPlan, significance
from common.slimming.plans import slimmed
from common.slimming.ranking import IMAGE_SCORES
from common.slimming.scores import Feature, HeadHandling, Scoring, image_significances, influences, significances
from references import significance_by_paths


def random_maps(lengths=(7, 6, 4, 1), heads=3, batch=2, seed=0):
    """Row-stochastic maps (B, H, n, n') of consecutive blocks whose numbers of tokens fall."""
    generator = torch.Generator().manual_seed(seed)
    shapes = zip(lengths[1:], lengths[:-1], strict=True)
    return [torch.randn(batch, heads, n, keys, generator=generator).softmax(-1) for n, keys in shapes]


def over_all_paths(maps, combine):
    """Sum over head paths of squared column norms (B, n) of the product of the maps, the last block's leftmost."""
    total = 0
    for path in combine(range(maps[0].shape[1]), repeat=len(maps)):
        matrix = torch.eye(maps[-1].shape[2]).expand(len(maps[0]), -1, -1)
        for head, attention in zip(path, reversed(maps), strict=True):
            matrix = matrix @ attention[:, head]
        total = total + matrix.square().sum(1)
    return total


def normalised(scores):
    return scores / scores.sum(-1, keepdim=True)


@pytest.mark.parametrize("lengths", [(7, 7, 7, 1), (7, 6, 4, 1), (7, 6, 4, 2)])
def test_the_gram_recursion_is_the_sum_over_all_paths(lengths):
    """Seven tokens, three heads, up to three blocks above: equal to literal enumeration, in every block."""
    maps = random_maps(lengths)
    for above, found in enumerate(influences(maps), start=1):
        expected = over_all_paths(maps[-above:], product)
        torch.testing.assert_close(normalised(found[:, 0]), normalised(expected), rtol=1e-5, atol=0)


def test_twenty_thousand_sampled_paths_come_within_two_percent():
    maps = random_maps()
    *_, found = influences(maps, Scoring("sampled", paths=20_000))
    exact = over_all_paths(maps, product) / 3**3
    torch.testing.assert_close(found[:, 0], exact, rtol=0.02, atol=0)


def test_same_head_and_rollout_are_paths_of_their_kind():
    maps = random_maps()
    *_, same = influences(maps, Scoring("same_head"))
    stays = over_all_paths(maps, lambda heads, repeat: ((head,) * repeat for head in heads))
    torch.testing.assert_close(same.sum(1), stays)
    *_, rollout = influences(maps, Scoring("rollout"))
    means = [attention.mean(1, keepdim=True) for attention in maps]
    torch.testing.assert_close(rollout[:, 0], over_all_paths(means, product))


@pytest.mark.parametrize("pruned", [False, True], ids=["unreduced", "slim above"])
def test_score_is_equation_6_literally(pruned):
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=4).eval()
    x, layer = images(vit, 3), 1
    plan = SlimmingPlan.of_patches([range(16), range(16), (1, 4, 5, 9), ()], 16) if pruned else SlimmingPlan.whole(vit)
    model = reduce_tokens(vit, "patch_slimming", plan=plan) if pruned else vit
    with torch.inference_mode():
        expected = significance_by_paths(vit, x, plan, layer)
    found = significance(model, x[:1], layer)
    torch.testing.assert_close(normalised(found.float()), normalised(expected[0]), rtol=1e-4, atol=0)
    whole = [significance(model, image[None], layer) for image in x]
    torch.testing.assert_close(
        significance(model, x, layer, batch_size=2), torch.stack(whole).mean(0), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("head_handling", get_args(HeadHandling))
@pytest.mark.parametrize("feature", get_args(Feature))
def test_scores_are_positive_finite_and_the_same_again(head_handling, feature):
    vit = make("vit")
    how = {"head_handling": head_handling, "feature": feature, "paths": 4}
    for shortcut in (False, True):
        scores = significance(vit, images(vit), 3, shortcut=shortcut, **how)
        assert scores.shape == (16,) and scores.dtype == torch.float64
        assert scores.isfinite().all() and (scores > 0).all()
        assert torch.equal(scores, significance(vit, images(vit), 3, shortcut=shortcut, **how))


def test_only_sampled_paths_depend_on_the_seed():
    vit = make("vit")
    first, second = (significance(vit, images(vit), 3, "sampled", paths=4, seed=seed) for seed in (0, 1))
    assert not torch.equal(first, second)
    first, second = (significance(vit, images(vit), 3, seed=seed) for seed in (0, 1))
    assert torch.equal(first, second)


def test_one_pass_scores_all_blocks():
    vit = make("vit")
    model = reduce_tokens(vit, "none")
    together = significances(model, images(vit), range(2, 11))
    for layer, scores in zip(range(2, 11), together, strict=True):
        torch.testing.assert_close(scores, significance(vit, images(vit), layer), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", IMAGE_SCORES)
def test_all_scores_have_one_shape(name):
    vit = make("vit")
    model = slimmed(reduce_tokens(vit, "none"), SlimmingPlan.whole(vit))
    with torch.inference_mode():
        tokens = model.advance(model.embed(images(vit)), range(5))
        found = IMAGE_SCORES[name](model, tokens, 5, Scoring(), 0)
    assert found.shape == (3, 16) and found.isfinite().all()


def test_the_model_is_left_as_it_was():
    vit = make("vit").train()
    state = {key: value.clone() for key, value in vit.state_dict().items()}
    significance(vit, images(vit), 0)
    assert vit.training and all(torch.equal(value, state[key]) for key, value in vit.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in vit.parameters())


@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        ("simple-vit", {}, r"backbone's head reads them \(global_pool='avg'\); allowed: token"),
        ("cls-avg", {}, r"global_pool='avg'"),
        ("siglip-map", {}, r"global_pool='map'"),
        ("vit", {"layer": 11}, r"layer=11 is not allowed; allowed: blocks 0 to 10, the last one drops all patches"),
        ("vit", {"layer": -1}, r"layer=-1 is not allowed"),
        ("vit", {"layer": True}, r"layer=True is not allowed; give a whole number >= 0"),
        ("vit", {"head_handling": "mean"}, r"unknown head_handling 'mean'; allowed: path_energy, rollout"),
        ("vit", {"feature": "keys"}, r"unknown feature 'keys'; allowed: ln, none, raw, value"),
        ("vit", {"paths": 0}, r"paths=0 is not allowed; give a whole number >= 1"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(family, arguments, message):
    vit = make(family)
    with pytest.raises(UsageError, match=message) as error:
        significance(vit, images(vit), **{"layer": 1, **arguments})
    assert "\n" not in str(error.value)


def test_a_model_that_dropped_patches_before_is_refused():
    vit = make("vit")
    model = reduce_tokens(vit, "patch_slimming", plan=plan_for(vit, 0.3))
    assert significance(model, images(vit), 0).shape == (16,)  # block 0 of this plan keeps all
    with pytest.raises(UsageError, match="the model drops patches up to block 1; give one that keeps all"):
        significance(model, images(vit), 1)


def test_a_score_costs_one_pass_and_two_products_per_head_and_block_above():
    """DeiT-S: by closed form 1.22 of a forward pass; of all 11 blocks at once 1.41. Block 0 has 6^11 paths."""
    vit = timm.create_model("deit_small_patch16_224").eval()
    model, x, heads, n = reduce_tokens(vit, "none"), images(vit, 1), 6, 197
    shape = replace(Shape.of(vit), num_outputs=0)  # the head has no part in it
    energy = heads * n**2 * shape.dim
    recursion = heads * (n + n**2) + 10 * heads * 2 * n**3  # of the last block one row counts

    def score(layers):
        image_significances(model, model.embed(x), layers)

    for layers, share in ((range(1), 1.22), (range(11), 1.41)):
        macs = executed_macs(score, layers)
        assert macs == shape.unreduced + len(layers) * energy + recursion
        assert macs / shape.unreduced == pytest.approx(share, abs=0.005)
