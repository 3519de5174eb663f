"""What every reducer owes every backbone: identity, nested traces, determinism, independence of the batch."""

import copy
import pickle
from dataclasses import replace

import pytest
import timm
import torch
from backbones import ADAPTIVE, FAMILIES, IDLING, VARIANTS, applicable_reducers, images, make, reducing

from common.benchmark import SelectAll
from common.cost.counter import count_macs
from common.errors import UsageError
from common.models.block import reduced_block
from common.models.reduced import attach, reduce_tokens
from common.models.support import obstacle
from common.reducers import Method, Reducer, Schedule, list_reducers, reducer_class, register_reducer
from common.reducers.base import NO_SIGNALS
from common.tokens import Selection, look_up

PAIRS = [
    pytest.param(family, name, id=f"{family}-{name}")
    for family in FAMILIES
    for name in applicable_reducers(make(family))
]
SELECTING = {"tram", "topk", "ats"}
FUSING = {"evit"}  # one more token than the schedule says, which holds what was not kept
SOFT = {"patchmerger", "sinkhorn", "sit"}  # a token may be no patch's favourite
PATTERNS = {"l1", "l2", "linf"}  # rings of the grid, whatever number of patches that is
PLANNED = {"patch_slimming"}  # a plan has its own numbers
RESIZED = {"downsample"}  # a grid of its own before the first block
# what happens to patches in the last block cannot reach logits that are read from prefix tokens
LAST_BLOCK_PAIRS = [
    pair for pair in PAIRS if make(pair.values[0]).global_pool == "token" and pair.values[1] in SELECTING
]


def reduced(vit, text, keep_rate, **kwargs):
    method = Method.parse(text)
    return reduce_tokens(
        vit, method.name, **reducing(vit, method.name, keep_rate), **dict(method.options), **kwargs
    ).eval()


