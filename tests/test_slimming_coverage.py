"""Patches that stand for others: what each adds, what they are weighted by, and the search by them."""

import itertools
import math

import pytest
import torch
from backbones import images, make

from common.models.factory import create_backbone
from common.models.observe import watching
from common.models.reduced import reduce_tokens
from common.slimming import search
from common.slimming.plans import best_first
from common.slimming.ranking import block_scores, carried, coverage, network_scores
from common.slimming.scores import Scoring


def covered(values, weights, kept):
    """f(S), term by term."""
    return sum(
        (weight * max(float(values[n, i] @ values[n, j]) for j in kept)).item()
        for n in range(len(values))
        for i, weight in enumerate(weights[n])
    ) / len(values)


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    values = torch.nn.functional.normalize(torch.randn(3, 8, 4, generator=generator), dim=-1)
    return values, torch.rand(3, 8, generator=generator).softmax(1)


def test_of_two_patches_that_carry_the_same_one_is_worth_nothing():
    """From cosine -1: the heaviest stands for its twin, then the odd one adds its own weight, then the twin nothing."""
    values = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    weights = torch.tensor([[0.5, 0.3, 0.2]])
    assert coverage(values, weights).tolist() == pytest.approx([2 * 0.5 + 2 * 0.3 + 0.2, 0, 0.2])
    assert coverage(values, weights, [1, 0]).tolist() == pytest.approx([0, 1.8, 0.2])
    assert coverage(values, weights, [2]).tolist() == pytest.approx([0.8, 0, 0.5 + 0.3 + 0.4])


def test_scores_are_what_each_adds_and_fall(drawn):
    values, weights = drawn
    added = coverage(values, weights)
    order = best_first(added)
    assert added[order].tolist() == sorted(added.tolist(), reverse=True)
    for count in range(1, 9):
        found = added[order[:count]].sum().item() - 1
        assert found == pytest.approx(covered(values, weights, order[:count]), abs=1e-6)
        best = max(covered(values, weights, each) for each in itertools.combinations(range(8), count))
        assert found + 1 >= (1 - 1 / math.e) * (best + 1)
    assert covered(values, weights, order) == pytest.approx(1)


def test_no_other_patch_would_add_more(drawn):
    values, weights = drawn
    kept = [5, 2]
    order = best_first(coverage(values, weights, kept), kept)
    for count in range(6):
        chosen = [*kept, *order[:count]]
        gains = {patch: covered(values, weights, [*chosen, patch]) for patch in range(8) if patch not in chosen}
        assert max(gains, key=gains.get) == order[count]


@pytest.mark.parametrize("family", ["vit", "deit-distilled", "dinov2-registers"])
def test_weights_are_paths_with_the_shortcut_and_values_what_the_next_block_reads(family):
    vit = make(family)
    model, last = reduce_tokens(vit, "none"), len(vit.blocks) - 1
    prefix, seen = vit.num_prefix_tokens, []
    with torch.inference_mode():
        tokens = model.advance(model.embed(images(vit)), range(last - 1))
        values, weights = carried(model, tokens, last - 1)
        watching(model, seen.append).advance(tokens, range(last - 1, last + 1))
        attention, inputs = seen[-1].attention, seen[-1].inputs
        paths = ((attention + torch.eye(attention.shape[-1])) / 2)[:, :, :prefix].square().sum((1, 2))[:, prefix:]
        read = vit.blocks[last].attn.qkv(vit.blocks[last].norm1(inputs)).chunk(3, dim=-1)[2][:, prefix:]
    torch.testing.assert_close(weights, paths / paths.sum(1, keepdim=True), rtol=1e-5, atol=0)
    torch.testing.assert_close(values, torch.nn.functional.normalize(read, dim=-1), rtol=0, atol=1e-6)


def test_one_block_scores_as_in_the_whole_network_and_images_come_in_any_batches():
    vit = make("vit")
    model, x = reduce_tokens(vit, "none"), images(vit, 5)
    with torch.inference_mode():
        entering = model.advance(model.embed(x), range(4))
        halves = [model.advance(model.embed(part), range(4)) for part in x.split(2)]
    for name in ("coverage", "single_block"):
        whole = network_scores(name, model, x, Scoring())
        assert whole.shape == (11, 16) and whole.dtype == torch.float64
        for batches in ([entering], halves):
            torch.testing.assert_close(block_scores(name, model, batches, 4, Scoring()), whole[4], rtol=1e-4, atol=1e-7)


def test_a_search_adds_the_patches_that_stand_for_most():
    torch.manual_seed(2)
    vit = create_backbone("vit_digits").eval()
    x = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    plan = search(vit, x, lengths=(30, 20, 15, 10, 5, 1), epochs=0, score="coverage", held_out=0.5, score_images=4)
    for layer, record in enumerate(plan.layers):
        above, scores = plan.kept[layer + 1], torch.tensor(record.scores)
        assert set(plan.kept[layer]) == {*above, *best_first(scores, above)[: len(plan.kept[layer]) - len(above)]}
    assert plan.settings["score"] == "coverage"
