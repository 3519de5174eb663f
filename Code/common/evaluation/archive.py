"""Arrays in one .npz file that says what it is, is written whole or not at all, and is refused when it is damaged."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UsageError
from common.results import write_atomically

KIND = "kind"


def write_arrays(path: Path, kind: str, arrays: Mapping[str, np.ndarray], *, compress: bool = True) -> None:
    """Write ``arrays`` to ``path``, marked as ``kind``."""
    save = np.savez_compressed if compress else np.savez
    # the bytes below the text file: numpy wants to write and seek there
    write_atomically(path, lambda file: save(file.buffer, **{KIND: pack_json(kind)}, **arrays))


def read_arrays(path: Path, kind: str, wanted: Callable[[str], bool] = bool) -> dict[str, np.ndarray]:
    """The arrays of a file whose names are ``wanted``, by default all; the others are not read.

    Raises:
        UsageError: the file is missing, damaged, cut off, or not of this ``kind``.
    """
    if not path.is_file():
        raise UsageError(f"there is no {kind} in {str(path)!r}; python -m common.evaluation makes it")
    try:
        # opened here and not by numpy, which would read any other kind of file in its own way
        with zipfile.ZipFile(path) as archive, archive.open(f"{KIND}.npy") as file:
            found = unpack_json(np.lib.format.read_array(file, allow_pickle=False))
        if found == kind:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files if wanted(name)}
    except KeyError:
        found = "something else"
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{str(path)!r} is damaged, cut off, or no {kind} at all: {error}") from error
    raise UsageError(f"{str(path)!r} holds {found!r}; allowed: {kind!r}")


def pack_json(value: Any) -> np.ndarray:
    """``value`` as the bytes of its JSON text."""
    return np.frombuffer(json.dumps(value, ensure_ascii=False).encode(), dtype=np.uint8)


def unpack_json(packed: np.ndarray) -> Any:
    """The value behind :func:`pack_json`."""
    return json.loads(packed.tobytes())


def pack_index(index: np.ndarray) -> np.ndarray:
    """Integers >= -1 as the smallest unsigned type that holds them, -1 becoming 0; anything else as it is."""
    if not np.issubdtype(index.dtype, np.integer):
        return index
    return (index + 1).astype(np.min_scalar_type(int(index.max(initial=0)) + 1))


def unpack_index(packed: np.ndarray) -> np.ndarray:
    """What is behind :func:`pack_index`: integers become int16, or int32 where they need it."""
    if not np.issubdtype(packed.dtype, np.integer):
        return packed
    return packed.astype(np.int16 if packed.dtype == np.uint8 else np.int32) - 1
