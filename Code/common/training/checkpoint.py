"""The folder of a run: what it found, its weights, and all that is needed to go on after it was stopped.

Everything is safetensors, JSON or CSV, written to a temporary file that is then renamed. ``state.safetensors`` holds a
whole epoch in one file (its header the JSON part), so that whatever moment a run is killed at, it goes on from the last
whole epoch; the other files follow from it and are for reading:

    last.safetensors, best.safetensors     weights for ``create_model(weights=...)``, with the mean and standard
                                           deviation of their images in the header
    best.json                              {"epoch", "accuracy", "ema"}: the best, and whether it is the average
    log.csv                                one row per epoch
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from common.errors import UsageError
from common.results import write_atomically
from common.weights import save_state, write_tensors

STATE, LAST, BEST, LOG = "state.safetensors", "last.safetensors", "best.safetensors", "log.csv"
BEST_INFO = "best.json"
TENSOR = "$tensor"  # marks where a tensor was taken out of nested state


@dataclass(frozen=True)
class Best:
    """The best epoch so far: accuracy in percent, and whether the averaged weights reached it."""

    epoch: int
    accuracy: float
    ema: bool


class RunFolder:
    """Reads and writes the folder of one run; only the main process should write.

    Args:
        path: the folder, made when first written to.
        settings: JSON-able description of the run; a state with another one is refused.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._settings = json.loads(json.dumps(settings))

    def save(self, state: Mapping[str, Any], history: list[dict[str, Any]]) -> None:
        """Commit an epoch: nested ``state`` of tensors and plain values, and the log up to here."""
        tensors: dict[str, Tensor] = {}
        record = {"settings": self._settings, "history": history, "state": pack(state, "", tensors)}
        write_tensors(tensors, self.path / STATE, {"record": json.dumps(record)})

    def load(self) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """State and log of the last whole epoch, or None before the first.

        Raises:
            UsageError: the file is damaged, or of a run with other settings.
        """
        path = self.path / STATE
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                record = json.loads((file.metadata() or {})["record"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise UsageError(f"checkpoint {str(path)!r} is damaged or truncated; delete it to start again") from error
        refuse_difference(record["settings"], self._settings, f"checkpoint {str(path)!r}")
        return unpack(record["state"], tensors), record["history"]

    def write_readable(self, model: nn.Module, history: list[dict[str, Any]]) -> None:
        """The weights and the log of the last whole epoch, for readers."""
        save_state(model, self.path / LAST)
        frame = pd.DataFrame(history)
        write_atomically(self.path / LOG, lambda file: frame.to_csv(file, index=False, lineterminator="\n"))

    def write_best(self, model: nn.Module, best: Best) -> None:
        save_state(model, self.path / BEST)
        write_json(self.path / BEST_INFO, asdict(best))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` whole or not at all."""
    write_atomically(path, lambda file: file.write(json.dumps(content, indent=2) + "\n"))


def refuse_difference(
    found: Mapping[str, Any], wanted: Mapping[str, Any], what: str, place: str = "output_dir"
) -> None:
    """UsageError naming the first setting in which ``what`` (``found``) differs from the run (``wanted``).

    Args:
        place: what to give another one of.
    """
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise UsageError(
                f"{what} was made with {name}={found.get(name)!r}, this run has {wanted.get(name)!r}; "
                f"give the same, or another {place}"
            )


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON-able form of nested dicts and lists; tensors move to ``tensors`` under the path of their place."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {TENSOR: name}
    if isinstance(value, Mapping):  # as pairs: keys of optimizer states are numbers
        return {"pairs": [[key, pack(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [pack(item, f"{name}/{number}", tensors) for number, item in enumerate(value)]
    return value


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if TENSOR in value:
            return tensors[value[TENSOR]]
        return {key: unpack(item, tensors) for key, item in value["pairs"]}
    return [unpack(item, tensors) for item in value] if isinstance(value, list) else value
