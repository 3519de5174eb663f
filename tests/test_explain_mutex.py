"""MUTEX against its definition, taken literally: one image and one mask at a time."""

import pytest
import torch
from backbones import images
from counting import executed_macs, operators
from explained import digits, family, reduced
from scipy import stats

from common.cost.closed_form import Shape, block_macs, total_macs
from common.errors import UsageError
from common.explain import Mutex, create_explainer
from common.explain.mutex import MASKS, coverage_mean
from common.explain.network import DEGREES, masks_above, weighted_degrees
from common.models.observe import as_reduced, watch
from references import confidences_one_by_one

TOLERANCE = {"rtol": 0, "atol": 1e-5}
# what the head reads: CLS token, both tokens, CLS among registers, patches, patches despite a CLS token, a pooled map
BACKBONES = ["vit_digits", "simple_vit_digits", "deit-distilled", "dinov2-registers", "cls-avg", "siglip-map"]


def backbone(name):
    return digits(name) if name.endswith("digits") else family(name)


@pytest.fixture
def passes(monkeypatch):
    """Shapes (rows, tokens) of whatever runs through the final norm of a model given to it."""
    shapes = []

    def count(model):
        monkeypatch.setattr(
            model.norm, "forward", lambda x, own=model.norm.forward: shapes.append(x.shape[:2]) or own(x)
        )
        return shapes

    return count


@pytest.fixture
def fixed_degrees(monkeypatch):
    """Lets every block of a network have the given degrees (P,), whatever the model attends to."""

    def fix(degrees):
        monkeypatch.setattr(
            "common.explain.network.weighted_degrees", lambda layer, cut: degrees.expand(len(layer.attention), 3, 2, -1)
        )

    return fix


@pytest.mark.parametrize("name", BACKBONES)
def test_confidences_equal_54_sequential_passes(name):
    vit = backbone(name)
    x = images(vit, 1)
    found = Mutex(vit)(x)
    assert found.masks.shape == (1, 54, *vit.patch_embed.grid_size) and found.masks.dtype == torch.bool
    assert found.confidences.shape == (1, 54) and found.labels.tolist() == vit(x).argmax(1).tolist()
    some = slice(None) if name.endswith("digits") else slice(None, None, 5)  # the larger ones would take long
    with torch.inference_mode():
        literal = confidences_one_by_one(vit, x[0], found.labels[0], found.masks[0, some])
    torch.testing.assert_close(found.confidences[0, some], literal, **TOLERANCE)
    assert found.confidences.std() > 1e-3  # or the comparison would say nothing


@pytest.mark.parametrize("name", BACKBONES)
def test_showing_all_patches_gives_the_probability_of_the_whole_image(name):
    vit = backbone(name)
    x = images(vit, 2)
    found = Mutex(vit, token_ratio=0)(x)
    assert found.masks.all()
    clean = vit(x).softmax(1).amax(1)
    torch.testing.assert_close(found.confidences, clean[:, None].expand(-1, 54), **TOLERANCE)
    torch.testing.assert_close(found.heatmaps, clean[:, None, None].expand_as(found.heatmaps), **TOLERANCE)


def test_masks_follow_the_definition_end_to_end():
    """Order of the masks, cut, first layer, statistics and threshold, from attention maps computed one by one."""
    vit = digits(img_size=16)
    x, patches = images(vit, 1), slice(1, None)
    maps = []
    handles = [block.attn.attn_drop.register_forward_hook(lambda m, i, a: maps.append(a)) for block in vit.blocks]
    for block in vit.blocks:
        block.attn.fused_attn = False
    vit(x)
    for block, handle in zip(vit.blocks, handles, strict=True):
        block.attn.fused_attn = True
        handle.remove()
    found = Mutex(vit, min_cut=0.05, token_ratio=0.25, starting_layer=2)(x).masks[0].flatten(1)
    for position, (aggregation, degree, statistic) in enumerate(MASKS):
        if statistic not in ("max", "min", "sum"):
            continue
        degrees = []
        for attention in maps[2:]:
            heads = attention[0, :, patches, patches]
            arcs = {"min": heads.min(0).values, "max": heads.max(0).values, "sum": heads.sum(0)}[aggregation]
            arcs = torch.where(arcs < 0.05 * arcs.max(), 0, arcs)
            degrees.append(arcs.sum(0) if degree == "in" else arcs.sum(1))
        degrees = torch.stack(degrees)
        value = {"max": degrees.amax(0), "min": degrees.amin(0), "sum": degrees.sum(0)}[statistic]
        assert torch.equal(found[position], value >= value.sort().values[3]), MASKS[position]


