"""Every explainer: the attention it sees, its literal definition, reduced models, and a model left as it was."""

import pytest
import timm
import torch
from backbones import FAMILIES, applicable_reducers, images, make
from explained import digits, family, reduced, vivid
from timm.layers import resample_abs_pos_embed

from common.errors import UsageError
from common.explain import Explainer, create_explainer, list_explainers, register_explainer
from common.explain.metrics import STEPS, insertion_deletion
from common.explain.network import weighted_degrees
from common.models.observe import as_reduced, attention_layers
from common.models.support import is_reduced
from common.reducers.base import reducer_class
from common.reducers.downsample import Downsample
from common.reducers.patch_slimming import PatchSlimming
from common.reducers.patterns import FixedPattern

TOLERANCE = {"rtol": 0, "atol": 1e-5}
GRADIENT = ["chefer", "grad_cam", "gradient_rollout", "integrated_gradients"]
OPTIONS = {"integrated_gradients": {"n_steps": 2}}  # so that the tests are quick
# methods of which a patch that is left stays one token: what they drop is gone
PRUNING = ["tram", "topk", "dynamicvit", "ats"]
ATTENTIVE = [
    "chefer",
    "grad_cam",
    "gradient_rollout",
    "mutex",
    "raw_attention",
    "rollout",
    "tram",
]  # look at attention maps
PAIRS = [
    (reducer, name)
    for reducer in applicable_reducers(digits())
    for name in list_explainers()
    if name != "mutex"
    or not issubclass(reducer_class(reducer), FixedPattern | PatchSlimming | Downsample)  # mutex refuses those
    if not (reducer_class(reducer).idles and name in ATTENTIVE)  # refused: the maps have no rows of idle patches
]
LABELS = torch.tensor([3, 0])


def explain(name, model, x, labels=None, **options):
    return create_explainer(name, model, **{**OPTIONS.get(name, {}), **options})(x, labels)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_attention_of_idle_patches_is_refused(name):
    vit = digits()
    with pytest.raises(UsageError, match="IdleTopK lets patches idle, which then attend to nobody"):
        explain(name, reduced(vit, "idle_topk"), images(vit, batch=2), LABELS)


def literal_maps(vit, x):
    """softmax(q k^T / sqrt d) (B, H, N, N) of every block, from timm's own block inputs."""
    maps = []
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
    for block in vit.blocks:
        attn, normed = block.attn, block.norm1(x)
        q, k, _ = attn.qkv(normed).unflatten(2, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4)
        maps.append((attn.q_norm(q) @ attn.k_norm(k).mT / attn.head_dim**0.5).softmax(3))
        x = block(x)
    return maps


def timm_maps(vit, x, labels):
    """Maps of timm's own unfused attention, and the gradients of the logits of ``labels`` that reach them."""
    maps, handles = [], []
    for block in vit.blocks:
        block.attn.fused_attn = False
        handles.append(block.attn.attn_drop.register_forward_hook(lambda module, given, a: maps.append(a)))
    logits = vit(x.clone().requires_grad_())
    gradients = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), maps)
    for block, handle in zip(vit.blocks, handles, strict=True):
        block.attn.fused_attn = True
        handle.remove()
    return [attention.detach() for attention in maps], gradients


def product(matrices):
    """M_L ... M_2 M_1"""
    result = torch.eye(matrices[0].shape[-1])
    for matrix in matrices:
        result = matrix @ result
    return result


def what_is_read(vit, relevance):
    """Patches' part (B, h, w) of the rows of ``relevance`` (B, N, N) that the head reads."""
    prefix = vit.num_prefix_tokens
    if vit.global_pool == "token":
        row = relevance[:, : 2 if hasattr(vit, "head_dist") else 1].mean(1)
    else:
        row = relevance[:, prefix:].mean(1)
    return row[:, prefix:].unflatten(1, vit.patch_embed.grid_size)


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_watching_changes_no_logit(name):
    vit = make(name)
    x = images(vit, 2)
    torch.testing.assert_close(attention_layers(as_reduced(vit), x)[0], vit(x), **TOLERANCE)


