"""DiffRate, PPT, ATC and PiToMe: worked examples, published schedules, and what each is when its knob is turned off."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from backbones import images, make
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch.testing import assert_close

from common.cost.counter import count_macs
from common.errors import UsageError
from common.models.factory import create_model
from common.models.reduced import reduce_tokens
from common.reducers.atc import LINKAGES, agglomerate
from common.reducers.diffrate import SCHEDULES, merge_ranked, published_schedules
from common.reducers.pitome import energies, match
from common.reducers.ppt import importance
from common.schedule import Schedule


def directions(*degrees: float) -> torch.Tensor:
    """Unit vectors (1, n, 2) at these angles."""
    angles = torch.tensor([degrees]).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def cosines(vectors: torch.Tensor) -> torch.Tensor:
    return vectors @ vectors.transpose(1, 2)


def groups(places: torch.Tensor) -> set[frozenset[int]]:
    """The sets of positions that go to the same place."""
    return {frozenset(np.flatnonzero(places.numpy() == place).tolist()) for place in places.unique().tolist()}


def logits(name: str, x: torch.Tensor, vit, **options) -> torch.Tensor:
    with torch.inference_mode():
        return reduce_tokens(vit, name, **options).eval()(x)


# PPT


def test_importance_of_the_worked_example():
    attention = torch.tensor([[[0.10, 0.30, 0.05, 0.20, 0.15, 0.10]]])
    score = importance(attention, torch.tensor([[[1.0, 1, 2, 1, 1, 1]]]))
    assert_close(score, torch.tensor([[0.1053, 0.3158, 0.1053, 0.2105, 0.1579, 0.1053]]), atol=1e-4, rtol=0)
    assert score.var().item() == pytest.approx(0.00711, abs=1e-5)
    assert score.argsort(descending=True, stable=True)[0, :4].tolist() == [1, 3, 4, 0]


def test_importance_takes_the_norm_over_all_heads_together():
    attention, norm = torch.tensor([[[0.2, 0.1], [0.4, 0.3]]]), torch.tensor([[[3.0, 1.0], [4.0, 0.0]]])
    expected = torch.tensor([[0.6 * 5, 0.4 * 1]])
    assert_close(importance(attention, norm), expected / expected.sum())


@pytest.mark.parametrize("keep_rate", [0.7, 0.25])
def test_ppt_without_pruning_is_tome(keep_rate):
    vit = make("vit")
    x = images(vit)
    pooled = logits("ppt", x, vit, keep_rate=keep_rate, threshold=2.0)
    assert_close(pooled, logits("tome", x, vit, keep_rate=keep_rate), atol=1e-5, rtol=0)


@pytest.mark.parametrize("keep_rate", [0.7, 0.25])
def test_ppt_without_pooling_keeps_the_most_important(keep_rate):
    vit = make("vit")
    x = images(vit)
    with torch.inference_mode():
        _, trace = reduce_tokens(vit, "ppt", keep_rate=keep_rate, threshold=0.0).eval().trace(x)
    first = trace.scores[3]
    kept = first.argsort(dim=1, descending=True)[:, : trace.num_tokens[3][0]].sort(1).values
    assert torch.equal(trace.kept(3).nonzero()[:, 1].reshape(kept.shape), kept)
    assert_close(first.sum(1), torch.ones(len(x)))


def test_ppt_decides_image_by_image():
    """One image's variance is below the threshold and the other's is not; each comes out as it does alone."""
    vit = make("vit")
    x = images(vit)[:2]
    with torch.inference_mode():
        _, trace = reduce_tokens(vit, "ppt", keep_rate=0.5, reduction_loc=(1,)).eval().trace(x)
        spread = trace.scores[1].var(dim=1)
        assert spread[0] != spread[1]
        options = {"keep_rate": 0.5, "reduction_loc": (1,), "threshold": spread.mean().item()}
        both, trace = reduce_tokens(vit, "ppt", **options).eval().trace(x)
        dropped = (trace.assignment[1] == -1).sum(1).tolist()
        assert sorted(dropped) == [0, vit.patch_embed.num_patches // 2]
        alone = torch.cat([logits("ppt", image[None], vit, **options) for image in x])
    assert_close(both, alone, atol=1e-5, rtol=0)


# DiffRate


def test_merging_of_the_worked_example():
    x = torch.tensor([[[1.0, 0], [0, 1], [0.6, 0.8], [0.8, 0.6], [-1, 0]]])
    order = torch.tensor([[0.3, 0.25, 0.1, 0.2, 0.05]]).argsort(descending=True)
    patches, size, place = merge_ranked(x, order, torch.ones(1, 5), (4, 2))
    assert_close(patches, torch.tensor([[[0.9, 0.3], [0.3, 0.9]]]))
    assert_close(size, torch.tensor([[1.8, 1.8]])) and size.log()[0, 0].item() == pytest.approx(0.5878, abs=1e-4)
    assert place.tolist() == [[0, 1, 1, 0, -1]]


def test_sources_count_once_in_the_mean_and_by_similarity_in_the_weight():
    x = torch.tensor([[[2.0, 0], [0, 4], [-6, 0]]])
    patches, size, place = merge_ranked(x, torch.tensor([[0, 1, 2]]), torch.tensor([[3.0, 5.0, 7.0]]), (3, 2))
    assert place.tolist() == [[0, 1, 1]]  # an opposite and an orthogonal target: the orthogonal one is nearer
    assert_close(patches, torch.tensor([[[2.0, 0], [-3, 2]]])) and size.tolist() == [[3.0, 5.0]]
    opposite = merge_ranked(x[:, ::2], torch.tensor([[0, 1]]), torch.ones(1, 2), (2, 1))
    assert opposite[1].tolist() == [[1.0]] and opposite[1].log().isfinite().all()


def test_diffrate_without_merging_is_topk_of_the_mean_head():
    vit = make("vit")
    x = images(vit)
    with torch.inference_mode():
        _, ours = reduce_tokens(vit, "diffrate", keep_rate=0.5, merge_share=0.0).eval().trace(x)
        _, topk = reduce_tokens(vit, "topk", keep_rate=0.5, head_fusion="mean").eval().trace(x)
    assert torch.equal(ours.kept(3), topk.kept(3)) and not ours.kept(3).all()
    assert ours.num_tokens[-1].tolist() == topk.num_tokens[-1].tolist()


@pytest.mark.parametrize(
    ("keep_rate", "share", "dropped"), [(0.5, 0.0, 32), (0.5, 0.5, 16), (0.5, 1.0, 0), (0.25, 0.25, 36)]
)
def test_merge_share_of_what_a_stage_removes(keep_rate, share, dropped):
    options = {"keep_rate": keep_rate, "reduction_loc": (1,), "merge_share": share}
    model = create_model("vit_digits", reducer="diffrate", **options).eval()
    _, trace = model.trace(torch.rand(2, 3, 32, 32))
    assert (trace.assignment[1] == -1).sum(1).tolist() == [dropped, dropped]


# embedding width, depth, patch
SHAPES = {
    "deit_tiny": (192, 12, 16),
    "deit_small": (384, 12, 16),
    "deit_base": (768, 12, 16),
    "mae_base": (768, 12, 16),
    "mae_large": (1024, 24, 16),
    "mae_huge": (1280, 32, 14),
}


def published_gmac() -> dict[str, float]:
    lines = [line.split() for line in SCHEDULES.read_text().splitlines() if not line.startswith("#")]
    return {name: float(gmac) for name, gmac, *_ in lines}


@pytest.mark.parametrize("name", published_schedules())
def test_published_schedules_cost_what_the_authors_say(name):
    """Their own count: 4NC^2 + 2N^2C + 8N'C^2 a block; the schedule is the one that its name and table promise."""
    patches, stages = published_schedules()[name]
    width, depth, patch = SHAPES[name.rpartition("-")[0]]
    assert len(stages) == depth and patches == (224 // patch) ** 2 and stages[0] == (patches, patches)
    total, n = (patches + 1) * width * 3 * patch**2 + 1000 * width, patches
    for pruned, merged in stages:
        assert n >= pruned >= merged
        total += 4 * (n + 1) * width**2 + 2 * (n + 1) ** 2 * width + 8 * (merged + 1) * width**2
        n = merged
    assert total / 1e9 == pytest.approx(published_gmac()[name], abs=1e-3)
    target = float(name.rpartition("-")[2])
    assert total / 1e9 == pytest.approx(target, rel=0.1)


def test_a_published_schedule_is_followed_block_by_block():
    model = create_model("deit_tiny_patch16_224", reducer="diffrate", published="deit_tiny-1.0").eval()
    with torch.inference_mode():
        _, trace = model.trace(torch.rand(1, 3, 224, 224))
    _, stages = published_schedules()["deit_tiny-1.0"]
    assert [count.item() for count in trace.num_tokens] == [merged for _, merged in stages]
    assert model.reducer.blocks == (2, 3, 4, 5, 6, 8, 9, 10, 11)
    assert (trace.assignment[4] == -1).sum().item() == (196 - 195) + (195 - 193) + (
        189 - 187
    )  # pruned; the others are merged


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ("vit_digits", {"published": "deit_small-2.9"}, "for 12 blocks and 196 patches; this backbone has 6 blocks"),
        ("deit_tiny_patch16_224", {"published": "deit_small-3"}, "unknown published schedule 'deit_small-3'; allowed:"),
        ("deit_tiny_patch16_224", {"published": "deit_tiny-0.9", "keep_rate": 0.5}, "keep_rate=0.5 must stay 1.0"),
        ("vit_digits", {"merge_share": 1.5}, "merge_share=1.5 is not allowed; give a number from 0 to 1"),
    ],
)
def test_schedules_that_do_not_fit_are_refused(backbone, options, message):
    with pytest.raises(UsageError, match=message):
        create_model(backbone, reducer="diffrate", **options)