@pytest.mark.parametrize(("token_ratio", "shown"), [(0.25, 49), (0.5, 33), (0.75, 17), (1, 1)])
def test_masks_hide_about_token_ratio_of_the_patches(token_ratio, shown):
    masks = Mutex(digits(), token_ratio=token_ratio)(images(digits(), 2)).masks.flatten(2)
    assert (masks.sum(2) >= shown).all()
    assert (masks.sum(2) == shown).float().mean() > 0.8  # the rest are ties, of networks that the cut emptied


def test_heat_is_the_mean_confidence_over_the_masks_that_show_a_patch():
    found = Mutex(digits())(images(digits(), 2))
    for image in range(2):
        for row in range(8):
            for column in range(8):
                shown = found.masks[image, :, row, column]
                mean = found.confidences[image, shown].mean() if shown.any() else 0.0
                assert found.heatmaps[image, row, column].item() == pytest.approx(float(mean), abs=1e-6)


def test_coverage_mean_of_certain_masks_is_one_where_they_show_something():
    masks = torch.rand(2, 54, 6) > 0.9
    masks[:, :, 2] = False
    heat = coverage_mean(masks, torch.ones(2, 54))
    assert heat.tolist() == masks.any(1).float().tolist() and heat[:, 2].tolist() == [0, 0]
    assert coverage_mean(masks.view(2, 54, 2, 3), torch.ones(2, 54)).shape == (2, 2, 3)


def test_swapping_the_names_of_the_degrees_changes_no_heat(monkeypatch):
    x, vit = images(digits(), 2), digits()
    before = Mutex(vit)(x)
    swapped = {"in": DEGREES["out"], "out": DEGREES["in"]}
    monkeypatch.setattr("common.explain.network.DEGREES", swapped)
    after = Mutex(vit)(x)
    assert torch.equal(after.masks.unflatten(1, (3, 2, 9)).flip(2).flatten(1, 3), before.masks)
    torch.testing.assert_close(after.heatmaps, before.heatmaps, rtol=0, atol=1e-7)


def test_the_label_chooses_confidences_and_no_masks():
    vit = digits(img_size=16)
    x = images(vit, 2)
    predicted = Mutex(vit)(x)
    for label in (0, 7):
        other = Mutex(vit)(x, label)
        assert other.labels.tolist() == [label] * 2 and torch.equal(other.masks, predicted.masks)
        with torch.inference_mode():
            literal = torch.stack(
                [confidences_one_by_one(vit, i, label, m) for i, m in zip(x, other.masks, strict=True)]
            )
        torch.testing.assert_close(other.confidences, literal, **TOLERANCE)
    mixed = Mutex(vit)(x, torch.tensor([7, 0]))
    assert torch.equal(mixed.confidences[0], other.confidences[0])
    assert not torch.allclose(mixed.confidences[1], other.confidences[1])


def test_masks_that_coincide_run_once_and_count_each_time(passes):
    vit = digits()
    x = images(vit, 2)
    explainer = Mutex(vit, batch_size=16)
    found = explainer(x)
    distinct = sum(len(masks.flatten(1).unique(dim=0)) for masks in found.masks)
    assert distinct < 108
    shapes = passes(vit)
    explainer(x)
    assert shapes[0] == (2, 65)  # the pass that gives the maps
    assert sum(rows for rows, _ in shapes[1:]) == distinct
    once = torch.stack([coverage_mean(*_distinct(m, c)) for m, c in zip(found.masks, found.confidences, strict=True)])
    assert (once[:, 0] - found.heatmaps).abs().max() > 1e-4  # and would be another mean if counted once


def _distinct(masks, confidences):
    _, first = masks.flatten(1).unique(dim=0, return_inverse=True)
    kept = [first.tolist().index(value) for value in first.unique()]
    return masks[None, kept], confidences[None, kept]


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_no_pass_sees_more_than_batch_size_rows(passes, batch_size):
    vit = digits(img_size=16)
    shapes = passes(vit)
    Mutex(vit, batch_size=batch_size)(images(vit, 3))
    assert max(rows for rows, _ in shapes) == min(batch_size, 32)
    assert len({tokens for _, tokens in shapes}) > 1  # each pass as short as its masks


@pytest.mark.parametrize("text", ["none", "topk", "ats", "tome"])
def test_neither_the_batch_size_nor_the_other_images_matter(text):
    model = reduced(digits(img_size=16), text, 0.5 if text != "none" else 1.0)
    x = images(model, 4)
    whole = Mutex(model)(x)
    for batch_size in (1, 3):  # images, too, run alone or with others
        part = Mutex(model, batch_size=batch_size)(x)
        torch.testing.assert_close(part.heatmaps, whole.heatmaps, **TOLERANCE)
        torch.testing.assert_close(part.confidences, whole.confidences, **TOLERANCE)


