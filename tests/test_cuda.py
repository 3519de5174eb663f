"""A GPU gives the numbers of the CPU: methods, training, evaluation and explainers, and what memory they take.

Skipped without a GPU. TEST_DEVICE=cpu rehearses the file on the CPU, against itself. Float32 is exact here (no TF32).
Draws are made on the CPU for both (:class:`DrawnOnTheCpu`), so methods that draw are compared like all others. A near
tie may go the other way on another device: decisions of one image in eight may differ, and its logits are left out
then; how many did is a property of each test in the report (``--junitxml``).
"""

from __future__ import annotations

import copy
import os
from contextlib import nullcontext
from functools import cache

import pytest
import timm
import torch
import torch.nn.functional as F
from backbones import ADAPTIVE, IDLING, VARIANTS, reducing
from explained import digits, vivid
from small_training import Pictures, config, lively
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

import common
from common.cost.memory import peak_bytes
from common.evaluation import evaluate_model
from common.explain import create_explainer, list_explainers
from common.models.reduced import reduce_tokens
from common.reducers import Method, list_reducers
from common.training import train
from common.training.losses import Objective, teach

DEVICE = os.environ.get("TEST_DEVICE", "cuda")
ON_GPU = DEVICE.startswith("cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="there is no GPU (TEST_DEVICE=cpu rehearses)"),
]
NAMES, METHODS = list_reducers(), [*list_reducers(), *VARIANTS, *IDLING, *ADAPTIVE]
CASES = [(text, name, rate) for text in NAMES for name in ("digits", "narrow") for rate in (0.75, 0.5)]
CASES += [(text, "digits", 0.5) for text in METHODS if text not in NAMES]
BATCH, MAY_DIFFER = 8, 1
EXPLAINING = {"grad_cam": "pytorch_grad_cam", "integrated_gradients": "captum"}  # by packages that may be missing
DRAWING = {torch.rand, torch.rand_like, torch.multinomial, torch.bernoulli, F.gumbel_softmax}


class DrawnOnTheCpu(TorchFunctionMode):
    """Random numbers come from the CPU's generator, whatever device they are for."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in DRAWING:
            return func(*args, **kwargs)
        tensors = [part for part in args if isinstance(part, Tensor)]
        where = kwargs.get("device") or (tensors[0].device if tensors else "cpu")
        here = [part.cpu() if isinstance(part, Tensor) else part for part in args]
        return func(*here, **{**kwargs, "device": "cpu"} if "device" in kwargs else kwargs).to(where)


@pytest.fixture(autouse=True)
def exact():
    """No TF32: convolutions take it by default."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@cache
def backbone(name: str) -> torch.nn.Module:
    if name == "digits":
        return digits()
    torch.manual_seed(1)
    narrow = {"img_size": 112, "depth": 4, "embed_dim": 96, "num_heads": 3, "num_classes": 10}
    vit = vivid(timm.create_model("vit_tiny_patch16_224", **narrow))
    torch.nn.init.normal_(vit.head.weight, std=0.1)  # logits of about 1
    return vit


def images(vit, batch=BATCH):
    return torch.randn(batch, 3, *vit.patch_embed.img_size, generator=torch.Generator().manual_seed(0))


def reduced(vit, text, keep_rate=0.5, where="cpu"):
    """A copy of ``vit`` under the method written as ``text``, with the same new parameters at every call."""
    torch.manual_seed(2)
    method = Method.parse(text)
    rate = 1.0 if text in ADAPTIVE[1:] else keep_rate
    how = {**reducing(vit, method.name, rate), **dict(method.options)}
    return reduce_tokens(copy.deepcopy(vit), method.name, **how).to(where).eval()


def traced(vit, text, keep_rate, where):
    model = reduced(vit, text, keep_rate, where)
    torch.manual_seed(3)
    with DrawnOnTheCpu():
        logits, trace = model.trace(images(vit).to(where))
    return model.reducer, logits.cpu(), trace


def differing(reducer, found, expected) -> Tensor:
    """Which images (B,) were decided otherwise on the device."""
    parts = ["num_tokens", "active"]
    if reducer.family != "mixes":  # the largest weight of a mixture often ties, and no token hangs on it
        parts.append("assignment")
    differs = torch.zeros(BATCH, dtype=torch.bool)
    for part in parts:
        for mine, theirs in zip(getattr(found, part), getattr(expected, part), strict=True):
            differs |= (mine.cpu() != theirs).view(BATCH, -1).any(1)
    return differs


