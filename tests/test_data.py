"""Datasets, transforms, loaders, and what they refuse."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_sample_image
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode

from common.data import check, check_dataset, dataset_classes, list_datasets, load_dataset, make_loader, subset
from common.data.pictures import ImageFiles
from common.data.transforms import make_transform, normalisation
from common.errors import UsageError

DATA_ROOT = Path(os.environ.get("DATA_ROOT", "/nonexistent"))
IMAGENETTE_INDICES = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
IMAGENETTE_CLASSES = [
    "tench",
    "English springer",
    "cassette player",
    "chain saw",
    "church",
    "French horn",
    "garbage truck",
    "gas pump",
    "golf ball",
    "parachute",
]
SYNSETS = ("n01440764", "n02102040", "n02979186")
needs_imagenette = pytest.mark.skipif(
    not any((DATA_ROOT / name).is_dir() for name in ("imagenette2", "imagenette2-320", "imagenette2-160")),
    reason="DATA_ROOT holds no Imagenette",
)
needs_fashion = pytest.mark.skipif(not (DATA_ROOT / "FashionMNIST").is_dir(), reason="DATA_ROOT holds no FashionMNIST")


def noise(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train and val with the classes ant (JPEG), bee (PNG) and cow (PNG), with 4, 3 and 2 images."""
    for split in ("train", "val"):
        for name, count, suffix in (("ant", 4, "jpg"), ("bee", 3, "png"), ("cow", 2, "png")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                noise((40, 30), seed=i).save(tmp_path / split / name / f"{i}.{suffix}")
    return tmp_path


def load_folder(path: Path, split: str = "val", **options):
    return load_dataset(f"folder:{path}", split, **{"img_size": 16, **options})


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(UsageError) as error:
        call(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message
    return message


# sizes and classes


@needs_imagenette
@pytest.mark.parametrize(("split", "size"), [("train", 9469), ("val", 3925)])
def test_imagenette(split, size):
    data = load_dataset("imagenette", split, root=DATA_ROOT, img_size=64)
    image, label = data[size - 1]
    assert (len(data), label, data.num_classes) == (size, 9, 10)
    assert image.shape == (3, 64, 64)
    assert data.classes == IMAGENETTE_CLASSES == dataset_classes("imagenette", root=DATA_ROOT)
    assert data.imagenet_indices == IMAGENETTE_INDICES
    assert data.labels.bincount().sum() == size
    assert data.labels.bincount().min() > 300


@needs_fashion
@pytest.mark.parametrize(("split", "size"), [("train", 60000), ("val", 10000)])
def test_fashion_mnist(split, size):
    data = load_dataset("fashion-mnist", split, root=DATA_ROOT, img_size=28)
    assert data.labels.bincount().tolist() == [size // 10] * 10
    assert data.classes[9] == "Ankle boot"
    assert data.imagenet_indices is None
    image, label = data[0]
    assert label == data.labels[0]
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])
    assert image.min() == -1
    assert 0.5 < image.max() <= 1


def test_digits_split_is_stratified_and_disjoint():
    train, val = (load_dataset("digits", split, img_size=32) for split in ("train", "val"))
    assert (len(train), len(val)) == (1437, 360)
    assert val.labels.bincount().tolist() == pytest.approx([36] * 10, abs=2)
    assert train.classes == [str(digit) for digit in range(10)] == dataset_classes("digits")
    pictures = {tuple(picture.flatten().tolist()) for picture in train._pictures}
    assert not any(tuple(picture.flatten().tolist()) in pictures for picture in val._pictures)


def test_folder_classes_and_root_from_environment(folder, monkeypatch):
    assert load_folder(folder).classes == ["ant", "bee", "cow"]
    assert load_folder(folder).imagenet_indices is None
    for split in ("train", "val"):
        for old, new in zip(("ant", "bee", "cow"), SYNSETS, strict=True):
            (folder / split / old).rename(folder / split / new)
    assert load_folder(folder).imagenet_indices == IMAGENETTE_INDICES[:3]
    assert load_folder(folder).classes == IMAGENETTE_CLASSES[:3]
    (folder / "imagenet").mkdir()
    for split in ("train", "val"):
        (folder / split).rename(folder / "imagenet" / split)
    monkeypatch.setenv("DATA_ROOT", str(folder))
    assert len(load_dataset("imagenet", "train", img_size=16)) == 9


def test_list_datasets():
    assert list_datasets() == [
        "cifar10",
        "cifar100",
        "coco",
        "digits",
        "fashion-mnist",
        "folder:PATH",
        "imagenet",
        "imagenette",
        "nabirds",
        "nuswide",
        "photo-tiles",
    ]


def test_tiles_of_both_splits_are_the_photographs_once():
    photographs = {"china": "china.jpg", "flower": "flower.jpg"}
    canvases = {name: torch.full((3, 416, 640), -1.0) for name in photographs}
    for split in ("train", "val"):
        tiles = load_dataset("photo-tiles", split, img_size=32, mean=(0, 0, 0), std=(1, 1, 1))
        assert tiles.classes == list(photographs) and tiles.labels.bincount().tolist() == [130, 130]
        for (tile, label), name in zip((tiles[place] for place in range(260)), tiles.image_ids, strict=True):
            photograph, row, column = name.split("-")
            assert photograph == tiles.classes[label]
            y, x = 32 * int(row), 32 * int(column)
            assert (canvases[photograph][:, y : y + 32, x : x + 32] == -1).all()
            canvases[photograph][:, y : y + 32, x : x + 32] = tile
    for name, file in photographs.items():
        whole = torch.tensor(load_sample_image(file)).permute(2, 0, 1) / 255
        assert torch.equal(canvases[name], whole[:, :416, :640])


# what lies beside the images


def litter(folder: Path) -> None:
    """What systems and editors leave behind, in ``folder`` and in every folder below it, down to three levels."""
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".hidden/deeper"):
            (place / name).mkdir(parents=True)
            noise((40, 30)).save(place / name / "0.png")
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.jpg", "._t10k-images-idx3-ubyte", "._images.txt"):
            (place / name).write_bytes(b"\0\5\x16\7")