@pytest.mark.parametrize("name", ["vit_digits", "simple_vit_digits", "cls-avg", "deit-distilled"])
def test_masks_without_any_patch_under_the_published_rule(name, fixed_degrees):
    """Constant degrees have no skewness: those masks are empty, and only prefix tokens reach the encoder."""
    vit = backbone(name)
    fixed_degrees(torch.full((vit.patch_embed.num_patches,), 0.25))
    found = Mutex(vit, parity=True)(images(vit, 2))
    undefined = torch.tensor([statistic in ("skewness", "kurtosis") for *_, statistic in MASKS])
    assert found.masks.flatten(2).any(2).tolist() == [(~undefined).tolist()] * 2
    empty, shown = found.confidences[:, undefined], found.confidences[:, ~undefined]
    if vit.global_pool == "token":
        for image, label, confidence in zip(images(vit, 2), found.labels, empty, strict=True):
            nothing = torch.zeros(1, vit.patch_embed.num_patches, dtype=torch.bool)
            expected = confidences_one_by_one(vit, image, label, nothing).expand(len(confidence))
            torch.testing.assert_close(confidence, expected, **TOLERANCE)
    else:
        assert empty.eq(0).all()  # there is nothing that the head could read
    torch.testing.assert_close(found.heatmaps.flatten(1), shown[:, :1].expand_as(found.heatmaps.flatten(1)))


def test_patches_of_constant_degree_are_hidden_by_skewness_and_kurtosis_under_parity_alone(monkeypatch):
    vit = digits(img_size=16)
    degrees, constant = iter(torch.rand(12, 16) + 0.5), torch.tensor([3, 8])

    def changing(layer, cut):
        here = next(degrees)
        here[constant] = 0.25
        return here.expand(1, 3, 2, -1)

    monkeypatch.setattr("common.explain.network.weighted_degrees", changing)
    for parity in (True, False):
        masks = Mutex(vit, parity=parity, token_ratio=0)(images(vit, 1)).masks[0].flatten(1)
        for (*_, statistic), mask in zip(MASKS, masks, strict=True):
            hidden = [3, 8] if parity and statistic in ("skewness", "kurtosis") else []
            assert (~mask).nonzero()[:, 0].tolist() == hidden


def float32_statistics(degrees):
    """(9, P) of degrees (L, P) as torch and scipy compute them from float32."""
    total, std = degrees.sum(0), degrees.std(0)
    shares = degrees / total
    entropy = -torch.where(shares > 0, shares * shares.log(), 0).sum(0)
    extremes = [degrees.amax(0), degrees.amin(0)]
    moments = [torch.from_numpy(measure(degrees.numpy())).float() for measure in (stats.skew, stats.kurtosis)]
    return torch.stack([entropy, *extremes, total, std, total / (std + 1e-8), degrees.median(0).values, *moments])


def test_parity_ranks_by_the_last_bits_of_float32():
    """No degree is rounded: masks are those of the literal statistics; by default 3 of these 324 are others."""
    vit, degrees = digits("simple_vit_digits"), []
    x = images(vit, 6)
    with torch.inference_mode():
        watch(as_reduced(vit), x, lambda layer: degrees.append(weighted_degrees(layer, 0.01)))
    literal = torch.stack([float32_statistics(each) for each in torch.stack(degrees, dim=3).flatten(0, 2)])
    literal = masks_above(literal.unflatten(0, (6, 6)).flatten(1, 2), 0.5)
    unlike = {p: (Mutex(vit, parity=p)(x).masks.flatten(2) != literal).sum(2) for p in (True, False)}
    compared = [place for place, mask in enumerate(MASKS) if mask[2] in ("max", "min", "median")]
    assert unlike[True][:, compared].eq(0).all()  # no arithmetic, so exactly; the others up to the order of a sum
    assert unlike[True].sum() <= 1 and unlike[False][:, compared].sum() >= 2


def test_the_last_layer_alone_is_a_network_too():
    found = Mutex(digits(), starting_layer=5)(images(digits(), 2))
    assert found.heatmaps.isfinite().all() and found.masks.flatten(2).any(2).all()


@pytest.mark.parametrize("text", ["tram", "topk", "evit", "tome", "kmedoids", "dpcknn", "sinkhorn"])
def test_a_reduced_model_that_keeps_everything_is_explained_as_the_unreduced_one(text):
    vit = digits()
    x = images(vit, 2)
    unreduced = Mutex(vit)(x)
    found = Mutex(reduced(vit, text, 1.0))(x)
    assert torch.equal(found.masks, unreduced.masks)
    torch.testing.assert_close(found.heatmaps, unreduced.heatmaps, **TOLERANCE)