@pytest.mark.parametrize("name", FAMILIES)
def test_watched_attention_is_the_model_s_own(name):
    vit = family(name)
    x = images(vit, 2)
    with torch.inference_mode():
        for layer, expected in zip(attention_layers(as_reduced(vit), x)[1], literal_maps(vit, x), strict=True):
            assert layer.num_prefix_tokens == vit.num_prefix_tokens and layer.valid is None
            assert layer.assignment.tolist() == [list(range(vit.patch_embed.num_patches))] * 2
            torch.testing.assert_close(layer.attention, expected, **TOLERANCE)
            torch.testing.assert_close(layer.attention.sum(3), torch.ones(layer.attention.shape[:3]))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["vit", "deit-distilled", "dinov2-registers", "siglip-map"])
def test_gradients_reach_the_maps_as_in_timm_s_unfused_attention(name, checkpointing):
    vit = family(name)
    x = images(vit, 2)
    _, expected = timm_maps(vit, x, LABELS)
    model = as_reduced(vit)
    model.set_grad_checkpointing(checkpointing)
    logits, layers = attention_layers(model, x)
    found = torch.autograd.grad(logits.gather(1, LABELS[:, None]).sum(), [layer.attention for layer in layers])
    assert len(layers) == len(vit.blocks)  # a block that is run again for its gradient is not seen again
    for mine, timms in zip(found, expected, strict=True):
        assert timms.abs().max() > 1e-4
        torch.testing.assert_close(mine, timms, rtol=1e-3, atol=1e-5)
    assert model.grad_checkpointing is checkpointing


def test_gradients_of_a_map_equal_finite_differences():
    vit = digits(img_size=16)
    x, block = images(vit, 1), vit.blocks[3]
    logits, layers = attention_layers(as_reduced(vit), x.clone().requires_grad_())
    found = torch.autograd.grad(logits[0, 3], layers[3].attention)[0]
    step = torch.zeros_like(found).flatten()
    step[found.abs().argmax()] = 0.01
    block.attn.fused_attn, shifted = False, []
    for shift in (step.view_as(found), -step.view_as(found)):
        handle = block.attn.attn_drop.register_forward_hook(lambda m, i, a, shift=shift: a + shift)
        shifted.append(vit(x)[0, 3].item())
        handle.remove()
    assert (found * step.view_as(found)).sum().item() == pytest.approx((shifted[0] - shifted[1]) / 2, rel=0.01)


