"""Commands and calls in a fork of the test process: what they print and return, without importing torch again."""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import cache, partial
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from subprocess import CompletedProcess

import torch

from closure import Closure
from common.studies import all_studies
from profile_file import ROOT


def run_module(name: str, *arguments: object) -> CompletedProcess[str]:
    """What ``python -m NAME ARGUMENTS`` does."""

    def run() -> None:
        sys.modules.pop(name, None)
        runpy.run_module(name, run_name="__main__", alter_sys=True)

    return _run(run, name, arguments)


def run_script(path: Path, *arguments: object) -> CompletedProcess[str]:
    """What ``python PATH ARGUMENTS`` does, of a program of the workflow."""
    _prepare()
    return _run(lambda: runpy.run_path(str(path), run_name="__main__"), str(path), arguments)


@cache
def _prepare() -> None:
    """Import and read what every check of a profile imports and reads, so that the forks have it."""
    all_studies()
    Closure(ROOT / "Code", ROOT / "results" / "published")


def run_call(call: Callable[..., object], *arguments: object) -> CompletedProcess[str]:
    """``call(*arguments)``, which may change the process as it likes."""
    return _run(partial(call, *arguments), call.__name__, arguments)


def start_call(call: Callable[..., object], *arguments: object) -> ForkProcess:
    """``call(*arguments)`` while the test goes on, for instance to kill it."""
    process = get_context("fork").Process(target=call, args=arguments)
    process.start()
    return process


def _run(run: Callable[[], object], name: str, arguments: tuple[object, ...]) -> CompletedProcess[str]:
    argv = [name, *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        pid = os.fork()
        if pid == 0:
            os._exit(_child(run, argv, out.fileno(), err.fileno()))
        _, status = os.waitpid(pid, 0)
        printed = []
        for file in (out, err):
            file.seek(0)
            printed.append(file.read())
    return CompletedProcess(argv, os.waitstatus_to_exitcode(status), *printed)


def _child(run: Callable[[], object], argv: list[str], out: int, err: int) -> int:
    os.dup2(out, 1)
    os.dup2(err, 2)
    torch.set_num_threads(1)  # the threads of torch's pool are not in the fork
    sys.argv = argv
    with open(1, "w", closefd=False) as sys.stdout, open(2, "w", closefd=False, buffering=1) as sys.stderr:
        try:
            run()
            return 0
        except SystemExit as stop:
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
            return 1
