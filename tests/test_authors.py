"""Checkpoints in the layout of "Which Tokens to Use?": read without running code, every name accounted for."""

import argparse
import os
import pickle

import pytest
import torch

from common.errors import UsageError
from common.evaluation import Record
from common.evaluation.__main__ import main
from common.evaluation.authors import authors_run
from common.models.authors import read_authors
from common.models.factory import create_model, expected_norm
from common.reducers import Method
from common.setup import Setup

BACKBONE = "deit_tiny_patch16_224"
SMALL = {"img_size": 64}  # 16 patches
LOC = (2, 5, 8)
# what a module of a stage is called here and there
STAGES = {
    "dynamicvit": ("score_predictor", {"predictors": {"embed.": "in_conv.", "classify.": "out_conv."}}),
    "dpcknn": ("cluster_layers", {"log_weights": {"": "score."}}),
    "patchmerger": ("cluster_layers", {"mergers": {"": ""}}),
    "sinkhorn": ("cluster_layers", {"prototypes": {"": "v"}}),
    "sit": ("cluster_layers", {"slimmers": {"score.": "weight.", "scale": "scale"}}),
}
WITHOUT = ["none", "topk", "evit", "ats", "tome", "kmedoids", "l2", "dpcknn:equal"]


def model_of(text, keep_rate=0.6):
    name, _, option = text.partition(":")
    options = {"equal_weight": True} if option else {}
    given = {} if name == "none" else {"keep_rate": keep_rate, "reduction_loc": LOC}
    return create_model(BACKBONE, reducer=name, **given, **options, **SMALL).eval()


def theirs(name, key):
    """The authors' name of our parameter ``key``."""
    if not key.startswith("reducer."):
        return key
    module, names = STAGES[name]
    _, group, block, *rest = key.split(".", 3)
    inside = rest[0] if rest else ""
    for ours, there in names[group].items():
        if inside.startswith(ours):
            return f"{module}.{LOC.index(int(block))}.{there}{inside.removeprefix(ours)}"
    raise AssertionError(key)


def layout(model, text, path, /, **changes):
    """What their training writes: raw weights, other averaged ones, the state of the optimiser, the arguments."""
    state = {theirs(text, key): value.clone() for key, value in model.state_dict().items()}
    args = argparse.Namespace(model=f"{text}_tiny_patch16_224", keep_rate=[0.6], reduction_loc=list(LOC), lr=5e-4)
    optimizer = {
        "state": {0: {"step": 3, "exp_avg": torch.ones(2)}},
        "param_groups": [{"lr": 5e-4, "betas": (0.9, 0.999)}],
    }
    checkpoint = {"model": state, "model_ema": {key: value + 1 for key, value in state.items()}, "epoch": 29}
    checkpoint |= {"optimizer": optimizer, "lr_scheduler": {"base_values": [5e-4]}, "scaler": {"scale": 65536.0}}
    torch.save({**checkpoint, "args": args, "ema_best": False, **changes}, path)
    return state


def perturbed(text):
    """A model whose parameters, also those that start as zeros or ones, are all different."""
    model = model_of(text)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def loaded(path, text, **changes):
    name, _, option = text.partition(":")
    options = {"equal_weight": True} if option else {}
    given = {"reducer": name} if name == "none" else {"reducer": name, "keep_rate": 0.6, "reduction_loc": LOC}
    return create_model(BACKBONE, weights=path, **SMALL, **{**given, **options, **changes}).eval()


