"""TopK, PatchMerger and ATS against literal transcriptions of their definitions."""

import pytest
import torch
from backbones import images, make

from common.errors import UsageError
from common.models.reduced import reduce_tokens
from common.reducers import Method
from common.reducers.ats import grid_points, nearest_in_cdf, significance
from common.tokens import Selection, Tokens


def first_reduction(vit, x, layer=3):
    """Attention maps, values and the block input at ``layer`` of the untouched model."""
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
    for blk in vit.blocks[:layer]:
        x = blk(x)
    blk = vit.blocks[layer]
    b, n, _ = x.shape
    q, k, v = blk.attn.qkv(blk.norm1(x)).reshape(b, n, 3, blk.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1), v, x


@pytest.mark.parametrize("fusion", ["max", "mean"])
def test_topk_keeps_what_the_class_token_attends_to(fusion):
    vit = make("vit")
    x = images(vit)
    _, trace = reduce_tokens(vit, "topk", keep_rate=0.5, head_fusion=fusion).eval().trace(x)
    row = first_reduction(vit, x)[0][:, :, 0, 1:]
    score = row.amax(1) if fusion == "max" else row.mean(1)
    for image in range(len(x)):
        assert set(trace.kept(3)[image].nonzero()[:, 0].tolist()) == set(score[image].topk(8).indices.tolist())
    torch.testing.assert_close(trace.scores[3], score.detach())


@pytest.mark.parametrize("parity", [False, True])
def test_patchmerger_is_softmax_over_normalised_tokens(parity):
    vit = make("vit")
    x = images(vit)
    model = reduce_tokens(vit, "patchmerger", keep_rate=0.5, parity=parity).eval()
    merger = model.reducer.mergers["3"]
    tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))[:, parity:]
    for blk in vit.blocks[:3]:
        tokens = blk(tokens)
    patches = torch.nn.functional.layer_norm(tokens[:, 1 - parity :], (192,), eps=1e-5)
    scale = 192**-0.5 if parity else 1.0
    weights = torch.softmax(merger.queries @ patches.mT * scale, dim=-1)
    out, _ = merger(tokens[:, 1 - parity :])
    torch.testing.assert_close(out, weights @ patches, rtol=1e-4, atol=1e-5)
    _, trace = model.trace(x)
    assert torch.equal(trace.assignment[3], weights.argmax(1))
    features = model.forward_features(x)
    if parity:  # both places that a pooling could read hold the mean
        assert features.shape[1] == 2 and torch.equal(features[:, 0], features[:, 1])
    else:
        assert features.shape[1] == 1 + 2


def test_patchmerger_extra_parameters():
    """Three mergers of 98, 49 and 24 queries: 33 984 parameters on ViT-Ti at keep 0.5; the same at 0.9, 0.7, 0.25."""
    import timm

    vit = timm.create_model("vit_tiny_patch16_224")
    for rate, expected in ((0.9, 92_544), (0.7, 58_752), (0.5, 33_984), (0.25, 13_440)):
        reducer = reduce_tokens(vit, "patchmerger", keep_rate=rate).reducer
        assert sum(p.numel() for p in reducer.parameters()) == expected