@pytest.mark.parametrize("text", ["tram", "topk", "evit", "ats", "tome", "kmedoids", "dpcknn", "dynamicvit"])
def test_a_mask_that_shows_fewer_patches_than_a_method_keeps_runs_unreduced(text):
    vit = digits(img_size=16)
    x = images(vit, 1)
    found = Mutex(reduced(vit, text, (15, 14, 13)))(x)
    few = found.masks[0].flatten(1).sum(1) <= 13
    assert few.float().mean() > 0.5
    with torch.inference_mode():
        literal = confidences_one_by_one(vit, x[0], found.labels[0], found.masks[0, few])
    torch.testing.assert_close(found.confidences[0, few], literal, **TOLERANCE)


def test_of_what_a_mask_shows_a_reduced_model_drops_what_exceeds_its_budget(passes):
    """33 of 64 patches are shown; the stages keep 48, 20 and 10 of them."""
    vit = digits()
    model = reduced(vit, "topk", (48, 20, 10))
    lengths = set()
    for block in vit.blocks:
        block.mlp.register_forward_pre_hook(lambda module, given: lengths.add(given[0].shape[1]))
    Mutex(model)(images(vit, 1))
    assert {65, 49, 34, 21, 11} <= lengths


@pytest.mark.parametrize("text", ["l1", "l2", "linf"])
def test_fixed_patterns_need_all_patches_and_are_refused(text):
    with pytest.raises(UsageError, match=r"^mutex hides patches, and a fixed pattern needs all of them[^\n]*$"):
        Mutex(reduced(digits(), text))


def test_a_smaller_image_has_other_patches_and_is_refused():
    with pytest.raises(UsageError, match=r"^mutex hides patches, and a smaller image is cut into others[^\n]*$"):
        Mutex(reduced(digits(), "downsample"))


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("min_cut", -0.1, "a number from 0 to 1"),
        ("min_cut", 1.1, "a number from 0 to 1"),
        ("min_cut", float("nan"), "a number from 0 to 1"),
        ("token_ratio", 50, "a number from 0 to 1"),
        ("token_ratio", True, "a number from 0 to 1"),
        ("token_ratio", "half", "a number from 0 to 1"),
        ("starting_layer", 6, "0 to 5"),
        ("starting_layer", -1, "a whole number >= 0"),
        ("starting_layer", 1.0, "a whole number >= 0"),
        ("starting_layer", True, "a whole number >= 0"),
        ("parity", 1, "true or false"),
        ("batch_size", 0, "a whole number >= 1"),
        ("batch_size", 2.5, "a whole number >= 1"),
        ("cut", 0.1, "min_cut, token_ratio, starting_layer, parity, batch_size"),
    ],
)
def test_bad_options_are_refused_in_one_line(option, value, allowed):
    with pytest.raises(UsageError) as refused:
        create_explainer("mutex", digits(), **{option: value})
    message = str(refused.value)
    assert option in message and allowed in message and "\n" not in message


def test_options_can_be_written_into_the_name():
    vit = digits()
    explainer = create_explainer("mutex:token_ratio=0.25,starting_layer=2", vit, batch_size=5)
    assert (explainer.token_ratio, explainer.starting_layer, explainer.batch_size) == (0.25, 2, 5)


def test_54_masks_run_in_as_few_passes_as_fit_and_compute_only_what_is_read(passes):
    """Patches are embedded once per image; the last block computes the CLS token alone; a mask costs no more."""
    vit = digits()
    x, explainers = images(vit, 2), [Mutex(vit, batch_size=size) for size in (20, 64)]
    masks = torch.rand(2, 54, 64).argsort(2) < 32  # all distinct, of equal length
    arguments = x, vit(x).argmax(1), masks
    shapes = passes(vit)
    for explainer, rows in zip(explainers, ([20] * 5 + [8], [64, 44]), strict=True):
        shapes.clear()
        found = operators(explainer.confidences, *arguments)
        assert shapes == [(count, 1) for count in rows]
        assert found.calls["convolution"] == 1
    shape = Shape.of(vit)
    block, last, embedding = block_macs(shape, 33, 33), block_macs(shape, 1, 33), 64 * shape.dim * shape.patch_dim
    macs = executed_macs(explainers[0].confidences, *arguments)
    assert macs == 2 * embedding + 108 * (total_macs(shape, [block] * 5 + [last]) - embedding)
    assert macs < 0.9 * 108 * total_macs(shape, [block] * 6)  # as many whole passes
