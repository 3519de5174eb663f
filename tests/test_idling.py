"""Patches that skip blocks and come back: three ways to run it that agree, labels, bounds, cost, what is learnt."""

import pytest
import timm
import torch
import torch.nn.functional as F
from backbones import images, make
from counting import executed_macs

from common.cost.closed_form import Shape, total_macs
from common.cost.counter import count_macs
from common.cost.methods import BY_KEYS, attention_of, deciding_macs, idle_block_macs, idle_macs, predictor_macs
from common.errors import UsageError
from common.models import packed
from common.models.block import reduced_block
from common.models.factory import create_model
from common.models.reduced import reduce_tokens
from common.reducers import reducer_class
from common.reducers.base import Teaching, reducer_options
from common.reducers.idle_mlp import LABELS, LOGITS, Predictor
from common.reducers.idle_topk import CUT, cut_errors
from common.reducers.idling import ATTENTION, ragged
from common.reducers.similarity import SIMILARITIES, rel_norm, rollout
from common.weights import save_state

CLOSE = {"rtol": 0, "atol": 1e-5}
KEYS = pytest.mark.parametrize("attention", ATTENTION)


def idling(family="vit", reducer="idle_mlp", keep_rate=1.0, **options):
    """A model whose predictors differ from patch to patch, and the backbone that it shares its weights with."""
    vit = make(family)
    torch.manual_seed(1)
    model = reduce_tokens(vit, reducer, keep_rate=keep_rate, **options).eval()
    for predictor in getattr(model.reducer, "predictors", {}).values():
        torch.nn.init.normal_(predictor.own.weight, std=0.2)
        torch.nn.init.normal_(predictor.out.weight, std=0.2)
    return model, vit


def active(model, x):
    """(depth, B, P) who was computed."""
    return torch.stack(model.trace(x)[1].active)


# --- three ways to run it -------------------------------------------------------------------------------------------


@KEYS
@pytest.mark.parametrize("family", ["vit", "dinov2-registers", "simple-vit"])
@torch.inference_mode()
def test_ragged_batches_and_gates_agree_and_are_the_loop_over_images(family, attention):
    model, vit = idling(family, score_threshold=0.5, attention=attention)
    x = images(vit, batch=4)
    ragged = model(x)
    counts = active(model, x).sum(2)
    assert (counts.max(1).values > counts.min(1).values).any(), "the case is not ragged"
    torch.testing.assert_close(torch.cat([model(row[None]) for row in x]), ragged, **CLOSE)
    model.reducer.train()
    torch.testing.assert_close(model(x), ragged, **CLOSE)


@KEYS
@torch.inference_mode()
def test_top_k_with_the_counts_of_the_thresholds_is_the_same_model(attention):
    model, vit = idling(score_threshold=0.5, attention=attention)
    for row in images(vit, batch=2):
        counts = active(model, row[None]).sum(2)[:, 0].clamp(min=1).tolist()
        numbered = reduce_tokens(vit, "idle_mlp", counts=counts, attention=attention).eval()
        numbered.reducer.load_state_dict(model.reducer.state_dict(), strict=True)
        torch.testing.assert_close(numbered(row[None]), model(row[None]), **CLOSE)


@KEYS
@torch.inference_mode()
def test_all_computed_is_the_dense_model_and_all_idle_leaves_the_patches(attention):
    model, vit = idling(score_threshold=0.5, attention=attention)
    x = images(vit)
    model.reducer.thresholds.fill_(1e-9)
    torch.testing.assert_close(model(x), vit(x), **CLOSE)
    model.reducer.train()
    torch.testing.assert_close(model(x), vit(x), **CLOSE)
    model.reducer.eval().thresholds.fill_(1.0)
    start, end = model.embed(x), model.embed(x)
    for layer, block in enumerate(model.blocks):
        end = reduced_block(block, end, layer, model.reducer)
    assert torch.equal(end.patches, start.patches)
    assert (end.prefix - start.prefix).abs().max() > 0.1


