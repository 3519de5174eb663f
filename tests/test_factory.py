"""From a name to a model: what is refused and how it is said, and what weights, sizes and heads become."""

import importlib.util
import math
from functools import partial

import huggingface_hub.errors
import pytest
import safetensors.torch
import thop
import timm
import torch
from backbones import applicable_reducers, reducing
from timm.layers import HybridEmbed, resample_abs_pos_embed
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer

from common import count_macs, create_model, list_reducers, load_dataset, reduce_tokens
from common.data.transforms import IMAGENET_MEAN
from common.errors import UsageError
from common.models.factory import create_backbone, expected_norm
from common.models.simple_vit import sincos_position
from common.models.support import check_supported
from common.training import accuracy
from common.weights import read_norm, read_state, save_state


def refusal(call, *args, **kwargs) -> str:
    """The message with which a call is refused: always one line."""
    with pytest.raises(UsageError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert message.strip() and len(message.splitlines()) == 1
    return message


def noisy(vit):
    """``vit`` with random numbers in every parameter, also in biases that start at zero."""
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_(std=0.1)
    return vit.eval()


def pictures(side=32, batch=3):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def vit():
    return noisy(create_backbone("vit_digits"))


@pytest.fixture
def checkpoint(vit, tmp_path):
    save_state(vit, tmp_path / "vit.safetensors")
    return tmp_path / "vit.safetensors"


# names


def test_unknown_backbone_names_similar_ones():
    message = refusal(create_model, "vit_tinny_patch16_224")
    assert message.startswith("unknown backbone 'vit_tinny_patch16_224'; similar: ")
    assert "vit_tiny_patch16_224" in message.split("similar: ")[1].split(", ")


def test_unknown_backbone_without_similar_ones():
    assert "timm.list_models()" in refusal(create_model, "zzzzzz")


def test_unknown_pretrained_tag():
    assert "nosuchtag" in refusal(create_model, "vit_tiny_patch16_224.nosuchtag")


@pytest.mark.parametrize(
    "name",
    [
        "swin_tiny_patch4_window7_224",
        "beit_base_patch16_224",
        "beitv2_base_patch16_224",
        "eva02_tiny_patch14_224",
        "vit_small_patch16_rope_224",
        "cait_xxs24_224",
        "xcit_nano_12_p8_224",
        "vit_relpos_small_patch16_224",
        "vit_small_r26_s32_224",
        "samvit_base_patch16",
        "pit_ti_224",
        "levit_128",
        "resnet18",
    ],
)
def test_other_architectures_are_refused_by_name(name, monkeypatch):
    assert timm.is_model(name)
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: pytest.fail("built before it was refused"))
    message = refusal(create_model, name, reducer="tram", keep_rate=0.5)
    assert message.startswith(f"backbone {name!r} is not supported; allowed: ") and "VisionTransformer" in message


@pytest.mark.parametrize("name", ["vit_small_patch16_18x2_224", "vit_dlittle_patch16_reg1_gap_256"])
def test_vision_transformers_with_other_blocks_are_refused(name):
    """Parallel branches and differential attention are not what the reduced block computes."""
    with torch.device("meta"):
        message = refusal(create_backbone, name)
    assert "not supported; allowed: " in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block_fn": ParallelScalingBlock}, "ParallelScalingBlock"),
        ({"patch_drop_rate": 0.25}, "patch_drop_rate"),
    ],
)
def test_own_models_are_checked_too(options, words):
    vit = VisionTransformer(img_size=16, patch_size=4, embed_dim=16, depth=4, num_heads=2, num_classes=3, **options)
    assert words in refusal(reduce_tokens, vit, "tram", keep_rate=0.5)