@pytest.mark.parametrize("name", ["folder", "imagenet", "imagenette"])
def test_hidden_files_and_folders_are_no_images(name, folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    place = root / {"imagenette": "imagenette2-160"}.get(name, name)
    folder.rename(place)
    name = f"folder:{place}" if name == "folder" else name
    clean = load_dataset(name, "val", root=root, img_size=16)
    litter(root)
    dirty = load_dataset(name, "val", root=root, img_size=16)
    assert (dirty.classes, dirty.files, dirty.image_ids) == (clean.classes, clean.files, clean.image_ids)
    assert dirty.labels.tolist() == clean.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 2
    assert dataset_classes(name, root=root) == ["ant", "bee", "cow"]


def test_a_hidden_archive_file_is_not_checked(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for stem, shape in (("images-idx3", (3, 28, 28)), ("labels-idx1", (3,))):
        header = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
        for part in ("train", "t10k"):
            (raw / f"{part}-{stem}-ubyte").write_bytes(header + bytes(int(np.prod(shape))))
    litter(tmp_path)
    assert len(load_dataset("fashion-mnist", "val", img_size=28, root=tmp_path)) == 3


def test_folders_inside_a_class_belong_to_it(folder):
    """The files, their order and their labels are those of torchvision's ImageFolder."""
    for place in ("val/ant/zoo/red", "val/ant/10", "val/bee/wild"):
        (folder / place).mkdir(parents=True)
        noise((40, 30)).save(folder / place / "9.TIFF")
    data, reference = load_folder(folder), ImageFolder(folder / "val")
    assert list(zip(map(str, data.files), data.labels.tolist(), strict=True)) == reference.samples
    assert (len(data), data.classes) == (12, reference.classes)
    assert data.image_ids[0] == "ant/0.jpg" and "ant/zoo/red/9.TIFF" in data.image_ids


# modes of pictures

RAMP = np.arange(256, dtype=np.uint8)[None].repeat(2, axis=0)


def opened(path: Path, picture: Image.Image, **options) -> np.ndarray:
    """The first row (W, 3) of what is read from a file of ``picture``."""
    picture.save(path, **options)
    check_dataset(SimpleNamespace(files=[path]))
    (image,) = ImageFiles([path])[0]
    assert image.mode == "RGB"
    return np.asarray(image)[0].astype(int)


def repeated(grey: np.ndarray) -> list[list[int]]:
    return np.repeat(np.asarray(grey)[:, None], 3, axis=1).tolist()


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize("low", [0, 127, 255, None])
def test_a_16_bit_ramp_is_the_8_bit_ramp(tmp_path, suffix, low):
    """Whatever the lower byte is: 0, or the higher one again (white is 65535)."""
    wide = RAMP.astype(np.uint16) * 256 + (RAMP if low is None else low)
    assert opened(tmp_path / f"a.{suffix}", Image.fromarray(wide)).tolist() == repeated(RAMP[0])


def test_a_pgm_counts_from_its_own_white(tmp_path):
    values = np.array([0, 512, 1023], dtype=">u2")
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 3 1 1023\n" + values.tobytes())
    assert np.asarray(ImageFiles([path])[0][0])[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(("mode", "suffix"), [("L", "png"), ("P", "png"), ("P", "tif"), ("CMYK", "tif")])
def test_grey_palette_and_cmyk_ramps_stay_as_they_are(tmp_path, mode, suffix):
    picture = Image.fromarray(RAMP)
    picture = (
        picture
        if mode == "L"
        else picture.convert("RGB").quantize(256)
        if mode == "P"
        else picture.convert("RGB").convert(mode)
    )
    assert opened(tmp_path / f"a.{suffix}", picture).tolist() == repeated(RAMP[0])


def test_pictures_of_one_bit_are_black_and_white(tmp_path):
    assert opened(tmp_path / "a.png", Image.fromarray(RAMP >= 100)).tolist() == repeated(255 * (RAMP[0] >= 100))


def test_cmyk_inks(tmp_path):
    """Without a profile an ink takes away its own light, and black all of it."""
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 255, 0], [0, 0, 0, 255]]], dtype=np.uint8)
    found = opened(tmp_path / "a.tif", Image.fromarray(inks, mode="CMYK"))
    assert found.tolist() == [[255, 255, 255], [0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(tmp_path, mode):
    """Black with alpha from 0 to 255: white where it is transparent, the ramp from white to black between."""
    black = Image.new("L", (256, 2))
    alpha = Image.fromarray(RAMP)
    if mode == "P":
        picture, options = Image.fromarray(RAMP).convert("P"), {"transparency": bytes(range(256))}
        picture.putpalette(bytes(768))
    else:
        picture, options = Image.merge("LA", (black, alpha)).convert(mode), {}
    assert opened(tmp_path / "a.png", picture, **options).tolist() == repeated(255 - RAMP[0])


def test_one_transparent_colour_is_white_and_opaque_colours_stay(tmp_path):
    ramp = RAMP[0].astype(int)
    grey = opened(tmp_path / "a.png", Image.fromarray(RAMP), transparency=64)
    assert grey.tolist() == repeated(np.where(ramp == 64, 255, ramp))
    picture = noise((40, 30))
    opaque = opened(tmp_path / "b.png", picture.convert("RGBA"))
    assert opaque.tolist() == np.asarray(picture)[0].tolist()


@pytest.mark.parametrize(
    ("dtype", "what"), [("float32", "32-bit float numbers (mode F)"), ("int32", "32-bit integer numbers (mode I)")]
)
def test_numbers_without_a_white_are_refused(folder, dtype, what):
    path = folder / "val/bee/scan.tif"
    Image.fromarray(RAMP.astype(dtype)).save(path)
    wanted = (
        f"broken image {path}: nothing says which of its {what} is white; allowed: 8 or 16 bits; restore or remove it"
    )
    assert refusal(load_folder, folder) == wanted
    assert refusal(ImageFiles([path]).__getitem__, 0) == wanted


def test_a_file_that_is_no_image_is_refused_whatever_its_suffix(folder):
    path = folder / "val/bee/a.webp"
    path.write_text("<html>not found</html>")
    assert refusal(load_folder, folder).startswith(f"broken image {path}: cannot identify image file")


def test_a_picture_damaged_in_its_middle_is_named_when_it_is_read(folder):
    path = folder / "val/bee/1.png"
    content = bytearray(path.read_bytes())
    content[60:200] = bytes(140)
    path.write_bytes(content)
    data = load_folder(folder)
    assert refusal(data.__getitem__, data.files.index(path)).startswith(f"broken image {path}: ")


# transforms


@pytest.mark.parametrize("recipe", ["pretrained", "scratch", "center_crop"])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_recipe_shape_range_and_grey(recipe, train, mode):
    norm = normalisation(recipe, None, None)
    image = make_transform(recipe, 32, train, norm)(noise((50, 40), mode))
    assert image.shape == (3, 32, 32)
    pixels = image * torch.tensor(norm.std)[:, None, None] + torch.tensor(norm.mean)[:, None, None]
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6
    if mode == "L":
        assert pixels[0] == pytest.approx(pixels[1], abs=1e-6)
        assert pixels[0] == pytest.approx(pixels[2], abs=1e-6)


def test_default_normalisations():
    assert normalisation("pretrained", None, None).mean == (0.5, 0.5, 0.5)
    assert normalisation("center_crop", None, None).std == (0.5, 0.5, 0.5)
    assert normalisation("scratch", None, None).mean == (0.485, 0.456, 0.406)
    assert normalisation("scratch", None, (1, 2, 3)).std == (1, 2, 3)


def test_evaluation_squashes_or_crops():
    """A 496x248 picture whose left and right quarter are white keeps them when squashed, loses them when cropped."""
    pixels = np.zeros((248, 496, 3), dtype=np.uint8)
    pixels[:, :124] = pixels[:, -124:] = 255
    picture = Image.fromarray(pixels)
    norm = normalisation("pretrained", None, None)
    assert make_transform("pretrained", 224, False, norm)(picture).mean() == pytest.approx(0, abs=0.01)
    cropped = make_transform("center_crop", 224, False, norm)(picture)
    assert cropped.shape == (3, 224, 224)
    assert cropped.max() == -1


def test_center_crop_is_bicubic_248_then_224():
    picture = noise((300, 248))
    norm = normalisation("center_crop", None, None)
    cropped = make_transform("center_crop", 224, False, norm)(picture)
    expected = torch.tensor(np.array(picture))[12:236, 38:262].permute(2, 0, 1) / 255
    assert cropped * 0.5 + 0.5 == pytest.approx(expected, abs=1e-6)
    big = make_transform("center_crop", 224, False, norm)(noise((600, 496)))
    resized = noise((600, 496)).resize((300, 248), Image.Resampling.BICUBIC).crop((38, 12, 262, 236))
    assert big * 127.5 + 127.5 == pytest.approx(torch.tensor(np.array(resized)).permute(2, 0, 1).float(), abs=1e-3)


BILINEAR, BICUBIC, NEAREST = (InterpolationMode[name] for name in ("BILINEAR", "BICUBIC", "NEAREST"))
# Recipe and split -> every step that resamples. TRAM resizes with torchvision's default, timm evaluates the augreg
# weights bicubic, Haurum et al. resample bicubic everywhere.
RESAMPLING = {
    ("pretrained", False): {"Resize": BILINEAR},
    ("pretrained", True): {"Resize": BILINEAR},
    ("scratch", False): {"Resize": BILINEAR},
    ("scratch", True): {"Resize": BILINEAR, "RandomRotation": NEAREST, "RandomResizedCrop": BILINEAR},
    ("center_crop", False): {"Resize": BICUBIC},
    ("center_crop", True): {"RandomResizedCrop": BICUBIC},
    ("which_tokens", False): {"Resize": BICUBIC},
    ("which_tokens", True): {"RandomResizedCrop": BICUBIC, "RandAugment": BICUBIC},
}


@pytest.mark.parametrize("dataset", [name for name in list_datasets() if name != "digits"])
@pytest.mark.parametrize(("recipe", "train"), RESAMPLING)
def test_interpolation_of_every_recipe_and_dataset(recipe, train, dataset):
    expected = dict(RESAMPLING[recipe, train])
    if recipe == "which_tokens" and train:
        if dataset == "nabirds":
            del expected["RandAugment"]
        if dataset in ("coco", "nuswide"):
            expected = {"Resize": BICUBIC, "RandAugment": BICUBIC}
    steps = make_transform(recipe, 32, train, normalisation(recipe, None, None), dataset).transforms
    resampling = [step for step in steps if hasattr(step, "interpolation")]
    found = {type(step).__name__: InterpolationMode(step.interpolation) for step in resampling}
    for step in steps:
        if hasattr(step, "ops"):  # timm's RandAugment, with Pillow's name for the same
            found["RandAugment"] = InterpolationMode[Image.Resampling(step.ops[0].kwargs["resample"]).name]
            assert len({op.kwargs["resample"] for op in step.ops}) == 1
    assert found == expected


def test_scratch_augments_in_the_protocol_order():
    steps = make_transform("scratch", 160, True, normalisation("scratch", None, None)).transforms
    assert [type(step).__name__ for step in steps] == [
        "Resize",
        "RandomRotation",
        "ColorJitter",
        "RandomVerticalFlip",
        "RandomResizedCrop",
        "RandomHorizontalFlip",
        "ToTensor",
        "RGB",
        "Normalize",
    ]


def test_mean_and_std_override(folder):
    plain = load_folder(folder, mean=(0, 0, 0), std=(1, 1, 1))
    halved = load_folder(folder)
    assert halved[0][0] == pytest.approx(plain[0][0] * 2 - 1, abs=1e-6)
    assert (plain.mean, halved.std) == ((0, 0, 0), (0.5, 0.5, 0.5))


# digits


@pytest.mark.parametrize("img_size", [32, 64, 224])
def test_box_is_the_bounds_of_the_ink(img_size):
    data = load_dataset("digits", "val", img_size=img_size, limit=40)
    for index in range(len(data)):
        ink = data[index][0][0] > -1
        x0, y0, x1, y1 = data.box(index)
        assert ink[y0:y1, x0:x1].sum() == ink.sum()
        assert all(side.any() for side in (ink[y0], ink[y1 - 1], ink[:, x0], ink[:, x1 - 1]))
        assert max(x1 - x0, y1 - y0) <= img_size // 2


def test_digit_place_varies_in_training_and_is_fixed_in_evaluation():
    train = load_dataset("digits", "train", img_size=32, train=True, limit=50)
    evaluation = load_dataset("digits", "train", img_size=32, limit=50)
    torch.manual_seed(0)
    assert len({tuple(train[3][0].flatten().tolist()) for _ in range(200)}) == 9
    assert torch.equal(evaluation[3][0], evaluation[3][0])
    assert len({evaluation.box(index)[:2] for index in range(50)}) >= 9
    # Wherever it lies, the ink is the same.
    assert train[3][0].sum() == pytest.approx(evaluation[3][0].sum().item())


def test_evaluation_places_follow_from_the_seed_and_survive_a_subset():
    first, again, other = (load_dataset("digits", "val", img_size=32, seed=seed) for seed in (1, 1, 2))
    boxes = [[data.box(index) for index in range(360)] for data in (first, again, other)]
    assert boxes[0] == boxes[1] != boxes[2]
    half = subset(first, 180, seed=0)
    kept = {tuple(half[index][0].flatten().tolist()) for index in range(180)}
    assert len(kept & {tuple(first[index][0].flatten().tolist()) for index in range(360)}) == len(kept)


# loaders and subsets


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_is_decided_by_its_seed(workers):
    data = load_dataset("digits", "train", img_size=32, train=True, limit=64)

    def epochs(seed: int, workers: int) -> torch.Tensor:
        loader = make_loader(data, 24, shuffle=True, seed=seed, workers=workers)
        return torch.stack([torch.cat([images for images, _ in loader]) for _ in range(2)])

    state = torch.get_rng_state()
    reference = epochs(5, 0)
    torch.rand(1)
    assert torch.equal(epochs(5, workers), reference)
    assert not torch.equal(reference[0], reference[1])
    assert not torch.equal(epochs(6, workers), reference)
    torch.set_rng_state(state)
    epochs(5, workers)
    assert torch.equal(torch.get_rng_state(), state)


def test_loader_order_and_last_batch(folder):
    data = load_folder(folder)
    loader = make_loader(data, 4, shuffle=False, seed=0)
    assert [labels.tolist() for _, labels in loader] == [[0, 0, 0, 0], [1, 1, 1, 2], [2]]
    assert [len(labels) for _, labels in make_loader(data, 4, shuffle=True, seed=0, drop_last=True)] == [4, 4]
    assert len(loader) == 3


@pytest.mark.parametrize("n", [10, 95, 100, 1437])
def test_subset_is_balanced(n):
    data = load_dataset("digits", "train", img_size=32)
    chosen = subset(data, n, seed=3)
    counts = chosen.labels.bincount(minlength=10)
    assert counts.sum() == n
    if n < 1437:
        assert counts.max() - counts.min() <= 1
    assert (chosen.classes, chosen.mean, chosen.num_classes) == (data.classes, data.mean, 10)
    assert torch.equal(chosen.labels, subset(data, n, seed=3).labels)
    assert [chosen[i][1] for i in range(10)] == chosen.labels[:10].tolist()


def test_subset_fills_up_from_larger_classes_and_depends_on_its_seed(folder):
    data = load_folder(folder)
    assert subset(data, 8, seed=0).labels.bincount().tolist() == [3, 3, 2]
    assert subset(data, None, seed=0) is data
    assert subset(data, 3, seed=0).files != subset(data, 3, seed=1).files
    assert len(load_folder(folder, limit=5)) == 5


def test_subset_that_skips_shares_no_image(folder):
    """Together the two are the larger subset of the same seed; without a number, the rest of all."""
    data = load_folder(folder)
    first, then = subset(data, 3, seed=0), subset(data, 4, seed=0, skip=3)
    assert not set(first.files) & set(then.files)
    assert sorted(first.files + then.files) == sorted(subset(data, 7, seed=0).files)
    assert sorted(first.files + load_folder(folder, skip=3).files) == sorted(data.files)
    wanted = "a subset of 7 images of 'digits', beside 1431 others, is not possible; allowed: 1 to 6"
    assert refusal(load_dataset, "digits", "train", img_size=32, limit=7, skip=1431) == wanted


# refusals


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"name": "cifar"}, "unknown dataset 'cifar'; allowed: cifar10, cifar100, coco, digits"),
        ({"name": "folder:"}, "unknown dataset 'folder:'"),
        ({"split": "test"}, "unknown split 'test'; allowed: train, val"),
        ({"recipe": "best"}, "unknown recipe 'best'; allowed: center_crop, pretrained, scratch, which_tokens"),
        ({"img_size": 0}, "img_size=0 is not allowed; give a whole number >= 1"),
        ({"img_size": 32.0}, "img_size=32.0 is not allowed; give a whole number >= 1"),
        ({"limit": 0}, "limit=0 is not allowed; give a whole number >= 1"),
        ({"mean": (0.5,)}, "mean=(0.5,) is not allowed; give three numbers, one per channel"),
        ({"mean": 0.5}, "mean=0.5 is not allowed; give three numbers, one per channel"),
        ({"std": (1, 0, 1)}, "std=(1, 0, 1) is not allowed; give three numbers > 0, one per channel"),
    ],
)
def test_bad_arguments_are_refused_before_the_disk_is_touched(arguments, wanted, monkeypatch):
    monkeypatch.setattr("common.data.catalog.open_source", lambda *_: pytest.fail("the disk was touched"))
    call = {"name": "imagenette", "split": "val", "img_size": 32} | arguments
    assert refusal(load_dataset, **call).startswith(wanted)