def test_every_reducer_runs_somewhere():
    assert {name for family in FAMILIES for name in applicable_reducers(make(family))} == set(list_reducers())


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_identity_when_nothing_is_dropped(family, name):
    vit = make(family)
    x = images(vit)
    with torch.inference_mode():
        torch.testing.assert_close(reduced(vit, name, 1.0)(x), vit(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("signal", ["head_max", "attention", "cls_attention"])
@pytest.mark.parametrize("family", FAMILIES)
def test_identity_through_every_path_of_the_reduced_block(family, signal):
    """Everything is selected, in every block: with attention maps and without, timm's numbers come out."""
    vit = make(family)

    class Everything(SelectAll):
        def needs(self, layer, tokens):
            return frozenset({signal, "value_norm", "key_mean"})

    x = images(vit)
    with torch.inference_mode():
        torch.testing.assert_close(attach(vit, Everything(vit, Schedule(1.0, (0,))))(x), vit(x), rtol=0, atol=1e-5)


class Chosen(Reducer):
    """Computes the patches in ``index`` (K,), chosen before attention, in one block."""

    def __init__(self, vit, index, layer=0, **how):
        super().__init__(vit, Schedule(1.0, (layer,)))
        self.index, self.how = index, how

    def needs(self, layer, tokens):
        return NO_SIGNALS if layer in self.blocks else None

    def select_queries(self, tokens, signals, layer):
        return tokens, Selection(self.index.expand(len(tokens.x), -1), **self.how)


@pytest.mark.parametrize("idle", [False, True], ids=["dropping", "idling"])
@pytest.mark.parametrize("keys", ["all", "selected", "prefix"])
@pytest.mark.parametrize("family", FAMILIES)
def test_identity_when_all_are_chosen_before_attention(family, keys, idle):
    vit = make(family)
    x, everything = images(vit), torch.arange(vit.patch_embed.num_patches)
    with torch.inference_mode():
        model = attach(vit, Chosen(vit, everything, keys=keys, idle=idle))
        torch.testing.assert_close(model(x), vit(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("idle", [False, True], ids=["dropping", "idling"])
@pytest.mark.parametrize("family", FAMILIES)
def test_chosen_tokens_are_rows_of_the_whole_block_and_others_stay_or_go(family, idle):
    vit = make(family)
    index, prefix = torch.tensor([1, 4, 5]), vit.num_prefix_tokens
    rows = torch.cat([torch.arange(prefix), index + prefix])
    with torch.inference_mode():
        before = attach(vit, Reducer(vit, Schedule(1.0, (0,)))).embed(images(vit))
        after = reduced_block(vit.blocks[0], before, 0, Chosen(vit, index, idle=idle)).x
        expected = vit.blocks[0](before.x)[:, rows]
    torch.testing.assert_close(after[:, rows] if idle else after, expected, rtol=0, atol=1e-5)
    if idle:
        others = [row for row in range(before.x.shape[1]) if row not in rows.tolist()]
        assert torch.equal(after[:, others], before.x[:, others])


def test_selected_keys_see_each_other_only_and_prefix_keys_let_the_prefix_see_all():
    vit = make("vit")
    block, index = vit.blocks[0], torch.tensor([1, 4, 5])
    with torch.inference_mode():
        before = attach(vit, Reducer(vit, Schedule(1.0, (0,)))).embed(images(vit))
        alone = block(before.x[:, [0, 2, 5, 6]])
        whole = block(before.x)[:, [0, 2, 5, 6]]
        selected = reduced_block(block, before, 0, Chosen(vit, index, idle=True, keys="selected")).x[:, [0, 2, 5, 6]]
        prefix = reduced_block(block, before, 0, Chosen(vit, index, idle=True, keys="prefix")).x[:, [0, 2, 5, 6]]
    torch.testing.assert_close(selected, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(prefix, torch.cat([whole[:, :1], alone[:, 1:]], dim=1), rtol=0, atol=1e-5)
    assert (alone - whole).abs().max() > 1e-3


@pytest.mark.parametrize("keys", ["all", "selected", "prefix"])
def test_padding_of_a_choice_changes_nothing(keys):
    """Two images that compute 3 and 2 patches: as each alone."""
    vit = make("vit")
    index, valid = torch.tensor([[1, 4, 5], [0, 2, 7]]), torch.tensor([[True] * 3, [True, True, False]])
    with torch.inference_mode():
        before = attach(vit, Reducer(vit, Schedule(1.0, (0,)))).embed(images(vit, batch=2))
        choice = Chosen(vit, index, idle=True, keys=keys, valid=valid)
        together = reduced_block(vit.blocks[0], before, 0, choice).x
        second = before.with_x(before.x[1:])
        alone = reduced_block(vit.blocks[0], second, 0, Chosen(vit, index[1:, :2], idle=True, keys=keys)).x
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-5)
    assert torch.equal(together[1, 8], before.x[1, 8])


@pytest.mark.parametrize("idle", [False, True], ids=["dropping", "idling"])
def test_macs_of_a_choice_are_the_closed_form(idle):
    """Queries, projection and MLP of 1 + K tokens, keys and values of all N, products of the two."""
    vit = make("vit")
    dim, length, kept = 192, 17, 4
    whole = count_macs(vit, 64)
    model = attach(vit, Chosen(vit, torch.tensor([1, 4, 5]), layer=len(vit.blocks) - 1, idle=idle))
    block = 10 * kept * dim**2 + 2 * length * dim**2 + 2 * kept * length * dim
    assert whole.total - count_macs(model, 64).total == 12 * length * dim**2 + 2 * length**2 * dim - block


def test_trace_tells_who_was_computed():
    vit = make("vit")
    _, trace = attach(vit, Chosen(vit, torch.tensor([1, 4, 5]), layer=1, idle=True)).trace(images(vit))
    assert [trace.active[layer][0].nonzero()[:, 0].tolist() for layer in (1,)] == [[1, 4, 5]]
    assert trace.active[0].all() and trace.active[2].all() and trace.kept(1).all()


@pytest.mark.parametrize("text", VARIANTS)
@pytest.mark.parametrize("family", ["vit", "cls-avg"])
def test_variants_give_finite_logits_and_keep_less(family, text):
    vit = make(family)
    logits, trace = reduced(vit, text, 0.5).trace(images(vit))
    assert logits.isfinite().all() and (trace.num_tokens[-1] <= 2).all()
    assert trace.kept(len(vit.blocks) - 1).any(1).all()


@pytest.mark.parametrize(("family", "name"), LAST_BLOCK_PAIRS)
def test_dropping_in_the_last_block_changes_no_logit(family, name):
    """The path through this package's block, with its gathers, gives timm's numbers."""
    vit = make(family)
    last = len(vit.blocks) - 1
    x = images(vit)
    model = reduced(vit, name, (5,), reduction_loc=(last,))
    with torch.inference_mode():
        torch.testing.assert_close(model(x), vit(x), rtol=0, atol=1e-5)
        assert model.forward_features(x).shape[1] <= vit.num_prefix_tokens + 5


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_trace(family, name):
    vit = make(family)
    x = images(vit)
    model = reduced(vit, name, 0.6)
    patches = vit.patch_embed.num_patches
    logits, trace = model.trace(x)
    torch.testing.assert_close(logits, model(x).detach(), rtol=0, atol=1e-5)
    assert len(trace.assignment) == len(trace.num_tokens) == len(vit.blocks)
    method = reducer_class(name)
    if method.idles:
        assert all(kept.all() for kept in map(trace.kept, range(len(vit.blocks))))
        assert all((count == patches).all() for count in trace.num_tokens)
        return
    before = torch.ones(len(x), patches, dtype=torch.bool)
    composed = torch.arange(patches).expand(len(x), -1)
    for layer, assignment in enumerate(trace.assignment):
        composed = look_up(trace.destination[layer], composed, -1)
        assert torch.equal(composed, assignment)
        assert assignment.shape == (len(x), patches) and assignment.dtype == torch.long
        kept = trace.kept(layer)
        assert not (kept & ~before).any()  # nested: nobody comes back
        for row, count in zip(assignment, trace.num_tokens[layer], strict=True):
            assert row.max() < count and row.min() >= -1
            holders = row[row >= 0].tolist()
            if name not in SOFT:
                assert set(holders) == set(range(count))
            if not (method.clusters or name in FUSING):
                assert holders == list(range(count))  # in the order of the image
        before = kept
        selected = trace.selected(layer)
        assert not (selected & ~kept).any()
        if method.selects or name == "none":
            own = trace.origin[layer]
            for row, place, count in zip(assignment, own, trace.num_tokens[layer], strict=True):
                single = {token: patch for token, patch in enumerate(place.tolist()) if patch >= 0}
                assert all(row[patch] == token for token, patch in single.items())  # each holds the patch that it is
                fused = sum(layer >= stage for stage in model.reducer.schedule.reduction_loc) if name in FUSING else 0
                assert count - fused <= len(single) == len(set(single.values())) <= count
    counts = model.reducer.schedule.counts(patches)
    final = trace.num_tokens[-1]
    if name == "ats":
        assert (final <= counts[-1]).all()
    elif name not in PATTERNS | PLANNED | RESIZED:
        assert (final == counts[-1] + (name in FUSING)).all()


@pytest.mark.parametrize(("family", "name"), [pair for pair in PAIRS if reducer_class(pair.values[1]).idles])
def test_idle_patches_wait_for_later_blocks(family, name):
    """A stage holds from its block to the next stage, floor(P 0.6^s) of P patches; the others stay as they were."""
    vit = make(family)
    model = reduced(vit, name, 0.6)
    expected = vit.patch_embed.num_patches
    counts = dict(zip(model.reducer.schedule.reduction_loc, model.reducer.schedule.counts(expected), strict=True))
    tokens = model.embed(images(vit), traced=True)
    for layer, block in enumerate(vit.blocks):
        expected, before = counts.get(layer, expected), tokens
        with torch.inference_mode():
            tokens = reduced_block(block, replace(tokens, active=None), layer, model.reducer)
        active = tokens.assignment >= 0 if tokens.active is None else tokens.active
        assert active.sum(1).tolist() == [expected] * 3
        assert torch.equal(tokens.patches[~active], before.patches[~active])


@pytest.mark.parametrize("name", [*sorted(set(list_reducers()) - {"none"}), *VARIANTS, *IDLING])
def test_a_batch_is_its_images(name):
    vit = make("cls-avg" if name.startswith("ats") else "vit")
    x = images(vit, batch=5)
    model = reduced(vit, name, 0.5)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), torch.cat([model(row[None]) for row in x]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*list_reducers(), *VARIANTS, *IDLING, *ADAPTIVE])
def test_a_batch_without_images_has_no_logits(name):
    model = reduced(make("vit"), name, 1.0 if name in ADAPTIVE[1:] else 0.5)
    nothing = torch.empty(0, 3, 64, 64)
    assert model(nothing).shape == model.trace(nothing)[0].shape == model.train()(nothing).shape == (0, 1000)


@pytest.mark.parametrize("name", [*list_reducers(), *VARIANTS, *IDLING, "ats:sampler=random"])
def test_deterministic_under_seed(name):
    def run():
        torch.manual_seed(3)
        vit = make("vit")
        return reduced(vit, name, 0.6)(images(vit))

    assert torch.equal(run(), run())


def test_random_sampler_depends_on_the_seed():
    vit = make("vit")
    model, x = reduced(vit, "ats:sampler=random", 0.5), images(vit)
    outputs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        outputs.append(model(x))
    assert not torch.equal(*outputs)


@pytest.mark.parametrize("name", list_reducers())
@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
def test_bfloat16(name, autocast):
    """Half precision keeps (almost) the same patches and stays near float32."""
    vit = make("vit")
    x = images(vit)
    model = reduced(vit, name, 0.6)
    exact, trace = model.trace(x)
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            rough, rough_trace = model.trace(x)
    else:
        rough, rough_trace = copy.deepcopy(model).bfloat16().trace(x.bfloat16())
    assert rough.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(rough.float(), exact).min() > 0.95
    assert (rough_trace.kept(3) == trace.kept(3)).float().mean() > 0.8
    assert (rough_trace.num_tokens[3] - trace.num_tokens[3]).abs().max() <= (1 if name == "ats" else 0)


@pytest.mark.parametrize("name", list_reducers())
def test_gradients_reach_every_parameter_that_acts(name):
    vit = make("vit").train()
    model = reduced(vit, name, 0.6).train()
    model(images(vit)).square().sum().backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert without == set()


@pytest.mark.parametrize("name", list_reducers())
def test_gradient_checkpointing_changes_nothing(name):
    vit = make("vit").train()
    model = reduced(vit, name, 0.6).train()
    x = images(vit)
    gradients = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        torch.manual_seed(5)  # a training pass may draw its decisions
        model(x).square().sum().backward()
        gradients.append(model.blocks[0].attn.qkv.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_the_original_model_stays_as_it_was():
    vit = make("vit")
    x = images(vit)
    before, keys = vit(x), set(vit.state_dict())
    model = reduced(vit, "patchmerger", 0.5)
    model.reset_classifier(3)
    assert torch.equal(vit(x), before) and set(vit.state_dict()) == keys
    assert model(x).shape == (3, 3) and vit.head.out_features == 1000
    assert model.blocks[0].attn.qkv.weight is vit.blocks[0].attn.qkv.weight


def test_state_dict_names():
    vit = make("vit")
    assert set(reduced(vit, "tram", 0.5).state_dict()) == set(vit.state_dict())
    own = set(reduced(vit, "patchmerger", 0.5).state_dict()) - set(vit.state_dict())
    assert own == {
        f"reducer.mergers.{loc}.{part}" for loc in (3, 6, 9) for part in ("norm.weight", "norm.bias", "queries")
    }


def test_copies_and_pickles():
    vit = make("vit")
    model, x = reduced(vit, "tram", 0.5), images(vit)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))


def dynamic(name):
    """A model that takes images of any size: 4 x 4 patches of 16, or as DINOv2 has them 4 x 4 of 14 and registers."""
    if name == "dinov2":
        options = {"img_size": 56, "num_classes": 10, "depth": 4, "embed_dim": 64, "num_heads": 2}
        return timm.create_model("vit_small_patch14_reg4_dinov2", dynamic_img_size=True, **options).eval()
    return timm.create_model("vit_tiny_patch16_224", img_size=64, depth=4, dynamic_img_size=True).eval()


@pytest.mark.parametrize("name", sorted(set(list_reducers()) - PLANNED))
@pytest.mark.parametrize("backbone", ["vit", "dinov2"])
def test_dynamic_image_sizes(backbone, name):
    """Identity where nothing is dropped; else the schedule of the image, but learned parts keep their own number."""
    vit = dynamic(backbone)
    if obstacle(vit, name):
        pytest.skip(obstacle(vit, name))
    patch = vit.patch_embed.patch_size[0]
    whole, half = reduced(vit, name, 1.0), reduced(vit, name, 0.5)
    for rows, columns in ((4, 4), (3, 5), (6, 8), (2, 3)):
        x = torch.randn(2, 3, rows * patch, columns * patch)
        with torch.inference_mode():
            torch.testing.assert_close(whole(x), vit(x), rtol=0, atol=1e-5)
        _, trace = half.trace(x)
        computed = [int(active[0].sum()) for active in trace.active[1:]]
        left = computed if reducer_class(name).idles else [int(count.max()) for count in trace.num_tokens[1:]]
        whole_count, expected = rows * columns, half.reducer.schedule.counts(rows * columns)
        if name in SOFT:
            expected = [min(count, whole_count) for count in half.reducer.schedule.counts(16)]
        if name == "ats":
            assert all(count <= most for count, most in zip(left, expected, strict=True))
        elif name not in PATTERNS | RESIZED | {"none"}:
            assert left == [count + (name in FUSING and count < whole_count) for count in expected]


@pytest.mark.parametrize("name", sorted(set(list_reducers()) - PLANNED))
def test_counts_that_drop_nothing_of_the_own_size_drop_of_a_larger_image(name):
    model = reduced(dynamic("vit"), name, (16, 8, 4))
    _, trace = model.trace(torch.randn(1, 3, 96, 128))
    assert model.train()(torch.randn(2, 3, 64, 64)).isfinite().all()
    if not reducer_class(name).idles and name not in PATTERNS | FUSING | RESIZED | {"ats", "none"}:
        assert [count.item() for count in trace.num_tokens] == [48, 16, 8, 4]


def test_a_plan_is_for_one_grid():
    model = reduced(dynamic("vit"), "patch_slimming", 0.5)
    with pytest.raises(UsageError, match="the plan is for 4 x 4 patches, the image has 2 x 8"):
        model(torch.randn(1, 3, 32, 128))


def test_a_name_can_be_registered_once():
    with pytest.raises(UsageError, match="'tram' is registered already, by Tram"):
        register_reducer("tram")(Reducer)


@pytest.mark.parametrize("name", ["topk", "idle_topk", "idle_random"])
def test_a_wrapped_projection_gives_the_same_logits(name):
    """An adapter around qkv, say, has no weight of its own that could be taken apart."""
    vit = make("vit")
    model, x = reduced(vit, name, 0.5), images(vit)
    with torch.inference_mode():
        expected = model(x)
        for block in vit.blocks:
            block.attn.qkv = torch.nn.Sequential(block.attn.qkv)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