def test_other_modules_and_subclasses_are_refused_by_class():
    class Mine(VisionTransformer):
        pass

    mine = Mine(img_size=16, patch_size=4, embed_dim=16, depth=4, num_heads=2, num_classes=3)
    assert "backbone Mine is not supported" in refusal(reduce_tokens, mine, "tram", keep_rate=0.5)
    assert "backbone Linear is not supported" in refusal(check_supported, torch.nn.Linear(2, 2))
    stem = partial(HybridEmbed, backbone=torch.nn.Conv2d(3, 8, 4, 4))  # patches of a feature map, not of the image
    hybrid = VisionTransformer(img_size=64, patch_size=4, embed_dim=32, depth=4, num_heads=2, embed_layer=stem)
    assert "patches made by a HybridEmbed are not supported; allowed: timm" in refusal(check_supported, hybrid)


# methods and schedules


@pytest.mark.parametrize(
    ("options", "given", "allowed"),
    [
        ({"reducer": "trem"}, "'trem'", ", ".join(list_reducers())),
        ({"reducer": "topk", "fusion": "max"}, "'fusion'", "head_fusion"),
        ({"reducer": "tram", "head_fusion": "max"}, "'head_fusion'", "allowed: last_block"),
        ({"reducer": "topk", "head_fusion": "min"}, "'min'", "max, mean"),
        ({"reducer": "tram", "keep_rate": 0}, "keep_rate=0 ", "(0, 1]"),
        ({"reducer": "tram", "keep_rate": 1.2}, "keep_rate=1.2 ", "(0, 1]"),
        ({"reducer": "tram", "keep_rate": (0.5, 0.2)}, "keep_rate=(0.5, 0.2)", "per stage"),
        ({"reducer": "tram", "keep_rate": float("nan")}, "keep_rate=nan", "(0, 1]"),
        ({"reducer": "tram", "keep_rate": 0.5, "reduction_loc": (1, 2, 6)}, "[1, 2, 6]", "0 to 5"),
    ],
)
def test_methods_and_schedules(options, given, allowed):
    message = refusal(create_model, "vit_digits", **options)
    assert given in message and allowed in message


# image size and head


@pytest.mark.parametrize("name", ["vit_digits", "simple_vit_digits"])
def test_image_size_must_be_a_multiple_of_the_patch(name, tmp_path):
    assert refusal(create_backbone, name, img_size=63) == "img_size 63 is not a multiple of the patch size 4"
    save_state(create_backbone(name), tmp_path / "w.safetensors")
    message = refusal(create_backbone, name, img_size=62, weights=tmp_path / "w.safetensors")
    assert message == "img_size 62 is not a multiple of the patch size 4"


def test_the_narrow_backbone_differs_in_width_alone():
    """Half as wide, with half as many heads of the same 32 channels, as ViT-Ti, -S and -B differ."""
    wide, narrow = (create_backbone(name) for name in ("vit_digits", "vit_digits_narrow"))
    assert (wide.embed_dim, narrow.embed_dim) == (64, 32)
    for vit in (wide, narrow):
        assert {(len(vit.blocks), block.attn.head_dim, vit.patch_embed.grid_size) for block in vit.blocks} == {
            (6, 32, (8, 8))
        }
        assert vit.blocks[0].mlp.fc1.out_features == 2 * vit.embed_dim


def test_parameters_of_a_method_are_not_lost_in_silence(tmp_path):
    """A file trained with PatchMerger fits neither another method nor another keep rate."""
    path = tmp_path / "w.safetensors"
    save_state(create_model("vit_digits", reducer="patchmerger", keep_rate=0.5), path)
    for options in ({"reducer": "tram", "keep_rate": 0.5}, {"reducer": "patchmerger", "keep_rate": 0.75}):
        assert repr(str(path)) in refusal(create_model, "vit_digits", weights=path, **options)


