"""EViT: lengths of the paper's schedule, the fused token by hand, what becomes of it later."""

import pytest
import torch
from backbones import images, make
from timm.models import create_model

from common.models.reduced import reduce_tokens
from common.reducers.evit import fuse
from common.tokens import Tokens


def full_size(keep_rate, **options):
    torch.manual_seed(0)
    vit = create_model("vit_tiny_patch16_224", embed_dim=48).eval()
    return reduce_tokens(vit, "evit", keep_rate=keep_rate, **options)


@pytest.mark.parametrize(
    ("keep_rate", "lengths"),
    [(0.9, (178, 160, 144)), (0.7, (139, 98, 69)), (0.5, (100, 51, 26)), (0.25, (51, 14, 5))],
)
def test_sequence_lengths_with_cls(keep_rate, lengths):
    """K_s kept tokens, the fused one and CLS."""
    model = full_size(keep_rate)
    x = torch.randn(1, 3, 224, 224)
    _, trace = model.trace(x)
    assert tuple(trace.num_tokens[layer].item() + 1 for layer in (3, 6, 9)) == lengths
    assert model.forward_features(x).shape[1] == lengths[-1]


def test_equal_ratios_fuse_one_more_token_each_stage():
    _, trace = full_size((0.5, 0.5, 0.5)).trace(torch.randn(1, 3, 224, 224))
    assert [trace.num_tokens[layer].item() for layer in (3, 6, 9)] == [99, 99, 99]


def test_fused_token_by_hand():
    """Not renormalised: the weights 0.1 and 0.2 of the two lost patches stay as they are."""
    x = torch.tensor([[[9.0, 9], [1, 0], [0, 1], [2, 2], [4, 0]]])  # CLS and four patches
    patches = torch.arange(4)[None]
    tokens = Tokens(x, num_prefix_tokens=1, grid_size=(2, 2), assignment=patches, origin=patches)
    weight = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    result = fuse(tokens, weight, torch.tensor([[1, 3]]))
    torch.testing.assert_close(result.x, torch.tensor([[[9.0, 9], [0, 1], [4, 0], [0.1 * 1 + 0.2 * 2, 0.2 * 2]]]))
    assert result.assignment.tolist() == [[2, 0, 2, 1]]
    assert result.origin.tolist() == [[1, 3, -1]]


def test_kept_patches_are_those_of_topk_with_mean_over_heads_at_the_first_stage():
    vit = make("vit")
    x = images(vit)
    _, fused = reduce_tokens(vit, "evit", keep_rate=0.5).trace(x)
    _, cut = reduce_tokens(vit, "topk", keep_rate=0.5, head_fusion="mean").trace(x)
    assert torch.equal(fused.selected(3), cut.selected(3))
    torch.testing.assert_close(fused.scores[3], cut.scores[3])
    assert fused.kept(11).all() and not cut.kept(3).all()


def test_an_earlier_fused_token_is_a_candidate_like_any_other():
    """What it holds moves with it: kept as a token of its own, or into the next fused token."""
    vit = make("vit")
    _, trace = reduce_tokens(vit, "evit", keep_rate=0.6).trace(images(vit, batch=16))
    for first, second, origin in zip(trace.assignment[3], trace.assignment[6], trace.origin[6], strict=True):
        fused = (first == first.max()).nonzero()[:, 0]
        home = second[fused].unique()
        assert len(home) == 1 and origin[home.item()] == -1


def test_gradient_reaches_the_attention_through_the_fused_weights():
    """With everything but one patch fused, and that patch and CLS cut off, the rest comes from the fused token."""
    x = torch.randn(1, 4, 2)
    weight = torch.tensor([[0.2, 0.3, 0.5]], requires_grad=True)
    fuse(Tokens(x, 1, grid_size=(1, 3)), weight, torch.tensor([[0]])).x[:, -1].sum().backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[0.0, x[0, 2].sum(), x[0, 3].sum()]]))
