"""Fixed patterns: the published counts, whole rings, symmetry, the two schedules, rectangular grids."""

import pytest
import timm
import torch
from backbones import images, make

from common.errors import UsageError
from common.models.reduced import reduce_tokens
from common.reducers.patterns import L1, closest_ring

PATTERNS = ["l1", "l2", "linf"]
# patches kept of 14 x 14 after each stage at keep rates 0.9, 0.7, 0.5 and 0.25
STAGES = {
    "l1": [(172, 156, 136), (136, 84, 60), (84, 40, 24), (40, 12, 4)],
    "l2": [(176, 156, 140), (140, 96, 68), (96, 52, 24), (52, 12, 4)],
    "linf": [(196, 144, 144), (144, 100, 64), (100, 36, 16), (36, 16, 4)],
}
# the same after blocks 3 to 9, shrinking to radius 1
CONTIGUOUS = {
    "l1": (184, 156, 136, 84, 60, 24, 12),
    "l2": (184, 164, 120, 80, 52, 32, 12),
    "linf": (144, 100, 64, 64, 36, 16, 16),
}
# patches within each whole ring of 14 x 14
L1_RINGS = [4, 12, 24, 40, 60, 84, 112, 136, 156, 172, 184, 192, 196]


def counts(reducer, blocks, num_patches=196):
    """Patches left after each of ``blocks``."""
    left = {-1: num_patches, **reducer.counts}
    return tuple(left[max(block for block in left if block <= layer)] for layer in blocks)


def reduced_224(name, **options):
    """The pattern on 14 x 14 patches, on a model without weights."""
    with torch.device("meta"):
        return reduce_tokens(timm.create_model("vit_tiny_patch16_224"), name, **options).reducer


@pytest.mark.usefixtures("no_init")
@pytest.mark.parametrize("name", PATTERNS)
def test_counts_of_stages(name):
    for rate, expected in zip((0.9, 0.7, 0.5, 0.25), STAGES[name], strict=True):
        reducer = reduced_224(name, keep_rate=rate)
        assert counts(reducer, (3, 6, 9)) == expected
        assert list(reducer.parameters()) == [] and reducer.state_dict() == {}


@pytest.mark.usefixtures("no_init")
@pytest.mark.parametrize("name", PATTERNS)
def test_counts_of_the_contiguous_schedule(name):
    reducer = reduced_224(name, contiguous=True)
    assert counts(reducer, range(3, 10)) == CONTIGUOUS[name] and counts(reducer, (2,)) == (196,)


def test_whole_rings():
    """Neither 92, 68 nor 164 patches, which rounding would make of the diamond: every count is one of whole rings."""
    offsets = [abs(2 * i - 13) for i in range(14)]
    rings = [L1.ring(a, b) for a in offsets for b in offsets]
    found = {sum(ring <= closest_ring(rings, target) for ring in rings) for target in range(1, 197)}
    assert sorted(found) == L1_RINGS


def test_the_closest_ring_and_ties():
    rings = [1, 1, 2, 2, 2, 2, 5]  # 2, 6 or 7 patches
    assert [closest_ring(rings, target) for target in (1, 3, 4, 5, 6, 7)] == [1, 1, 1, 2, 2, 5]


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("options", [{"keep_rate": 0.5}, {"contiguous": True}], ids=["stages", "contiguous"])
@pytest.mark.parametrize("side", [(64, 64), (64, 96), (112, 48)], ids=str)
def test_kept_patches_are_a_symmetric_ring_and_the_same_in_every_image(name, options, side):
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=side, depth=7).eval()
    model = reduce_tokens(vit, name, **options).eval()
    _, trace = model.trace(images(vit))
    rows, columns = side[0] // 16, side[1] // 16
    offset = {
        "l1": lambda a, b: a.abs() + b.abs(),
        "l2": torch.hypot,
        "linf": lambda a, b: torch.maximum(a.abs(), b.abs()),
    }[name](
        *torch.meshgrid(torch.arange(rows) - (rows - 1) / 2, torch.arange(columns) - (columns - 1) / 2, indexing="ij")
    )
    for layer in range(7):
        kept = trace.kept(layer).view(3, rows, columns)
        assert torch.equal(kept, trace.selected(layer).view_as(kept))
        assert torch.equal(kept, kept[:1].expand_as(kept))
        assert torch.equal(kept, kept.flip(1)) and torch.equal(kept, kept.flip(2))
        outside = offset[~kept[0]]
        assert outside.numel() == 0 or offset[kept[0]].max() < outside.min()  # nothing outside is nearer
    if rows == columns:
        assert torch.equal(kept, kept.mT)
    assert 0 < trace.num_tokens[-1][0] < rows * columns