@pytest.mark.parametrize("name", ["vit_digits", "simple_vit_digits", "deit-distilled", "dinov2-registers", "cls-avg"])
class TestDefinitions:
    """Against the product of full matrices, for each way that a head reads tokens."""

    def subject(self, name):
        vit = digits(name) if name.endswith("digits") else family(name)
        return vit, images(vit, 2)

    def test_raw_attention_is_the_head_s_row_of_the_last_map(self, name):
        vit, x = self.subject(name)
        last = literal_maps(vit, x)[-1].detach()
        for fusion, fused in {"mean": last.mean(1), "max": last.amax(1)}.items():
            found = explain("raw_attention", vit, x, head_fusion=fusion).heatmaps
            torch.testing.assert_close(found, what_is_read(vit, fused), **TOLERANCE)

    def test_rollout_is_the_product_of_averaged_maps(self, name):
        vit, x = self.subject(name)
        maps = [attention.detach().mean(1) for attention in literal_maps(vit, x)]
        identity = torch.eye(maps[0].shape[-1])
        expected = what_is_read(vit, product([0.5 * attention + 0.5 * identity for attention in maps]))
        found = explain("rollout", vit, x)
        torch.testing.assert_close(found.heatmaps, expected, **TOLERANCE)
        assert expected.std() > 10 * TOLERANCE["atol"] and found.labels.tolist() == vit(x).argmax(1).tolist()

    def test_gradient_rollout_weighs_attention_by_its_gradient(self, name):
        vit, x = self.subject(name)
        steps = []
        for attention, gradient in zip(*timm_maps(vit, x, LABELS), strict=True):
            weighted = (attention * gradient).mean(1).clamp(min=0) + torch.eye(attention.shape[-1])
            steps.append(weighted / weighted.sum(2, keepdim=True))
        found = explain("gradient_rollout", vit, x, LABELS).heatmaps
        expected = what_is_read(vit, product(steps))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert expected.std() > 1e-5

    def test_chefer_updates_the_whole_relevance_matrix(self, name):
        vit, x = self.subject(name)
        relevance = torch.eye(vit.num_prefix_tokens + vit.patch_embed.num_patches).expand(2, -1, -1)
        for attention, gradient in zip(*timm_maps(vit, x, LABELS), strict=True):
            relevance = relevance + (gradient * attention).clamp(min=0).mean(1) @ relevance
        found = explain("chefer", vit, x, LABELS)
        expected = what_is_read(vit, relevance)
        torch.testing.assert_close(found.heatmaps, expected, rtol=1e-4, atol=1e-6)
        assert expected.std() > 1e-5 and found.labels is not LABELS and torch.equal(found.labels, LABELS)

    def test_tram_sums_weighted_in_degrees(self, name):
        vit, x = self.subject(name)
        total, prefix = 0, vit.num_prefix_tokens
        for layer, attention in enumerate(literal_maps(vit, x)):
            arcs = attention.detach().amax(1)[:, prefix:, prefix:]
            total = total + (layer + 1) / len(vit.blocks) * arcs.mT @ arcs.mT @ torch.ones(arcs.shape[1], 1)
        found = explain("tram", vit, x).heatmaps.flatten(1)
        torch.testing.assert_close(found, total[..., 0], rtol=1e-4, atol=1e-4)

    def test_grad_cam_weighs_channels_by_their_mean_gradient(self, name):
        vit, x = self.subject(name)
        kept = []
        handle = vit.blocks[-1].norm1.register_forward_hook(lambda module, given, normed: kept.append(normed))
        score = vit(x.clone().requires_grad_()).gather(1, LABELS[:, None]).sum()
        handle.remove()
        patches = slice(vit.num_prefix_tokens, None)
        weights = torch.autograd.grad(score, kept[0])[0][:, patches].mean(1, keepdim=True)
        cam = (weights * kept[0][:, patches]).sum(2).clamp(min=0).detach()
        cam = cam - cam.amin(1, keepdim=True)
        cam = (cam / (cam.amax(1, keepdim=True) + 1e-7)).unflatten(1, vit.patch_embed.grid_size)
        found = explain("grad_cam", vit, x, LABELS).heatmaps
        torch.testing.assert_close(found, cam, rtol=0, atol=1e-4)
        assert found.amin() == 0 and found.amax() > 0.99 and found.std() > 0.1


@pytest.mark.parametrize("name", ["vit", "deit-distilled", "dinov2-registers", "cls-avg"])
def test_integrated_gradients_are_complete(name):
    vit = make(name)
    x = images(vit, 2)
    found = explain("integrated_gradients", vit, x, LABELS, n_steps=16, baseline=0.5).heatmaps
    with torch.inference_mode():
        difference = (vit(x) - vit(torch.full_like(x, 0.5))).gather(1, LABELS[:, None])[:, 0]
    assert found.shape == (2, *vit.patch_embed.grid_size) and difference.abs().max() > 0.1
    torch.testing.assert_close(found.sum((1, 2)), difference, rtol=0.02, atol=0.01)


def test_integrated_gradients_miss_what_a_model_that_normalises_its_patches_sees():
    vit = digits("simple_vit_digits")
    x = images(vit, 2)
    found = explain("integrated_gradients", vit, x, LABELS, n_steps=16).heatmaps
    difference = (vit(x) - vit(torch.zeros_like(x))).gather(1, LABELS[:, None])[:, 0]
    assert found.sum((1, 2)).abs().max() < 0.02 * difference.abs().min()