@pytest.mark.parametrize("name", ["vit_digits", "simple_vit_digits"])
def test_images_need_not_be_square(name, tmp_path):
    """Positions of a file are resampled, as timm resamples them; costs are those of 2 x 5 patches."""
    save_state(create_model(name), tmp_path / "w.safetensors")
    for size in ((8, 20), [8, 20]):
        model = create_model(name, reducer="tram", keep_rate=0.5, img_size=size, weights=tmp_path / "w.safetensors")
        assert model.patch_embed.grid_size == (2, 5)
        _, trace = model.eval().trace(torch.randn(2, 3, 8, 20))
        assert [trace.num_tokens[block][0].item() for block in (0, 1, 3, 4)] == [10, 5, 2, 1]
        upright = create_model(name, reducer="tram", keep_rate=0.5, img_size=(20, 8))
        assert count_macs(model, (8, 20)) == count_macs(upright, (20, 8))
    assert refusal(create_model, name, img_size=(8, 22)) == "img_size 22 is not a multiple of the patch size 4"


@pytest.mark.parametrize(
    "sizes",
    [
        {"img_size": 0},
        {"img_size": -32},
        {"img_size": (32, 0)},
        {"num_classes": -1},
        {"img_size": (32, 32, 3)},
        {"num_classes": (2, 3)},
    ],
)
def test_sizes_that_no_model_has(sizes):
    (what, given), *_ = sizes.items()
    message = refusal(create_model, "vit_digits", **sizes)
    assert what in message and str(given) in message


def test_images_of_another_size_are_refused_by_simple_vit():
    model = create_model("simple_vit_digits", reducer="tram", keep_rate=0.5)
    message = refusal(model, torch.randn(1, 3, 48, 48))
    assert "(B, 3, 32, 32)" in message and "(1, 3, 48, 48)" in message
    assert "(32, 32), given (48, 48)" in refusal(create_backbone("simple_vit_digits"), torch.randn(1, 3, 48, 48))


# weights


@pytest.mark.parametrize("name", ["vit.bin", "vit.safetensors.gz", "vit", "", "Timm"])
def test_weights_of_another_kind(name, tmp_path):
    if name:
        (tmp_path / name).write_bytes(b"x")
    path = str(tmp_path / name) if name.startswith("vit") else name
    message = refusal(create_model, "vit_digits", weights=path)
    assert repr(path) in message and "allowed: None, 'timm', or the path of a .safetensors file" in message


def test_weights_that_are_missing(tmp_path):
    path = str(tmp_path / "none.safetensors")
    message = refusal(create_model, "vit_digits", weights=path)
    assert message.startswith(f"weights file {path!r} does not exist; allowed: ")


@pytest.mark.parametrize("size", [0, 4, 100, 50_000])
def test_weights_that_are_cut_off(checkpoint, size):
    assert checkpoint.stat().st_size > 50_000
    checkpoint.write_bytes(checkpoint.read_bytes()[:size])
    assert f"weights file {str(checkpoint)!r} is damaged or truncated" in refusal(
        create_model, "vit_digits", weights=checkpoint
    )


def test_weights_that_are_no_safetensors(checkpoint):
    checkpoint.write_bytes(b"not tensors\n" * 100)
    assert "is damaged or truncated" in refusal(create_model, "vit_digits", weights=checkpoint)


def test_weights_of_another_architecture(checkpoint):
    message = refusal(create_model, "vit_tiny_patch16_224", weights=checkpoint, img_size=64)
    assert message.startswith(f"weights file {str(checkpoint)!r} does not fit backbone 'vit_tiny_patch16_224': ")


@pytest.mark.parametrize("num_classes", [None, 7])
def test_weights_of_a_model_without_class_token(num_classes, tmp_path):
    """Also where the head is replaced: nothing but the head may stay random."""
    save_state(create_backbone("simple_vit_digits"), tmp_path / "w.safetensors")
    message = refusal(create_model, "vit_digits", weights=tmp_path / "w.safetensors", num_classes=num_classes)
    assert "does not fit backbone 'vit_digits'" in message
    assert "cls_token" in message or "blocks.0.attn.qkv.bias" in message  # what SimpleViT does not have


