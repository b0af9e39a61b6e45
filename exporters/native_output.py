"""Captures what native code writes to the terminal, which Python's redirection does not see."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import Callable, Iterator

_STDOUT, _STDERR = 1, 2  # file descriptors


@contextlib.contextmanager
def captured() -> Iterator[Callable[[], str]]:
    """Keeps off the terminal what is written to the process's stdout and stderr.

    PyTorch's TorchScript exporter prints its whole graph when it fails, which would mix with the
    JSON on stdout.

    Yields:
        A function that returns what was written so far.
    """
    _flush()
    with tempfile.TemporaryFile() as kept, contextlib.ExitStack() as stack:
        for descriptor in (_STDOUT, _STDERR):
            try:
                saved = os.dup(descriptor)
            except OSError:
                continue  # it is closed, so nothing can be printed there
            stack.callback(_restore, saved, descriptor)
            os.dup2(kept.fileno(), descriptor)
        stack.callback(_flush)

        def written() -> str:
            _flush()
            size = os.fstat(kept.fileno()).st_size
            return os.pread(kept.fileno(), size, 0).decode(errors="replace")

        yield written


def _flush() -> None:
    """Writes out what Python and the C library still hold for the two outputs."""
    for file in (sys.stdout, sys.stderr):
        file.flush()
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)


def _restore(saved: int, descriptor: int) -> None:
    os.dup2(saved, descriptor)
    os.close(saved)