# ATC

CHAIN = directions(0, 8, 20, 33, 34, 60)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("single", [{0, 1, 2}, {3, 4}, {5}]),
        ("complete", [{0, 1}, {2, 3, 4}, {5}]),
        ("average", [{0, 1}, {2, 3, 4}, {5}]),
    ],
)
def test_clusters_of_the_worked_example(name, expected):
    (cluster,) = agglomerate(1 - cosines(CHAIN), 3, name)
    assert groups(cluster) == set(map(frozenset, expected))
    assert cluster.tolist() == sorted(cluster.tolist()), "numbered by their first members"


@pytest.mark.parametrize("name", LINKAGES)
def test_clusters_are_scipys_and_total_size_stays(name):
    keys = torch.nn.functional.normalize(torch.randn(3, 30, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    distance = 1 - cosines(keys)
    found = agglomerate(distance, 7, name)
    for each, labels in zip(distance.double().numpy(), found, strict=True):
        joins = linkage(squareform(each - np.diag(np.diag(each)), checks=False), name)
        height = (joins[22, 2] + joins[23, 2]) / 2  # between the last join that is made and the first that is not
        assert groups(torch.from_numpy(fcluster(joins, height, "distance"))) == groups(labels)
        assert labels.bincount().sum() == 30 and labels.unique().tolist() == list(range(7))


def test_one_cluster_fewer_joins_the_closest_pair():
    (cluster,) = agglomerate(1 - cosines(CHAIN), 5, "average")
    assert groups(cluster) == {frozenset({0}), frozenset({1}), frozenset({2}), frozenset({3, 4}), frozenset({5})}


def test_the_order_of_patches_changes_nothing():
    keys = torch.randn(1, 12, 4, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    keys = torch.nn.functional.normalize(keys, dim=-1)
    plain, permuted = (agglomerate(1 - cosines(each), 5, "average")[0] for each in (keys, keys[:, order]))
    assert groups(plain) == {frozenset(order[list(each)].tolist()) for each in groups(permuted)}


# PiToMe

SIMILAR = cosines(directions(0, 5, 12, 80, 170, 100))


def test_energies_of_the_worked_example():
    expected = torch.tensor([[0.0836, 0.1076, 0.1382, 0.0974, -0.3217, 0.0128]])
    assert_close(energies(SIMILAR, 0.375), expected, atol=1e-4, rtol=0)


def test_energy_grows_with_similarity_also_below_the_margin():
    similarity = torch.stack([torch.full((4, 4), value) for value in (-0.9, 0.0, 0.9)])
    energy = energies(similarity, 2.0)[:, 0]
    assert energy[0] < energy[1] < energy[2] < 0
    assert energy[1].item() == pytest.approx(math.exp(-2) - 1)


@pytest.mark.parametrize(
    ("protect", "expected"), [(True, [{5}, {4}, {1, 2, 3}, {0}]), (False, [{3}, {1, 2}, {0}, {4, 5}])]
)
def test_matching_of_the_worked_example(protect, expected):
    (place,) = match(SIMILAR, 0.375, 2, protect)
    assert groups(place) == set(map(frozenset, expected))


def test_protected_patches_are_left_alone():
    keys = torch.nn.functional.normalize(torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    isolated = energies(cosines(keys), 0.3).argsort(dim=1)[:, :12]
    for place, alone in zip(match(cosines(keys), 0.3, 4, True), isolated, strict=True):
        sizes = place.bincount()
        assert (sizes[place[alone]] == 1).all() and sizes.sum() == 20 and len(sizes) == 16


def test_which_blocks_are_protected():
    def protected(protect):
        reducer = create_model("vit_digits", reducer="pitome", keep_rate=0.5, protect=protect).reducer
        return [layer for layer in range(6) if reducer.protects(layer)]

    assert [protected(each) for each in ("late", "early", "all")] == [[3, 4, 5], [0, 1, 2], [0, 1, 2, 3, 4, 5]]


def test_pitome_goes_in_rounds_and_keeps_count_of_patches():
    """A quarter of the patches needs two matchings; a token is the mean of its patches, whose sizes add up."""
    vit = make("vit")
    model = reduce_tokens(vit, "pitome", keep_rate=0.25, reduction_loc=(1,)).eval()
    with torch.inference_mode():
        tokens = model(images(vit), return_tokens=True)[1]
    (size,) = tokens.carry.values()
    assert size.shape[1] == vit.patch_embed.num_patches // 4
    assert_close(size.sum(1), torch.full((len(size),), float(vit.patch_embed.num_patches)))
    assert tokens.size is None  # attention does not weigh by size


def test_the_margin_falls_with_depth():
    """All patches alike: every similarity is 1, so the energy is 1 minus the margin of the block."""
    vit = make("vit")
    torch.nn.init.zeros_(vit.pos_embed)
    model = reduce_tokens(vit, "pitome", keep_rate=(0.9, 0.8), reduction_loc=(3, 9), margin=0.8).eval()
    with torch.inference_mode():
        _, trace = model.trace(torch.full((1, 3, 64, 64), 0.3))
    for layer in (3, 9):
        expected = torch.full_like(trace.scores[layer], 1 - 0.8 * (1 - layer / 12))
        assert_close(trace.scores[layer], expected, atol=1e-5, rtol=0)


# published costs and forms


def test_the_published_setting_of_ppt_costs_what_its_authors_say():
    """50 patches fewer before the MLP of blocks 3, 6 and 9 of DeiT-S: 2.944 G there, 2.941 without what scores cost."""
    counts = Schedule("r=50", (3, 6, 9)).counts(196)
    macs, n, width = 196 * 768 * 384 + 1000 * 384, 196, 384
    for layer in range(12):
        left = dict(zip((3, 6, 9), counts, strict=True)).get(layer, n)
        macs += 4 * (n + 1) * width**2 + 2 * (n + 1) ** 2 * width + 8 * (left + 1) * width**2
        n = left
    assert macs / 1e9 == pytest.approx(2.941, abs=1e-3)
    model = create_model("deit_small_patch16_224", reducer="ppt", keep_rate="r=50", reduction_loc=(3, 6, 9))
    scoring = count_macs(model, 224).total - macs
    assert 0 < scoring < 0.01 * macs


@pytest.mark.parametrize("name", ["tome", "ppt", "pitome", "diffrate", "atc"])
def test_every_block_reduces_by_a_published_rule(name):
    """Two patches fewer in each of twelve blocks, by one spelling for all methods."""
    vit = make("vit")
    with torch.inference_mode():
        _, trace = reduce_tokens(vit, name, keep_rate="r=1").eval().trace(images(vit))
    assert [count[0].item() for count in trace.num_tokens] == list(range(15, 3, -1))