@pytest.mark.parametrize("num_classes", [None, 7])
@pytest.mark.parametrize("change", ["a block is missing", "an unknown tensor"])
def test_weights_must_fit_completely(checkpoint, change, num_classes):
    state = safetensors.torch.load_file(checkpoint)
    if change == "an unknown tensor":
        state["blocks.0.ls1.gamma"] = torch.ones(64)
    else:
        state = {name: value for name, value in state.items() if not name.startswith("blocks.5.")}
    safetensors.torch.save_file(state, checkpoint)
    assert "does not fit backbone 'vit_digits'" in refusal(
        create_model, "vit_digits", weights=checkpoint, num_classes=num_classes
    )


@pytest.mark.parametrize("num_classes", [None, 7])
def test_weights_without_head(checkpoint, num_classes):
    state = safetensors.torch.load_file(checkpoint)
    safetensors.torch.save_file({name: v for name, v in state.items() if not name.startswith("head.")}, checkpoint)
    message = refusal(create_model, "vit_digits", weights=checkpoint, num_classes=num_classes)
    assert repr(str(checkpoint)) in message and "head.weight" in message


def network_errors():
    """What the hub's client raises without a network; its HTTP library differs between its versions."""
    errors = [
        OSError("We couldn't connect to the hub\nand no file is cached"),
        TimeoutError(),
        huggingface_hub.errors.LocalEntryNotFoundError("cannot find the file on disk\nnor on the hub"),
        huggingface_hub.errors.OfflineModeIsEnabled("offline mode is enabled"),
    ]
    for library, name in (("requests", "ConnectionError"), ("httpx", "ConnectError"), ("httpx2", "ConnectError")):
        if importlib.util.find_spec(library):
            errors.append(getattr(importlib.import_module(library), name)("no route to host"))
    return errors


@pytest.mark.parametrize("error", network_errors(), ids=lambda e: f"{type(e).__module__}.{type(e).__name__}")
def test_hub_weights_without_network(error, monkeypatch):
    def download(*args, **kwargs):
        raise error

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    message = refusal(create_model, "vit_tiny_patch16_224", weights="timm", img_size=64)
    start, reason = message.split(" are not to be had here: ")
    assert start == "weights 'timm' of 'vit_tiny_patch16_224'"
    assert reason.startswith((str(error) or type(error).__name__).splitlines()[0])


@pytest.mark.parametrize("name", ["vit_digits", "simple_vit_digits"])
def test_hub_weights_that_nobody_published(name):
    assert refusal(create_model, name, weights="timm").startswith(f"weights 'timm' of {name!r} are not to be had")


# what weights become


@pytest.mark.parametrize("reducer", list_reducers())
@pytest.mark.parametrize("name", ["vit_digits", "simple_vit_digits"])
def test_a_saved_model_comes_back(name, reducer, tmp_path):
    if reducer not in applicable_reducers(create_backbone(name)):
        pytest.skip("needs a CLS token")
    options = {"reducer": reducer, **reducing(create_backbone(name), reducer, 0.5)}
    model = noisy(create_model(name, **options))
    save_state(model, tmp_path / "w.safetensors")
    twin = create_model(name, weights=tmp_path / "w.safetensors", **options).eval()
    assert {n: v.shape for n, v in twin.state_dict().items()} == {n: v.shape for n, v in model.state_dict().items()}
    assert torch.equal(twin(pictures()), model(pictures()))


def test_saving_leaves_only_the_file(vit, tmp_path):
    save_state(vit, tmp_path / "new" / "w.safetensors")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["w.safetensors"]


UNUSUAL = {"mean": (0.2, 0.3, 0.4), "std": (0.25, 0.5, 0.125)}