@pytest.mark.parametrize(("text", "name", "keep_rate"), CASES)
def test_decisions_and_logits(text, name, keep_rate, record_property):
    vit = backbone(name)
    reducer, expected, expected_trace = traced(vit, text, keep_rate, "cpu")
    _, found, trace = traced(vit, text, keep_rate, DEVICE)
    differs = differing(reducer, trace, expected_trace)
    record_property("images_decided_otherwise", int(differs.sum()))
    assert differs.sum() <= MAY_DIFFER
    torch.testing.assert_close(found[~differs], expected[~differs], rtol=0, atol=1e-4)


@pytest.mark.parametrize("text", [*NAMES, *ADAPTIVE])
def test_bfloat16_is_finite(text, record_property):
    vit = backbone("digits")
    model, x = reduced(vit, text, where=DEVICE), images(vit).to(DEVICE)
    torch.manual_seed(3)
    with torch.inference_mode(), DrawnOnTheCpu():
        exact_logits = model(x)
        torch.manual_seed(3)
        with torch.autocast(torch.device(DEVICE).type, torch.bfloat16):
            rough = model(x)
    assert rough.dtype == torch.bfloat16 and rough.isfinite().all()
    record_property("cosine", F.cosine_similarity(rough.float(), exact_logits).min().item())


def stepped(text, where):
    """Losses of a batch before and after a step of gradient descent, with a teacher where the method wants one."""
    vit = backbone("digits")
    model, teacher = reduced(vit, text, where=where), reduced(vit, "none", where=where)
    x, labels = images(vit).to(where), torch.arange(BATCH, device=where)
    objective = Objective(model, config(device=where), multi_label=False).train()
    taught = teach(teacher, x) if model.reducer.wants_teacher else None
    losses = []
    for _ in range(2):
        torch.manual_seed(4)
        with DrawnOnTheCpu():
            loss = objective(x, labels, taught)
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                if gradient is not None:
                    parameter -= 1e-3 * gradient
    return losses


@pytest.mark.parametrize("text", [*NAMES, "dynamicvit:token_loss=kl", "idle_mlp:context=both"])
def test_a_step_of_training(text):
    assert stepped(text, DEVICE) == pytest.approx(stepped(text, "cpu"), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("reducer", ["none", "topk", "ats"])
@pytest.mark.parametrize("text", [*list_explainers(), "raw_attention:head_fusion=max"])
def test_heatmaps(text, reducer, record_property):
    if text in EXPLAINING:
        pytest.importorskip(EXPLAINING[text])
    vit, labels = backbone("digits"), torch.arange(BATCH)
    options = {"n_steps": 4} if text == "integrated_gradients" else {}
    of = {}
    for where in ("cpu", DEVICE):
        model = reduced(vit, reducer, 1.0 if reducer == "none" else 0.5, where)
        of[where] = create_explainer(text, model, **options)(images(vit).to(where), labels.to(where))
    found, expected = of[DEVICE], of["cpu"]
    assert found.heatmaps.device.type == torch.device(DEVICE).type
    if text == "mutex":  # what the masks show hangs on ranks, which may tie; what the model says of the same does not
        same = (found.masks.cpu() == expected.masks).flatten(2).all(2)
        record_property("masks_alike", same.float().mean().item())
        assert same.float().mean() > 0.95
        torch.testing.assert_close(found.confidences.cpu()[same], expected.confidences[same], rtol=0, atol=1e-3)
        return
    scale = expected.heatmaps.abs().amax((1, 2), keepdim=True)
    error = ((found.heatmaps.cpu() - expected.heatmaps) / scale).abs().amax((1, 2))
    record_property("largest_errors", error.topk(2).values.tolist())
    assert (error > 1e-3).sum() <= (MAY_DIFFER if reducer != "none" else 0)


@pytest.mark.parametrize("text", [*NAMES, *ADAPTIVE])
def test_fused_attention_agrees_with_plain_products(text):
    """Of all images but one, in which rounding may decide a tie."""
    vit = backbone("narrow")
    model, x = reduced(vit, text, where=DEVICE), images(vit).to(DEVICE)
    logits = []
    for kernels in (nullcontext(), sdpa_kernel(SDPBackend.MATH)):
        torch.manual_seed(3)
        with torch.inference_mode(), kernels:
            logits.append(model(x))
    error = (logits[0] - logits[1]).abs().amax(1)
    assert (error > 1e-4).sum() <= MAY_DIFFER


def test_timm_with_and_without_fused_attention():
    vit = copy.deepcopy(backbone("narrow")).to(DEVICE)
    x, logits = images(vit).to(DEVICE), []
    for fused in (True, False):
        for block in vit.blocks:
            block.attn.fused_attn = fused
        with torch.inference_mode():
            logits.append(vit(x))
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)


