"""The calls that fit a method to a network of one's own: what they take, what they refuse, and that it is one path."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from small_training import killed_at, same_weights, updates_of
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import common
from common.cost.closed_form import Shape
from common.cost.counter import mean_macs
from common.data import load_dataset
from common.errors import UsageError
from common.idling.candidates import LABEL_STAGE, fit_predictors, within_budget
from common.idling.outcomes import outcomes
from common.models.factory import create_backbone
from common.setup import Setup

FIT = partial(common.idling.fit, mac_cut=0.2, epochs=1, seed=3)
SEARCH = partial(common.slimming.search, mac_cut=0.3, epochs=1, error_images=4, seed=3)


@pytest.fixture
def vit():
    torch.manual_seed(1)
    vit = create_backbone("vit_digits").eval()
    for block in vit.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.2)
    return vit


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", "train", img_size=32, limit=48)


class Bare(Dataset):
    """Images alone."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


class Stream(IterableDataset):
    def __init__(self, images):
        self.images = images

    def __iter__(self):
        return iter(self.images)


def kinds(digits):
    """The same images in every form."""
    images = digits.stack()
    return {
        "dataset of images": Bare(images),
        "dataset of pairs": TensorDataset(images, digits.labels),
        "stream": Stream(images),
        "own dataset": digits,
        "loader of pairs": DataLoader(TensorDataset(images, digits.labels), batch_size=7),
        "loader of images": DataLoader(Bare(images), batch_size=48),
        "double": images.double(),
    }


def test_all_forms_of_the_same_images_fit_the_same_model(vit, digits):
    wanted = FIT(vit, digits.stack())
    for form, given in kinds(digits).items():
        assert same_weights(FIT(vit, given), wanted), form
    assert not same_weights(FIT(vit, digits.stack(), seed=4), wanted)


def test_all_forms_of_the_same_images_find_the_same_plan(vit, digits):
    found, blocks = [], []
    for given in (digits.stack(), *kinds(digits).values()):
        tuned = copy.deepcopy(vit)
        found.append(SEARCH(tuned, given))
        blocks.append(tuned)
    assert all(plan == found[0] for plan in found) and all(same_weights(each, blocks[0]) for each in blocks)
    assert not same_weights(blocks[0], vit)


def test_a_cut_is_the_budget_that_it_leaves(vit, digits):
    tuned = copy.deepcopy(vit)
    spent = common.slimming.search(tuned, digits.stack(), mac_budget=0.7, epochs=1, error_images=4, seed=3)
    plan = SEARCH(copy.deepcopy(vit), digits.stack())
    assert plan.masks == spent.masks and plan.settings["mac_cut"] == 0.3 and "mac_budget" not in plan.settings
    model = common.reduce_tokens(vit, "patch_slimming", plan=plan)
    assert 0.3 <= 1 - common.count_macs(model, 32).total / Shape.of(vit).unreduced < 0.33


def test_a_fitted_model_saves_what_was_asked_for_and_leaves_the_network(vit, digits):
    before, cfg = copy.deepcopy(vit.state_dict()), dict(vit.pretrained_cfg)
    vit.train()
    random = torch.get_rng_state()
    model = FIT(vit, digits.stack())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())
    assert not any(module.training for module in model.modules()) and model.blocks[0] is vit.blocks[0]
    assert all(parameter.requires_grad for parameter in model.parameters()) and model.pretrained_cfg == cfg
    reducer = model.reducer
    assert (reducer.influence, reducer.attention, reducer.re_entry) == ("fisher", "standard", False)
    assert reducer.last_block == "cls"
    solved = Setup.around(vit, {"calibration": load_dataset("digits", "val", img_size=32, limit=200)}, device="cpu")
    (found,), _ = outcomes([model], solved.loader())
    saved = 1 - found.macs.mean().item() / Shape.of(vit).unreduced
    assert saved == pytest.approx(0.2, abs=0.06)  # on other images than the 12 that thresholds were solved on
    assert FIT(vit, digits.stack(), hidden=8, attention="modified").reducer.predictors["0"].own.out_features == 8


def test_the_call_goes_the_way_of_the_study(vit, digits):
    """Predictors and thresholds are those of the study's functions on the same parts of the images."""
    model = FIT(vit, digits)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(3))
    learnt, solved = (digits.select(places.sort().values) for places in (order[12:], order[:12]))
    setup = Setup.around(vit, {"train_set": learnt, "val_set": solved, "calibration": solved}, seed=3, device="cpu")
    text = "idle_mlp:influence=fisher,attention=standard,re_entry=false,hidden=32,last_block=cls"
    fitted = fit_predictors(setup, text, replace(LABEL_STAGE, epochs=1), idle_share=0.2)
    assert same_weights(model, within_budget(setup, fitted, 0.2).model)


def test_a_killed_fit_goes_on_and_other_images_are_refused(vit, digits, tmp_path, monkeypatch):
    images = digits.stack()
    again = partial(FIT, vit, images, epochs=2, batch_size=12, output_dir=tmp_path)
    killed_at(monkeypatch, 2, 1, again)  # 36 images in batches of 12
    found, epochs = updates_of(monkeypatch, again)
    assert epochs == [2, 2, 2] and same_weights(found, FIT(vit, images, epochs=2, batch_size=12))
    with pytest.raises(UsageError, match="was made with"):
        again(epochs=3)