def test_a_checkpoint_says_what_its_images_were_normalised_with(vit, tmp_path):
    vit.pretrained_cfg |= UNUSUAL
    path = tmp_path / "w.safetensors"
    save_state(vit, path)
    assert read_norm(path) == expected_norm("vit_digits", path) == UNUSUAL
    again = create_model("vit_digits", reducer="topk", keep_rate=0.5, num_classes=3, weights=path)
    for model in (create_backbone("vit_digits", weights=path), again):
        config = timm.data.resolve_model_data_config(model)
        assert {key: config[key] for key in UNUSUAL} == UNUSUAL
    save_state(again, tmp_path / "again.safetensors")
    assert read_norm(tmp_path / "again.safetensors") == UNUSUAL
    assert create_backbone("vit_digits").pretrained_cfg["mean"] == (0.5, 0.5, 0.5)  # the registered one stays


@pytest.mark.parametrize(
    ("name", "mean"), [("deit_tiny_patch16_224", IMAGENET_MEAN), ("vit_tiny_patch16_224", (0.5, 0.5, 0.5))]
)
def test_a_file_of_others_keeps_what_timm_says_of_the_backbone(name, mean, tmp_path):
    path = tmp_path / "w.safetensors"
    state = timm.create_model(name, depth=1).state_dict()
    for header in (None, {"format": "pt"}):
        safetensors.torch.save_file(state, path, header)
        assert read_norm(path) == {}
        assert expected_norm(name, path)["mean"] == expected_norm(name, "timm")["mean"] == mean
    assert expected_norm(name, None) == {}
    assert create_backbone(name).pretrained_cfg["mean"] == mean
    assert "unknown backbone 'vit_digit'; similar: vit_digits" in refusal(expected_norm, "vit_digit", "timm")


