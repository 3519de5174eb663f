"""NABirds, COCO and NUS-WIDE in the layouts their publishers use, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import check_dataset, dataset_classes, head_classes, load_dataset, make_loader, subset
from common.errors import UsageError

UUIDS = [
    "0000139e-21dc-4d0c-bfe1-4cae3c85c829",
    "0000d9fc-4e02-4c06-a0af-a55cfb16b12b",
    "00019306-9d83-4334-b255-a447742edce3",
    "0001afd4-99a1-4a67-b940-d419413e23b3",
    "000332b8-997c-4540-9647-2f0a8495aecf",
]


def picture(path: Path, colour: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 16, 3), colour, dtype=np.uint8)).save(path)


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def nabirds(tmp_path: Path) -> Path:
    """Five images of the classes 817, 9 and 1010; 9 occurs in training only, 1010 in the test set only."""
    folder = tmp_path / "nabirds"
    classes, in_train = (817, 9, 1010, 817, 817), (0, 1, 0, 1, 0)
    files = [f"{number:04}/{uuid.replace('-', '')}.jpg" for uuid, number in zip(UUIDS, classes, strict=True)]
    for i, file in enumerate(files):
        picture(folder / "images" / file, 50 * i)
    for table, column in (("images", files), ("image_class_labels", classes), ("train_test_split", in_train)):
        write(folder / f"{table}.txt", *(f"{uuid} {entry}" for uuid, entry in zip(UUIDS, column, strict=True)))
    names = ["0 Birds", "9 Whistling-Ducks, Geese, and Swans", "817 Oak Titmouse", "1010 House Sparrow (Male)"]
    write(folder / "classes.txt", *names)
    write(folder / "hierarchy.txt", "9 0", "817 0", "1010 0")
    return tmp_path


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Images 9, 42 and 7; 7 has no annotation; the categories 90, 1 and 3 of which 3 is in no image."""
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        files = {number: f"COCO_{split}2014_{number:012}.jpg" for number in (42, 9, 7)}
        for number, file in files.items():
            picture(folder / f"{split}2014" / file, number)
        boxes = [(42, 90, 5000), (9, 1, 100), (42, 1, 10000), (42, 90, 20)]
        content = {
            "info": {"year": 2014},
            "images": [{"id": number, "file_name": file, "width": 16} for number, file in files.items()],
            "annotations": [
                {"id": i, "image_id": image, "category_id": category, "area": area, "iscrowd": i % 2, "bbox": []}
                for i, (image, category, area) in enumerate(boxes)
            ],
            "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
        }
        (folder / "annotations" / f"instances_{split}2014.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def nuswide(tmp_path: Path) -> Path:
    folder = tmp_path / "nuswide"
    rows = [
        "images/0002_99.jpg,\"['water', 'sky']\",val",
        "images/0001_12.jpg,\"['clouds']\",train",
        "images/0003_50.jpg,[],val",
        "images/0004_51.jpg,\"['sky', 'clouds']\",val",
    ]
    write(folder / "nus_wid_data.csv", "filepath,label,split_name", *rows)
    for i, row in enumerate(rows):
        picture(folder / row.split(",")[0], 60 * i)
    return tmp_path


def load(name: str, root: Path, split: str = "val", **options):
    return load_dataset(name, split, root=root, **{"img_size": 8, **options})


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(UsageError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def grey(data, index: int) -> int:
    """The grey value of a picture of one colour."""
    image = data[index][0] * torch.tensor(data.std)[:, None, None] + torch.tensor(data.mean)[:, None, None]
    return round(image.mean().item() * 255)


# labels, order and ids by hand


def test_nabirds(nabirds):
    train, val = (load("nabirds", nabirds, split) for split in ("train", "val"))
    names = ["Whistling-Ducks, Geese, and Swans", "Oak Titmouse", "House Sparrow (Male)"]
    assert train.classes == val.classes == names == dataset_classes("nabirds", root=nabirds)
    assert (train.labels.tolist(), val.labels.tolist()) == ([0, 1], [1, 2, 1])
    assert train.image_ids == [UUIDS[1], UUIDS[3]] and val.image_ids == [UUIDS[0], UUIDS[2], UUIDS[4]]
    assert [grey(val, i) for i in range(3)] == pytest.approx([0, 100, 200], abs=1)
    assert not val.multi_label and val[1][1] == 2 and val.imagenet_indices is None
    assert val.files[1].parent.name == "1010"


def test_coco(coco):
    data = load("coco", coco)
    assert data.classes == ["person", "car", "toothbrush"] == dataset_classes("coco", root=coco)
    assert data.image_ids == ["9", "42"] and len(data) == 2
    assert data.labels.tolist() == [[1, 0, 0], [1, 0, 1]] and data.labels.dtype == torch.float32
    assert data.multi_label and data.num_classes == 3
    assert data[1][1].tolist() == [1, 0, 1]
    assert [grey(data, i) for i in (0, 1)] == pytest.approx([9, 42], abs=1)
    assert data.files[1] == coco / "coco/val2014/COCO_val2014_000000000042.jpg"
    assert load("coco", coco, "train").files[0] == coco / "coco/train2014/COCO_train2014_000000000009.jpg"


def test_nuswide(nuswide):
    data = load("nuswide", nuswide)
    assert data.classes == ["clouds", "sky", "water"] == dataset_classes("nuswide", root=nuswide)
    assert data.image_ids == ["0002_99", "0003_50", "0004_51"]
    assert data.labels.tolist() == [[0, 1, 1], [0, 0, 0], [1, 1, 0]]
    assert [grey(data, i) for i in range(3)] == pytest.approx([0, 120, 180], abs=1)
    train = load("nuswide", nuswide, "train")
    assert train.classes == data.classes and train.labels.tolist() == [[1, 0, 0]]


@pytest.mark.parametrize(
    "header", ["split,FilePath,labels", "split_name,file path,Label List", "split_name,path,label"]
)
def test_nuswide_columns_are_found_by_name(nuswide, header):
    table = nuswide / "nuswide" / "nus_wid_data.csv"
    write(table, header, "val,images/0002_99.jpg,\"['sky']\"")
    assert load("nuswide", nuswide).labels.tolist() == [[1]]


def test_ids_stay_unique_where_short_names_repeat(nuswide, tmp_path):
    table = nuswide / "nuswide" / "nus_wid_data.csv"
    write(table, "path,label,split", "a/1.jpg,['x'],val", "b/1.jpg,['x'],val")
    for split in ("train", "val"):
        for name in ("a", "b"):
            picture(nuswide / "nuswide" / name / "1.jpg")
            picture(tmp_path / "birds" / split / name / "1.jpg")
            picture(tmp_path / "photos" / split / name / f"photo_of_{name}.jpg")
    assert load("nuswide", nuswide).image_ids == ["a/1.jpg", "b/1.jpg"]
    assert load(f"folder:{tmp_path}/birds", tmp_path).image_ids == ["a/1.jpg", "b/1.jpg"]
    assert load(f"folder:{tmp_path}/photos", tmp_path).image_ids == ["photo_of_a.jpg", "photo_of_b.jpg"]


@pytest.mark.parametrize("name", ["nabirds", "coco", "nuswide"])
def test_what_lies_beside_the_images_changes_nothing(name, request):
    root = request.getfixturevalue(name)
    clean = load(name, root)
    for place in [path for path in root.rglob("*") if path.is_dir()]:
        (place / ".ipynb_checkpoints").mkdir()
        for stray in ("._images.txt", "._1.jpg", ".DS_Store", "Thumbs.db", "._nus_wid_data.csv"):
            (place / stray).write_bytes(b"\0\5\x16\7")
    data = load(name, root)
    assert (data.image_ids, data.files, data.classes) == (clean.image_ids, clean.files, clean.classes)
    assert torch.equal(data.labels, clean.labels)


# several labels per image


def test_a_multi_label_batch_and_head(coco):
    data = load("coco", coco)
    _, labels = next(iter(make_loader(data, 2, shuffle=False, seed=0)))
    assert torch.equal(labels, data.labels)
    assert head_classes(3, data) is None
    assert "the head has 1000 outputs, dataset 'coco' has 3 classes" in refusal(head_classes, 1000, data)


def test_a_multi_label_subset_is_seeded_and_keeps_what_belongs_together(nuswide):
    data = load("nuswide", nuswide)
    chosen = [subset(data, 2, seed=seed) for seed in range(6)]
    assert all(part.image_ids == subset(data, 2, seed=seed).image_ids for seed, part in enumerate(chosen))
    assert len({tuple(part.image_ids) for part in chosen}) == 3
    for part in chosen:
        rows = [data.image_ids.index(name) for name in part.image_ids]
        assert rows == sorted(rows) and torch.equal(part.labels, data.labels[rows])
        assert part.multi_label and [file.stem for file in part.files] == part.image_ids
        assert torch.equal(part[1][1], part.labels[1])


# refusals


@pytest.mark.parametrize(
    ("name", "file"),
    [
        *(("nabirds", f"{table}.txt") for table in ("images", "image_class_labels", "train_test_split", "classes")),
        ("nabirds", "hierarchy.txt"),
        ("nabirds", "images"),
        ("coco", "val2014"),
        ("coco", "annotations/instances_val2014.json"),
        ("nuswide", "nus_wid_data.csv"),
    ],
)
def test_every_missing_file_is_named(name, file, request):
    root = request.getfixturevalue(name)
    (root / name / file).rename(root / "elsewhere")
    message = refusal(load, name, root)
    assert message.startswith(f"{name}: no {root / name / file}; {name} is never downloaded")
    assert "DATA_ROOT" in message


def test_all_missing_files_are_named_at_once(tmp_path):
    message = refusal(load, "coco", tmp_path, "train")
    assert f"no {tmp_path}/coco/train2014 and no {tmp_path}/coco/annotations/instances_train2014.json" in message


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("nabirds", f"images/1010/{UUIDS[2].replace('-', '')}.jpg"),
        ("coco", "val2014/COCO_val2014_000000000042.jpg"),
        ("nuswide", "images/0004_51.jpg"),
    ],
)
def test_every_image_file_is_looked_at(name, file, request):
    root = request.getfixturevalue(name)
    data, path = load(name, root), root / name / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert refusal(load, name, root).startswith(f"broken image {path}: the file is cut off")
    path.unlink()
    assert refusal(check_dataset, data).startswith(f"broken image {path}: No such file")