def test_ats_score():
    vit = make("vit")
    x = images(vit)
    attention, v, _ = first_reduction(vit, x)
    raw = (attention[:, :, 0, 1:] * v[:, :, 1:].norm(dim=-1)).sum(1)
    _, trace = reduce_tokens(vit, "ats", keep_rate=0.5).eval().trace(x)
    torch.testing.assert_close(trace.scores[3], (raw / raw.sum(1, keepdim=True)).detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("k", [176, 158, 142, 137, 96, 67, 98, 49, 24, 12, 3])
def test_ats_grid(k):
    points = grid_points(k, False, torch.device("cpu"))
    assert (
        len(points) == k
        and points[0] == pytest.approx(1 / (2 * k))
        and points[-1] == pytest.approx((2 * k - 1) / (2 * k))
    )
    parity = grid_points(k, True, torch.device("cpu"))
    assert (
        len(parity) == k
        and parity[0] == pytest.approx(1 / (2 * k + 2))
        and parity[-1] == pytest.approx((2 * k - 1) / (2 * k + 2))
    )


def test_ats_takes_the_nearest_of_the_cdf():
    share = torch.rand(6, 50).double().softmax(1) ** 3
    share = share / share.sum(1, keepdim=True)
    points = grid_points(20, False, torch.device("cpu")).double()
    literal = (share.cumsum(1)[:, None] - points[None, :, None]).abs().argmin(-1)
    alive = torch.ones_like(share, dtype=torch.bool)
    assert torch.equal(nearest_in_cdf(share, alive, points), literal)


def test_ats_never_takes_padding_for_the_nearest():
    """Shares that sum to 0.5, as those of vanishing attention do: what lies beyond goes to the last real token."""
    share = torch.tensor([[0.2, 0.3, 0.0, 0.0, 0.0]])
    alive = torch.tensor([[True, True, False, False, False]])
    assert nearest_in_cdf(share, alive, torch.tensor([0.1, 0.6, 0.9])).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("sampler", ["grid", "random"])
@pytest.mark.parametrize("rate", [0.75, 0.5, 0.25])
def test_ats_counts_stay_within_the_budget(sampler, rate):
    """Golden test 8."""
    vit = make("vit")
    sharpened(vit)
    x = images(vit, 6)
    model = reduce_tokens(vit, "ats", keep_rate=rate, sampler=sampler).eval()
    torch.manual_seed(0)
    _, trace = model.trace(x)
    budgets = model.reducer.schedule.counts(16)
    for layer, budget in zip((3, 6, 9), budgets, strict=True):
        assert (trace.num_tokens[layer] <= budget).all() and (trace.num_tokens[layer] >= 1).all()
    assert model.forward_features(x).shape[1] == 1 + trace.num_tokens[-1].max()


def sharpened(vit):
    """Attention that differs between images, so that ATS keeps different numbers of patches."""
    for blk in vit.blocks:
        torch.nn.init.normal_(blk.attn.qkv.weight, std=0.2)


def test_ats_padding_is_masked():
    """Images that keep different numbers of patches give the logits that they give alone."""
    vit = make("cls-avg")
    sharpened(vit)
    x = images(vit, 8)
    model = reduce_tokens(vit, "ats", keep_rate=0.75).eval()
    with torch.inference_mode():
        _, trace = model.trace(x)
        assert len(set(trace.num_tokens[-1].tolist())) > 1
        torch.testing.assert_close(model(x), torch.cat([model(row[None]) for row in x]), rtol=0, atol=1e-5)


def test_ats_skips_an_image_within_the_budget():
    """An image with fewer patches than the budget keeps all of them, next to one that must drop."""
    vit = make("vit")
    sharpened(vit)
    x = images(vit, 8)
    _, trace = reduce_tokens(vit, "ats", keep_rate=(12, 8, 8)).eval().trace(x)
    few = trace.num_tokens[3] <= 8
    assert few.any() and not few.all()
    assert torch.equal(trace.kept(6)[few], trace.kept(3)[few])


def test_significance_sums_to_one_and_ignores_padding():
    attention, norm = torch.rand(2, 3, 5), torch.rand(2, 3, 5)
    alive = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    share = significance(attention, norm, alive)
    torch.testing.assert_close(share.sum(1), torch.ones(2), rtol=0, atol=1e-5)
    assert (share[1, 3:] == 0).all()


def test_a_selection_of_a_mask_is_padded_to_its_longest_row():
    selection = Selection.of_mask(torch.tensor([[True, False, True, True], [False, True, False, False]]))
    assert selection.valid.tolist() == [[True, True, True], [True, False, False]]
    assert selection.index[0].tolist() == [0, 2, 3] and selection.index[1, 0] == 1


def test_tokens_keep_moves_everything_along():
    x = torch.arange(12.0).reshape(1, 6, 2)
    tokens = Tokens(
        x,
        1,
        (1, 5),
        size=torch.arange(6.0)[None],
        carry={"c": torch.arange(5.0)[None]},
        assignment=torch.arange(5)[None],
    )
    kept = tokens.keep(Selection(torch.tensor([[1, 3]])))
    assert kept.x[0, :, 0].tolist() == [0, 4, 8] and kept.size.tolist() == [[0, 2, 4]]
    assert kept.carry["c"].tolist() == [[1, 3]] and kept.assignment.tolist() == [[-1, 0, -1, 1, -1]]
    again = kept.keep(Selection(torch.tensor([[1, 0]]), torch.tensor([[True, False]])))
    assert again.assignment.tolist() == [[-1, -1, -1, 0, -1]] and again.valid.tolist() == [[True, True, False]]
    assert again.count().tolist() == [1]


def test_options_are_typed_and_named_once():
    with pytest.raises(UsageError, match="reducer 'patchmerger': parity='no' is not allowed; give true or false"):
        Method.parse("patchmerger:parity=no")
    with pytest.raises(UsageError, match="'parity' stands twice"):
        Method.parse("ats:parity=true,parity=false")
    with pytest.raises(UsageError, match="has no value; write name:key=value"):
        Method.parse("topk:mean")
    assert str(Method.parse("patchmerger:parity=True")) == "patchmerger:parity=true"
    with pytest.raises(
        UsageError, match="allowed: global_pool token or avg and one head, given VisionTransformer with map"
    ):
        reduce_tokens(make("siglip-map"), "patchmerger", keep_rate=0.5, parity=True)


def test_refusals():
    vit, simple = make("vit"), make("simple-vit")
    with pytest.raises(UsageError, match="unknown head_fusion 'min'; allowed: max, mean"):
        reduce_tokens(vit, "topk", keep_rate=0.5, head_fusion="min")
    with pytest.raises(UsageError, match="reducer 'tram' has no option 'head_fusion'; allowed: last_block"):
        reduce_tokens(vit, "tram", keep_rate=0.5, head_fusion="max")
    with pytest.raises(UsageError, match="'topk' reads the CLS token's attention, but this backbone has no CLS token"):
        reduce_tokens(simple, "topk", keep_rate=0.5)
    with pytest.raises(UsageError, match=r"keeps everything; keep_rate=0\.5 is not allowed"):
        reduce_tokens(vit, "none", keep_rate=0.5)
    with pytest.raises(UsageError, match="does not fit a backbone of depth 12; allowed: blocks 0 to 11"):
        reduce_tokens(vit, "tram", keep_rate=0.5, reduction_loc=(3, 6, 12))
    with pytest.raises(UsageError, match="reduced already"):
        reduce_tokens(reduce_tokens(vit, "tram", keep_rate=0.5), "topk", keep_rate=0.5)
    with pytest.raises(UsageError, match="tokens fill no grid; use trace"):
        reduce_tokens(vit, "tram", keep_rate=0.5).forward_intermediates(images(vit))