@KEYS
@torch.inference_mode()
def test_nobody_computed_without_a_prefix_gives_numbers(attention):
    model, vit = idling("simple-vit", score_threshold=1.0, attention=attention)
    x = images(vit)
    kept = vit.forward_head(vit.norm(vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))))
    torch.testing.assert_close(model(x), kept, **CLOSE)
    model.reducer.train()
    torch.testing.assert_close(model(x), kept, **CLOSE)


def test_a_threshold_of_zero_rests_the_block():
    model, vit = idling(score_threshold=0.6)
    model.reducer.thresholds[:] = 0.0
    model.reducer.thresholds[5] = 0.6
    x = images(vit)
    computed = active(model, x)
    others = [layer for layer in range(12) if layer != 5]
    assert computed[others].all() and not computed[5].all()
    assert sum(model.reducer.needs(layer, model.embed(x)) is not None for layer in range(12)) == 1


# --- who comes back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reducer", ["idle_random", "idle_topk", "idle_oracle", "idle_mlp"])
def test_re_entry(reducer):
    """Half of the patches in every block: with re-entry other ones, without it the same ones from the first on."""
    computed = {}
    for re_entry in (True, False):
        model, vit = idling(reducer=reducer, counts=[8] * 12, re_entry=re_entry)
        computed[re_entry] = active(model, images(vit))
    returned = ~computed[True][:-1] & computed[True][1:]
    assert returned.any()
    assert torch.equal(computed[False], computed[False][:1].expand(12, -1, -1))


# --- labels and bounds ----------------------------------------------------------------------------------------------


def test_similarities_by_hand():
    x, y = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])  # cos 24/25, squared distance 2, norm 5
    found = {name: measure(x, y).item() for name, measure in SIMILARITIES.items()}
    expected = {"raw_cos": 0.96, "scaled_cos": 0.98, "rel_update": 25 / 27, "blend": (0.98 + 25 / 27) / 2}
    expected["rel_norm"] = 5 / (5 + 2**0.5)
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("tau", "scaled", "blended"), [(0.95, 0.900, 0.957), (0.90, 0.800, 0.909), (0.85, 0.700, 0.853)]
)
def test_cosines_at_which_the_measures_reach_tau(tau, scaled, blended):
    """For vectors of one length, as the specification's table has it."""
    cosine = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    x, y = torch.stack([torch.ones_like(cosine), 0 * cosine], -1), torch.stack([cosine, (1 - cosine**2).sqrt()], -1)
    reached = {
        name: cosine[(SIMILARITIES[name](x, y) > tau).double().argmax()].item() for name in ("scaled_cos", "blend")
    }
    assert reached == pytest.approx({"scaled_cos": scaled, "blend": blended}, abs=1e-3)


def test_influence_follows_attention_back_by_formula():
    """(A + I) / 2 of the later blocks from the CLS token on, times N; after the last block patches have none.

    ``read``: in the last block the head reads the change of the CLS token alone, in the one before that of all tokens.
    """
    vit = make("vit").double()
    tokens = reduce_tokens(vit, "none").embed(images(vit).double())
    own, read = rollout(vit.blocks, tokens, reads_cls=True, similarity=rel_norm)
    assert own.shape == read.shape == (3, 16, 12) and not own[..., 11].any()
    x, maps, changes = tokens.x, {}, {}
    for layer, block in enumerate(vit.blocks):
        q, k, _ = block.attn.qkv(block.norm1(x)).unflatten(2, (3, 3, 64)).permute(2, 0, 3, 1, 4)
        maps[layer], y = (q @ k.mT / 8).softmax(-1).mean(1), block(x)
        changes[layer], x = 1 - rel_norm(x.float(), y.float()), y
    shares = {layer: ((each + torch.eye(17)) / 2).float() for layer, each in maps.items()}
    torch.testing.assert_close(own[..., 10].float(), 17 * shares[11][:, 0, 1:], **CLOSE)
    torch.testing.assert_close(own[..., 9].float(), 17 * (shares[11] @ shares[10])[:, 0, 1:], **CLOSE)
    assert (own[..., 0] < 17).all() and (own >= 0).all()
    torch.testing.assert_close(read[..., 11].float(), 17 * changes[11][:, :1] * maps[11][:, 0, 1:].float(), **CLOSE)
    told = (shares[11][:, 0] * changes[10])[:, None] @ maps[10].float()
    torch.testing.assert_close(read[..., 10].float(), 17 * told[:, 0, 1:], **CLOSE)