@pytest.mark.parametrize("text", [*STAGES, *WITHOUT])
def test_a_model_comes_back_from_the_authors_layout(tmp_path, text):
    model, images = perturbed(text), torch.randn(2, 3, 64, 64)
    names = layout(model, text, tmp_path / "best_checkpoint.pth")
    assert len(names) == len(model.state_dict())
    found = loaded(tmp_path / "best_checkpoint.pth", text)
    torch.testing.assert_close(found(images), model(images), rtol=0, atol=0)
    assert {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}.items() <= found.pretrained_cfg.items()


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        # the reference's modules, ViT-Ti: width 192, of 16 patches 9 in the first stage, 5 in the second
        ("dynamicvit", {"score_predictor.0.in_conv.1.weight": (192, 192), "score_predictor.2.out_conv.4.bias": (2,)}),
        ("dynamicvit", {"score_predictor.1.in_conv.0.bias": (192,), "score_predictor.1.out_conv.2.weight": (48, 96)}),
        ("dpcknn", {"cluster_layers.0.score.weight": (1, 192), "cluster_layers.2.score.bias": (1,)}),
        ("patchmerger", {"cluster_layers.0.queries": (9, 192), "cluster_layers.1.norm.weight": (192,)}),
        ("sinkhorn", {"cluster_layers.0.v": (9, 192), "cluster_layers.1.v": (5, 192)}),
        ("sit", {"cluster_layers.0.weight.0.weight": (192,), "cluster_layers.0.weight.1.weight": (96, 192)}),
        ("sit", {"cluster_layers.1.weight.3.weight": (5, 96), "cluster_layers.2.scale": (1, 1, 1)}),
    ],
)
def test_names_and_shapes_are_those_of_the_reference(tmp_path, text, shapes):
    state = layout(model_of(text), text, tmp_path / "x.pth")
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_the_better_of_raw_and_averaged_weights(tmp_path):
    path, model = tmp_path / "x.pth", model_of("none")
    bias = model.head.bias.detach()

    def head_bias(**changes):
        layout(model, "none", path, **changes)
        return read_authors(path)["head.bias"]

    assert torch.equal(head_bias(ema_best=False), bias) and torch.equal(head_bias(ema_best=True), bias + 1)
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint["ema_best"]
    torch.save(checkpoint, path)
    assert torch.equal(read_authors(path)["head.bias"], bias + 1)  # as timm takes it
    del checkpoint["model_ema"], checkpoint["args"]  # as DeiT's own files are
    torch.save(checkpoint, path)
    assert torch.equal(read_authors(path)["head.bias"], bias)
    half = {f"module.{name}": value.half() for name, value in checkpoint["model"].items()}
    torch.save({"model": half}, path)
    assert read_authors(path)["head.bias"].dtype == torch.float32


def test_code_in_a_file_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model": {}, "args": Evil()}, tmp_path / "x.pth")
    with pytest.raises(UsageError, match="holds more than tensors and plain values") as caught:
        loaded(tmp_path / "x.pth", "none")
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged"),
        (b"no pickle at all", "is damaged"),
        (pickle.dumps({"a": 1})[:5], "is damaged"),
        ([1, 2], "it holds a list"),
        (
            {"state_dict": {}},
            r"has no weights in 'model', .*; it has state_dict\. Give others to timm: timm.create_model\(.*",
        ),
        ({"model": {"head.weight": 1}}, "has no weights in 'model'"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path, content, message):
    path = tmp_path / "x.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UsageError, match=message) as caught:
        loaded(path, "none")
    assert "\n" not in str(caught.value) and "x.pth" in str(caught.value)


