"""What becomes of the memory that a pass on CPU frees: the next pass gets it back, or has to ask the system again."""

from __future__ import annotations

import ctypes
import platform
from functools import cache

# Parameters of mallopt (malloc.h of glibc) and their values: nothing goes back, also not what has a mapping of its own,
# and threads share the first arena, since others give a whole heap back when it is empty.
_KEEPING = {-1: -1, -4: 0, -8: 1}  # M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX


@cache
def keep_freed_memory() -> bool:
    """Have this process keep the memory it frees for what it allocates next, as PyTorch does on a GPU.

    By default glibc gives large blocks back to the system as soon as they are free, and which ones are large depends on
    what the process has done before. The next pass of a network then waits for thousands of empty pages, so that the
    same model is a tenth to a quarter slower in one process than in another. Everything that is timed here runs without
    that; a program that serves a model on CPU gains the same by one call at its start (or by jemalloc). The process
    then takes as much memory as it ever needed at a time, until it ends.

    >>> keep_freed_memory() is (platform.libc_ver()[0] == "glibc")
    True

    Returns:
        Whether the C library is glibc, as in Debian, Ubuntu, Fedora and Colab; elsewhere nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) for parameter, value in _KEEPING.items())
