"""Nothing mixes tensors of two devices: everything runs on a device that refuses to, and computes the CPU's numbers."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import timm
import torch
from backbones import ADAPTIVE, FAMILIES, IDLING, VARIANTS, images, make, reducing
from elsewhere import MixedDevicesError, device
from small_training import ManyLabels, Pictures, config, lively, small_vit
from torch.utils._pytree import tree_leaves

from common.budget import keep_rate_for
from common.cost.ceiling import FirstTokens
from common.cost.counter import count_macs, mean_macs
from common.data import load_dataset, make_loader
from common.data.on_device import DeviceLoader
from common.evaluation import evaluate_model
from common.explain import create_explainer, list_explainers
from common.explain.agreement import agreement, decisions_of
from common.explain.metrics import Baseline, insertion_deletion, without_content
from common.explain.quality import mass_inside, max_sensitivity, pointing_game, sparseness
from common.idling.budget import solve_thresholds
from common.idling.outcomes import outcomes, predictor_quality
from common.idling.similarity import patch_similarities
from common.models.reduced import reduce_tokens
from common.models.support import obstacle
from common.reducers import Method, list_reducers, reducer_class
from common.slimming.allocation import sensitivity
from common.slimming.gates import calibrate_thresholds, fit_gates
from common.slimming.plans import PRUNING, one_block
from common.slimming.ranking import SCORES, network_scores
from common.slimming.scores import Feature, HeadHandling, Scoring, significance
from common.slimming.top_down import search
from common.training import predict, train
from rehearsal_data import write_datasets

OPTIONS = ["l2:contiguous=true", "tome:resize=42", "idle_mlp:influence=rollout", "patch_slimming:keys=selected"]
METHODS = [*list_reducers(), *VARIANTS, *IDLING, *ADAPTIVE, *OPTIONS]
TOLERANCE = 1e-5  # the CPU makes attention maps in other chunks


def reduced(vit, text, keep_rate=0.5):
    """``vit``, a copy, under the method written as ``text``, with the same new parameters at every call."""
    torch.manual_seed(2)
    method = Method.parse(text)
    rate = 1.0 if text in ADAPTIVE[1:] or "contiguous" in text else keep_rate
    return reduce_tokens(
        copy.deepcopy(vit), method.name, **reducing(vit, method.name, rate), **dict(method.options)
    ).eval()


def close(found, expected, tolerance=TOLERANCE):
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda there, here: there + here,
        lambda there, here: torch.cat([there, here]),
        lambda there, here: there.gather(0, here.long()),
        lambda there, here: here.copy_(here).add_(there),
        lambda there, here: torch.rand(3, device=there.device, generator=torch.Generator()),
        lambda there, here: there.numpy(),
        lambda there, here: here[there > 0],
    ],
)
def test_the_device_refuses_what_a_gpu_refuses(mistake):
    with device() as elsewhere, pytest.raises(MixedDevicesError):
        mistake(torch.zeros(3, device=elsewhere), torch.zeros(3))


def test_the_device_does_what_a_gpu_does():
    with device() as elsewhere:
        there = torch.tensor([3.0, 1.0, 2.0], device=elsewhere)
        there[torch.tensor([1])] = 5.0
        assert (there + torch.tensor(1.0)).tolist() == [4, 6, 3] and there.device == elsewhere
        assert there.sort().indices.cpu().numpy().tolist() == [2, 0, 1] and there.max().item() == 5


@pytest.mark.parametrize("text", METHODS)
def test_reducers(text):
    """Logits, decisions and gradients are those of the CPU."""
    vit = make("dinov2-registers")
    x, model = images(vit), reduced(vit, text)
    decided = ["num_tokens", "origin", "active"]
    if model.reducer.family != "mixes":  # weights of mixtures come near a tie, so that rounding says which is largest
        decided += ["assignment", "destination"]

    def passed():
        torch.manual_seed(4)
        logits, trace = model.eval().trace(x)
        model.zero_grad()
        torch.manual_seed(4)
        model.train()(x).square().sum().backward()
        return logits, trace, [parameter.grad for parameter in model.parameters()]

    logits, trace, gradients = passed()
    with device() as elsewhere:
        model, x = model.to(elsewhere), x.to(elsewhere)
        found, found_trace, found_gradients = passed()
        close(found, logits)
        for name in decided:
            for mine, theirs in zip(vars(found_trace)[name], vars(trace)[name], strict=True):
                assert torch.equal(mine.cpu(), theirs)
        for name in ("scores", "weights"):
            assert vars(found_trace)[name].keys() == vars(trace)[name].keys()
            for block, value in vars(trace)[name].items():
                close(vars(found_trace)[name][block], value, 1e-3)
        for mine, theirs in zip(found_gradients, gradients, strict=True):
            if theirs is None:  # a gate of the last block, after which no head reads a patch
                assert mine is None and text == "dynamic_slimming"
                continue
            torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("text", ["downsample"])
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"dinov2-registers"}))
def test_families(family, text):
    vit = make(family)
    if reason := obstacle(vit, text):
        pytest.skip(reason)
    x, model = images(vit), reduced(vit, text)
    with torch.inference_mode():
        expected = model(x)
        with device() as elsewhere:
            close(model.to(elsewhere)(x.to(elsewhere)), expected)


def same_everywhere(compute, tolerance=1e-4):
    """``compute(device)`` gives the same numbers on both devices."""
    torch.manual_seed(3)
    expected = compute(torch.device("cpu"))
    with device() as elsewhere:
        torch.manual_seed(3)
        found = compute(elsewhere)
        for mine, theirs in zip(tree_leaves(found), tree_leaves(expected), strict=True):
            mine, theirs = (leaf.detach().cpu() if isinstance(leaf, torch.Tensor) else leaf for leaf in (mine, theirs))
            np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance)


def small(text="none", where="cpu", **options):
    """A small model under the method written as ``text``, 4 x 4 patches, on the device ``where``."""
    method = Method.parse(text)
    vit = lively()
    how = {**reducing(vit, method.name, 1.0 if text == "none" else 0.5), **dict(method.options), **options}
    return reduce_tokens(vit, method.name, **how).to(where).eval()


def pictures(where="cpu"):
    return Pictures(8).stack().to(where)


def loader():
    return make_loader(Pictures(12), 4, shuffle=False, seed=0)


def public(found):
    """What a result of this package holds."""
    return {name: part for name, part in vars(found).items() if part is not None}


@pytest.mark.parametrize(
    ("text", "reducer"),
    [*((text, "ats") for text in list_explainers()), ("mutex", "none"), ("mutex:parity=true", "tome")],
)
def test_explainers(text, reducer):
    options = {"n_steps": 2} if text == "integrated_gradients" else {}

    def explained(where):
        found = create_explainer(text, small(reducer, where), **options)(pictures(where))
        return public(replace(found, heatmaps=found.heatmaps / found.heatmaps.abs().amax()))

    same_everywhere(explained, 1e-3)


HEAT, LABELS = torch.rand(8, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0] * 2)
BOXES = torch.tensor([[0, 1, 5, 6]] * 8)


@pytest.mark.parametrize("baseline", get_args(Baseline))
def test_insertion_and_deletion(baseline):
    ranking = "pixel" if baseline == "blur" else "patch"

    def curves(where):
        x = pictures(where)
        hidden = without_content(x, baseline, mean=(0.5,) * 3, std=(0.2,) * 3)
        how = {"ranking": ranking, "parity": ranking == "pixel", "steps": (0, 30, 60, 100)}
        return public(insertion_deletion(small("none", where), x, HEAT, LABELS, hidden, **how))

    same_everywhere(curves, 1e-3)


@pytest.mark.parametrize("measure", [pointing_game, mass_inside])
def test_localisation(measure):
    same_everywhere(lambda where: measure(HEAT.to(where), BOXES, (8, 8)))
    same_everywhere(lambda where: measure(HEAT.to(where), BOXES.to(where), (8, 8)))


def test_other_measures_of_explanations():
    same_everywhere(lambda where: sparseness(HEAT.to(where)))
    same_everywhere(
        lambda where: max_sensitivity(create_explainer("rollout", small("none", where)), pictures(where), samples=2)
    )
    heat = torch.rand(12, 4, 4)
    same_everywhere(lambda where: agreement(heat.to(where), decisions_of(small("topk", where), loader())))


def trained(model, where, teacher=None, data=Pictures, **settings):
    """Losses in an epoch and after it."""
    how = config(device=str(where), **settings)
    _, epoch = train(model, data(8), data(4), how, teacher=teacher)
    return [value for name, value in vars(epoch).items() if "loss" in name and value is not None]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": "bce", "optimizer": "muon"},
        {"mixup": 0.5, "cutmix": 0.5, "smoothing": 0.1, "clip_grad": 1.0, "grad_accum_steps": 2, "optimizer": "adamw"},
        {"mixup": 0.5, "mixup_mode": "elem", "optimizer": "sgd"},
        {"data": ManyLabels},
        {"data": ManyLabels, "loss": "bce"},
    ],
)
def test_training(settings):
    same_everywhere(lambda where: trained(small("topk"), where, **settings), 1e-3)


def test_batches_made_on_the_device(tmp_path, monkeypatch):
    """Pictures that lie there, and an epoch of training on them."""
    write_datasets(tmp_path, ["fashion-mnist"])
    opened = {"root": tmp_path, "img_size": 16, "memory_gb": 1.0, "limit": 20}
    data, held = (load_dataset("fashion-mnist", split, train=split == "train", **opened) for split in ("train", "val"))
    same_everywhere(lambda where: [*DeviceLoader(make_loader(data, 8, shuffle=True, seed=0), where)])
    monkeypatch.setattr("common.training.engine.on_device", DeviceLoader)

    def epoch(where):
        model = reduce_tokens(small_vit(img_size=16, patch_size=4, num_classes=10), "tome", keep_rate=0.5)
        return [each.val_loss for each in train(model, data, held, config(device=str(where)))]

    same_everywhere(epoch, 1e-3)


def test_the_first_tokens_alone():
    lengths = ((17, 9), (9, 9), (9, 5), (5, 5))
    same_everywhere(lambda where: FirstTokens(lively().to(where), lengths)(pictures(where)))


def test_moving_average(monkeypatch):
    """timm makes a generator for it, on the device, which "meta" has none of."""
    monkeypatch.setattr("timm.utils.model_ema.torch.Generator", lambda device="cpu", made=torch.Generator: made())
    same_everywhere(lambda where: trained(small("topk"), where, ema_decay=0.9), 1e-3)


TAUGHT = [name for name in list_reducers() if reducer_class(name).wants_teacher]


@pytest.mark.parametrize("text", [*TAUGHT, "dynamicvit:token_loss=kl", "idle_mlp:learns=labels"])
def test_training_with_a_teacher(text):
    settings = {"label_weight": 0.0, "reducer_only": True} if "labels" in text else {}
    same_everywhere(lambda where: trained(small(text), where, small(), **settings), 1e-3)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_distillation(kind):
    sizes = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_classes": 3}

    def distilled(where):
        vit = timm.create_model("deit_tiny_distilled_patch16_224", **sizes)
        return trained(reduce_tokens(vit, "tome", keep_rate=0.5), where, small(), distillation=kind)

    same_everywhere(distilled, 1e-3)


@pytest.mark.parametrize("text", ["ats:sampler=random", "evit", "idle_topk", "patchmerger", "tome"])
def test_records(text, monkeypatch):
    """Everything that a record can hold."""
    monkeypatch.setattr("common.evaluation.evaluate._precision", lambda *_: nullcontext())  # "meta" has no autocast
    how = {
        "batch_size": 3,
        "method": text,
        "backbone": "",
        "seed": 0,
        "scores": True,
        "soft_weights": 2,
        "cls_at": (3,),
    }

    def noted(where):
        record = evaluate_model(small(text), Pictures(7), device=str(where), **how)
        parts = [record.predictions, record.loss, record.gmac, record.cls[3]]
        return parts + [list(public(stage).values()) for stage in record.stages.values()]

    same_everywhere(noted, 2e-3)


def test_predictions():
    def predicted(where):
        predictions, labels = predict({"tome": small("tome", where)}, loader())
        return predictions["tome"].logits, labels

    same_everywhere(predicted)


def test_counters_and_budgets():
    same_everywhere(lambda where: public(count_macs(small("ats", where), 8)))
    same_everywhere(lambda where: mean_macs(small("ats", where), pictures()[:1]))
    same_everywhere(lambda where: public(keep_rate_for(lively().to(where), "tome", mac_cut=0.3)))
    few = pictures()[:1]
    same_everywhere(lambda where: public(keep_rate_for(lively().to(where), "ats", mac_cut=0.1, images=few)))


def predicting(where):
    model = small("idle_mlp:hidden=8,context=cls", score_threshold=0.5, tau=0.75, keep_rate=1.0)
    for predictor in model.reducer.predictors.values():
        torch.nn.init.normal_(predictor.own.weight, std=1.0)
    return model.to(where)


def test_idling():
    def solved(where):
        model = predicting(where)
        thresholds = solve_thresholds(model, loader(), 0.2)
        (found,), labels = outcomes([model], loader())
        return [thresholds, public(found), found.counts, found.reactivated, labels]

    same_everywhere(solved)
    same_everywhere(lambda where: public(patch_similarities(predicting(where), loader())))
    same_everywhere(lambda where: list(map(public, predictor_quality(small("idle_mlp", where), loader()).values())))


@pytest.mark.parametrize(
    ("heads", "feature"),
    [*((heads, "raw") for heads in get_args(HeadHandling)), *(("path_energy", each) for each in get_args(Feature)[1:])],
)
def test_significance(heads, feature):
    how = {"head_handling": heads, "feature": feature, "shortcut": feature == "value"}
    same_everywhere(lambda where: significance(lively().to(where), pictures(), 1, **how))


@pytest.mark.parametrize("name", SCORES)
def test_scores_of_patches(name):
    same_everywhere(lambda where: network_scores(name, small("none", where), pictures(), Scoring()))


@pytest.mark.parametrize("pruning", PRUNING)
def test_one_block_alone(pruning):
    same_everywhere(lambda where: one_block(small("none", where), 1, (1, 4), pruning)(pictures(where)))


def test_search_of_a_plan():
    same_everywhere(lambda where: sensitivity(small("none", where), pictures(), torch.eye(16)[:3]))
    same_everywhere(lambda where: search(lively().to(where), pictures(), lengths=(17, 9, 5, 1), epochs=1).masks)
    same_everywhere(lambda where: search(lively().to(where), pictures(), lengths=(17, 9, 5, 1), score="coverage").masks)


def test_gates():
    def gated(where):
        model = small("dynamic_slimming:budget=threshold", reduction_loc=(1, 2)).to(where)
        losses = fit_gates(model, pictures(), epochs=2)
        calibrate_thresholds(model, pictures())
        return losses, model.reducer.thresholds[1:3], [*model.trace(pictures(where))[1].num_tokens]

    same_everywhere(gated, 1e-3)
