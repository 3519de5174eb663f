"""DynamicViT: the predictor and its fixed division, masked attention, straight-through training, its loss by hand."""

import pytest
import torch
import torch.nn.functional as F
from backbones import images, make
from timm.models import create_model

from common.attention import Heads, mix_by_policy
from common.errors import UsageError
from common.models.reduced import masked_mean, reduce_tokens
from common.reducers.base import Teaching
from common.reducers.dynamicvit import DECISIONS, Predictor
from common.tokens import Tokens


@pytest.mark.parametrize(
    ("size", "dim", "expected"), [("tiny", 192, 182_166), ("small", 384, 723_750), ("base", 768, 2_885_190)]
)
@pytest.mark.parametrize("keep_rate", [0.9, 0.25])
def test_parameters(size, dim, expected, keep_rate):
    with torch.device("meta"):
        vit = create_model(f"vit_{size}_patch16_224")
        model = reduce_tokens(vit, "dynamicvit", keep_rate=keep_rate)
    assert vit.embed_dim == dim and sum(p.numel() for p in model.reducer.parameters()) == expected


def test_predictor_by_formula():
    torch.manual_seed(0)
    predictor = Predictor(8)
    x, policy = torch.randn(2, 5, 8), torch.tensor([[1.0, 1, 0, 0, 1], [0, 1, 0, 0, 0]])
    embedded = F.gelu(F.linear(F.layer_norm(x, (8,)), predictor.embed[1].weight, predictor.embed[1].bias))
    own, shared = embedded[..., :4], embedded[..., 4:]
    mean = torch.stack([shared[0, [0, 1, 4]].mean(0), shared[1, 1]])
    first, _, second, _, third = predictor.classify
    hidden = torch.cat([own, mean[:, None].expand(-1, 5, -1)], dim=-1)
    logits = third(F.gelu(second(F.gelu(first(hidden)))))
    torch.testing.assert_close(predictor(x, policy), logits.log_softmax(-1), rtol=0, atol=1e-5)


def test_a_policy_of_zeros_gives_no_nan():
    """The published division adds its epsilon behind the fraction bar's result: 0 / 0."""
    predictor, x = Predictor(8), torch.randn(2, 5, 8, requires_grad=True)
    log_prob = predictor(x, torch.zeros(2, 5))
    log_prob.sum().backward()
    assert log_prob.isfinite().all() and x.grad.isfinite().all()
    published = (x * 0).sum(1) / torch.zeros(2, 1) + 1e-6
    assert published.isnan().all()


def test_masked_attention_is_attention_among_those_kept():
    """Kept queries see kept keys only; a masked query still sees itself; the epsilon costs 1e-5 at most."""
    torch.manual_seed(1)
    vit = make("vit")
    attn, x = vit.blocks[0].attn, torch.randn(2, 1 + 6, vit.embed_dim)
    heads = Heads.of(attn, x)
    policy = torch.tensor([[1.0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1]])
    mixed = mix_by_policy(attn, heads, policy)
    seen = torch.cat([torch.ones(2, 1), policy], dim=1).bool()[:, None] | torch.eye(7).bool()
    expected = F.scaled_dot_product_attention(heads.q, heads.k, heads.v, seen[:, None])
    torch.testing.assert_close(mixed, expected.transpose(1, 2).flatten(2), rtol=0, atol=1e-4)


def test_nobody_kept_gives_finite_logits_and_gradients():
    """The first predictor drops every patch, so the next ones see a policy of zeros."""
    vit = make("vit").train()
    model = reduce_tokens(vit, "dynamicvit", keep_rate=0.5).train()
    with torch.no_grad():
        model.reducer.predictors["3"].classify[-1].bias.copy_(torch.tensor([-100.0, 100.0]))
    logits, tokens = model(images(vit), return_tokens=True)
    assert tokens.carry[DECISIONS].sum() == 0
    loss = logits.square().sum() + model.reducer.training_loss(
        tokens, logits, Teaching(logits.detach(), tokens.patches.detach(), tokens.prefix.detach())
    )
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_training_masks_what_evaluation_drops():
    """Decisions forced to a given set: the masked full-length pass gives the logits of the short one."""
    vit = make("vit")
    model = reduce_tokens(vit, "dynamicvit", keep_rate=(0.5,), reduction_loc=(4,)).eval()
    x = images(vit)
    short = model(x)
    _, trace = model.trace(x)
    kept = trace.selected(4)

    class Forced(torch.nn.Module):
        def forward(self, patches, policy):
            return torch.stack([kept, ~kept], dim=-1).float().mul(1e4).log_softmax(-1)

    model.reducer.predictors["4"] = Forced()
    model.reducer.train()
    full, tokens = model(x, return_tokens=True)
    assert torch.equal(tokens.policy > 0.5, kept) and tokens.x.shape[1] == 17
    torch.testing.assert_close(full, short, rtol=0, atol=1e-3)