def test_integrated_gradients_of_a_linear_model_are_its_terms():
    """Pixels times what they weigh in the logit, summed over each patch."""
    vit = digits(img_size=16)
    for block in vit.blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
    vit.norm, vit.global_pool = torch.nn.Identity(), "avg"
    x = images(vit, 2)
    found = explain("integrated_gradients", vit, x, LABELS, n_steps=1, baseline=1.0).heatmaps
    kernels = torch.einsum("bd,dcij->bcij", vit.head.weight[LABELS], vit.patch_embed.proj.weight) / 16
    for heat, image, kernel in zip(found, x, kernels, strict=True):
        torch.testing.assert_close(heat, torch.nn.functional.conv2d(image - 1, kernel[None], stride=4)[0])


def test_tram_is_the_score_of_the_reducer_that_scores_every_block():
    vit = digits()
    x = images(vit, 2)
    _, trace = reduced(vit, "tram", (10,), reduction_loc=(5,)).trace(x)
    torch.testing.assert_close(explain("tram", vit, x).heatmaps.flatten(1), trace.scores[5], rtol=1e-5, atol=1e-5)


def test_random_is_uniform_and_seeded():
    vit = digits()
    x = images(vit, 1).expand(60, -1, -1, -1)
    explainer = create_explainer("random", vit)
    heat = explainer(x, 0).heatmaps
    counts = torch.histc(heat, 8, 0, 1)
    assert counts.sum() == 60 * 64 and (counts - 480).abs().max() < 90  # 4.4 standard deviations
    assert heat.mean().item() == pytest.approx(0.5, abs=0.02)
    assert not torch.equal(explainer(x, 0).heatmaps, heat)
    assert torch.equal(explain("random", vit, x, 0).heatmaps, heat)
    assert torch.equal(explain("random", vit, x, 0, batch_size=7).heatmaps, heat)
    assert not torch.equal(explain("random", vit, x, 0, seed=1).heatmaps, heat)
    assert explain("random", vit, x[:2]).labels.tolist() == vit(x[:2]).argmax(1).tolist()


@pytest.mark.parametrize(("reducer", "name"), PAIRS)
def test_every_explainer_explains_every_reduced_model(reducer, name):
    model = reduced(digits(img_size=16), reducer, 1.0 if reducer == "none" else 0.5)
    x = images(model, 2)
    found = explain(name, model, x)
    assert found.heatmaps.shape == (2, 4, 4) and found.heatmaps.dtype == torch.float32
    assert found.heatmaps.isfinite().all() and found.labels.tolist() == model(x).argmax(1).tolist()


@pytest.mark.parametrize("text", ["patchmerger:parity=true", "tome:parity=true", "ats:parity=true", "evit"])
@pytest.mark.parametrize("name", list_explainers())
def test_variants_that_drop_prefix_tokens_or_pad_are_explained_alike_alone_and_in_a_batch(name, text):
    model = reduced(digits(img_size=16), text)
    x = images(model, 3)
    together = explain(name, model, x, 3).heatmaps
    assert together.isfinite().all()
    if name != "random":
        alone = torch.cat([explain(name, model, image[None], 3).heatmaps for image in x])
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4 if name == "grad_cam" else 1e-5)