@pytest.mark.parametrize(
    ("table", "line", "wanted"),
    [
        (
            "image_class_labels.txt",
            f"{UUIDS[0]} 817",
            f"image_class_labels.txt has no entry for {UUIDS[1]} (and 3 more",
        ),
        ("train_test_split.txt", f"{UUIDS[0]} 0", f"train_test_split.txt has no entry for {UUIDS[1]} (and 3 more"),
        ("classes.txt", "9 Ducks", "classes.txt has no entry for 817 (and 1 more like it)"),
        ("images.txt", UUIDS[0], f"images.txt, line 1: cannot read {UUIDS[0]!r}"),
        ("image_class_labels.txt", f"{UUIDS[0]} duck", f"line 1: cannot read '{UUIDS[0]} duck'"),
        ("train_test_split.txt", f"{UUIDS[0]} 2", f"line 1: cannot read '{UUIDS[0]} 2'"),
        ("images.txt", f"{UUIDS[1]} 0009/x.jpg", "its label files hold no image of split 'val'"),
    ],
)
def test_nabirds_tables_that_do_not_fit_are_named(nabirds, table, line, wanted):
    write(nabirds / "nabirds" / table, line)
    assert wanted in refusal(load, "nabirds", nabirds)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"images": []}, "instances_val2014.json has no entry for 9 (and 1 more like it)"),
        ({"categories": [{"id": 1, "name": "person"}]}, "instances_val2014.json has no entry for 90"),
        ({"annotations": []}, "coco: its label files hold no image of split 'val'"),
        ({"images": None}, "is not laid out as COCO's annotations"),
        ({"annotations": [{"image_id": 9}]}, "is not laid out as COCO's annotations: KeyError('category_id')"),
    ],
)
def test_coco_annotations_that_do_not_fit_are_named(coco, change, wanted):
    path = coco / "coco/annotations/instances_val2014.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert wanted in refusal(load, "coco", coco)


