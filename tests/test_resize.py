"""Images that are shrunk before a method reduces their tokens: the same as that method on a model of smaller images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from backbones import FAMILIES, make
from timm.models.vision_transformer import VisionTransformer

import common
from common.budget.solver import BudgetSolver
from common.cost.ceiling import has_ceiling
from common.cost.closed_form import Shape
from common.cost.counter import count_macs
from common.cost.methods import scheduled_macs
from common.errors import UsageError
from common.explain import create_explainer
from common.models.factory import create_backbone
from common.models.grids import view_at
from common.models.reduced import reduce_tokens
from common.reducers import Method, list_reducers, reducer_class

SIDE, PATCH, SMALL = 32, 4, 24  # a grid of 8 x 8 patches, of which 6 x 6 are left


@pytest.fixture
def vit() -> VisionTransformer:
    torch.manual_seed(0)
    return create_backbone("vit_digits").eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def shrunk(images: torch.Tensor) -> torch.Tensor:
    return F.interpolate(images, (SMALL, SMALL), mode="bicubic", antialias=True, align_corners=False)


FOLLOWS = sorted(
    name for name in list_reducers() if reducer_class(name).by_rate and reducer_class(name).family != "resizes"
)


@pytest.mark.parametrize("name", FOLLOWS)
def test_it_is_the_method_on_a_model_of_smaller_images(vit, images, name):
    small = view_at(vit, (SMALL // PATCH, SMALL // PATCH))
    torch.manual_seed(2)
    wanted = reduce_tokens(small, name, keep_rate=0.6).eval()
    torch.manual_seed(2)
    model = reduce_tokens(vit, name, keep_rate=0.6, resize=SMALL).eval()
    model.reducer.load_state_dict(wanted.reducer.state_dict())
    expected, traced = wanted.trace(shrunk(images))
    found, trace = model.trace(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert all(torch.equal(own, other) for own, other in zip(trace.num_tokens, traced.num_tokens, strict=True))
    assert trace.num_tokens[0].max() <= 36 and model.grid_size == model.patch_grid(images) == (6, 6)
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-5)
    assert count_macs(model, SIDE).total == count_macs(wanted, SMALL).total


def sized(vit: VisionTransformer) -> tuple[torch.Tensor, int, int]:
    """Two images of the model's own size, its longer side, and the pixels of a patch."""
    size, (patch, _) = vit.patch_embed.img_size, vit.patch_embed.patch_size
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)), max(size), patch


@pytest.mark.parametrize("family", FAMILIES)
def test_unreduced_it_is_the_smaller_image(family):
    """As ``downsample`` with the same grid, on every backbone; the size of the model itself changes nothing."""
    vit = make(family)
    x, side, patch = sized(vit)
    whole, downsample = reduce_tokens(vit, "none").eval(), reduce_tokens(vit, "downsample", keep_rate=0.5).eval()
    model = reduce_tokens(vit, "none", resize=side - patch).eval()
    downsample.reducer.cut = lambda full: model.grid_size
    assert max(model.grid_size) == side // patch - 1
    torch.testing.assert_close(model(x), downsample(x), rtol=0, atol=1e-6)
    assert torch.equal(reduce_tokens(vit, "none", resize=side).eval()(x), whole(x))


