"""Notebook kernels that start in a moment: forks of one process that has imported the libraries already.

Importing torch, timm and this package takes longer than many a run. :func:`serve` starts a process beside Snakemake
that imports them once. The kernel of a run (run_notebook.py) is then this file with the kernel's own arguments: it
sends them, with its environment and its streams, to that process, which forks, and lives as long as the fork.

The process itself has one thread and computes nothing: neither threads nor the state of a GPU outlive a fork. Each fork
has as many as ``OMP_NUM_THREADS`` says, which Snakemake sets for a run. Only where all runs are on this machine.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

SOCKET = "WARM_KERNELS"  # environment: where the process listens; without it, kernels start by themselves
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # environment; Snakemake sets them for a run
MANY = 4  # runs for which it is worth the while
SECONDS = 0.5  # between two looks for whoever started a process, which ends with it
LARGEST = 1 << 20  # bytes of an environment


def serve() -> None:
    """Start the process, which ends with the one that calls this, and is found by the other children of that one."""
    folder = tempfile.mkdtemp(prefix="warm", dir=short_folder())
    threads = dict.fromkeys(THREADS, "1")
    process = [sys.executable, __file__, "--serve", folder]
    subprocess.Popen(process, env={**os.environ, **threads}, start_new_session=True)  # Ctrl-C is for Snakemake
    os.environ[SOCKET] = f"{folder}/s"


def command() -> dict[str, list[str]]:
    """What of a kernel's specification is another where a process forks kernels: how to start one."""
    return {"argv": [sys.executable, __file__, "-f", "{connection_file}"]} if os.environ.get(SOCKET) else {}


def short_folder() -> str:
    """For sockets, whose paths have at most 107 bytes."""
    folder = tempfile.gettempdir()
    return folder if len(folder.encode()) <= 60 else "/tmp"


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # what is sent at once arrives at once


def _serve(folder: Path) -> None:
    parent = os.getppid()
    with _socket() as listener:
        listener.bind(str(folder / "s"))
        listener.listen(64)  # whoever asks while the libraries are imported, waits
        listener.settimeout(SECONDS)
        try:
            _import_all()
            while os.getppid() == parent:
                _reap()
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection:
                    if os.fork() == 0:
                        listener.close()
                        _fork(connection)
        finally:
            shutil.rmtree(folder)


def _import_all() -> None:
    """What runs import, and nothing that computes or asks for a GPU: neither its state nor threads survive a fork."""
    import ipykernel.kernelapp  # noqa: F401

    from common.studies import all_studies

    all_studies()


def _reap() -> None:
    """Let go of forks that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _fork(connection: socket.socket) -> NoReturn:
    """In the fork: be the kernel that ``connection`` asks for, tell it the exit status, and end."""
    status = 1
    try:
        status = _kernel(connection)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            connection.send(bytes([status]))
        finally:
            os._exit(status)


def _kernel(connection: socket.socket) -> int:
    connection.settimeout(None)
    message, streams, _, _ = socket.recv_fds(connection, LARGEST, 3)
    asked = json.loads(message)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv[1:] = [*asked["arguments"], f"--IPKernelApp.parent_handle={os.getppid()}"]  # it ends with its parent
    del sys.path[0]  # the folder of this file
    _use_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _use_threads(count: int) -> None:
    """As the libraries would if they were imported now."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(count)
    threadpool_limits(count)  # numpy's and scipy's


def _end_with(connection: socket.socket) -> None:
    """End this process when the other end of ``connection`` is gone."""
    connection.recv(1)
    os._exit(1)


def _ask(arguments: Sequence[str]) -> int:
    """Have a fork run the kernel; its exit status. Ends, and with it the kernel, when its own parent is gone."""
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which every kernel gets before it is asked to shut down
    with _socket() as connection:
        connection.connect(os.environ[SOCKET])
        asked = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
        socket.send_fds(connection, [json.dumps(asked).encode()], [0, 1, 2])
        connection.settimeout(SECONDS)
        while os.getppid() == parent:
            try:
                status = connection.recv(1)
            except TimeoutError:
                continue
            return status[0] if status else 1  # it was killed
    return 1


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        _serve(Path(sys.argv[2]))
    else:
        sys.exit(_ask(sys.argv[1:]))