def test_a_plain_checkpoint_of_timm_loads(vit, tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(vit.state_dict(), path, {"format": "pt"})
    model = create_model("vit_digits", weights=path).eval()
    assert torch.equal(model(pictures()), vit(pictures())) and model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("header", ["{mean", "[1", '{"mean": 0.5}', '{"mean": ["a", 1, 2]}', "3"])
def test_a_header_that_cannot_be_read_is_refused(vit, header, tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(vit.state_dict(), path, {"pretrained_cfg": header})
    assert refusal(create_model, "vit_digits", weights=path).startswith(
        f"weights file {str(path)!r} is damaged or truncated: "
    )


def test_half_precision_is_raised(vit, tmp_path):
    save_state(vit, tmp_path / "half.safetensors", torch.float16)
    stored = safetensors.torch.load_file(tmp_path / "half.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert {value.dtype for value in read_state(tmp_path / "half.safetensors").values()} == {torch.float32}
    model = create_model("vit_digits", weights=tmp_path / "half.safetensors").eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for name, value in model.state_dict().items():
        assert torch.equal(value, vit.state_dict()[name].half().float()), name


@pytest.mark.parametrize("side", [16, 48, 64])
def test_positions_are_resampled_to_the_image_size(vit, checkpoint, side):
    model = create_model("vit_digits", weights=checkpoint, img_size=side).eval()
    grid = side // 4
    expected = resample_abs_pos_embed(vit.pos_embed.detach(), [grid, grid], num_prefix_tokens=1)
    assert model.pos_embed.shape == (1, 1 + grid**2, 64) and torch.equal(model.pos_embed, expected)
    assert torch.equal(model.pos_embed[:, 0], vit.pos_embed[:, 0])
    logits = model(pictures(side))
    assert logits.shape == (3, 10) and logits.isfinite().all()


def test_simple_vit_gets_the_positions_of_its_own_grid(tmp_path):
    small = noisy(create_backbone("simple_vit_digits"))
    save_state(small, tmp_path / "w.safetensors")
    large = create_backbone("simple_vit_digits", weights=tmp_path / "w.safetensors", img_size=48)
    assert torch.equal(large.pos_embed, sincos_position((12, 12), 64, 10.0))
    assert torch.equal(large.blocks[5].mlp.fc2.weight, small.blocks[5].mlp.fc2.weight)


def test_a_new_head_is_the_same_for_all_methods(vit, checkpoint):
    heads = []
    for reducer in list_reducers():
        torch.manual_seed(5)
        options = {"reducer": reducer, **reducing(vit, reducer, 0.5)}
        model = create_model("vit_digits", weights=checkpoint, num_classes=7, **options)
        for name, value in vit.state_dict().items():
            assert name.startswith("head.") or torch.equal(model.state_dict()[name], value), name
        heads.append(model.head.weight)
        assert model.num_classes == 7 and model(pictures()).shape == (3, 7)
    assert heads[0].shape == (7, 64) and heads[0].std() > 0
    assert all(torch.equal(head, heads[0]) for head in heads)
    torch.manual_seed(6)
    assert not torch.equal(create_model("vit_digits", weights=checkpoint, num_classes=7).head.weight, heads[0])


def test_a_new_head_on_simple_vit(tmp_path):
    vit = noisy(create_backbone("simple_vit_digits"))
    save_state(vit, tmp_path / "w.safetensors")
    model = create_model("simple_vit_digits", weights=tmp_path / "w.safetensors", num_classes=7)
    assert model.head.weight.shape == (7, 64)
    rest = {name: value for name, value in vit.state_dict().items() if not name.startswith("head.")}
    assert all(torch.equal(model.state_dict()[name], value) for name, value in rest.items())


def test_the_same_number_of_classes_keeps_the_head(vit, checkpoint):
    model = create_model("vit_digits", weights=checkpoint, num_classes=10)
    assert torch.equal(model.head.weight, vit.head.weight) and torch.equal(model.head.bias, vit.head.bias)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_names_are_those_of_timm(name):
    with torch.device("meta"):
        plain, model = timm.create_model(name), create_model(name, reducer="tram", keep_rate=0.5)
    shapes = {name: value.shape for name, value in plain.state_dict().items()}
    assert {name: value.shape for name, value in model.state_dict().items()} == shapes


def test_qkv_biases_survive_and_act(vit, checkpoint):
    model = create_model("vit_digits", reducer="tram", keep_rate=0.5, weights=checkpoint).eval()
    for block, original in zip(model.blocks, vit.blocks, strict=True):
        assert torch.equal(block.attn.qkv.bias, original.attn.qkv.bias) and block.attn.qkv.bias.abs().min() > 0
    before = model(pictures())
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.bias.zero_()
    assert (model(pictures()) - before).abs().max() > 1e-3


# SimpleViT


def test_simple_vit_names():
    expected = {f"simple_vit_{size}_patch16_{side}" for size in ("tiny", "small", "base") for side in (160, 224)}
    assert set(timm.list_models("simple_vit_*")) == expected | {"simple_vit_digits"}


@pytest.mark.parametrize(("size", "dim", "heads"), [("tiny", 192, 3), ("small", 384, 6), ("base", 768, 12)])
@pytest.mark.parametrize("side", [160, 224])
def test_simple_vit_sizes(size, dim, heads, side):
    with torch.device("meta"):
        vit = create_backbone(f"simple_vit_{size}_patch16_{side}")
    assert (len(vit.blocks), vit.embed_dim, vit.blocks[0].attn.num_heads) == (12, dim, heads)
    assert vit.patch_embed.num_patches == (side // 16) ** 2
    assert vit.blocks[0].mlp.fc1.out_features == 4 * dim and vit.num_classes == 1000


@pytest.mark.parametrize(("size", "params"), [("base", 85_620_490), ("small", 21_577_354), ("tiny", 5_481_034)])
def test_simple_vit_has_the_published_number_of_parameters(size, params):
    with torch.device("meta"):
        vit = create_backbone(f"simple_vit_{size}_patch16_160", num_classes=10)
        image = torch.zeros(1, 3, 160, 160)
    assert thop.profile(vit, (image,), verbose=False)[1] == params


def test_simple_vit_has_no_class_token():
    vit = create_backbone("simple_vit_digits")
    assert vit.cls_token is None and not vit.has_class_token and vit.num_prefix_tokens == 0
    assert vit.forward_features(pictures()).shape == (3, 64, 64)


def test_sine_cosine_positions_against_a_loop():
    height, width, dim, x, y = 3, 5, 16, 4, 1
    quarter = dim // 4
    literal = [0.0] * dim
    for k in range(quarter):
        frequency = 1 / 10000 ** (k / (quarter - 1))
        literal[k], literal[quarter + k] = math.sin(x * frequency), math.cos(x * frequency)
        literal[2 * quarter + k], literal[3 * quarter + k] = math.sin(y * frequency), math.cos(y * frequency)
    position = sincos_position((height, width), dim)
    assert position.shape == (1, height * width, dim)
    assert position[0, y * width + x].tolist() == pytest.approx(literal, abs=1e-6)


def test_sine_cosine_positions_need_a_width_of_quarters():
    assert "given 18" in refusal(sincos_position, (2, 2), 18)


def test_simple_vit_positions_are_added_and_never_trained():
    vit = create_backbone("simple_vit_digits").eval()
    assert "pos_embed" not in vit.state_dict() and "pos_embed" not in dict(vit.named_parameters())
    assert not vit.pos_embed.requires_grad
    before, x = vit.pos_embed.clone(), pictures()
    assert torch.equal(vit._pos_embed(vit.patch_embed(x)), vit.patch_embed(x) + before)
    optimizer = torch.optim.Adam(vit.parameters(), lr=1.0)
    vit(x).square().sum().backward()
    optimizer.step()
    assert torch.equal(vit.pos_embed, before)


def test_simple_vit_attention_has_no_biases():
    vit = create_backbone("simple_vit_digits")
    assert [n for n in vit.state_dict() if ".attn." in n and n.endswith("bias")] == []
    assert all(block.mlp.fc1.bias is not None for block in vit.blocks)


def test_simple_vit_embeds_normalised_pixel_vectors():
    vit = noisy(create_backbone("simple_vit_digits"))
    x, embed = pictures(), vit.patch_embed
    row, column = 2, 5
    pixels = torch.stack([x[0, :, 4 * row + i, 4 * column + j] for i in range(4) for j in range(4)]).flatten()
    expected = embed.norm(embed.proj(embed.norm_patch(pixels)))
    torch.testing.assert_close(embed(x)[0, 8 * row + column], expected)


def test_simple_vit_pools_the_mean():
    vit = noisy(create_backbone("simple_vit_digits"))
    features = vit.forward_features(pictures())
    shuffled = features[:, torch.randperm(64)]
    assert not torch.equal(features, shuffled)
    torch.testing.assert_close(vit.forward_head(shuffled), vit(pictures()), rtol=0, atol=1e-5)
    torch.testing.assert_close(vit.head(features.mean(1)), vit(pictures()), rtol=0, atol=1e-5)


# the real thing


@pytest.mark.data
def test_imagenet_weights_on_real_images(data_root):
    path = data_root / "weights" / "vit_tiny_patch16_224.safetensors"
    model = create_model("vit_tiny_patch16_224", weights=path).eval()
    stored = safetensors.torch.load_file(path)
    assert model.num_classes == 1000
    assert set(stored) == set(model.state_dict())
    assert all(torch.equal(model.state_dict()[name], value.float()) for name, value in stored.items())

    data = load_dataset("imagenette", "val", root=data_root, img_size=224, recipe="center_crop", limit=40)
    images = torch.stack([image for image, _ in data])
    plain = timm.create_model("vit_tiny_patch16_224").eval()
    plain.load_state_dict({name: value.float() for name, value in stored.items()}, strict=True)
    with torch.inference_mode():
        logits = model(images)
        torch.testing.assert_close(logits[:8], plain(images[:8]), rtol=0, atol=1e-5)
    assert accuracy(logits, data.labels, data.imagenet_indices) >= 95.0
