"""Sinkhorn and SiT: against literal transcriptions of their definitions, masses, gradients, parameter counts."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from backbones import images, make

from common.errors import UsageError
from common.models.reduced import reduce_tokens
from common.reducers.sinkhorn import transport
from common.tokens import Tokens

METHODS = ["sinkhorn", "sit"]
# three stages, keep rates 0.9, 0.7, 0.5 and 0.25 of 196 patches
PARAMETERS = {
    ("sinkhorn", "tiny"): (91_392, 57_600, 32_832, 12_288),
    ("sinkhorn", "small"): (182_784, 115_200, 65_664, 24_576),
    ("sinkhorn", "base"): (365_568, 230_400, 131_328, 49_152),
    ("sit", "tiny"): (102_911, 85_839, 73_326, 62_947),
    ("sit", "small"): (315_935, 281_967, 257_070, 236_419),
    ("sit", "base"): (1_073_759, 1_005_999, 956_334, 915_139),
}


@pytest.mark.parametrize(("name", "size"), PARAMETERS)
def test_extra_parameters(name, size):
    with torch.device("meta"):
        vit = timm.create_model(f"vit_{size}_patch16_224")
        for rate, expected in zip((0.9, 0.7, 0.5, 0.25), PARAMETERS[name, size], strict=True):
            reducer = reduce_tokens(vit, name, keep_rate=rate).reducer
            assert sum(p.numel() for p in reducer.parameters()) == expected


def literal_transport(score, iterations):
    """Both potentials by their own formulas, float64; both marginals are 1 / (K + n)."""
    score = score.double()
    _, clusters, length = score.shape
    log_marginal = -math.log(clusters + length)
    g = torch.zeros_like(score[:, 0])
    for _ in range(iterations):
        f = log_marginal - (score + g[:, None]).logsumexp(2)
        g = log_marginal - (score + f[:, :, None]).logsumexp(1)
    return (score + f[:, :, None] + g[:, None] + math.log(clusters + length)).exp()


@pytest.mark.parametrize("eps", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("iterations", [1, 3])
def test_transport_is_its_definition(eps, iterations):
    score = F.normalize(torch.randn(2, 5, 8), dim=-1) @ F.normalize(torch.randn(2, 20, 8), dim=-1).mT / eps
    plan = transport(score, iterations)
    torch.testing.assert_close(plan.double(), literal_transport(score, iterations), rtol=1e-3, atol=1e-5)


def test_masses():
    """Every token hands out 1, every cluster gets n / K: 20 tokens on 5 clusters, 4 each."""
    score = F.normalize(torch.randn(3, 5, 192), dim=-1) @ F.normalize(torch.randn(3, 20, 192), dim=-1).mT
    plan = transport(score, 3)
    torch.testing.assert_close(plan.sum(1), torch.ones(3, 20))
    torch.testing.assert_close(plan.sum(2), torch.full((3, 5), 4.0), rtol=0, atol=1e-3)


def test_transport_of_two_by_two():
    """S = log [[a, 1], [1, a]]: the symmetric plan is [[a, 1], [1, a]] / (a + 1) after one iteration already."""
    plan = transport(torch.tensor([[[4.0, 1.0], [1.0, 4.0]]]).log(), 1)
    torch.testing.assert_close(plan, torch.tensor([[[0.8, 0.2], [0.2, 0.8]]]))


def test_sharp_scores_stay_finite():
    plan = transport(torch.randn(2, 4, 9) * 1e4, 3)
    assert plan.isfinite().all()
    torch.testing.assert_close(plan.sum(1), torch.ones(2, 9))


def entering(vit, x, layer=3):
    """Tokens that enter block ``layer`` of the untouched model."""
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
    for blk in vit.blocks[:layer]:
        x = blk(x)
    return x


def sinkhorn_by_hand(reducer, patches):
    unit = patches / patches.norm(dim=-1, keepdim=True)
    prototypes = reducer.prototypes["3"]
    prototypes = prototypes / prototypes.norm(dim=-1, keepdim=True)
    plan = literal_transport(torch.einsum("kd,bnd->bkn", prototypes, unit) / 0.5, 2).float()
    return plan, torch.einsum("bkn,bnd->bkd", plan, unit)


def sit_by_hand(reducer, patches):
    norm, first, _, second = reducer.slimmers["3"].score
    y = F.layer_norm(patches, (192,), norm.weight, norm.bias)
    logits = F.gelu(y @ first.weight.T + first.bias) @ second.weight.T + second.bias
    weights = torch.softmax(logits * 1.7, dim=1)
    return weights.mT, torch.einsum("bnk,bnd->bkd", weights, patches)


@pytest.mark.parametrize(
    ("name", "by_hand", "options"),
    [("sinkhorn", sinkhorn_by_hand, {"eps": 0.5, "cluster_iters": 2}), ("sit", sit_by_hand, {})],
    ids=METHODS,
)
def test_merged_tokens_and_trace(name, by_hand, options):
    """Block 3 runs on CLS and the merged tokens; a patch belongs to the output in which it weighs most."""
    vit = make("vit")
    x = images(vit)
    model = reduce_tokens(vit, name, keep_rate=0.5, **options).eval()
    if name == "sit":
        torch.nn.init.constant_(model.reducer.slimmers["3"].scale, 1.7)
    with torch.inference_mode():
        tokens = entering(vit, x)
        weights, merged = by_hand(model.reducer, tokens[:, 1:])
        after = vit.blocks[3](torch.cat([tokens[:, :1], merged], dim=1))[:, 0]
    _, trace = model.trace(x, cls_at=(3,))
    torch.testing.assert_close(trace.cls[3], after, rtol=1e-4, atol=1e-5)
    assert torch.equal(trace.assignment[3], weights.argmax(1))
    assert trace.kept(-1).all() and not trace.selected(-1).any()
    assert [trace.num_tokens[layer].tolist() for layer in (2, 3, 6, 9)] == [[n] * 3 for n in (16, 8, 4, 2)]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["vit", "simple-vit"])
def test_identity_when_nothing_is_dropped(name, family):
    vit = make(family)
    x = images(vit)
    model = reduce_tokens(vit, name, keep_rate=1.0).eval()
    assert list(model.reducer.parameters()) == []
    with torch.inference_mode():
        torch.testing.assert_close(model(x), vit(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_learned_parts_and_tokens(name):
    reducer = reduce_tokens(make("vit"), name, keep_rate=(5,), reduction_loc=(3,)).train().reducer
    before = {key: value.clone() for key, value in reducer.state_dict().items()}
    x = torch.randn(2, 17, 192, requires_grad=True)
    merged = reducer.before_block(Tokens(x, 1, (4, 4)), 3).patches
    (merged * torch.randn_like(merged)).sum().backward()
    assert (x.grad[:, 1:].abs().sum(-1) > 0).all()
    for key, parameter in reducer.named_parameters():
        if key.endswith("score.3.bias"):  # a softmax over tokens does not see what is added to all of them
            torch.testing.assert_close(parameter.grad, torch.zeros(5), rtol=0, atol=1e-5)
        else:
            assert parameter.grad.abs().sum() > 1e-2
    assert all(torch.equal(before[key], value) for key, value in reducer.state_dict().items())


def test_start_of_the_learned_parts():
    vit = make("vit")
    prototypes = reduce_tokens(vit, "sinkhorn", keep_rate=0.6).reducer.prototypes
    shapes = {key: tuple(parameter.shape) for key, parameter in prototypes.items()}
    assert shapes == {"3": (9, 192), "6": (5, 192), "9": (3, 192)}
    torch.testing.assert_close(prototypes["3"].norm(dim=-1), torch.ones(9))
    slimmer = reduce_tokens(vit, "sit", keep_rate=0.6).reducer.slimmers["3"]
    assert slimmer.scale.tolist() == [[[1.0]]] and (slimmer.score[1].bias == 0).all()
    assert 0.018 < slimmer.score[1].weight.std() < 0.022


def test_sinkhorn_refusals():
    vit = make("vit")
    for eps in (0, -1.0, math.inf, math.nan, "small", True):
        with pytest.raises(UsageError, match=r"eps=.* is not allowed; give a number > 0"):
            reduce_tokens(vit, "sinkhorn", keep_rate=0.5, eps=eps)
    with pytest.raises(UsageError, match=r"cluster_iters=2\.5 is not allowed; give a whole number >= 1"):
        reduce_tokens(vit, "sinkhorn", keep_rate=0.5, cluster_iters=2.5)
