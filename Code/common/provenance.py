"""Where a number came from: the commit of the sources and the hardware."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import warnings
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch

from common.errors import UsageError

SOURCES = ("Code", "requirements.txt", "pyproject.toml", ":(exclude,glob)Code/**/*.md")  # as git takes them


def git_commit(folder: Path | None) -> str:
    """Short hash of the commit checked out in ``folder``, "+dirty" appended when sources differ from it.

    "" without git, repository or first commit. Sources are what a number can depend on: the code and the
    pinned packages, not the texts, the tests, or the results and notebooks that a study writes while it runs.
    Without a folder, the commit that pip installed this package from (PEP 610), "" where that was no repository.
    """
    if folder is None:
        return _installed_commit()
    head = _git(folder, "rev-parse", "--short", "--verify", "HEAD")
    if not head:
        return ""
    return f"{head}+dirty" if _git(folder, "status", "--porcelain", "--", *SOURCES) else head


def _installed_commit() -> str:
    try:
        record = distribution("token-reduction").read_text("direct_url.json")
    except PackageNotFoundError:
        return ""
    return json.loads(record or "{}").get("vcs_info", {}).get("commit_id", "")[:7]


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
        )
    except FileNotFoundError:
        return ""
    expected = ("not a git repository", "Needed a single revision")
    if done.returncode and not any(reason in done.stderr for reason in expected):
        warnings.warn(f"no commit recorded: git {arguments[0]}: {done.stderr.strip()}", stacklevel=3)
    return done.stdout.strip() if done.returncode == 0 else ""


def describe_device(device: str | torch.device | None = None) -> str:
    """Kind and name of the hardware, e.g. ``cpu (Intel(R) Xeon(R))``; None means CUDA where there is one."""
    try:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UsageError(f"unknown device {device!r}; allowed: cpu, cuda, cuda:N") from error
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return f"{device.type} ({name})" if device.type in ("cpu", "cuda") and name else device.type


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
