"""The published cost columns, the closed forms and the counters must tell the same story."""

import pandas as pd
import pytest
import thop
import timm
import torch
from backbones import FAMILIES, make
from timm.layers import GluMlp, SwiGLU, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from common.cost.closed_form import Shape, block_parts, total_macs
from common.cost.counter import count_macs, gmac_of, mean_macs
from common.cost.methods import scheduled_macs, scheduled_parts
from common.cost.published import published_model, run_thop, thop_macs
from common.errors import UsageError
from common.models.reduced import reduce_tokens
from common.reducers import Schedule
from common.reducers.downsample import LinearCost
from common.results import PUBLISHED, resolve

COLUMNS = ["backbone", "method", "keep_rate", "img_size", "gflops", "params"]


def published_rows():
    files = ["tram_accuracy.csv", "tram_throughput_vit.csv", "tram_throughput_simple_vit.csv"]
    rows = pd.concat([pd.read_csv(resolve(PUBLISHED / name)) for name in files])
    rows = rows[rows.method != "ats"][COLUMNS].drop_duplicates()
    return [pytest.param(*row, id=f"{row[0]}-{row[1]}-{row[2]}-{row[3]}") for row in rows.itertuples(index=False)]


ROWS = published_rows()


def test_every_deterministic_row_is_there():
    # 7.1: (1 vanilla + 2 x 3) x 2 sizes; 7.2: 4 methods x 3 sizes; 7.3: 3 x 3
    assert len(ROWS) == 14 + 12 + 9


@pytest.mark.usefixtures("no_init")
@pytest.mark.parametrize(("backbone", "method", "keep_rate", "img_size", "gflops", "params"), ROWS)
def test_published_gflops_and_params(backbone, method, keep_rate, img_size, gflops, params):
    """The printed cell, the library thop, the counter and both closed forms."""
    model, schedule = published_model(backbone, method, keep_rate, img_size), Schedule(keep_rate, (3, 6, 9))
    counted, shape, by_thop = count_macs(model, img_size), Shape.of(model), run_thop(model, schedule, img_size)
    assert round(counted.thop_compat / 1e9, 4) == gflops
    assert counted.thop_compat == thop_macs(shape, method, schedule) == by_thop[0]
    assert counted.total == scheduled_macs(shape, method, schedule)
    assert counted.attention == sum(p["attention"] + p["score"] for p in scheduled_parts(shape, method, schedule))
    if params == params:  # the README prints none
        assert by_thop[1] == params


@pytest.mark.parametrize("method", ["none", "tram", "topk", "patchmerger"])
def test_closed_form_at_another_depth_and_schedule(method):
    vit = timm.create_model("vit_tiny_patch16_224", depth=7, img_size=96, num_classes=5)
    schedule = Schedule(1.0 if method == "none" else (30, 30, 9), (1, 2, 5))
    model = reduce_tokens(vit, method, keep_rate=schedule.keep_rate, reduction_loc=schedule.reduction_loc)
    counted, shape = count_macs(model, 96), Shape.of(model)
    assert counted.total == scheduled_macs(shape, method, schedule)
    products = sum(parts["attention"] + parts["score"] for parts in scheduled_parts(shape, method, schedule))
    assert (counted.attention, counted.linear) == (products, counted.total - products)
    assert counted.thop_compat == thop_macs(shape, method, schedule)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_itself_is_counted_as_the_closed_form_has_it(family):
    vit = make(family)
    size, keep_all = vit.patch_embed.img_size, Schedule(1.0, (0,))
    assert count_macs(vit, size).total == Shape.of(vit).unreduced == scheduled_macs(Shape.of(vit), "none", keep_all)


def test_a_pooling_head_pays_for_the_tokens_that_are_left():
    vit, schedule = make("siglip-map"), Schedule(0.5, (1, 2))
    model = reduce_tokens(vit, "tram", keep_rate=0.5, reduction_loc=(1, 2))
    assert count_macs(model, 64).total == scheduled_macs(Shape.of(vit), "tram", schedule)


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (160, 32)])
@pytest.mark.parametrize("method", ["none", "tram", "topk", "patchmerger"])
def test_sizes_that_are_no_square(method, size):
    """A model made for the size, one of dynamic size, and the closed form."""
    patches, options = size[0] * size[1] // 256, {"keep_rate": 1.0 if method == "none" else 0.5}
    fixed = reduce_tokens(timm.create_model("vit_tiny_patch16_224", img_size=size), method, **options)
    expected = scheduled_macs(Shape.of(fixed), method, Schedule(options["keep_rate"], (3, 6, 9)))
    assert Shape.of(fixed).num_patches == patches and count_macs(fixed, size).total == expected
    if method != "patchmerger":  # as many queries as the size it was made for leaves
        vit = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True)
        dynamic = reduce_tokens(vit, method, **options)
        assert Shape.of(dynamic, size).num_patches == patches and count_macs(dynamic, size).total == expected


def test_padded_sizes_have_one_more_patch():
    vit = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, dynamic_img_pad=True)
    assert Shape.of(vit, (70, 64)).num_patches == 20
    assert count_macs(vit, (70, 64)).total == Shape.of(vit, (80, 64)).unreduced


@pytest.mark.parametrize("measure", [count_macs, Shape.of])
def test_sizes_that_the_model_does_not_take_are_refused(measure):
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64)
    with pytest.raises(UsageError, match=r"img_size=\(64, 96\) is not allowed; the model was made for \(64, 64\)"):
        measure(vit, (64, 96))
    dynamic = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True)
    with pytest.raises(UsageError, match=r"img_size=70 is not allowed; give multiples of the patch size \(16, 16\)"):
        measure(dynamic, 70)