def test_coco_annotations_cut_off_are_named(coco):
    path = coco / "coco/annotations/instances_val2014.json"
    path.write_text(path.read_text()[:-30])
    assert refusal(load, "coco", coco).startswith(f"coco: {path} is no valid JSON")


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (["label,split"], "has no column with the file path; allowed: filepath, path; given: label, split"),
        (["filepath,split"], "has no column with the label list; allowed: label, labels, labellist"),
        (["filepath,label"], "has no column with the split; allowed: split, splitname; given: filepath, label"),
        ([], "has no column with the file path; allowed: filepath, path; given: none"),
        (["path,label,split", "a.jpg,sky,val"], "line 2: labels 'sky' are no list like ['sky', 'water']"),
        (["path,label,split", "a.jpg,[1],val"], "line 2: labels '[1]' are no list"),
        (["path,label,split", "a.jpg,['x'],val", "a.jpg,['x'],test"], "line 3: path 'a.jpg' and split 'test'; allowed"),
        (["path,label,split", "a.jpg"], "line 2: path 'a.jpg' and split None"),
        (["path,label,split", "a.jpg,['x'],train"], "nuswide: its label files hold no image of split 'val'"),
    ],
)
def test_nuswide_tables_that_do_not_fit_are_named(nuswide, lines, wanted):
    write(nuswide / "nuswide" / "nus_wid_data.csv", *lines)
    assert wanted in refusal(load, "nuswide", nuswide)