def test_digits_refuse_a_size_that_does_not_fit_and_a_box_in_training():
    assert refusal(load_dataset, "digits", "val", img_size=40) == (
        "img_size 40 does not fit digits; allowed: multiples of 16"
    )
    assert "no box" in refusal(load_dataset("digits", "val", img_size=32, train=True).box, 0)


def test_limit_above_the_size_is_refused():
    wanted = "a subset of 361 images of 'digits' is not possible; allowed: 1 to 360"
    assert refusal(load_dataset, "digits", "val", img_size=32, limit=361) == wanted


def test_loader_refuses_what_gives_no_batch(folder):
    data = load_folder(folder)
    assert "batch_size=0 is not allowed" in refusal(make_loader, data, 0, shuffle=True, seed=0)
    assert refusal(make_loader, data, 10, shuffle=True, seed=0, drop_last=True) == (
        "a dataset of 9 images gives no batch of 10"
    )


def test_missing_folders_are_named(tmp_path):
    assert f"no folder {tmp_path}/x/val" in refusal(load_folder, tmp_path / "x")
    message = refusal(load_dataset, "imagenet", "train", img_size=16, root=tmp_path)
    assert f"no folder {tmp_path}/imagenet/train" in message
    assert "DATA_ROOT" in message


def test_empty_and_unmatched_classes_are_named(folder):
    (folder / "val" / "dog").mkdir()
    assert refusal(load_folder, folder).endswith("train and val have different classes: dog")
    (folder / "train" / "dog").mkdir()
    (folder / "val/dog/._dog.jpg").write_bytes(b"hidden")
    (folder / "val/dog/notes.txt").write_text("no image")
    assert refusal(load_folder, folder) == (
        f"folder:{folder}: no image of class 'dog' in {folder}/val; fill the folder, or remove it from train and val; "
        "allowed: .jpg, .jpeg, .png, .ppm, .bmp, .pgm, .tif, .tiff, .webp"
    )
    noise((40, 30)).save(folder / "val/dog/1.png")
    assert load_folder(folder).labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 3]