@pytest.mark.parametrize("family", FAMILIES)
def test_tome_takes_it_on_every_backbone(family):
    vit = make(family)
    x, side, patch = sized(vit)
    model = reduce_tokens(vit, "tome", keep_rate=0.6, resize=side - patch).eval()
    small = view_at(vit, model.grid_size)
    wanted = reduce_tokens(small, "tome", keep_rate=0.6).eval()
    shown = F.interpolate(x, small.patch_embed.img_size, mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(model(x), wanted(shown), rtol=0, atol=1e-5)


def test_an_oblong_image_is_shrunk_by_the_same_factor():
    vit = VisionTransformer(
        img_size=64, patch_size=16, embed_dim=32, depth=2, num_heads=2, dynamic_img_size=True
    ).eval()
    model = reduce_tokens(vit, "tome", keep_rate=0.5, reduction_loc=(0,), resize=32).eval()
    assert model.patch_grid(torch.rand(1, 3, 64, 128)) == (2, 4) and model.grid_size == (2, 2)
    assert model.trace(torch.rand(1, 3, 64, 128))[1].num_tokens[0].item() == 4


@pytest.mark.parametrize("name", ["tram", "topk", "none"])
def test_closed_form(vit, name):
    model = reduce_tokens(vit, name, keep_rate=1.0 if name == "none" else 0.5, resize=SMALL)
    assert Shape.of(model).num_patches == 36 and Shape.of(vit).num_patches == 64
    assert scheduled_macs(Shape.of(model), name, model.reducer.schedule) == count_macs(model, SIDE).total


@pytest.mark.parametrize("cut", [0.5, 0.6, 0.7])
def test_a_budget_is_a_share_of_the_model_on_whole_images(cut):
    vit = create_backbone("vit_tiny_patch16_224")
    solver = BudgetSolver(vit, "tome", resize=176)
    found = solver.solve(mac_cut=cut)
    model = reduce_tokens(vit, "tome", keep_rate=found.keep_rate, resize=176)
    saved = 1 - count_macs(model, 224).total / count_macs(vit, 224).total
    assert saved == pytest.approx(found.mac_cut) == pytest.approx(cut, abs=0.005)
    assert solver.patches == 121 and all(count <= 121 for count in found.counts)


def test_it_has_no_ceiling_of_first_tokens(vit):
    assert has_ceiling(reduce_tokens(vit, "topk", keep_rate=0.5))
    assert not has_ceiling(reduce_tokens(vit, "topk", keep_rate=0.5, resize=SMALL))


def test_heatmaps_are_of_the_smaller_image(vit, images):
    model = reduce_tokens(vit, "topk", keep_rate=0.5, resize=SMALL).eval()
    assert create_explainer("rollout", model)(images).heatmaps.shape == (3, 6, 6)


def test_it_is_saved_and_exported_with_the_model(vit, images, tmp_path):
    model = reduce_tokens(vit, "tome", keep_rate=0.5, resize=SMALL).eval()
    common.save(model, tmp_path / "small.safetensors")
    again = common.load(tmp_path / "small.safetensors", create_backbone("vit_digits")).eval()
    assert again.reducer.resize == SMALL and torch.equal(again(images), model(images))
    torch.testing.assert_close(
        torch.export.load(common.export(model, tmp_path / "small.pt2")).module()(images),
        model(images),
        rtol=0,
        atol=1e-4,
    )


def test_the_position_embedding_learns_through_the_smaller_one(vit, images):
    model = reduce_tokens(vit, "tome", keep_rate=0.5, resize=SMALL).train()
    model(images).sum().backward()
    assert vit.pos_embed.grad is not None and vit.pos_embed.grad.abs().sum() > 0
    assert dict(model.named_parameters())["pos_embed"] is vit.pos_embed


@pytest.mark.parametrize(
    ("reducer", "resize", "message"),
    [
        ("tome", 22, "resize=22 is not allowed; give a multiple of 4 pixels, at most 32"),
        ("tome", 36, "resize=36 is not allowed; give a multiple of 4 pixels, at most 32"),
        ("tome", 0, "reducer 'tome': resize=0"),
        ("downsample", 24, "reducer 'downsample' resizes the image itself; it takes no resize"),
    ],
)
def test_what_cannot_be_is_one_line(vit, reducer, resize, message):
    with pytest.raises(UsageError, match=message):
        reduce_tokens(vit, reducer, keep_rate=0.5, resize=resize)


def test_the_written_form():
    method = Method.parse("tome:resize=176,last_block=cls")
    assert method.options_text == "last_block=cls,resize=176" and dict(method.options)["resize"] == 176
