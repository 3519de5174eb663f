"""The last block computes only what the head reads: the same logits for less, and nothing else changes."""

import pytest
import timm
import torch
from backbones import ADAPTIVE, IDLING, VARIANTS, applicable_reducers, images, make, reducing

from common.benchmark import SelectAll
from common.cost.ceiling import recorded_lengths
from common.cost.closed_form import Shape, block_macs
from common.cost.counter import count_macs, mean_macs
from common.cost.methods import attention_of, deciding_macs, idle_macs, scheduled_macs, slim_macs
from common.data import load_dataset, make_loader
from common.errors import UsageError
from common.idling.budget import solve_thresholds
from common.idling.outcomes import acting_blocks
from common.models.factory import create_model
from common.models.reduced import attach, reduce_tokens
from common.models.support import obstacle
from common.reducers import Method, Schedule

ALL = [
    text
    for text in [*applicable_reducers(make("dinov2-registers")), *VARIANTS, *IDLING, *ADAPTIVE]
    if obstacle(make("dinov2-registers"), Method.parse(text).name, "cls") is None
]
PAIRS = [
    pytest.param(family, text, id=f"{family}-{text}")
    for family, texts in {
        "dinov2-registers": ALL,
        "deit3-layerscale": ALL,
        "deit-distilled": ["none", "tome", "ats", "idle_mlp:attention=standard"],
    }.items()
    for text in texts
]


def whole_and_lean(vit, text, **how):
    """The same method computing the whole last block and only what the head reads of it."""
    method, models = Method.parse(text), []
    free = {"score_threshold", "tau"} & dict(method.options).keys() or method.name == "none"
    rate = 0.5 if method.name == "patch_slimming" else (0.8, 0.6, 0.4)
    how = how if how or free else reducing(vit, method.name, rate)
    late = {} if free or "plan" in how else {"reduction_loc": tuple(range(len(vit.blocks)))[-3:]}
    for last_block in ("whole", "cls"):
        torch.manual_seed(0)  # of the parameters of methods that have some
        options = {**dict(method.options), **how, **late, "last_block": last_block}
        models.append(reduce_tokens(vit, method.name, **options).eval())
    return models


@pytest.mark.parametrize(("family", "text"), PAIRS)
@torch.inference_mode()
def test_logits_are_those_of_the_whole_block_and_traces_too(family, text):
    """Where the method reduces in the last block, too; in training and where tokens are asked for all are computed."""
    vit = make(family)
    whole, lean = whole_and_lean(vit, text)
    x = images(vit)
    with recorded_lengths(lean) as lengths:
        torch.manual_seed(1)
        logits = lean(x)
    torch.manual_seed(1)
    torch.testing.assert_close(logits, whole(x), rtol=0, atol=5e-6)
    if not text.startswith("idle_oracle"):  # which looks at the output of the whole block
        assert lengths[-1][1] == vit.num_prefix_tokens
    traces = []
    for model in (whole, lean):
        torch.manual_seed(1)
        traces.append(model.trace(x))
    assert torch.equal(traces[0][0], traces[1][0])
    assert torch.equal(traces[0][1].assignment[-1], traces[1][1].assignment[-1])
    torch.manual_seed(1)
    _, tokens = lean(x, return_tokens=True)
    torch.manual_seed(1)
    assert tokens.x.shape == whole(x, return_tokens=True)[1].x.shape
    assert torch.equal(lean.classify(tokens), traces[1][0])


