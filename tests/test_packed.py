"""Ragged batches in evaluation: packed they give what padded ones give, for the tokens that there are and no more."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import timm
import torch
from backbones import FAMILIES, images, make
from counting import executed_macs, operators

from common.models import packed
from common.models.block import reduced_block
from common.models.observe import attention_layers
from common.models.packed import Packing
from common.models.reduced import attach, reduce_tokens
from common.models.support import obstacle
from common.reducers import Method, Reducer, Schedule
from common.reducers.base import NO_SIGNALS
from common.tokens import Selection, Tokens

METHODS = {  # images differ in how many tokens they compute, or keep
    "ats": 0.6,
    "ats:parity=true": 0.6,
    "ats:padding=budget": 0.6,
    "dynamic_slimming:budget=threshold": 0.6,
    "idle_mlp:score_threshold=0.5,attention=standard": 1.0,
    "idle_mlp:score_threshold=0.5,attention=modified": 1.0,
    "idle_mlp:score_threshold=0.5,attention=cls_sees_all,context=both": 1.0,
    "idle_mlp:score_threshold=0.5,re_entry=false": 1.0,
    "idle_oracle:tau=0.5,attention=cls_sees_all": 1.0,
}
EVERYWHERE = [text for text in METHODS if text == "ats" or text.startswith("idle_mlp:score_threshold=0.5,attention")]
GATED = {"img_size": 64, "patch_size": 16, "embed_dim": 96, "depth": 4, "num_heads": 3, "num_classes": 10}


@cache
def backbone(family: str) -> torch.nn.Module:
    """One of ``FAMILIES``, or a ViT whose attention output is gated, whose tokens differ in what they attend to."""
    if family == "gated":
        torch.manual_seed(0)
        vit = timm.models.VisionTransformer(**GATED).eval()
        for block in vit.blocks:
            block.attn.gate = torch.nn.Linear(96, 96)
            torch.nn.init.normal_(block.attn.gate.weight, std=0.2)
        torch.nn.init.normal_(vit.head.weight, std=0.02)
    else:
        vit = make(family)
    vit.blocks = vit.blocks[:4]
    for block in vit.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.2)
        if block.attn.qkv.bias is not None:
            torch.nn.init.normal_(block.attn.qkv.bias, std=0.2)
    return vit


def model_of(text: str, vit: torch.nn.Module) -> torch.nn.Module:
    """``vit`` under a method whose decisions differ from image to image."""
    method = Method.parse(text)
    torch.manual_seed(1)
    model = reduce_tokens(vit, method.name, keep_rate=METHODS[text], **dict(method.options)).eval()
    for module in model.reducer.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.2)
    if method.name == "dynamic_slimming":
        model.reducer.thresholds.zero_()
    if method.name == "idle_oracle":
        scores = reduce_tokens(vit, method.name, counts=[1] * 4).trace(images(vit))[1].scores  # minus the similarity
        model.reducer.tau = -torch.cat(list(scores.values())).median().item()
    return model


@pytest.fixture
def packings(monkeypatch) -> list[Packing]:
    """Whatever padding there is is left out; how, is noted here."""
    of, found = Packing.of.__func__, []

    def noted(cls, *arguments):
        packing = of(cls, *arguments)
        found.extend([] if packing is None else [packing])
        return packing

    monkeypatch.setattr(packed, "COPIES", 0)
    monkeypatch.setattr(packed, "CALL_MACS", 0)
    monkeypatch.setattr(Packing, "of", classmethod(noted))
    return found


@pytest.fixture
def padded(monkeypatch):
    """Runs a call with padding, as on a GPU."""

    def run(call, *arguments):
        with monkeypatch.context() as context:
            context.setattr(Packing, "of", classmethod(lambda *_: None))
            return call(*arguments)

    return run


CASES = [
    pytest.param(family, text, id=f"{family}-{text}")
    for family in [*FAMILIES, "gated"]
    for text in (METHODS if family in ("vit", "dinov2-registers", "simple-vit") else EVERYWHERE)
    if obstacle(backbone(family), Method.parse(text).name) is None
]


@pytest.mark.parametrize(("family", "text"), CASES)
@torch.inference_mode()
def test_packed_is_padded(family, text, packings, padded):
    """Logits to 1e-5, and the same decisions about every patch."""
    vit = backbone(family)
    model, x = model_of(text, vit), images(vit, batch=5)
    logits, trace = model.trace(x)
    assert any(len(set(each.lengths)) > 1 for each in packings), "the batch is not ragged"
    expected, wanted = padded(model.trace, x)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
    for name in ("assignment", "destination", "num_tokens", "origin", "active"):
        assert all(map(torch.equal, getattr(trace, name), getattr(wanted, name))), name
    assert trace.scores.keys() == wanted.scores.keys()
    for layer, scores in trace.scores.items():
        torch.testing.assert_close(scores, wanted.scores[layer], rtol=0, atol=1e-4, equal_nan=True)


class Ragged(Reducer):
    """In block 1 the first image computes patches 0 to 8, the second 3 and 5, the third none."""

    def __init__(self, vit, **how):
        super().__init__(vit, Schedule(1.0, (1,)))
        self.how = how

    def needs(self, layer, tokens):
        return NO_SIGNALS if layer == 1 else None

    def select_queries(self, tokens, signals, layer):
        mask = torch.zeros(3, tokens.num_patch_tokens, dtype=torch.bool)
        mask[0, :9] = mask[1, [3, 5]] = True
        return tokens, Selection.of_mask(mask, **self.how)


@pytest.mark.parametrize("idle", [False, True], ids=["dropping", "idling"])
@pytest.mark.parametrize("keys", ["all", "selected", "prefix"])
@pytest.mark.parametrize("family", ["vit", "dinov2-registers", "simple-vit"])
@torch.inference_mode()
def test_every_choice_of_keys_is_each_image_alone(family, keys, idle, packings):
    """Idle patches stay bit by bit; of an image that computes none without prefix tokens nothing changes."""
    vit = make(family)
    before = attach(vit, Ragged(vit)).embed(images(vit))
    reducer = Ragged(vit, keys=keys, idle=idle)
    after = reduced_block(vit.blocks[1], before, 1, reducer)
    assert packings[0].lengths == [count + vit.num_prefix_tokens for count in (9, 2, 0)]
    choice = reducer.select_queries(before, None, 1)[1]
    for number in range(3):
        own = Selection(choice.index[number : number + 1, : (9, 2, 0)[number]], keys=keys, idle=idle)
        alone = before.with_x(before.x[number : number + 1])
        expected = _one(vit.blocks[1], alone, own)
        found = after.x[number] if idle else after.x[number][after.valid[number]]
        torch.testing.assert_close(found[None], expected, rtol=0, atol=1e-5)
    idled = before.x[2, vit.num_prefix_tokens :]
    assert not idle or torch.equal(after.x[2, vit.num_prefix_tokens :], idled)


def _one(block, tokens: Tokens, choice: Selection) -> torch.Tensor:
    """The block by definition, for one image: all logits, hidden where a token does not see another."""
    attn, rows = block.attn, tokens.rows(choice)[0]
    normed, x, prefix = block.norm1(tokens.x)[0], tokens.x[0], tokens.num_prefix_tokens
    q, k, v = attn.qkv(normed).unflatten(-1, (3, attn.num_heads, -1)).permute(1, 2, 0, 3)
    logits = (attn.q_norm(q)[:, rows] * attn.scale) @ attn.k_norm(k).transpose(1, 2)  # (H, K, N)
    hidden = torch.ones(logits.shape[1:], dtype=torch.bool)
    hidden[:, rows] = False
    hidden = torch.zeros_like(hidden) if choice.keys == "all" else hidden
    hidden[:prefix] &= choice.keys == "selected"
    mixed = (logits.masked_fill(hidden, float("-inf")).softmax(-1) @ v).transpose(0, 1).flatten(1)
    y = x[rows] + block.ls1(attn.proj(attn.norm(mixed)))
    y = y + block.ls2(block.mlp(block.norm2(y)))
    return x.index_copy(0, rows, y)[None] if choice.idle else y[None]


@torch.inference_mode()
def test_maps_of_a_packed_batch_are_those_of_the_padded_one(packings, padded):
    """ATS seen by explainers: maps of all tokens, though padding was left out of the linear layers."""
    vit = backbone("vit")
    model, x = model_of("ats", vit), images(vit, batch=5)
    logits, layers = attention_layers(model, x)
    expected, wanted = padded(attention_layers, model, x)
    assert packings
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    for ours, theirs in zip(layers, wanted, strict=True):
        assert torch.equal(ours.assignment, theirs.assignment)
        torch.testing.assert_close(ours.between_patches(), theirs.between_patches(), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_a_packed_batch_costs_what_its_images_cost_alone(packings):
    """But for the CLS token's logits, D products a token: of padding too, and of images that have few tokens left."""
    vit = backbone("vit")
    model, x = model_of("ats", vit), images(vit, batch=5)
    trace, scored = model.trace(x)[1], 0
    for layer, most in zip(model.reducer.blocks, model.reducer.schedule.counts(16), strict=True):
        entering = trace.num_tokens[layer - 1]
        scored += 5 * (1 + entering.max().item()) - (1 + entering[entering > most]).sum().item()
    alone = sum(executed_macs(model, image[None]) for image in x)
    assert packings and executed_macs(model, x) == alone + scored * vit.embed_dim