@cache
def large():
    """A ViT-S of four blocks for images of 224 pixels."""
    torch.manual_seed(1)
    return timm.create_model("vit_small_patch16_224", depth=4, num_classes=10).eval().to(DEVICE)


def peak(text) -> int:
    """Bytes that a pass of 64 images takes at most, beside the weights and the images."""
    method = Method.parse(text)
    rate = 1.0 if text in ADAPTIVE[1:] else 0.5
    how = {**reducing(large(), method.name, rate), **dict(method.options)}
    model = reduce_tokens(large(), method.name, **how).to(DEVICE).eval()
    x = torch.zeros(64 if ON_GPU else 4, 3, 224, 224, device=DEVICE).normal_()
    return peak_bytes(model, x)


@cache
def peak_of_the_unreduced() -> int:
    peak("none")  # what libraries keep from their first call is not the model's
    return peak("none")


@pytest.mark.parametrize("text", [*NAMES, *ADAPTIVE])
def test_memory_is_at_most_that_of_the_unreduced_model(text, record_property):
    share = peak(text) / peak_of_the_unreduced()
    record_property("peak_memory", share)
    whole = peak_of_the_unreduced() / 2**20
    print(f"peak memory of {text}, batch 64: {share:.2f} of the unreduced model's {whole:.0f} MB")
    if share > 1.05:
        pytest.xfail(f"{text} takes {share:.2f} times the memory of the unreduced model")


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"] if ON_GPU else ["no", "bf16"])
def test_a_training_goes_on_by_itself(precision):
    """Data, mixup, average, optimizer and evaluation: losses of the CPU in float32, finite ones in half precision."""

    def losses(where, precision):
        torch.manual_seed(5)
        settings = {"mixup": 0.5, "clip_grad": 1.0, "ema_decay": 0.9, "grad_accum_steps": 2, "optimizer": "adamw"}
        how = config(device=where, mixed_precision=precision, **settings)
        model = reduce_tokens(lively(), "tome", keep_rate=0.5)
        _, epoch = train(model, Pictures(8), Pictures(4), how)
        return [epoch.train_loss, epoch.val_loss, epoch.ema_val_loss]

    tolerance = 1e-3 if precision == "no" else 0.1
    assert losses(DEVICE, precision) == pytest.approx(losses("cpu", "no"), rel=tolerance)


@pytest.mark.parametrize("text", ["ats:sampler=random", "evit", "idle_topk", "tome"])
def test_records(text):
    def record(where):
        torch.manual_seed(2)
        method = Method.parse(text)
        model = reduce_tokens(lively(), method.name, keep_rate=0.5, **dict(method.options))
        how = {"batch_size": 3, "method": text, "backbone": "", "seed": 0, "scores": True, "cls_at": (3,)}
        with DrawnOnTheCpu():
            return evaluate_model(model, Pictures(7), device=where, **how)

    found, expected = record(DEVICE), record("cpu")
    torch.testing.assert_close(*(torch.from_numpy(each.loss) for each in (found, expected)), rtol=0, atol=1e-4)
    assert found.gmac == expected.gmac and (found.predictions == expected.predictions).mean() > 0.9
    for block, stage in expected.stages.items():
        assert (stage.num_tokens == found.stages[block].num_tokens).all()


@pytest.mark.parametrize("call", ["fit", "search"])
def test_what_was_fitted_here_is_a_file_for_the_cpu(call, tmp_path):
    """Images may lie anywhere; the same file gives the same logits on either device."""
    vit, images = lively().eval(), torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    there = copy.deepcopy(vit).to(DEVICE)
    if call == "fit":
        model = common.idling.fit(there, images.to(DEVICE), mac_cut=0.15, epochs=1, hidden=4)
    else:
        plan = common.slimming.search(there, images.to(DEVICE), mac_cut=0.3, epochs=1, error_images=4)
        model = reduce_tokens(there, "patch_slimming", plan=plan).eval()
    path = common.save(model, tmp_path / "model.safetensors")
    here, again = common.load(path, vit), common.load(path, there)
    with torch.inference_mode():
        assert next(again.parameters()).device.type == torch.device(DEVICE).type
        assert torch.equal(again(images.to(DEVICE)), model(images.to(DEVICE)))
        torch.testing.assert_close(here(images), model(images.to(DEVICE)).cpu(), rtol=0, atol=1e-4)
