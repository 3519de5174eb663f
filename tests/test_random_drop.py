"""Random: the draw as specified, the same for every image and device, nested over stages, uniform over seeds."""

import pytest
import timm
import torch
from backbones import images, make

from common.errors import UsageError
from common.models.reduced import reduce_tokens
from common.reducers import Method
from common.reducers.random_drop import drawn, largest_in_order


def kept(seed=0, batch=2, **changes):
    """(depth, B, 16) the patches that are left after every block of a small ViT."""
    model = reduce_tokens(make("vit"), "random", keep_rate=0.5, seed=seed).eval().to(**changes)
    x = images(model, batch).to(next(model.parameters()).dtype)
    trace = model.trace(x)[1]
    return torch.stack([trace.kept(layer) for layer in range(len(model.blocks))])


def test_the_draw_of_seed_0():
    patches = {
        (16, 8): [0, 1, 5, 6, 7, 8, 9, 15],
        (196, 12): [26, 51, 69, 74, 75, 81, 100, 113, 140, 142, 170, 172],
        (196, 3): [51, 69, 142],
    }
    for (count, k), expected in patches.items():
        assert largest_in_order(drawn(count, 0), k).tolist() == expected
    assert kept()[3].nonzero()[:8, 1].tolist() == patches[16, 8]


def test_equal_numbers_go_to_the_lower_position():
    assert largest_in_order(torch.tensor([0.5, 0.7, 0.5, 0.7, 0.5]), 3).tolist() == [0, 1, 3]
    assert largest_in_order(torch.zeros(300), 7).tolist() == list(range(7))


def test_one_choice_for_all_images_batches_and_number_formats():
    first = kept()
    assert torch.equal(first, first[:, :1].expand_as(first))
    assert torch.equal(first[:, :1].expand(-1, 5, -1), kept(batch=5)) and torch.equal(first, kept(dtype=torch.bfloat16))
    torch.manual_seed(1)
    assert torch.equal(first, kept()) and not torch.equal(first, kept(seed=1))


def test_stages_are_nested_and_each_keeps_the_largest_of_all():
    for seed in range(20):
        for layer, count in ((3, 8), (6, 4), (9, 2)):
            assert kept(seed)[layer, 0].nonzero()[:, 0].tolist() == largest_in_order(drawn(16, seed), count).tolist()


def test_every_patch_is_as_likely_as_any_other():
    """Chi square of 2,000 seeds, corrected for drawing without replacement: 15 degrees of freedom, 99 % below 30.6."""
    for k in (2, 4, 8):
        counts = torch.zeros(16)
        for seed in range(2000):
            counts[largest_in_order(drawn(16, seed), k)] += 1
        share = k / 16
        square = ((counts - 2000 * share) ** 2).sum() / (2000 * share * (1 - share)) * 15 / 16
        assert 5.2 < square < 30.6


def test_what_is_kept_sees_all_that_were_there():
    """A kept patch is a row of timm's whole block, and of the blocks of timm on the kept ones after it."""
    vit = make("vit")
    x = images(vit)
    model = reduce_tokens(vit, "random", keep_rate=0.5, reduction_loc=(5,)).eval()
    logits, trace = model.trace(x)
    rows = torch.cat([torch.zeros(1, dtype=torch.long), 1 + trace.kept(5)[0].nonzero()[:, 0]])
    with torch.inference_mode():
        tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
        for layer, block in enumerate(vit.blocks):
            tokens = block(tokens)[:, rows] if layer == 5 else block(tokens)
        torch.testing.assert_close(vit.forward_head(vit.norm(tokens)), logits, rtol=0, atol=1e-5)


def test_no_parameters():
    model = reduce_tokens(make("vit"), "random", keep_rate=0.5)
    assert list(model.reducer.parameters()) == [] and set(model.state_dict()) == set(make("vit").state_dict())


def test_the_seed_of_a_run_is_that_of_methods_which_leave_it_open():
    left_open = {text: Method.parse(text).leaves_seed for text in ("random", "idle_random", "random:seed=1", "tome")}
    assert left_open == {"random": True, "idle_random": True, "random:seed=1": False, "tome": False}
    assert str(Method.parse("random").seeded(5)) == "random:seed=5"


@pytest.mark.parametrize("seed", [-1, 0.5, "first"])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(UsageError, match=r"reducer 'random': seed=.*whole number"):
        reduce_tokens(timm.create_model("vit_tiny_patch16_224", depth=4, img_size=64), "random", seed=seed)
