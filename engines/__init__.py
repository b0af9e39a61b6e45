"""Backends that run a graph: one file each, found by its name and imported on demand."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from engines import backends
from engines.errors import UsageError, suggestion

if TYPE_CHECKING:
    from engines.contract import Engine

# Entered around the import of a vendor library. A program whose signal handler raises sets this to
# hold signals back: an exception inside a C++ library's initialisation would end the process.
import_guard: Callable[[], AbstractContextManager[None]] = nullcontext


def names() -> list[str]:
    """Returns the names of all engines, without importing any of them."""
    modules = {module.name for module in pkgutil.iter_modules(backends.__path__)}
    return sorted(name for name in modules if not name.startswith("_"))


def get(name: str) -> Engine:
    """Imports the engine called `name`.

    Only our own file is imported; the vendor library is not needed until the engine is used.

    Raises:
        UsageError: No engine has this name.
    """
    if name not in names():
        raise UsageError(f"unknown engine {name!r}", suggestion(name, names()))
    engine: Engine = importlib.import_module(f"{backends.__name__}.{name}").ENGINE
    return engine