@pytest.mark.parametrize("name", PATTERNS)
def test_what_is_kept_goes_on_as_it_is(name):
    """The blocks of timm on the patches of the trace give the logits."""
    vit = make("vit")
    x = images(vit)
    model = reduce_tokens(vit, name, keep_rate=0.5).eval()
    logits, trace = model.trace(x)
    with torch.inference_mode():
        tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
        before = torch.ones(16, dtype=torch.bool)
        for layer, block in enumerate(vit.blocks):
            kept = trace.kept(layer)[0]
            tokens = block(torch.cat([tokens[:, :1], tokens[:, 1:][:, kept[before]]], dim=1))
            before = kept
        torch.testing.assert_close(vit.forward_head(vit.norm(tokens)), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PATTERNS)
def test_identity_when_nothing_is_dropped(name):
    vit = make("vit-rectangle-depth7")
    x = images(vit)
    with torch.inference_mode():
        torch.testing.assert_close(reduce_tokens(vit, name, keep_rate=1.0).eval()(x), vit(x), rtol=0, atol=1e-5)


def test_contiguous_runs_from_the_first_to_the_last_location():
    model = reduce_tokens(make("vit"), "l2", contiguous=True, reduction_loc=(0, 2, 5)).eval()
    assert min(model.reducer.counts) == 0 and max(model.reducer.counts) <= 5
    assert (model(images(model)) - make("vit")(images(model))).abs().max() > 1e-3  # keep_rate is 1 all the same


@pytest.mark.parametrize("name", PATTERNS)
def test_the_innermost_patches_always_stay(name):
    """Radius 0 stands for that of the innermost patches, to which no radius comes down; a tiny one would pass it."""
    for min_radius in (0, -3, 1e-6):
        reducer = reduced_224(name, contiguous=True, min_radius=min_radius, reduction_loc=tuple(range(12)))
        assert reducer.counts[max(reducer.counts)] >= 4
    corner = {"l1": 14, "l2": 9.8994, "linf": 7}[name]
    assert reduced_224(name, contiguous=True, min_radius=corner).counts.get(3, 196) >= 192


def test_a_grid_of_one_row():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=(16, 48), depth=4).eval()
    for options in ({"keep_rate": 0.3}, {"contiguous": True}):
        _, trace = reduce_tokens(vit, "l1", **options).eval().trace(images(vit))
        assert trace.kept(-1).tolist() == [[False, True, False]] * 3


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("options", [{"keep_rate": 0.5}, {"contiguous": True}], ids=["stages", "contiguous"])
def test_a_dynamic_size_has_the_pattern_of_a_model_of_that_size(name, options):
    dynamic = timm.create_model("vit_tiny_patch16_224", img_size=64, dynamic_img_size=True, depth=7).eval()
    model = reduce_tokens(dynamic, name, **options).eval()
    for side in ((96, 64), (64, 64), (48, 80)):
        fixed = reduce_tokens(timm.create_model("vit_tiny_patch16_224", img_size=side, depth=7).eval(), name, **options)
        (_, found), (_, expected) = model.trace(torch.zeros(1, 3, *side)), fixed.trace(torch.zeros(1, 3, *side))
        assert [kept.tolist() for kept in found.assignment] == [kept.tolist() for kept in expected.assignment]
    kept = model.trace(torch.zeros(1, 3, 96, 96))[1].kept(-1).view(6, 6)
    assert kept.any() and torch.equal(kept, kept.flip(0)) and torch.equal(kept, kept.mT)


def test_refusals():
    vit = make("vit")
    with pytest.raises(UsageError, match=r"contiguous=True sets its own counts; keep_rate=0\.5 must stay 1\.0"):
        reduce_tokens(vit, "l1", keep_rate=0.5, contiguous=True)
    with pytest.raises(UsageError, match=r"min_radius=2\.0 is about contiguous=True; without it only 1\.0 is allowed"):
        reduce_tokens(vit, "l1", keep_rate=0.5, min_radius=2)
    allowed = {2.1: "allowed: a number up to 2", float("nan"): "give a number", "all": "give a number"}
    for min_radius, words in allowed.items():
        with pytest.raises(UsageError, match=rf"min_radius=.* is not allowed; {words}$"):
            reduce_tokens(vit, "linf", contiguous=True, min_radius=min_radius)