def test_a_file_that_is_cut_off(tmp_path):
    path = tmp_path / "x.pth"
    layout(model_of("none"), "none", path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(UsageError, match="is damaged"):
        loaded(path, "none")


@pytest.mark.parametrize(
    ("text", "change", "names"),
    [
        ("none", {"add": "dist_token"}, "dist_token"),
        ("none", {"drop": "blocks.11.mlp.fc2.bias"}, "blocks.11.mlp.fc2.bias"),
        ("sinkhorn", {"add": "cluster_layers.0.temperature"}, "cluster_layers.0.temperature"),
        ("sinkhorn", {"add": "cluster_layers.3.v"}, "cluster_layers.3.v"),
        ("sit", {"drop": "cluster_layers.1.scale"}, "slimmers.5.scale"),
        ("patchmerger", {"add": "cluster_layers.2.score.bias"}, "log_weights.8.bias"),
    ],
)
def test_a_name_that_is_left_over_is_listed(tmp_path, text, change, names):
    state = layout(model_of(text), text, tmp_path / "x.pth")
    state.pop(change.get("drop"), None)
    state |= {change["add"]: torch.ones(1)} if "add" in change else {}
    layout(model_of(text), text, tmp_path / "x.pth", model=state)
    for changes in {}, {"num_classes": 7}:
        with pytest.raises(UsageError, match=r"x\.pth") as caught:
            loaded(tmp_path / "x.pth", text, **changes)
        assert names in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_is_of_its_method_and_blocks(tmp_path):
    layout(model_of("dynamicvit"), "dynamicvit", tmp_path / "dyvit.pth")
    layout(model_of("topk"), "topk", tmp_path / "topk.pth")
    layout(model_of("sinkhorn"), "sinkhorn", tmp_path / "sinkhorn.pth")
    for file, text, changes, names in (
        ("dyvit.pth", "topk", {}, "predictors.2.embed.0.weight"),
        ("topk.pth", "dynamicvit", {}, "predictors.8.classify.4.bias"),  # nothing of a method stays random
        ("dyvit.pth", "dynamicvit", {"reduction_loc": (2, 5, 9)}, "predictors.9.embed.0.weight"),
        ("sinkhorn.pth", "sinkhorn", {"keep_rate": 0.8}, "prototypes.2"),
    ):
        with pytest.raises(UsageError, match="of another method, or not all of this one") as caught:
            loaded(tmp_path / file, text, **changes)
        assert names in str(caught.value) and "\n" not in str(caught.value)


def test_stages_without_blocks_are_refused(tmp_path):
    layout(model_of("sit"), "sit", tmp_path / "x.pth", args=argparse.Namespace(model="sit_tiny_patch16_224"))
    with pytest.raises(UsageError, match="does not say which blocks reduce: its args have no reduction_loc"):
        read_authors(tmp_path / "x.pth")


def test_stages_follow_the_order_of_the_blocks(tmp_path):
    """A stage's module is used when its block is reached, whatever the order of the argument."""
    args = argparse.Namespace(reduction_loc=[8, 2, 5])
    layout(model_of("sinkhorn"), "sinkhorn", tmp_path / "x.pth", args=args)
    assert read_authors(tmp_path / "x.pth")["reducer.prototypes.2"].shape == (9, 192)


def test_a_new_head_for_other_classes(tmp_path):
    layout(model := perturbed("dynamicvit"), "dynamicvit", tmp_path / "x.pth")
    found = loaded(tmp_path / "x.pth", "dynamicvit", num_classes=7)
    assert found.head.weight.shape == (7, 192)
    torch.testing.assert_close(found.reducer.state_dict(), model.reducer.state_dict(), rtol=0, atol=0)


def namespace(**changes):
    """The arguments that their parser leaves for a model of DynamicViT."""
    given = {"model": "dyvit_small_patch16_224", "keep_rate": [0.7], "reduction_loc": [3, 6, 9], "input_size": 224}
    return argparse.Namespace(**{**given, "seed": 0, "dataset": "imagenet", **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("deit_small_patch16_224", "dynamicvit", 0.7, (3, 6, 9), 224)),
        ({"model": "topk_tiny_patch16_224"}, ("deit_tiny_patch16_224", "topk:head_fusion=mean", 0.7, (3, 6, 9), 224)),
        ({"keep_rate": [0.9, 0.7, 0.5]}, ("deit_small_patch16_224", "dynamicvit", (0.9, 0.7, 0.5), (3, 6, 9), 224)),
        (
            {"model": "ats_base_patch16_224", "keep_rate": [137.0, 96.0, 67.0]},
            ("deit_base_patch16_224", "ats:parity=true", (137, 96, 67), (3, 6, 9), 224),
        ),
        (
            {"model": "kmedoids_tiny_patch16_224", "cluster_iters": 5, "equal_weight": False},
            ("deit_tiny_patch16_224", "kmedoids:cluster_iters=5,parity=true", 0.7, (3, 6, 9), 224),
        ),
        (
            {"model": "sinkhorn_tiny_patch16_224", "cluster_iters": 3, "sinkhorn_eps": 0.5},
            ("deit_tiny_patch16_224", "sinkhorn:eps=0.5", 0.7, (3, 6, 9), 224),
        ),
        (
            {"model": "dpcknn_tiny_patch16_224", "k_neighbors": 5, "equal_weight": True},
            ("deit_tiny_patch16_224", "dpcknn:equal_weight=true", 0.7, (3, 6, 9), 224),
        ),
        (
            {
                "model": "heuristic_tiny_patch16_224",
                "heuristic_pattern": "l2",
                "min_radius": 1.0,
                "not_contiguous": True,
            },
            ("deit_tiny_patch16_224", "l2", 0.7, (3, 6, 9), 224),
        ),
        (
            {
                "model": "heuristic_tiny_patch16_224",
                "heuristic_pattern": "l1",
                "min_radius": 2.0,
                "not_contiguous": False,
            },
            ("deit_tiny_patch16_224", "l1:contiguous=true,min_radius=2.0", 1.0, (3, 6, 9), 224),
        ),
        (
            {"model": "deit_small_patch16_224_local", "keep_rate": [], "reduction_loc": [], "input_size": 384},
            ("deit_small_patch16_224", "none", 1.0, None, 384),
        ),
        ({"model": "deit_base_patch16_224_local_viz"}, ("deit_base_patch16_224", "none", 1.0, (3, 6, 9), 224)),
    ],
)
def test_what_a_checkpoint_says_of_its_model(tmp_path, changes, expected):
    torch.save({"model": {}, "args": namespace(**changes)}, tmp_path / "x.pth")
    run = authors_run(tmp_path / "x.pth")
    assert tuple(vars(run).values()) == expected
    Method.parse(run.method)