def test_influence_of_averaged_patches_is_even_after_the_last_block():
    vit = make("simple-vit")
    tokens = reduce_tokens(vit, "none").embed(images(vit))
    own, _ = rollout(vit.blocks, tokens, reads_cls=False, similarity=rel_norm)
    torch.testing.assert_close(own[..., -1], torch.ones(3, 16))
    torch.testing.assert_close(own.mean(1), torch.ones(3, 4), **CLOSE)  # without prefix tokens nothing gets lost


@pytest.mark.parametrize("attention", ["standard", "modified"])
@torch.inference_mode()
def test_the_oracle_weighs_what_would_be_lost(attention):
    """Change by influence; where idle patches are not seen, also what the others would miss."""
    options = {"counts": [8] * 12, "similarity": "rel_norm", "attention": attention}
    model, vit = idling(reducer="idle_oracle", influence="rollout", **options)
    x = images(vit)
    tokens = model.embed(x)
    before, after = tokens.patches, vit.blocks[0](tokens.x)[:, 1:]
    ratio = (after - before).norm(dim=-1) / after.norm(dim=-1)
    own, read = rollout(vit.blocks, tokens, reads_cls=True, similarity=rel_norm)
    worth = own[..., 0] * ratio / (1 + ratio) + (read[..., 0] if attention == "standard" else 0)
    chosen = torch.zeros_like(worth).scatter(1, worth.topk(8).indices, 1.0) > 0
    computed = active(model, x)
    assert torch.equal(computed[0], chosen)
    plain, _ = idling(reducer="idle_oracle", **options)
    assert not torch.equal(active(plain, x), computed)


def test_weighted_labels_are_the_oracles_on_the_same_states():
    """All computed, so the states are those of the unreduced model; the last block is no loss where all are seen."""
    options = {"similarity": "rel_norm", "influence": "rollout", "tau": 0.95}
    model, vit = idling(score_threshold=0.5, learns="labels", on_policy=0.0, **options)
    oracle, _ = idling(reducer="idle_oracle", **options)
    x = images(vit)
    model.train()
    _, tokens = model(x, return_tokens=True)
    labels = tokens.carry[LABELS]
    assert torch.equal(labels[..., 0] > 0, active(oracle, x)[0])
    assert not labels[..., 11].any() and 0 < labels[..., :11].mean() < 1


def test_the_label_flips_exactly_at_tau():
    model, vit = idling(score_threshold=0.5)
    tokens = model.embed(images(vit))
    output = vit.blocks[0](tokens.x)
    similarity = SIMILARITIES["blend"](tokens.patches, output[:, 1:])
    pivot = similarity.flatten().sort().values[20].item()
    model.reducer.tau = pivot
    assert torch.equal(model.reducer.labels(tokens, output, 0), (similarity < pivot).float())
    assert model.reducer.labels(tokens, output, 0).sum() == 20  # the pivot itself is not below


@torch.inference_mode()
def test_the_oracle_computes_what_the_label_says_and_more_for_a_higher_tau():
    x, idle = images(make("vit")), []
    for tau in (0.8, 0.97, 0.985, 0.995):
        model, vit = idling(reducer="idle_oracle", tau=tau)
        idle.append((~active(model, x)).float().mean().item())
    assert idle == sorted(idle, reverse=True) and idle[0] > idle[-1]
    tokens = model.embed(x)
    similarity = SIMILARITIES["blend"](tokens.patches, vit.blocks[0](tokens.x)[:, 1:])
    assert torch.equal(active(model, x)[0], similarity < 0.995)