@pytest.mark.parametrize("name", sorted(set(list_explainers()) - {"mutex", "random"}))
@pytest.mark.parametrize("reducer", ["tram", "evit", "tome", "sinkhorn"])
def test_a_reduced_model_that_keeps_everything_is_explained_as_the_unreduced_one(name, reducer):
    vit = digits(img_size=16)
    x = images(vit, 2)
    unreduced = explain(name, vit, x).heatmaps
    kept = explain(name, reduced(vit, reducer, 1.0), x).heatmaps
    torch.testing.assert_close(kept, unreduced, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reducer", PRUNING)
def test_patches_have_no_degree_from_the_block_on_that_they_do_not_reach(reducer):
    model = reduced(digits(), reducer, 0.5)
    x = images(model, 2)
    logits, layers = attention_layers(model, x)
    _, trace = model.trace(x)
    torch.testing.assert_close(logits, model(x), **TOLERANCE)
    alive = [torch.ones(2, 64, dtype=torch.bool), *(trace.kept(block) for block in range(5))]
    if reducer == "dynamicvit":  # it drops before its blocks, the others behind the attention of theirs
        alive = [trace.kept(block) for block in range(6)]
    assert alive[0].all() and not alive[5].all()
    for layer, here in zip(layers, alive, strict=True):
        degrees = weighted_degrees(layer, 0.0)
        assert degrees[..., :].gt(0).all((1, 2)).tolist() == here.tolist()
        assert degrees.eq(0).all((1, 2)).tolist() == (~here).tolist()


@pytest.mark.parametrize("reducer", ["tome", "kmedoids", "dpcknn", "evit"])
def test_merged_patches_share_their_token_s_degree_and_none_is_lost(reducer):
    model = reduced(digits(), reducer, 0.5)
    _, layers = attention_layers(model, images(model, 2))
    assert layers[-1].attention.shape[-1] < layers[0].attention.shape[-1]
    for layer in layers:
        arcs = layer.between_patches().sum((1, 2, 3))  # all heads
        torch.testing.assert_close(weighted_degrees(layer, 0.0)[:, 2].sum(2), arcs[:, None].expand(-1, 2))


@pytest.mark.parametrize("reducer", ["topk", "tram", "evit", "tome"])
def test_rollout_goes_back_through_what_was_dropped_and_merged(reducer):
    """Matrices of all blocks, between them one that hands each token's share evenly to the tokens it was made of."""
    model = reduced(digits(), reducer, 0.5)
    x = images(model, 2)
    _, layers = attention_layers(model, x)
    _, trace = model.trace(x)
    found = explain("rollout", model, x).heatmaps.flatten(1)
    everything = torch.arange(64).expand(2, -1)
    for image in range(2):
        # (tokens, CLS and patches): 1 where the token holds it, as the attention of each block finds it
        held = []
        for assignment in (everything, *trace.assignment[:-1]):
            of_patches = (assignment[image] == torch.arange(assignment[image].max() + 1)[:, None]).float()
            held.append(torch.block_diag(torch.ones(1, 1), of_patches))
        row = torch.zeros(1, len(held[-1]))
        row[0, 0] = 1
        for layer, holds, before in zip(layers[::-1], held[::-1], [*held[-2::-1], torch.eye(65)], strict=True):
            row = row @ (layer.attention[image].detach().mean(0) + torch.eye(len(holds))) / 2
            row = row @ (holds / holds.sum(1, keepdim=True)) @ before.T
        torch.testing.assert_close(found[image], row[0, 1:], **TOLERANCE)


@pytest.mark.parametrize("name", list_explainers())
def test_the_model_is_left_as_it_was(name):
    vit = digits(img_size=16).train()
    vit.blocks[2].eval()
    vit.blocks[1].attn.qkv.weight.requires_grad_(False)
    vit.head.weight.grad = torch.ones_like(vit.head.weight)
    state = {key: value.clone() for key, value in vit.state_dict().items()}
    modes = {key: module.training for key, module in vit.named_modules()}
    x = images(vit, 2)
    before = x.clone()

    class Broken(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("broken")

    explainer = create_explainer(name, vit, **OPTIONS.get(name, {}))
    explainer(x)
    norm, hooks = explainer.model.norm, len(vit.blocks[-1].norm1._forward_hooks)
    explainer.model.norm = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        explainer(x)
    explainer.model.norm = norm
    assert {key: module.training for key, module in vit.named_modules()} == modes and explainer.model.training
    learns = {key: parameter.requires_grad for key, parameter in vit.named_parameters()}
    assert [key for key, value in learns.items() if not value] == ["blocks.1.attn.qkv.weight"]
    assert {key for key, p in vit.named_parameters() if p.grad is not None} == {"head.weight"}
    assert vit.head.weight.grad.eq(1).all() and torch.equal(x, before) and not x.requires_grad and x.grad is None
    assert all(torch.equal(value, state[key]) for key, value in vit.state_dict().items())
    assert len(vit.blocks[-1].norm1._forward_hooks) == hooks == 0


@pytest.mark.parametrize("name", list_explainers())
def test_results_are_ordinary_tensors_whatever_mode_the_caller_is_in(name):
    vit = digits(img_size=16)
    x = images(vit, 2)
    expected = explain(name, vit, x, LABELS)
    (torch.ones(2, 4, 4, requires_grad=True) * expected.heatmaps).sum().backward()  # refused for inference tensors
    assert not expected.heatmaps.requires_grad and not expected.labels.is_inference()
    with torch.no_grad():
        assert torch.equal(explain(name, vit, x, LABELS).heatmaps, expected.heatmaps)
    with torch.inference_mode():
        made_here, labels = x.clone(), LABELS.clone()
        assert torch.equal(explain(name, vit, made_here, labels).heatmaps, expected.heatmaps)
    assert torch.equal(explain(name, vit, made_here, labels).heatmaps, expected.heatmaps)


@pytest.mark.parametrize("name", list_explainers())
def test_half_precision_models_get_float32_heatmaps(name):
    found = explain(name, digits(img_size=16).bfloat16(), images(digits(img_size=16), 2))
    assert found.heatmaps.dtype == torch.float32 and found.heatmaps.isfinite().all()


@pytest.mark.parametrize("name", list_explainers())
def test_the_batch_size_does_not_matter(name):
    vit = digits(img_size=16)
    x = images(vit, 5)
    whole, parts = (explain(name, vit, x, batch_size=size) for size in (32, 2))
    torch.testing.assert_close(parts.heatmaps, whole.heatmaps, rtol=1e-3, atol=1e-5)
    assert torch.equal(parts.labels, whole.labels)


@pytest.mark.parametrize("given", [4, torch.tensor(4), torch.tensor([4, 4]), [4, 4], torch.tensor([4, 4]).int()])
def test_labels_can_be_one_class_or_one_per_image(given):
    vit = digits(img_size=16)
    found = explain("chefer", vit, images(vit, 2), given)
    assert found.labels.tolist() == [4, 4] and found.labels.dtype == torch.long
    torch.testing.assert_close(found.heatmaps, explain("chefer", vit, images(vit, 2), torch.tensor([4, 4])).heatmaps)


def test_class_0_is_a_class_like_any_other():
    vit = digits(img_size=16)
    x = images(vit, 2)
    assert 0 not in vit(x).argmax(1)
    for name in ("chefer", "mutex", "integrated_gradients"):
        found, predicted = explain(name, vit, x, 0), explain(name, vit, x)
        assert found.labels.tolist() == [0, 0] and not torch.allclose(found.heatmaps, predicted.heatmaps)


@pytest.mark.parametrize("labels", [10, -1, torch.tensor([0, 10]), torch.tensor([1, 2, 3]), [[1, 2]], 1.0, True, "cat"])
def test_labels_that_do_not_fit_are_refused_in_one_line(labels):
    vit = digits(img_size=16)
    with pytest.raises(UsageError, match=r"^labels? [^\n]* (not allowed)[^\n]*$"):
        explain("rollout", vit, images(vit, 2), labels)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 1, 16, 16), (2, 3, 32, 32), (0, 3, 16, 16)])