# --- when it is done ------------------------------------------------------------------------------------------------


def tokens_of(lengths: list[int], dim: int = 192, longest: int = 100) -> Tokens:
    valid = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return Tokens(torch.randn(len(lengths), longest, dim), 1, (1, longest - 1), valid=valid)


@pytest.mark.parametrize(
    ("lengths", "dim", "packs"),
    [
        ([100, 100, 100, 100], 192, False),  # nothing to leave out
        ([100, 99, 99, 99], 192, False),  # 3 rows of 442,368 MAC, four calls of 500,000
        ([100, 90, 95, 85], 192, True),  # 30 rows of 400
        ([100, 90, 95, 85], 48, False),  # rows of 27,648 MAC
        ([50], 192, False),  # one image has its padding because it is wanted
    ],
)
def test_padding_is_left_out_where_that_pays(lengths, dim, packs):
    block = timm.models.vision_transformer.Block(dim, 3).eval()
    with torch.inference_mode():
        assert (Packing.of(block, tokens_of(lengths, dim)) is not None) == packs


def test_training_gradients_and_weighted_tokens_are_padded():
    block, tokens = timm.models.vision_transformer.Block(192, 3).eval(), tokens_of([100, 40])
    assert Packing.of(block, tokens) is None, "gradients may be wanted"
    with torch.inference_mode():
        assert Packing.of(block, tokens).lengths == [100, 40]
        assert Packing.of(block, replace(tokens, size=torch.ones(2, 100))) is None
        assert Packing.of(block, replace(tokens, valid=None)) is None
        assert Packing.of(block.train(), tokens) is None


def test_take_put_and_pad():
    tokens = tokens_of([3, 1], dim=2, longest=4)
    packing = Packing.of_all(tokens)
    taken = packing.take(tokens.x)
    assert torch.equal(taken, torch.cat([tokens.x[0, :3], tokens.x[1, :1]])[None])
    assert torch.equal(packing.put(tokens.x, taken), tokens.x)
    assert torch.equal(packing.pad(taken), tokens.x * tokens.valid[..., None])


def test_attention_is_one_call_for_each_image_of_a_ragged_batch():
    """And nothing else is called once for each of them: images of one length are one call."""
    vit = backbone("vit")
    block = vit.blocks[0]
    name = "_scaled_dot_product_flash_attention_for_cpu"
    for lengths, calls in (([100, 20, 60], 3), ([100, 100, 100], 1)):
        tokens = tokens_of(lengths)
        found = operators(reduced_block, block, tokens, 0, Reducer(vit, Schedule(1.0, (0,)))).calls
        assert (found[name], found["addmm"]) == (calls, 4)
