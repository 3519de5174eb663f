"""Finding a broken image before any compute, without decoding a single one."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path

from common.data.base import LabelledDataset
from common.data.pictures import header_fault
from common.errors import UsageError

# Cameras and editors append metadata or padding after the end marker; this much of the tail is searched for it.
TAIL_BYTES = 4096
JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# First bytes of a format -> the marker that ends it. Other formats have none; of these Pillow reads the header.
END_MARKERS = {JPEG: b"\xff\xd9", PNG: b"IEND\xaeB`\x82"}
CHECKED_SUFFIXES = {".jpg", ".jpeg", ".png"}
# More files than this are looked at once: what was found whole is remembered here, until files are added or removed.
MANY, CHECKED = 20_000, Path("~/.cache/token-reduction/checked")


def check_dataset(dataset: LabelledDataset) -> None:
    """Look at every image file of ``dataset``: it must be there, begin as its name says and end as its format says.

    Nothing is decoded (about 10,000 files per second from a local disk), so a picture damaged in its middle passes.
    Datasets without image files of their own (embedded, or one archive) have nothing to look at. A set of many files
    that was found whole is not looked at again while its folders stay as they are.

    Raises:
        UsageError: naming the first broken file and how many there are.
    """
    files = getattr(dataset, "files", None) or ()
    found_whole = CHECKED.expanduser() / _digest(files) if len(files) > MANY else None
    if found_whole is not None and found_whole.exists():
        return
    broken = [(path, fault) for path in files if (fault := _fault(path))]
    if broken:
        path, fault = broken[0]
        others = f" (and {len(broken) - 1} more like it)" if len(broken) > 1 else ""
        raise UsageError(f"broken image {path}: {fault}{others}; restore or remove it")
    if found_whole is not None:
        found_whole.parent.mkdir(parents=True, exist_ok=True)
        found_whole.touch()


def _digest(files: Sequence[Path]) -> str:
    """Of the paths, and of when their folders last changed."""
    folders = dict.fromkeys(os.path.dirname(file) for file in files)
    lines = [*map(os.fspath, files), *(f"{folder} {os.stat(folder).st_mtime_ns}" for folder in folders)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _fault(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            tail = file.read()
    except OSError as error:
        return error.strerror or str(error)
    if not size:
        return "the file is empty"
    for magic, end in END_MARKERS.items():
        if head.startswith(magic):
            return None if end in tail else "the file is cut off, its end marker is missing"
    return "its content is neither JPEG nor PNG" if path.suffix.lower() in CHECKED_SUFFIXES else header_fault(path)


def check_idx(path: Path) -> None:
    """Refuse an IDX file (the MNIST family's format) whose length is not what its header announces."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        magic = file.read(4)
        dims = [int.from_bytes(file.read(4), "big") for _ in range(magic[3] if len(magic) == 4 else 0)]
    wanted = 4 + 4 * len(dims) + math.prod(dims)
    if not dims or size != wanted:
        raise UsageError(f"broken file {path}: {size} bytes in place of {wanted}; remove it to download it again")