def test_a_model_in_training_computes_all():
    vit = make("vit")
    lean = reduce_tokens(vit, "tram", keep_rate=0.5, last_block="cls")
    with recorded_lengths(lean.train()) as lengths:
        lean(images(vit))
    assert lengths[-1] == [1 + 16 // 8, 1 + 16 // 8]


def test_an_unreduced_vit_of_12_blocks_saves_7_percent():
    """All of the last block's queries, projections and MLP but one row's; keys and values of all stay."""
    vit = timm.create_model("vit_tiny_patch16_224")
    shape = Shape.of(reduce_tokens(vit, "none", last_block="cls"))
    saved = block_macs(shape, 197, 197) - block_macs(shape, 1, 197)
    assert saved / shape.unreduced == pytest.approx(0.069, abs=0.0005)
    assert shape.unreduced == Shape.of(vit).unreduced


@pytest.mark.parametrize("loc", [(1, 2), (2, 3)])
@pytest.mark.parametrize("family", ["vit", "deit-distilled", "dinov2-registers"])
@pytest.mark.parametrize("method", ["none", "tram", "topk"])
def test_counted_as_the_closed_form_has_it(method, family, loc):
    vit = make(family)
    how = {} if method == "none" else {"keep_rate": 0.5, "reduction_loc": loc}
    if method != "none" and family != "dinov2-registers":
        how["reduction_loc"] = (4, 11)
    lean = reduce_tokens(vit, method, **how, last_block="cls")
    schedule = Schedule(how.get("keep_rate", 1.0), how.get("reduction_loc", loc))
    expected = scheduled_macs(Shape.of(lean), method, schedule)
    assert count_macs(lean, vit.patch_embed.img_size).total == expected < Shape.of(lean).unreduced


@pytest.mark.parametrize(("keys", "counter"), [("all", "compact"), ("selected", "square")])
def test_slimming_is_counted_as_the_closed_form_has_it(keys, counter):
    vit = make("vit")
    how = reducing(vit, "patch_slimming", 0.5)
    lean = reduce_tokens(vit, "patch_slimming", **how, last_block="cls")
    lean.reducer.keys = keys
    assert count_macs(lean, 64).total == slim_macs(Shape.of(lean), how["plan"].lengths, counter)


@pytest.mark.parametrize(
    "text", ["idle_mlp", "idle_mlp:attention=standard", "idle_mlp:attention=cls_sees_all", "idle_topk"]
)
def test_idling_is_counted_as_the_closed_form_has_it(text):
    """Where idle patches are seen, the last block asks no predictor."""
    vit = make("vit")
    lean = whole_and_lean(vit, text, keep_rate=0.5)[1]
    layers = acting_blocks(lean)
    computed = {layer: lean.reducer.count(layer, 16) for layer in layers}
    asked = [layer for layer in layers if layer < 11 or lean.reducer.keys == "selected"]
    expected = idle_macs(Shape.of(lean), computed, attention_of(lean.reducer)) + deciding_macs(lean, asked)
    assert count_macs(lean, 64).total == expected


def test_a_head_that_reads_patches_is_refused():
    with pytest.raises(
        UsageError, match=r"last_block='cls' leaves patches out, but .*'tram' .* patches .*'avg'.*whole"
    ):
        reduce_tokens(make("cls-avg"), "tram", keep_rate=0.5, last_block="cls")
    with pytest.raises(UsageError, match="reducer 'patchmerger' the head reads the mean of patches; allowed: whole"):
        create_model("vit_digits", reducer="patchmerger", keep_rate=0.5, last_block="cls")
    with pytest.raises(UsageError, match="unknown last_block 'all'; allowed: cls, whole"):
        create_model("vit_digits", last_block="all")


def test_a_method_of_ones_own_takes_it_by_its_attribute():
    vit = make("vit")
    reducer = SelectAll(vit, Schedule(1.0, (11,)))
    reducer.last_block = "cls"
    with torch.inference_mode(), recorded_lengths(vit) as lengths:
        expected = vit(images(vit))
        torch.testing.assert_close(attach(vit, reducer)(images(vit)), expected, rtol=0, atol=5e-6)
    assert lengths[-1] == [17, 1]


@pytest.mark.parametrize("attention", ["standard", "modified"])
def test_thresholds_are_solved_for_what_the_model_then_costs(attention):
    """A fifth is saved in all, of which the last block brings its part for nothing."""
    loader = make_loader(load_dataset("digits", "val", img_size=32, limit=12), 12, shuffle=False, seed=0)
    ((x, _),) = loader
    options = {"score_threshold": 0.5, "hidden": 4, "attention": attention, "last_block": "cls"}
    model = create_model("vit_digits", reducer="idle_mlp", **options).eval()
    solve_thresholds(model, loader, 0.25)
    assert mean_macs(model, x) / Shape.of(model).unreduced == pytest.approx(0.75, abs=0.01)
    # where idle patches are seen, the last block saves nothing by asking
    assert attention == "standard" or model.reducer.thresholds[-1] == 0
