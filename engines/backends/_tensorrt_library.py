"""TensorRT's library: its start, its log and its progress."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from engines.errors import NotAvailableError


def started(kind: Any, logger: Any, name: str) -> Any:
    """Returns a new Builder or Runtime of the vendor.

    Without a driver that its CUDA accepts, the vendor logs errors and returns a broken object: any
    call on it, and even its destruction, ends the process. Or pybind11 raises a TypeError about a
    null pointer.

    Raises:
        NotAvailableError: It could not be started.
    """
    try:
        instance = kind(logger)
    except TypeError as error:
        logger.errors.append(str(error))
    else:
        if not logger.errors:
            return instance
        # One reference too many, so that it is never destroyed.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(instance))
    raise NotAvailableError(
        f"{name} cannot be started here: {'; '.join(logger.errors)}",
        "install a driver that supports the CUDA version of this library",
    )


def logger_of(vendor: Any) -> Any:
    """Returns a logger that collects messages instead of printing them.

    Errors go into exceptions; the other messages describe what was built.
    """

    class Logger(vendor.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= vendor.ILogger.Severity.ERROR:
                self.errors.append(message)
            else:
                self.messages.append(message)

    return Logger()


def monitor_of(vendor: Any, tell: Callable[[str, float], None]) -> Any:
    """Returns a progress monitor that ends the build if `tell` raises, as on Ctrl-C."""

    class Monitor(vendor.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.ended_by: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, name: str, _parent: str | None, steps: int) -> None:
            self._steps[name] = max(steps, 1)

        def step_complete(self, name: str, step: int) -> bool:
            try:
                tell(name, min(1.0, (step + 1) / self._steps.get(name, 1)))
            except BaseException as error:  # an interrupt too: it must not pass through C++
                self.ended_by = self.ended_by or error
            return self.ended_by is None

        def phase_finish(self, name: str) -> None:
            self._steps.pop(name, None)

    return Monitor()
