"""The files that the reference's analyses read."""

import json

import numpy as np
import pytest

from common.errors import UsageError
from common.evaluation import Record, Setting, Stage, export_cls, export_json

TWO_IMAGES = """{
    "Model": "kmedoids_tiny_patch16_224",
    "Ratio": [
        0.5
    ],
    "Location": [
        1,
        2
    ],
    "Top1-Acc": 33.3333,
    "Top5-Acc": 100.0,
    "Params": 5.72,
    "a.png": {
        "Predictions": [
            7,
            1
        ],
        "Target": 7,
        "Loss": 0.5,
        "Stage-1": {
            "Kept_Token": [
                3,
                0
            ],
            "Assignment_Maps": [
                1,
                1,
                0,
                0
            ]
        },
        "Stage-2": {
            "Kept_Token": [
                3
            ],
            "Assignment_Maps": [
                0,
                0
            ]
        }
    },
    "b.png": {
        "Predictions": [
            0,
            3
        ],
        "Target": 3,
        "Loss": 1.25,
        "Stage-1": {
            "Kept_Token": [
                1,
                2
            ],
            "Assignment_Maps": [
                1,
                0,
                1,
                1
            ]
        },
        "Stage-2": {
            "Kept_Token": [
                2
            ],
            "Assignment_Maps": [
                0,
                0
            ]
        }
    }
}
"""


def record(method="kmedoids", keep_rate=0.5, **changes):
    stages = {
        1: Stage(np.array([2, 2]), np.array([[3, 0], [1, 2]]), np.array([[1, 1, 0, 0], [1, 0, 1, 1]])),
        2: Stage(np.array([1, 1]), np.array([[3], [2]]), np.zeros((2, 2), dtype=int)),
    }
    values = {
        "setting": Setting("run", method, "deit_tiny_patch16_224", "noise", "", keep_rate, (1, 2), (32, 32), (2, 2)),
        "image_ids": ("a.png", "b.png"),
        "targets": np.array([7, 3], dtype=np.int32),
        "predictions": np.array([[7, 1], [0, 3]], dtype=np.int32),
        "loss": np.array([0.5, 1.25], dtype=np.float32),
        "accuracy": {"top1": 100 / 3, "top5": 100.0},
        "params": 5_717_416,
        "stages": stages,
    }
    return Record(**{**values, **changes})


def exported(tmp_path, *args, **changes):
    return json.loads(export_json(record(*args, **changes), tmp_path / "x.json").read_text(encoding="utf-8"))


def test_two_images_literally(tmp_path):
    path = tmp_path / "folder" / "run_viz_results.json"
    assert export_json(record(), path) == path
    text = path.read_text(encoding="utf-8")
    assert text == TWO_IMAGES == json.dumps(json.loads(text), indent=4) + "\n"
    saved = Record.load(record().save(tmp_path / "record.npz"))
    assert export_json(saved, path).read_text(encoding="utf-8") == TWO_IMAGES


def test_several_labels_per_image(tmp_path):
    found = exported(
        tmp_path,
        targets=np.array([[1, 0, 1], [0, 0, 0]], dtype=np.uint8),
        predictions=np.array([[0.75, 0.5, 0.25], [0.0, 1.0, 0.125]], dtype=np.float16),
        accuracy={"map": 12.345678},
        image_ids=("139", "285"),
    )
    assert found["Top1-Acc"] == found["Top5-Acc"] == 12.3457
    assert found["139"]["Predictions"] == [0.75, 0.5, 0.25]
    assert found["139"]["Target"] == [1, 0, 1] and found["285"]["Target"] == [0, 0, 0]


def test_kept_tokens_hold_no_padding_and_no_mixture(tmp_path):
    stages = {4: Stage(np.array([3, 2]), np.array([[0, 2, 3], [1, 2, -1]]))}
    found = exported(tmp_path, "ats", (0.7, 0.5), stages=stages)
    assert found["a.png"]["Stage-4"] == {"Kept_Token": [0, 2, 3]}
    assert found["b.png"]["Stage-4"] == {"Kept_Token": [1, 2]}
    assert found["Ratio"] == [0.7, 0.5]


def test_idle_patches_are_those_that_are_not_among_the_computed(tmp_path):
    stages = {4: Stage(np.array([4, 4]), computed=np.array([[True, False, True, True], [False] * 4]))}
    found = exported(tmp_path, "idle_topk", stages=stages)
    assert found["a.png"]["Stage-4"] == {"Computed_Token": [0, 2, 3]}
    assert found["b.png"]["Stage-4"] == {"Computed_Token": []}


def test_patterns_and_unreduced_models_have_the_names_of_the_reference(tmp_path):
    assert exported(tmp_path, "linf")["Model"] == "heuristic_tiny_patch16_224-linf"
    found = exported(tmp_path, "none", stages={})
    assert found["Model"] == "deit_tiny_patch16_224_local" and found["Ratio"] == []
    assert found["a.png"] == {"Predictions": [7, 1], "Target": 7, "Loss": 0.5}


def test_cls_tokens_are_channels_by_images(tmp_path):
    tokens = np.array([[1.0, 2.0, 3.0], [0.5, 0.25, 0.0]], dtype=np.float16)
    paths = export_cls(record(cls={3: tokens, 11: 2 * tokens}), tmp_path / "folder")
    assert [path.name for path in paths] == ["run_cls_features_3.npy", "run_cls_features_11.npy"]
    found = np.load(paths[1])
    assert found.dtype == np.float32 and found.flags.c_contiguous
    assert found.tolist() == [[2.0, 1.0], [4.0, 0.5], [6.0, 0.0]]
    with pytest.raises(UsageError, match="has no CLS tokens"):
        export_cls(record(), tmp_path)