def test_more_patches_idle_for_a_higher_score_threshold():
    idle = []
    for threshold in (0.3, 0.4, 0.5, 0.6, 0.7):
        model, vit = idling(score_threshold=threshold)
        idle.append((~active(model, images(vit))).float().mean().item())
    assert idle == sorted(idle) and idle[0] < idle[-1]


def test_random_idling_is_its_seed():
    masks = [
        active(idling(reducer="idle_random", keep_rate=0.6, seed=seed)[0], images(make("vit"))) for seed in (0, 0, 1)
    ]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0][3], masks[0][4])


# --- cost -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base():
    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_224")
    return Shape.of(vit), predictor_macs(Predictor(768, 64, "none").to("meta"), 196)


@pytest.mark.parametrize(
    ("attention", "idle", "cut"), [("standard", 40, 20.2), ("standard", 68, 34.6), ("modified", 40, 16.3)]
)
def test_the_published_savings(base, attention, idle, cut):
    """ViT-B, the same number of idle patches in all blocks, predictors counted."""
    shape, predictor = base
    dense = shape.unreduced
    saved = 1 - (idle_macs(shape, dict.fromkeys(range(12), 196 - idle), attention) + 12 * predictor) / dense
    assert 100 * saved == pytest.approx(cut, abs=0.05)
    assert dense / 1e9 == pytest.approx(17.56, abs=0.01)


def test_the_published_predictor(base):
    shape, macs = base
    assert sum(p.numel() for p in Predictor(768, 64, "none").parameters()) == 49_281
    assert macs == 196 * (64 * 768 + 64) and 100 * 12 * macs / shape.unreduced == pytest.approx(0.66, abs=0.005)


@pytest.mark.parametrize("context", ["cls", "conv", "both"])
def test_context_costs_less_than_two_percent(base, context):
    shape, _ = base
    predictor = Predictor(768, 64, context)
    assert 12 * predictor_macs(predictor, 196) < 0.02 * shape.unreduced


def test_idlevit_at_70_percent():
    """DeiT-S in the nine blocks from the fourth on: 3.01 GMAC, 34.6 % less."""
    with torch.device("meta"):
        shape = Shape.of(timm.create_model("deit_small_patch16_224"))
    computed = dict.fromkeys(range(3, 6), 137) | dict.fromkeys(range(6, 9), 96) | dict.fromkeys(range(9, 12), 67)
    macs, dense = idle_macs(shape, computed, BY_KEYS), shape.unreduced
    assert macs / 1e9 == pytest.approx(3.01, abs=0.01) and 100 * (1 - macs / dense) == pytest.approx(34.6, abs=0.2)


@pytest.mark.parametrize("context", ["none", "both"])
@KEYS
def test_counted_macs_are_the_closed_form(attention, context):
    model, vit = idling(counts=[16, 5] * 6, attention=attention, context=context)
    computed = dict.fromkeys(range(1, 12, 2), 5)
    expected = idle_macs(Shape.of(vit), computed, attention_of(model.reducer)) + deciding_macs(model, list(computed))
    assert count_macs(model, 64).total == expected