def test_images_that_do_not_fit_are_refused_in_one_line(shape):
    with pytest.raises(
        UsageError, match=r"^(images of shape [^\n]*give a tensor \(B, 3, 16, 16\)[^\n]*|there are no images[^\n]*)$"
    ):
        explain("rollout", digits(img_size=16), torch.zeros(shape))


def resized(size):
    """A model that takes images of any size, and the same one made for those of ``size``."""
    torch.manual_seed(1)
    options = {"patch_size": 8, "depth": 4, "embed_dim": 32, "num_heads": 2, "num_classes": 10}
    vit = vivid(timm.create_model("vit_tiny_patch16_224", img_size=32, dynamic_img_size=True, **options))
    fixed = timm.create_model("vit_tiny_patch16_224", img_size=size, **options).eval()
    positions = resample_abs_pos_embed(vit.pos_embed, (size[0] // 8, size[1] // 8), (4, 4))
    fixed.load_state_dict({**vit.state_dict(), "pos_embed": positions})
    return vit, fixed


@pytest.mark.parametrize("text", ["none", "tram", "tome", "l2"])
@pytest.mark.parametrize("name", list_explainers())
def test_images_of_a_dynamic_size_are_explained_as_by_a_model_of_that_size(name, text):
    if (name, text) == ("mutex", "l2"):
        pytest.skip("refused")
    x = torch.randn(2, 3, 32, 48)
    found, expected = (explain(name, reduced(vit, text), x, LABELS) for vit in resized((32, 48)))
    assert found.heatmaps.shape == (2, 4, 6)
    torch.testing.assert_close(found.heatmaps, expected.heatmaps, rtol=1e-4, atol=1e-5)


def test_insertion_and_deletion_of_a_dynamic_size_are_those_of_a_model_of_that_size():
    models, x = resized((48, 32)), torch.randn(2, 3, 48, 32)
    heat = explain("rollout", models[0], x).heatmaps
    found, expected = (insertion_deletion(vit, x, heat, LABELS, torch.zeros_like(x)) for vit in models)
    torch.testing.assert_close(found.insertion, expected.insertion)
    assert found.shares.tolist() == pytest.approx([round(24 * step / 100) / 24 for step in STEPS])


def test_images_that_no_dynamic_size_fits_are_refused_in_one_line():
    with pytest.raises(
        UsageError, match=r"give a tensor \(B, 3, H, W\) of floating-point numbers \(H a multiple of 8, W of 8\)$"
    ):
        explain("rollout", resized((32, 32))[0], torch.zeros(2, 3, 33, 47))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lime", "unknown explainer 'lime'; allowed: chefer, grad_cam"),
        ("rollout:head_fusion=max", "explainer 'rollout' has no option 'head_fusion'; allowed: batch_size"),
        ("raw_attention:head_fusion=min", "explainer 'raw_attention': unknown head_fusion 'min'; allowed: max, mean"),
        ("random:seed=x", "explainer 'random': seed='x' is not allowed; give a whole number"),
        (
            "integrated_gradients:n_steps=0",
            "explainer 'integrated_gradients': n_steps=0 is not allowed; give a whole number >= 1",
        ),
        ("integrated_gradients:baseline=black", "explainer 'integrated_gradients': baseline='black' is not allowed"),
        ("rollout:batch_size=0", "explainer 'rollout': batch_size=0 is not allowed; give a whole number >= 1"),
    ],
)
def test_bad_options_are_refused_in_one_line(text, message):
    with pytest.raises(UsageError) as refused:
        create_explainer(text, digits(img_size=16))
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "package"), [("grad_cam", "pytorch_grad_cam"), ("integrated_gradients", "captum.attr")]
)
def test_a_missing_library_is_named_with_the_way_to_get_it(name, package, monkeypatch):
    monkeypatch.setattr("common.errors.find_spec", lambda name: None)
    expected = f"explainer '{name}' needs the package '{package}', which is not installed: pip install -e '.[explain]'"
    with pytest.raises(UsageError) as refused:
        create_explainer(name, digits(img_size=16))
    assert str(refused.value) == expected
    assert create_explainer("chefer", digits(img_size=16))(images(digits(img_size=16), 1)).heatmaps.isfinite().all()


def test_what_is_no_tensor_of_images_is_refused():
    with pytest.raises(UsageError, match=r"images of type str are not allowed; give a tensor \(B, 3, 16, 16\)"):
        create_explainer("rollout", digits(img_size=16))("photo.jpg")


def test_a_backbone_that_is_not_supported_is_refused_by_name():
    with pytest.raises(UsageError, match="backbone Linear is not supported"):
        create_explainer("rollout", torch.nn.Linear(2, 2))


def test_an_explainer_of_an_unreduced_model_shares_its_weights():
    vit = digits(img_size=16)
    explainer = create_explainer("rollout", vit)
    assert not is_reduced(vit) and explainer.model.head.weight is vit.head.weight
    model = reduced(vit, "topk")
    assert create_explainer("rollout", model).model is model


def test_a_name_can_be_registered_once():
    with pytest.raises(UsageError, match="'mutex' is registered already, by Mutex"):
        register_explainer("mutex")(Explainer)