def test_once_dropped_stays_dropped():
    torch.manual_seed(0)
    vit = make("vit").train()
    model = reduce_tokens(vit, "dynamicvit", keep_rate=0.5).train()
    _, tokens = model(images(vit, batch=8), return_tokens=True)
    first, second, third = tokens.carry[DECISIONS].unbind(-1)
    assert set(tokens.carry[DECISIONS].unique().tolist()) <= {0.0, 1.0}
    assert (first >= second).all() and (second >= third).all() and first.sum() > third.sum()
    assert torch.equal(tokens.policy, third)


def test_average_pooling_leaves_masked_patches_out():
    vit = make("simple-vit").train()
    model = reduce_tokens(vit, "dynamicvit", keep_rate=0.5).train()
    torch.manual_seed(0)
    logits, tokens = model(images(vit), return_tokens=True)
    assert tokens.patches.shape[1] == 16
    mean = masked_mean(tokens.patches, tokens.policy)[:, 0]
    torch.testing.assert_close(logits, vit.head(vit.fc_norm(mean)))
    alike = Teaching(logits.detach(), tokens.patches.detach(), tokens.prefix)
    other = alike._replace(patches=alike.patches + 1)  # every channel off by 1, weight 0.5
    at_ease, loss = (model.reducer.training_loss(tokens, logits, teacher) for teacher in (alike, other))
    torch.testing.assert_close(loss - at_ease, torch.tensor(0.5))


class _Reducer:
    """The method for a batch whose decisions are given."""

    def __new__(cls, **options):
        vit = create_model("vit_tiny_patch16_224", img_size=32, depth=4, embed_dim=12, num_heads=3, num_classes=3)
        return reduce_tokens(vit, "dynamicvit", keep_rate=(0.75, 0.5), reduction_loc=(1, 2), **options).reducer


def decided(last=(1.0, 0.0, 0.0, 1.0)):
    x = torch.randn(1, 1 + 4, 12, generator=torch.Generator().manual_seed(0))
    decisions = torch.tensor([[1.0, 1.0, 0.0, 1.0], list(last)]).T[None]
    return Tokens(x, 1, grid_size=(2, 2), policy=decisions[..., -1], carry={DECISIONS: decisions})


def test_ratio_loss_by_hand():
    """Stages keep 3/4 and 2/4, asked for 3/4 and 1/2: zero; with one patch left in the end (1/4 - 1/2)^2 / 2 stages."""
    logits = torch.zeros(1, 3)
    assert _Reducer().training_loss(decided(), logits, None).item() == 0
    loss = _Reducer(ratio_weight=4.0).training_loss(decided((0.0, 0.0, 0.0, 1.0)), logits, None)
    assert loss.item() == pytest.approx(4.0 * 0.0625 / 2)


def test_distillation_losses_by_hand():
    tokens, logits = decided(), torch.tensor([[1.0, 2, 3]])
    teacher = Teaching(torch.tensor([[3.0, 1, 1]]), torch.zeros(1, 4, 12), torch.zeros(1, 1, 12))
    p, q = teacher.logits.softmax(-1), logits.softmax(-1)
    divergence = (p * (p / q).log()).sum().item()
    kept = tokens.patches[0, [0, 3]]
    loss = _Reducer().training_loss(tokens, logits, teacher)
    assert loss.item() == pytest.approx(0.5 * divergence + 0.5 * kept.square().mean().item(), rel=1e-5)
    rows = -kept.log_softmax(-1).mean(-1) - torch.tensor(12.0).log()  # KL of a uniform teacher
    loss = _Reducer(token_loss="kl", distill_weight=0.0, token_weight=2.0).training_loss(tokens, logits, teacher)
    assert loss.item() == pytest.approx(2.0 * rows.mean().item(), rel=1e-5)


def test_no_patch_left_leaves_the_token_loss_out():
    tokens = decided((0.0, 0.0, 0.0, 0.0))
    logits = torch.zeros(1, 3)
    loss = _Reducer(ratio_weight=0.0).training_loss(
        tokens, logits, Teaching(logits, torch.ones(1, 4, 12), tokens.prefix)
    )
    assert loss.item() == 0


def test_unknown_token_loss_is_refused():
    with pytest.raises(ValueError, match="reducer 'dynamicvit': unknown token_loss 'l1'; allowed: kl, mse"):
        _Reducer(token_loss="l1")


@pytest.mark.parametrize("value", ["much", -1.0, True, float("nan")])
def test_weights_that_weigh_nothing_are_refused(value):
    with pytest.raises(UsageError, match=r"token_weight=.* is not allowed; give a number >= 0"):
        reduce_tokens(make("vit"), "dynamicvit", keep_rate=0.5, token_weight=value)
