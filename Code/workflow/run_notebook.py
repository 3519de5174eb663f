"""Execute one text notebook with given parameters, as a Snakemake job or by hand.

    python Code/workflow/run_notebook.py Code/Scratch/train_test.py OUT.ipynb --parameters FILE.yaml [--log FILE]
        [--narrow]

The kernel is the Python that runs this file, whatever kernels are registered on the machine, and is reached over IPC
sockets: with TCP, kernels that start at the same time can be given the same port. OUT.ipynb appears when the
notebook has run to its end; until then, and after a failure, it is OUT.partial.ipynb.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient.exceptions import DeadKernelError
from nbformat.v4 import new_code_cell
from papermill import PapermillExecutionError, execute_notebook

import warm_kernels
from common.options import check
from common.yaml_files import read_yaml
from notebooks import declared_parameters, read_notebook, undeclared
from profile_file import ROOT, Parameters

NARROW = f"""\
import sys

sys.path.insert(0, {str(Path(__file__).parent)!r})
from pass_counter import count_passes, counted
from narrow import narrow

narrow()
count_passes()"""
COUNTED = 'print(f"{counted():.1f} passes")'


class RunError(Exception):
    """A run that failed; the message is one line."""


class ThisPython(KernelSpecManager):
    """Knows one kernel: the interpreter that runs this file, or a fork of one that has the libraries already."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict() | warm_kernels.command())


def kernel_manager_class(folder: str) -> type[AsyncKernelManager]:
    """A manager for one kernel of this Python, with its sockets in ``folder``."""

    class LocalKernelManager(AsyncKernelManager):
        def __init__(self, **settings: Any) -> None:
            spec_manager = ThisPython(parent=None)
            connection = {"transport": "ipc", "connection_file": f"{folder}/k.json"}
            super().__init__(kernel_spec_manager=spec_manager, **connection, **settings)

    return LocalKernelManager


def run_notebook(source: Path, executed: Path, parameters: dict[str, Any], *, narrow: bool = False) -> None:
    """Execute ``source`` (py:percent) with ``parameters`` and write it, with its outputs, to ``executed``.

    ``narrow``: networks are narrow and random (narrow.py).

    Raises RunError, with one line, for an unknown parameter, a cell that fails and a kernel that dies.
    """
    for message in undeclared(parameters, source, declared_parameters(source)):
        raise RunError(message)
    executed.parent.mkdir(parents=True, exist_ok=True)
    partial = executed.with_suffix(".partial.ipynb")
    with tempfile.TemporaryDirectory(prefix="nb", dir=warm_kernels.short_folder()) as folder:
        notebook = read_notebook(source)
        if narrow:
            notebook.cells.insert(0, new_code_cell(NARROW, metadata={"tags": []}))
            notebook.cells.append(new_code_cell(COUNTED, metadata={"tags": []}))
        _execute(notebook, partial, parameters, folder)
    partial.replace(executed)


def _execute(notebook: Any, partial: Path, parameters: dict[str, Any], folder: str) -> None:
    try:
        execute_notebook(
            notebook,
            str(partial),
            parameters,
            kernel_name="python3",
            language="python",
            cwd=str(ROOT),
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            kernel_manager_class=kernel_manager_class(folder),
        )
    except PapermillExecutionError as error:
        raise RunError(f"{_one_line(error)} (see {partial})") from error
    except DeadKernelError as error:
        raise RunError(f"the notebook's process died, out of memory perhaps (see {partial})") from error


def _one_line(error: PapermillExecutionError) -> str:
    message = " ".join(str(error.evalue).split())
    return message if error.ename == "UsageError" else f"{error.ename}: {message}"


def stop_with_parent() -> None:
    """End this process when the Snakemake that started it is gone, killed without a chance to end its jobs."""
    parent = os.environ.get("SNAKEMAKE_PID")
    if parent:
        threading.Thread(target=_stop_without, args=(int(parent),), daemon=True).start()


def _stop_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    parser = argparse.ArgumentParser(description="Execute one text notebook with given parameters.")
    parser.add_argument("notebook", type=Path, help="py:percent source, such as Code/Scratch/train_test.py")
    parser.add_argument("executed", type=Path, help="where the executed .ipynb goes")
    parser.add_argument("--parameters", type=Path, help="YAML file: values for the notebook's parameters")
    parser.add_argument("--log", type=Path, help="write everything that the notebook prints to this file")
    parser.add_argument("--narrow", action="store_true", help="narrow random networks in place of timm's")
    arguments = parser.parse_args()
    stop_with_parent()
    terminal = os.fdopen(os.dup(2), "w", buffering=1)
    if arguments.log:
        _redirect(arguments.log)
    name = f"{arguments.executed.parent.name}--{arguments.executed.stem}"  # as plan.Run.name
    print(f"running  {name}", file=terminal)
    start = time.monotonic()
    try:
        given = read_yaml(arguments.parameters) if arguments.parameters else {}
        given = check("parameters", given, Parameters)
        run_notebook(arguments.notebook, arguments.executed, given, narrow=arguments.narrow)
    except (RunError, ValueError, OSError) as error:
        for stream in (terminal, sys.stderr) if arguments.log else (terminal,):
            print(f"error: {name}: {error}", file=stream)
        return 1
    print(f"finished {name} in {time.monotonic() - start:.0f} s", file=terminal)
    return 0


def _redirect(log: Path) -> None:
    """Send the standard streams of this process and of its kernel to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)


if __name__ == "__main__":
    sys.exit(main())
