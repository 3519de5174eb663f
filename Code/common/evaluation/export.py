"""Records in the files that the analyses of "Which Tokens to Use?" (Haurum et al., 2023) read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UsageError
from common.evaluation.names import full_name, ratios
from common.evaluation.record import Record
from common.results import write_atomically
from common.tokens import GONE


def export_json(record: Record, path: str | Path) -> Path:
    """Write ``record`` as one JSON object: what was evaluated, then one entry per image under its id::

        "Model", "Ratio", "Location", "Top1-Acc", "Top5-Acc", "Params" (millions)
        "<image id>": {"Predictions": [...], "Target": ..., "Loss": ...,
                       "Stage-<block>": {"Kept_Token": [...], "Assignment_Maps": [...], "Computed_Token": [...]}}

    >>> from tempfile import TemporaryDirectory
    >>> from common import create_model, load_dataset
    >>> from common.evaluation import evaluate_model
    >>> model = create_model("vit_digits", reducer="topk", keep_rate=0.5)
    >>> data = load_dataset("digits", "val", img_size=32)
    >>> record = evaluate_model(model, data, batch_size=60, method="topk", backbone="vit_digits", name="run")
    >>> with TemporaryDirectory() as folder:
    ...     content = json.loads(export_json(record, folder + "/run_viz_results.json").read_text())
    >>> content["Model"], content["Location"], len(content["val-0"]["Stage-4"]["Kept_Token"])
    ('topk_vit_digits', [1, 3, 4], 8)

    With several labels per image both accuracies are the mAP, predictions are probabilities and targets zeros and ones.
    ``Kept_Token`` are places in the grid; ``Assignment_Maps`` give for each token that entered the stage the token it
    went to, -1 = dropped; ``Computed_Token``, which the reference has not, are the patches that did not idle. A method
    that has no such patches, or groups none, has no such key. Where the head has other classes than the dataset,
    accuracies and losses are null.

    Different from the reference implementation: the loss is the image's own and not the mean of its batch; kept tokens
    are in the order of the model's tokens, which for methods that only select is that of the image and not that of
    their scores, and hold no -1 (EViT's fused token, ATS's padding); assignment maps of ToMe are integers. Unreduced
    models have neither ratio nor location.
    """
    path = Path(path)
    write_atomically(path, lambda file: file.writelines(_lines(record)))
    return path


def export_cls(record: Record, folder: str | Path) -> list[Path]:
    """Write the CLS tokens of ``record`` as ``<name>_cls_features_<block>.npy``, float32, shape (D, n), per block.

    >>> from tempfile import TemporaryDirectory
    >>> from common import create_model, load_dataset
    >>> from common.evaluation import evaluate_model
    >>> model, data = create_model("vit_digits"), load_dataset("digits", "val", img_size=32, limit=10)
    >>> given = {"batch_size": 10, "method": "none", "backbone": "vit_digits", "name": "run"}
    >>> with TemporaryDirectory() as folder:
    ...     paths = export_cls(evaluate_model(model, data, cls_at=(3, 5), **given), folder)
    ...     [(path.name, np.load(path).shape) for path in paths]
    [('run_cls_features_3.npy', (64, 10)), ('run_cls_features_5.npy', (64, 10))]

    Raises:
        UsageError: the record has none; evaluate with ``cls_at``, load with ``with_cls``.
    """
    if not record.cls:
        raise UsageError(f"the record of {record.setting.name!r} has no CLS tokens; evaluate with cls_at=...")
    return [_save_npy(Path(folder) / cls_name(record.setting.name, block), x.T) for block, x in record.cls.items()]


def json_name(name: str) -> str:
    """File of :func:`export_json` for the run ``name``."""
    return f"{name}_viz_results.json"


def cls_name(name: str, block: int | str) -> str:
    """File of :func:`export_cls` for the run ``name``."""
    return f"{name}_cls_features_{block}.npy"


def _lines(record: Record) -> Iterator[str]:
    """The file in parts, as ``json.dumps(everything, indent=4)`` would give it, image by image to save memory."""
    head = json.dumps(_head(record), indent=4)
    yield head.removesuffix("\n}")
    for row in range(len(record)):
        entry = json.dumps({record.image_ids[row]: _entry(record, row)}, indent=4)
        yield "," + entry.removeprefix("{").removesuffix("\n}")
    yield "\n}\n"


def _head(record: Record) -> dict[str, Any]:
    setting, accuracy = record.setting, record.accuracy
    top1, top5 = (accuracy.get(name) for name in (("map", "map") if record.multi_label else ("top1", "top5")))
    return {
        "Model": full_name(setting.method, setting.backbone),
        "Ratio": ratios(setting.keep_rate) if setting.reduces else [],
        "Location": list(setting.reduction_loc),
        "Top1-Acc": top1 if top1 is None else round(top1, 4),
        "Top5-Acc": top5 if top5 is None else round(top5, 4),
        "Params": round(record.params / 1e6, 2),
    }


def _entry(record: Record, row: int) -> dict[str, Any]:
    entry = {
        "Predictions": record.predictions[row].tolist(),
        "Target": record.targets[row].tolist(),
        "Loss": float(record.loss[row]) if record.accuracy else None,
    }
    for block, stage in record.stages.items():
        decisions = {}
        if stage.kept is not None:
            kept = stage.kept[row]
            decisions["Kept_Token"] = kept[kept != GONE].tolist()
        if stage.destination is not None:
            decisions["Assignment_Maps"] = stage.destination[row].tolist()
        if stage.computed is not None:
            decisions["Computed_Token"] = stage.computed[row].nonzero()[0].tolist()
        entry[f"Stage-{block}"] = decisions
    return entry


def _save_npy(path: Path, array: np.ndarray) -> Path:
    write_atomically(path, lambda file: np.save(file.buffer, np.ascontiguousarray(array, dtype=np.float32)))
    return path