def test_what_is_no_vision_transformer_is_refused():
    with pytest.raises(UsageError, match="a Linear is given; allowed: a timm VisionTransformer, reduced or not"):
        count_macs(nn.Linear(2, 2), 32)


def test_a_method_without_a_closed_form_is_refused():
    with pytest.raises(UsageError, match="unknown reducer with a closed form 'ats'; allowed: none, patchmerger, t"):
        scheduled_macs(Shape.of(make("vit")), "ats", Schedule(0.5, (3, 6, 9)))


def test_parts_of_a_block_by_hand():
    """D = 2, M = 8: 3 queries, 5 keys and 4 rows."""
    shape = Shape(num_patches=6, num_prefix_tokens=1, dim=2, heads=1, depth=3, mlp_dim=8, patch_dim=3, num_outputs=5)
    assert block_parts(shape, 3, 5, 4) == {"qkv": 13 * 4, "attention": 2 * 3 * 5 * 2, "proj": 4 * 4, "mlp": 4 * 32}
    assert block_parts(shape, 3, 5, projected=9) == {"qkv": 36, "attention": 60, "proj": 12, "mlp": 96}
    assert total_macs(shape, [7, 11]) == 18 + 6 * 2 * 3 + 2 * 5


def test_thop_agrees_where_both_count():
    """thop sees no softmax in timm (attention is fused) and only torch's own LayerNorm; the rest must be equal."""
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, norm_layer=nn.LayerNorm).eval()
    expected, _ = thop.profile(vit, (torch.randn(1, 3, 64, 64),), verbose=False)
    n = 17
    assert count_macs(vit, 64).thop_compat - 12 * 3 * n * (3 * n - 1) == expected


def test_thop_leaves_nothing_behind():
    model = published_model("vit_tiny_patch16_224", "tram", 0.5, 224)
    before = count_macs(model, 224)
    run_thop(model, Schedule(0.5, (3, 6, 9)), 224)
    assert not any("total" in name for name, _ in model.named_buffers()) and count_macs(model, 224) == before


def test_counting_leaves_the_model_as_it_was():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64).train()
    model = reduce_tokens(vit, "tram", keep_rate=0.5)
    before = torch.get_rng_state()
    first = count_macs(model, 64)
    assert model.training and not any(m._forward_hooks for m in model.modules() if isinstance(m, nn.Linear))
    assert torch.equal(before, torch.get_rng_state())
    assert count_macs(model, 64) == first


@pytest.mark.parametrize(
    ("method", "varies"),
    [
        ("ats", True),
        ("dynamic_slimming:budget=threshold", True),
        ("dynamic_slimming", False),
        ("idle_mlp:score_threshold=0.5", True),
        ("idle_mlp", False),
        ("topk", False),
    ],
)
def test_what_depends_on_the_image_is_counted_on_images(method, varies):
    """The mean over images, each on its own; and of whatever does not, images are not asked for."""
    torch.manual_seed(0)
    model = reduce_tokens(make("vit").eval(), method, **({"keep_rate": 0.5} if "idle" not in method else {})).eval()
    with torch.no_grad():
        for thresholds in (buffer for name, buffer in model.reducer.named_buffers() if "thresholds" in name):
            thresholds.fill_(0.5)
    assert model.reducer.adaptive == varies
    images = torch.randn(3, 3, *model.patch_embed.img_size)
    if varies:
        each = [mean_macs(model, image[None]) for image in images]
        assert gmac_of(model, lambda: images) == pytest.approx(sum(each) / 3e9)
    else:
        assert gmac_of(model, pytest.fail) == count_macs(model, model.patch_embed.img_size).total / 1e9


@pytest.mark.usefixtures("no_init")
@pytest.mark.parametrize("layer", [SwiGLU, SwiGLUPacked, GluMlp])
def test_an_mlp_of_any_kind_costs_what_it_computes(layer):
    """As in DINOv2's giant and AIMv2: budgets of idling, slimming and a smaller image rest on the closed form."""
    vit = VisionTransformer(img_size=64, patch_size=16, embed_dim=32, depth=4, num_heads=2, mlp_layer=layer).eval()
    assert Shape.of(vit).unreduced == count_macs(vit, 64).total
    smaller = reduce_tokens(vit, "downsample", keep_rate=0.5)
    patches = smaller.trace(torch.zeros(1, 3, 64, 64))[1].num_tokens[0].item()
    assert patches < 16 and LinearCost.of(vit)([patches] * 5) == count_macs(smaller, 64).total


def test_adapters_are_counted_that_have_no_weights_of_their_own():
    class Around(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    vit, other = make("vit").eval(), make("vit").eval()
    for block in other.blocks:
        block.attn.qkv, block.attn.proj, block.mlp.fc1 = map(Around, (block.attn.qkv, block.attn.proj, block.mlp.fc1))
    size = vit.patch_embed.img_size
    assert Shape.of(other) == Shape.of(vit)
    for method in ("none", "tome", "topk"):
        models = [
            reduce_tokens(each, method, keep_rate=1.0 if method == "none" else 0.5).eval() for each in (vit, other)
        ]
        plain, wrapped = (count_macs(model, size) for model in models)
        assert (plain.linear, plain.attention, plain.total) == (wrapped.linear, wrapped.attention, wrapped.total)