def test_a_split_without_class_folders_is_named(tmp_path):
    (tmp_path / "val" / ".ipynb_checkpoints").mkdir(parents=True)
    noise((40, 30)).save(tmp_path / "val" / "loose.png")
    assert f"no class folder in {tmp_path}/val (wanted: one folder per class in it)" in refusal(load_folder, tmp_path)


@pytest.mark.parametrize("name", ["ant/2.jpg", "bee/1.png"])
def test_a_truncated_image_is_named(folder, name):
    path = folder / "val" / name
    path.write_bytes(path.read_bytes()[:-200])
    message = refusal(load_folder, folder)
    assert message.startswith(f"broken image {path}: the file is cut off")
    assert len(load_folder(folder, "train")) == 9


def test_only_the_first_process_of_a_machine_looks_at_the_files(folder, monkeypatch):
    (folder / "val/ant/1.jpg").write_bytes(b"")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert len(load_folder(folder)) == 9
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "ant/1.jpg: the file is empty" in refusal(load_folder, folder)


def test_many_files_that_were_whole_are_looked_at_again_only_when_some_come_or_go(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(check, "MANY", 8)
    monkeypatch.setattr(check, "CHECKED", tmp_path / "checked")
    data = load_folder(folder)
    assert len(data) == 9 and len(list((tmp_path / "checked").iterdir())) == 1
    (folder / "val/ant/1.jpg").write_bytes(b"")
    check_dataset(data)  # nothing came or went
    shutil.copy(folder / "val/ant/0.jpg", folder / "val/ant/more.jpg")
    assert "ant/1.jpg: the file is empty" in refusal(load_folder, folder)
    assert "ant/1.jpg: the file is empty" in refusal(load_folder, folder)  # what is broken is not remembered
    monkeypatch.setattr(check, "MANY", 10)
    assert "ant/1.jpg: the file is empty" in refusal(check_dataset, data)


@pytest.fixture
def flat(tmp_path) -> Path:
    """ImageNet's validation folder as it is published: three pictures, of tench, toilet tissue and goldfish."""
    folder = tmp_path / "imagenet"
    for number in (1, 2, 3):
        path = folder / "val" / f"ILSVRC2012_val_{number:08}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise((40, 30), seed=number).save(path)
    kit = folder / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    fields = [("ILSVRC2012_ID", int), ("WNID", object), ("num_children", int)]
    leaves = [(1, "n15075141", 0), (2, "n01440764", 0), (3, "n01443537", 0), (1001, "n00001740", 2)]
    savemat(kit / "meta.mat", {"synsets": np.array(leaves, fields)})
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n3\n")
    return folder


def test_imagenets_validation_images_are_read_as_they_are_published(flat):
    data = load_dataset("imagenet", "val", root=flat.parent, img_size=32)
    assert data.classes == ["tench", "goldfish", "toilet tissue"]
    assert data.labels.tolist() == [0, 2, 1]
    assert data.imagenet_indices == [0, 1, 999]
    assert data.image_ids[0] == "ILSVRC2012_val_00000001.JPEG"


def test_a_flat_folder_beside_class_folders_to_train_on(flat):
    for synset in ("n01440764", "n01443537", "n15075141"):
        (flat / "train" / synset).mkdir(parents=True)
        noise((40, 30)).save(flat / "train" / synset / "a.JPEG")
    train = load_dataset("imagenet", "train", root=flat.parent, img_size=32)
    assert train.classes == load_dataset("imagenet", "val", root=flat.parent, img_size=32).classes


def test_a_flat_folder_without_its_kit_or_with_a_picture_lost_is_refused(flat):
    (flat / "val" / "ILSVRC2012_val_00000002.JPEG").unlink()
    given = {"root": flat.parent, "img_size": 32}
    assert refusal(load_dataset, "imagenet", "val", **given).endswith(f"has labels of 3 pictures, {flat / 'val'} 2")
    shutil.rmtree(flat / "ILSVRC2012_devkit_t12")
    assert "extract ILSVRC2012_devkit_t12.tar.gz in" in refusal(load_dataset, "imagenet", "val", **given)


def test_empty_foreign_and_lost_images_are_named(folder):
    data = load_folder(folder)
    check_dataset(data)
    (folder / "val/ant/1.jpg").write_bytes(b"")
    assert "ant/1.jpg: the file is empty" in refusal(check_dataset, data)
    (folder / "val/ant/1.jpg").write_text("<html>not found</html>")
    assert "neither JPEG nor PNG" in refusal(check_dataset, data)
    (folder / "val/ant/1.jpg").unlink()
    assert "No such file" in refusal(check_dataset, data)
    (folder / "val/ant/0.jpg").unlink()
    assert "(and 1 more like it)" in refusal(check_dataset, data)


@pytest.mark.parametrize("padding", [b"", b"\0" * 100])
def test_bytes_after_the_end_marker_are_no_fault(folder, padding):
    path = folder / "val/ant/0.jpg"
    path.write_bytes(path.read_bytes() + padding)
    assert len(load_folder(folder)) == 9


def test_a_truncated_archive_file_is_named(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    path = raw / "t10k-images-idx3-ubyte"
    path.write_bytes(bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (2, 28, 28)) + bytes(1000))
    message = refusal(load_dataset, "fashion-mnist", "val", img_size=28, root=tmp_path)
    assert message.startswith(f"broken file {path}: 1016 bytes in place of 1584")


@pytest.mark.parametrize(
    ("name", "module"),
    [("fashion-mnist", "mnist"), ("cifar10", "cifar"), ("cifar100", "cifar"), ("imagenette", "imagenette")],
)
def test_a_failed_download_is_one_clear_line(name, module, tmp_path, monkeypatch):
    def offline(*_args, **_kwargs):
        raise URLError("no network")

    monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", offline)
    message = refusal(load_dataset, name, "val", img_size=32, root=tmp_path)
    assert message.startswith(f"no complete {name} under {tmp_path}, and downloading it failed (")
    assert "no network" in message
    assert "DATA_ROOT" in message