def test_a_folder_of_a_fit_starts_from_where_one_works(vit, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    FIT(vit, digits.stack(), output_dir="here")
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def with_nan(images):
    images = images.clone()
    images[5, 0, 3, 3], images[9] = float("nan"), float("inf")
    return images


BAD = {
    "a list": (lambda x: list(x), r"images of type list are not allowed; give a tensor \(B, 3, 32, 32\)"),
    "an array": (lambda x: x.numpy(), "images of type ndarray are not allowed"),
    "NaN": (with_nan, "2 of 48 images hold NaN or an infinite value, first image 5"),
    "NaN in a loader": (lambda x: DataLoader(Bare(with_nan(x)), 10), "2 of 48 images hold NaN"),
    "another size": (lambda x: x[..., :24], r"images of shape \(48, 3, 32, 24\) and torch.float32"),
    "grey": (lambda x: x[:, :1], r"images of shape \(48, 1, 32, 32\)"),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), r"images of shape \(48, 32, 32, 3\)"),
    "one image": (lambda x: x[0], r"images of shape \(3, 32, 32\)"),
    "bytes": (lambda x: x.byte(), "and torch.uint8 are not allowed"),
    "a small one among them": (
        lambda x: Bare([*x[:20], x[20][:, :16, :16]]),
        r"image 20 of shape \(3, 16, 16\) and torch.float32 is not allowed",
    ),
    "pictures": (lambda x: Bare(["a.png"] * 20), "image 0 of type str is not allowed; give a tensor"),
    "a loader of dictionaries": (
        lambda x: DataLoader(Bare([{"image": each} for each in x])),
        "batch 0 of type dict is not allowed; give a tensor",
    ),
    "none": (lambda x: x[:0], "0 images are too few; give at least"),
    "an empty dataset": (lambda x: Bare([]), "0 images are too few"),
}


@pytest.mark.parametrize("call", [FIT, SEARCH], ids=["fit", "search"])
@pytest.mark.parametrize("case", BAD)
def test_images_that_are_refused_before_any_compute(vit, digits, call, case):
    change, message = BAD[case]
    assert_refused(vit, partial(call, vit, change(digits.stack())), message)


def assert_refused(vit, call, message):
    ran = []
    handles = [vit.patch_embed.register_forward_hook(lambda *_: ran.append(1))]
    with pytest.raises(UsageError, match=message) as error:
        call()
    assert "\n" not in str(error.value) and not ran
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("call", "count", "options", "message"),
    [
        (FIT, 15, {}, "15 images are too few; give at least 16"),
        (SEARCH, 1, {}, "held_out=0.25 of 1 images leaves one side empty"),
        (FIT, 48, {"held_out": 1.0}, "held_out=1.0 of 48 images leaves one side empty"),
        (FIT, 48, {"mac_cut": 0.99}, "mac_cut=0.99 is not possible with standard attention; give less"),
        (FIT, 48, {"mac_cut": 20}, "mac_cut=20 is not allowed; give a number from 0 to below 1"),
        (SEARCH, 48, {"mac_cut": 0.99}, r"mac_budget=0.01 \(mac_cut=0.99\) is not allowed; give the share"),
        (FIT, 48, {"score_threshold": 0.5}, "score_threshold is not an option of a fit, which decides it"),
        (FIT, 48, {"width": 3}, "reducer 'idle_mlp' has no option 'width'; allowed"),
        (FIT, 48, {"epochs": 0}, "epochs=0 is not allowed; give a whole number >= 1"),
        (SEARCH, 48, {"tolerance": 0.1}, "a search needs one of tolerance, mac_budget, mac_cut, lengths; given: tol"),
    ],
)
def test_settings_that_are_refused_before_any_compute(vit, digits, call, count, options, message):
    assert_refused(vit, partial(call, vit, digits.stack()[:count], **options), message)


def test_networks_that_are_refused(vit, digits):
    images = digits.stack()
    with pytest.raises(UsageError, match="the model is reduced already"):
        FIT(common.reduce_tokens(vit, "none"), images)
    with pytest.raises(UsageError, match=r"a backbone in torch.bfloat16 is given"):
        FIT(copy.deepcopy(vit).to(torch.bfloat16), images)


def shallow(depth):
    return VisionTransformer(img_size=32, patch_size=4, embed_dim=32, depth=depth, num_heads=2, num_classes=10).eval()


@pytest.mark.parametrize("depth", [2, 3])
def test_networks_of_few_blocks_are_fitted_too(digits, depth):
    """Which have no block at each quarter of their depth, where methods with a schedule reduce; these have none."""
    vit = shallow(depth)
    whole = common.count_macs(vit, 32).total
    slim = common.slimming.search(vit, digits, mac_cut=0.6, epochs=0)
    cost = common.count_macs(common.reduce_tokens(vit, "patch_slimming", plan=slim), 32).total
    assert 0.37 * whole < cost <= 0.4 * whole
    assert len(slim.lengths) == depth
    idle = common.idling.fit(vit, digits, mac_cut=0.6, epochs=1)
    assert 0.3 * whole < mean_macs(idle, torch.stack([image for image, _ in digits])) <= 0.45 * whole
    with pytest.raises(UsageError, match=f"a backbone of depth {depth} has no default reduction_loc; give the 0-based"):
        common.reduce_tokens(vit, "tome", keep_rate=0.5)


def test_one_block_cannot_be_slimmed(digits):
    with pytest.raises(UsageError, match="a model of one block is given, whose patches no other block reads; give two"):
        common.slimming.search(shallow(1), digits, mac_cut=0.1)