def test_counted_macs_of_idlevit_are_the_closed_form():
    model, vit = idling(reducer="idle_topk", keep_rate=0.6)
    computed = {layer: (9, 5, 3)[layer // 3 - 1] for layer in range(3, 12)}
    assert count_macs(model, 64).total == idle_macs(Shape.of(vit), computed, attention_of(model.reducer))


def test_modified_attention_pays_for_all_keys(base):
    shape, _ = base
    n, d = 157, 768
    assert idle_block_macs(shape, 156, "standard") == 12 * n * d**2 + 2 * n**2 * d
    assert idle_block_macs(shape, 156, "modified") == 10 * n * d**2 + 2 * 197 * d**2 + 2 * n * 197 * d
    assert len({idle_block_macs(shape, 196, attention) for attention in ATTENTION}) == 1


# --- IdleViT --------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_idlevit_computes_the_patches_of_largest_cls_logit():
    model, vit = idling(reducer="idle_topk", keep_rate=0.6)
    x = images(vit)
    tokens = model.embed(x).x
    for block in vit.blocks[:3]:
        tokens = block(tokens)
    attn = vit.blocks[3].attn
    q, k, _ = attn.qkv(vit.blocks[3].norm1(tokens)).unflatten(2, (3, 3, 64)).permute(2, 0, 3, 1, 4)
    logits = (q[:, :, :1] @ k.mT / 8).mean(1)[:, 0, 1:]
    chosen = logits.topk(9).indices
    assert torch.equal(active(model, x)[3], torch.zeros_like(logits).scatter(1, chosen, 1.0) > 0)
    exact = model(x)
    model.reducer.train()
    torch.testing.assert_close(model(x), exact, **CLOSE)


def test_cut_loss_by_hand():
    """CLS and two patches, of which the second idles; uniform attention over three tokens."""
    errors = cut_errors(torch.zeros(1, 3, 3), torch.tensor([[True, False]]))
    across = [1 / 3, 1 / 3, 1 / 3]  # CLS and the computed one see the idle one; the idle one sees the computed one
    inside = [2 / 3 - 1, 2 / 3 - 1, 0.0]
    cls, first, second = (a**2 + b**2 for a, b in zip(across, inside, strict=True))
    torch.testing.assert_close(errors, torch.tensor([[first + cls / 2, second + cls / 2]]))


def test_cut_loss_vanishes_when_attention_stays_inside():
    logits = torch.full((1, 3, 3), -1e4)
    logits[0, [0, 1, 2], [1, 1, 2]] = 0.0
    assert cut_errors(logits, torch.tensor([[True, False]])).abs().max() < 1e-6


def test_idlevit_learns_by_its_cut_loss():
    model, vit = idling(reducer="idle_topk", keep_rate=0.6, cut_weight=3.0)
    model.train()
    logits, tokens = model(images(vit), return_tokens=True)
    assert tokens.carry[CUT].shape == (3, 16, 9)
    loss = model.reducer.training_loss(tokens, logits, None)
    torch.testing.assert_close(loss, 3.0 * tokens.carry[CUT].sum(1).mean() / 17)
    loss.backward()
    assert vit.blocks[5].attn.qkv.weight.grad.abs().sum() > 0


def test_idlevit_learns_the_direction_of_its_teachers_cls_token():
    """w_d (KL + w_cls E): by hand, and nothing where logits agree and the tokens differ in length only."""
    model, vit = idling(reducer="idle_topk", keep_rate=0.6, cut_weight=0.0, distill_weight=2.0, cls_weight=3.0)
    model.train()
    logits, tokens = model(images(vit), return_tokens=True)
    wanted = torch.randn_like(tokens.prefix)
    own, other = (x[:, 0] / x[:, 0].norm(dim=-1, keepdim=True) for x in (tokens.x, wanted))
    loss = model.reducer.training_loss(tokens, logits, Teaching(logits.detach(), tokens.patches, wanted))
    torch.testing.assert_close(loss, 6.0 * (own - other).square().mean())
    loss.backward()
    assert vit.norm.weight.grad.abs().sum() > 0
    alike = Teaching(logits.detach(), tokens.patches, 5 * tokens.prefix.detach())
    assert model.reducer.training_loss(tokens, logits, alike).abs() < 1e-5
    taught = model.reducer.training_loss(tokens, logits, alike._replace(logits=torch.randn_like(logits)))
    assert taught > 0.1


# --- what is learnt -------------------------------------------------------------------------------------------------


@KEYS
def test_labels_send_no_gradient_into_the_backbone(attention):
    model, vit = idling(score_threshold=0.5, learns="labels", tau=0.62, attention=attention)
    model.train()
    logits, tokens = model(images(vit), return_tokens=True)
    model.reducer.training_loss(tokens, logits, None).backward()
    assert all(p.grad is None or not p.grad.any() for p in vit.parameters())
    assert all(p.grad.abs().sum() > 0 for name, p in model.reducer.named_parameters() if "out" in name)
    assert tokens.carry[LOGITS].shape == tokens.carry[LABELS].shape == (3, 16, 12)


def test_label_loss_by_hand():
    model, _ = idling(score_threshold=0.5, learns="labels")
    tokens = model.embed(images(make("vit"), batch=1))
    logits, labels = torch.randn(1, 16, 2), torch.zeros(1, 16, 2)
    labels[:, :4, 0] = 1.0  # the second block has no positive: its negatives count as they are
    tokens = tokens.with_carry(**{LOGITS: logits, LABELS: labels})
    p = logits.sigmoid()
    first = -torch.cat([3.0 * p[0, :4, 0].log(), (1 - p[0, 4:, 0]).log()]).mean()
    expected = first - (1 - p[0, :, 1]).log().mean()
    torch.testing.assert_close(model.reducer.training_loss(tokens, torch.zeros(1, 3), None), expected)


def test_gates_pass_gradients_straight_to_the_score_and_the_budget_is_kept():
    model, vit = idling(score_threshold=0.5, keep_target=0.25, budget_weight=4.0)
    model.train()
    logits, tokens = model(images(vit), return_tokens=True)
    mean = tokens.carry["gates"].mean()
    assert set(tokens.carry["gates"].detach().round(decimals=5).unique().tolist()) == {0.0, 1.0}
    loss = model.reducer.training_loss(tokens, logits, None)
    torch.testing.assert_close(loss, 4.0 * (mean - 0.25).square())
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for name, p in model.reducer.named_parameters() if "out" in name)
    assert all(p.grad is None or not p.grad.any() for p in vit.parameters())


def test_teacher_is_matched_by_divergence():
    model, vit = idling(score_threshold=0.5, distill_weight=2.0)
    model.train()
    logits, tokens = model(images(vit), return_tokens=True)
    wanted = torch.randn_like(logits)
    p = wanted.softmax(-1)
    expected = 2.0 * (p * (p.log() - logits.log_softmax(-1))).sum(-1).mean()
    teacher = Teaching(wanted, tokens.patches, tokens.prefix)
    torch.testing.assert_close(model.reducer.training_loss(tokens, logits, teacher), expected)


# --- weights and refusals -------------------------------------------------------------------------------------------


def test_predictors_of_all_blocks_serve_a_schedule(tmp_path):
    model = create_model("vit_digits", reducer="idle_mlp", score_threshold=0.4)
    save_state(model, tmp_path / "w.safetensors")
    fewer = create_model("vit_digits", reducer="idle_mlp", keep_rate=0.5, weights=tmp_path / "w.safetensors")
    assert list(fewer.reducer.predictors) == ["1", "2", "3", "4", "5"]
    for name, value in fewer.reducer.state_dict().items():
        assert torch.equal(value, model.reducer.state_dict()[name])
    again = create_model("vit_digits", reducer="idle_mlp", score_threshold=0.9, weights=tmp_path / "w.safetensors")
    assert torch.equal(again.reducer.thresholds, torch.full((6,), 0.4))
    save_state(fewer, tmp_path / "few.safetensors")
    with pytest.raises(UsageError, match="parameters of another method"):
        create_model("vit_digits", reducer="idle_mlp", score_threshold=0.5, weights=tmp_path / "few.safetensors")


def test_context_by_formula():
    torch.manual_seed(0)
    predictor = Predictor(8, 6, "both")
    prefix, patches = torch.randn(2, 1, 8), torch.randn(2, 6, 8)
    grid = predictor.squeeze(patches).mT.unflatten(2, (2, 3))
    around = F.conv2d(grid, predictor.around.weight, padding=1, groups=3).flatten(2).mT
    both = F.linear(
        torch.cat([patches, prefix.expand(-1, 6, -1)], -1), torch.cat([predictor.own.weight, predictor.cls.weight], 1)
    )
    expected = predictor.out((both + predictor.own.bias + predictor.expand(around)).relu())[..., 0]
    torch.testing.assert_close(predictor(prefix, patches, (2, 3)), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_threshold": 0.5, "keep_rate": 0.7}, "score_threshold with keep_rate=0.7 is not possible"),
        ({"counts": [5] * 12, "keep_rate": 0.7}, "counts with keep_rate=0.7 is not possible"),
        ({"counts": [5] * 12, "score_threshold": 0.5}, "score_threshold with counts is not possible"),
        ({"counts": [5] * 11}, "give 12 whole numbers, 1 to 16"),
        ({"counts": [17] * 12}, "give 12 whole numbers, 1 to 16"),
        ({"counts": [5, 6] * 6, "re_entry": False}, "give counts that never grow"),
        ({"score_threshold": 1.5}, "score_threshold=1.5 is not allowed; give a number from 0 to 1"),
        ({"attention": "some"}, "unknown attention 'some'; allowed: cls_sees_all, modified, standard"),
        ({"context": "some"}, "unknown context 'some'; allowed: both, cls, conv, none"),
        ({"similarity": "l2"}, "unknown similarity 'l2'; allowed: blend, raw_cos, rel_norm, rel_update, scaled_cos"),
        ({"influence": "some"}, "unknown influence 'some'; allowed: fisher, none, rollout"),
        ({"learns": "it"}, "unknown learns 'it'; allowed: labels, task"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        reduce_tokens(make("vit"), "idle_mlp", **options)


def test_options_of_all_idling_methods():
    """Those of the family first, those of all methods last; IdleViT leaves nobody the choice of attention."""
    shared = ["attention", "counts", "re_entry"]
    assert reducer_options("idle_random") == [*shared, "seed", "last_block", "resize"]
    assert reducer_options("idle_oracle") == [*shared, "similarity", "influence", "tau", "last_block", "resize"]
    assert set(reducer_options("idle_oracle")) < set(reducer_options("idle_mlp"))
    assert "attention" not in reducer_options("idle_topk")


def test_bounds_are_no_methods_of_the_default_lists():
    assert all(reducer_class(name).idles for name in ("idle_oracle", "idle_random", "idle_topk", "idle_mlp"))
    assert not any(reducer_class(name).selects for name in ("idle_oracle", "idle_random", "idle_topk", "idle_mlp"))


def ragged_batch():
    """A model, and images each with another number of patches that it computes."""
    model, vit = idling(score_threshold=0.5, attention="standard")
    for predictor in model.reducer.predictors.values():
        torch.nn.init.normal_(predictor.own.weight, std=1.0)
    x = torch.randn(19, *images(vit).shape[1:], generator=torch.Generator().manual_seed(0))
    counts = active(model, x).sum(2)
    assert len(set(counts[3].tolist())) > 2, "the batch is not ragged"
    return model, x, counts


@torch.inference_mode()
def test_images_of_a_ragged_batch_are_single_images():
    """Padding comes last in every image."""
    model, x, _ = ragged_batch()
    torch.testing.assert_close(model(x), torch.cat([model(image[None]) for image in x]), rtol=0, atol=1e-5)
    choice = ragged(torch.rand(4, 6) > 0.5, "selected")
    assert torch.equal(choice.valid, choice.valid.sort(dim=1, descending=True).values)


def test_a_ragged_batch_computes_no_padding(monkeypatch):
    """By closed form, wherever that is said to pay; to the longest image of the batch it would be a tenth more."""
    monkeypatch.setattr(packed, "COPIES", 0)
    monkeypatch.setattr(packed, "CALL_MACS", 0)
    model, x, counts = ragged_batch()
    shape = Shape.of(model)
    macs = [idle_block_macs(shape, patches, "standard") for patches in range(17)]
    alone = sum(macs[count] for row in counts.tolist() for count in row)
    padded = sum(len(x) * macs[max(row)] for row in counts.tolist())
    each = len(x) * (total_macs(shape, []) + deciding_macs(model, range(12)))
    assert executed_macs(model, x) == each + alone
    assert padded > 1.1 * alone