@pytest.mark.parametrize("args", [None, namespace(model="resnet50"), namespace(model="swin_tiny_patch16_224")])
def test_a_checkpoint_that_says_nothing_of_its_model(tmp_path, args):
    torch.save({"model": {}, "args": args}, tmp_path / "x.pth")
    with pytest.raises(UsageError, match="does not say of which model it is"):
        authors_run(tmp_path / "x.pth")


def test_the_command_line_needs_nothing_but_the_checkpoint_and_images(tmp_path, capsys):
    layout(
        perturbed("sit"),
        "sit",
        path := tmp_path / "best_checkpoint.pth",
        args=namespace(model="sit_tiny_patch16_224", keep_rate=[0.6], reduction_loc=list(LOC), input_size=64),
    )
    command = ["off_the_shelf", str(tmp_path / "out"), "--weights", str(path), "--dataset", "digits", "--limit", "4"]
    assert main([*command, "--decisions-only", "--device", "cpu"]) == 0, capsys.readouterr().err
    found = [path.parent for path in (tmp_path / "out").rglob("decisions.npz")]
    assert [folder.name for folder in found] == ["sit_tiny_patch16_224-2_5_8-_0.6"]
    setting = Record.load(found[0] / "decisions.npz").setting
    assert (setting.backbone, setting.img_size, setting.details["recipe"]) == (BACKBONE, (64, 64), "which_tokens")
    assert main(["off_the_shelf", str(tmp_path), "--dataset", "digits"]) == 2
    assert "give --backbone and --methods" in capsys.readouterr().err


def test_evaluated_from_the_command_line(tmp_path, capsys):
    """Digits have ten classes: the head of 1000 is that of other images, only decisions count."""
    model, path = perturbed("dynamicvit"), tmp_path / "best_checkpoint.pth"
    layout(model, "dynamicvit", path)
    command = [
        "off_the_shelf",
        str(tmp_path / "out"),
        "--backbone",
        BACKBONE,
        "--weights",
        str(path),
        "--img-size",
        "64",
    ]
    command += [
        "--dataset",
        "digits",
        "--limit",
        "6",
        "--methods",
        "dynamicvit",
        "--keep-rates",
        "0.6",
        "--device",
        "cpu",
    ]
    command += ["--reduction-loc", *map(str, LOC), "--decisions-only"]
    assert main(command) == 0, capsys.readouterr().err
    record = Record.load(next((tmp_path / "out").rglob("decisions.npz")))
    norm = expected_norm(BACKBONE, path)
    images = Setup(BACKBONE, str(path), "digits", img_size=64, limit_val=6).val_set
    assert (images.mean, images.std) == (norm["mean"], norm["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    _, trace = model.trace(images.stack())
    assert record.stages[8].kept.tolist() == trace.origin[8].tolist() and record.setting.details["untrained"] == 0
