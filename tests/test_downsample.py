"""Downsample: the grids and costs as specified, the numbers of a model of the smaller size, the original untouched."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from backbones import FAMILIES, images, make

from common.cost.counter import count_macs
from common.models.grids import merged_patches
from common.models.reduced import reduce_tokens
from common.reducers.downsample import candidates
from common.schedule import Schedule

# keep rate -> target GMAC, grid, its GMAC
GRIDS = {
    "tiny": {
        0.9: (1.069, (13, 13), 1.061),
        0.7: (0.795, (11, 12), 0.807),
        0.5: (0.605, (10, 10), 0.598),
        0.25: (0.452, (9, 9), 0.478),
    },
    "small": {
        0.9: (3.944, (13, 13), 3.926),
        0.7: (2.946, (11, 12), 3.026),
        0.5: (2.233, (10, 10), 2.269),
        0.25: (1.647, (8, 9), 1.621),
    },
    "base": {
        0.9: (15.11, (13, 13), 15.07),
        0.7: (11.31, (11, 12), 11.70),
        0.5: (8.556, (10, 10), 8.826),
        0.25: (6.267, (8, 9), 6.342),
    },
}
THIRTEEN = tuple(196 - 13 * block for block in range(1, 13))  # 13 patches fewer in every block; the last has 40


@pytest.mark.usefixtures("no_init")
@pytest.mark.parametrize("size", GRIDS)
def test_grids_and_costs(size):
    with torch.device("meta"):
        vit = timm.create_model(f"vit_{size}_patch16_224")
    for keep_rate, (target, grid, cost) in GRIDS[size].items():
        reducer = reduce_tokens(vit, "downsample", keep_rate=keep_rate).reducer
        found = reducer.cost(reducer._scheduled(196)) / 1e9, reducer._whole(*grid) / 1e9
        assert found == pytest.approx((target, cost), rel=1e-3) and reducer.cut((14, 14)) == grid
    assert reduce_tokens(vit, "downsample").reducer.cut((14, 14)) == (14, 14)


@pytest.mark.usefixtures("no_init")
def test_a_schedule_of_counts_in_every_block():
    assert (THIRTEEN[0], THIRTEEN[-1]) == (183, 40)
    for size, cost in (("tiny", 0.734), ("small", 2.764), ("base", 10.71)):
        with torch.device("meta"):
            vit = timm.create_model(f"vit_{size}_patch16_224")
        where = {"keep_rate": THIRTEEN, "reduction_loc": tuple(range(12))}
        reducer = reduce_tokens(vit, "downsample", **where).reducer
        assert reducer.cut((14, 14)) == (11, 11)
        assert reducer._whole(11, 11) / 1e9 == pytest.approx(cost, rel=6e-4)


def test_the_counter_counts_what_the_grid_promises():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=96, depth=4)
    model = reduce_tokens(vit, "downsample", keep_rate=0.5)
    grid = model.reducer.cut((6, 6))
    assert count_macs(model, 96).total == model.reducer._whole(*grid) < 0.8 * count_macs(vit, 96).total


def test_candidates_have_nearly_the_shape_of_the_image():
    assert {(h, w) for h, w in candidates((14, 14)) if h * w == 132} == {(11, 12), (12, 11)}
    assert all(abs(h - w) <= 1 for h, w in candidates((14, 14))) and len(list(candidates((14, 14)))) == 40
    assert all(abs(h * 6 - w * 4) <= 6 for h, w in candidates((4, 6))) and (4, 6) in set(candidates((4, 6)))


def test_of_two_grids_at_one_cost_the_flatter_is_taken():
    """11 x 12, not 12 x 11, also where the target is that very cost."""
    with torch.device("meta"):
        vit = timm.create_model("vit_tiny_patch16_224")
    reducer = reduce_tokens(vit, "downsample", keep_rate=0.7).reducer
    assert reducer._whole(11, 12) == reducer._whole(12, 11) and reducer.cut((14, 14)) == (11, 12)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"])
def test_it_is_timms_model_of_the_smaller_size_and_the_original_stays_as_it_was(name):
    torch.manual_seed(0)
    vit = timm.create_model(name, img_size=96, depth=4).eval()
    x = torch.randn(2, 3, 96, 96)
    before, state = vit(x).detach(), set(vit.state_dict())
    model = reduce_tokens(vit, "downsample", keep_rate=0.5).eval()
    rows, columns = model.reducer.cut((6, 6))
    small = copy.deepcopy(vit)
    small.set_input_size(img_size=(16 * rows, 16 * columns))
    resized = F.interpolate(x, (16 * rows, 16 * columns), mode="bicubic", antialias=True)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), small(resized), rtol=0, atol=1e-5)
    assert torch.equal(vit(x), before) and set(vit.state_dict()) == state == set(model.state_dict())
    assert rows * columns < 36 and (model(x) - before).abs().max() > 5e-5
    assert list(model.reducer.parameters()) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_has_the_tokens_of_the_grid(family):
    vit = make(family)
    model = reduce_tokens(vit, "downsample", keep_rate=0.5).eval()
    _, trace = model.trace(images(vit))
    full = tuple(vit.patch_embed.grid_size)
    rows, columns = model.reducer.cut(full)
    assert all((count == rows * columns).all() for count in trace.num_tokens) and rows * columns < full[0] * full[1]
    for assignment in trace.assignment:
        assert torch.equal(assignment, merged_patches(full, (rows, columns)).expand(3, -1))
    assert not trace.selected(0).any() and trace.kept(-1).all()


def test_a_patch_belongs_to_the_new_one_that_holds_its_centre():
    centres = (torch.arange(14) + 0.5) / 14
    expected = (centres * 9).floor().long()
    found = merged_patches((14, 14), (9, 9)).view(14, 14)
    assert torch.equal(found, expected[:, None] * 9 + expected) and found.unique().numel() == 81
    assert torch.equal(merged_patches((3, 5), (3, 5)), torch.arange(15))


def test_the_schedule_decides_and_not_the_number_of_stages():
    """Three stages at 0.5 and the fractions that they compound to are the same model."""
    with torch.device("meta"):
        vit = timm.create_model("vit_tiny_patch16_224")
    counts = Schedule(0.5, (3, 6, 9)).counts(196)
    found = [reduce_tokens(vit, "downsample", keep_rate=rate).reducer for rate in (0.5, counts)]
    assert counts == (98, 49, 24) and found[0]._scheduled(196) == found[1]._scheduled(196)
    assert found[0].cut((14, 14)) == found[1].cut((14, 14)) == (10, 10)


def test_gradients_reach_the_positions():
    model = reduce_tokens(make("vit").train(), "downsample", keep_rate=0.5).train()
    model(images(model)).square().sum().backward()
    assert model.pos_embed.grad.abs().sum() > 0 and model.patch_embed.proj.weight.grad.abs().sum() > 0
