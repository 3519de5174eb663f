"""ToMe: counts with and without the half-token cap, the matching by hand, sizes and proportional attention."""

import pytest
import torch
from backbones import images, make
from timm.models import create_model

from common.models.reduced import reduce_tokens
from common.reducers.tome import Matching, merge
from common.tokens import Tokens

RATES = (0.9, 0.7, 0.5, 0.25)


def counts(keep_rate, **options):
    torch.manual_seed(0)
    model = reduce_tokens(
        create_model("vit_tiny_patch16_224", embed_dim=48).eval(), "tome", keep_rate=keep_rate, **options
    )
    _, trace = model.trace(torch.randn(1, 3, 224, 224))
    return tuple(trace.num_tokens[layer].item() for layer in (3, 6, 9))


@pytest.mark.parametrize(
    ("keep_rate", "expected"),
    list(zip(RATES, [(176, 158, 142), (137, 96, 67), (98, 49, 24), (49, 12, 3)], strict=True)),
)
def test_every_stage_reaches_its_target(keep_rate, expected):
    assert counts(keep_rate) == expected


@pytest.mark.parametrize(
    ("keep_rate", "expected"),
    list(zip(RATES, [(176, 158, 142), (137, 96, 67), (98, 49, 25), (98, 61, 52)], strict=True)),
)
def test_parity_merges_at_most_half_and_never_catches_up(keep_rate, expected):
    assert counts(keep_rate, parity=True) == expected


def test_parity_and_default_are_the_same_where_the_cap_is_not_reached():
    vit = make("vit")
    x = images(vit)
    default, parity = (reduce_tokens(vit, "tome", keep_rate=0.7, parity=parity).eval() for parity in (False, True))
    assert torch.equal(default(x), parity(x))
    default, parity = (reduce_tokens(vit, "tome", keep_rate=0.3, parity=parity).eval() for parity in (False, True))
    assert not torch.allclose(default(x), parity(x))


def test_matching_by_hand():
    """Six tokens by turns targets 0, 2, 4 and sources 1, 3, 5; lengths of the vectors do not count."""
    metric = torch.tensor([[[1.0, 0], [3, 0.3], [0, 1], [1, 1], [-1, 0], [0, 9]]])
    matching = Matching.of(metric, num_merged=2)
    # best partners: 1 -> 0 (0.995), 3 -> 0 or 2 (0.707), 5 -> 2 (1.0)
    assert (
        matching.merged.tolist() == [[2, 0]]
        and matching.partner.tolist() == [[1, 0]]
        and matching.kept.tolist() == [[1]]
    )
    assert matching.destination(6).tolist() == [[1, 1, 2, 0, 3, 2]]
    x = torch.arange(6.0)[None, :, None]
    assert matching.sum(x)[0, :, 0].tolist() == [3, 0 + 1, 2 + 5, 4]


def test_autocast_does_not_change_the_matching():
    """In half precision these similarities would tie by the dozen."""
    metric = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0)) * 0.05 + 1
    exact = Matching.of(metric, num_merged=20)
    with torch.autocast("cpu", torch.bfloat16):
        rough = Matching.of(metric, num_merged=20)
    assert torch.equal(rough.merged, exact.merged) and torch.equal(rough.partner, exact.partner)


def test_merged_tokens_are_the_means_of_their_patches():
    """Rebuilt from the trace: sizes and features after two matchings are those of the patches themselves."""
    x = torch.randn(2, 1 + 12, 5)
    patches = torch.arange(12).expand(2, -1)
    tokens, metric = Tokens(x, 1, grid_size=(3, 4), assignment=patches, origin=patches), x[:, 1:]
    for num_merged in (5, 3):
        tokens, metric = merge(tokens, metric, num_merged, again=True)
    assert tokens.num_patch_tokens == 4
    for image in range(2):
        for token in range(4):
            members = x[image, 1:][tokens.assignment[image] == token]
            assert tokens.size[image, 1 + token] == len(members)
            torch.testing.assert_close(tokens.patches[image, token], members.mean(0))
            torch.testing.assert_close(metric[image, token], members.mean(0))
    assert torch.equal(tokens.x[:, 0], x[:, 0]) and (tokens.size[:, 0] == 1).all()


def test_attention_is_proportional_to_size():
    """A merged pair of equal patches attends and is attended like the pair: nothing changes for the others."""
    vit = make("vit")
    x = images(vit, batch=1)
    tokens = vit._pos_embed(vit.patch_embed(x))
    doubled = torch.cat([tokens, tokens[:, -1:]], dim=1)
    size = torch.ones(tokens.shape[:2])
    size[:, -1] = 2
    bias = Tokens(tokens, 1, grid_size=(4, 4), size=size).attention_bias()
    block = vit.blocks[0]
    torch.testing.assert_close(block(tokens, attn_mask=bias), block(doubled)[:, :-1], rtol=0, atol=1e-5)


def test_size_is_used_from_the_block_after_the_first_merge_on():
    vit = make("vit")
    seen = []
    for block in vit.blocks:
        block.attn.register_forward_pre_hook(lambda m, a, k: seen.append(k.get("attn_mask")), with_kwargs=True)
    model = reduce_tokens(vit, "tome", keep_rate=0.5, reduction_loc=(2,)).eval()
    model(images(vit, batch=1))
    # block 2 itself runs this package's attention, all others timm's own
    assert [mask is None for mask in seen] == [True, True] + [False] * 9
    assert seen[-1].exp().sum().item() == pytest.approx(17)  # CLS and all sixteen patches


def test_gradients_flow_through_the_values_only():
    x = torch.randn(1, 9, 4, requires_grad=True)
    metric = torch.randn(1, 8, 3, requires_grad=True)
    tokens, _ = merge(Tokens(x, 1, grid_size=(2, 4)), metric, 3, again=False)
    tokens.x.sum().backward()
    assert metric.grad is None and (x.grad != 0).all()
