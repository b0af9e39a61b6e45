"""How fast threads of the CPU copy and read memory, timed as sessions are."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.lib.stride_tricks import as_strided

from engines.contract import Feeds, Outputs, TensorSpec

# A launch moves at least this much, so that starting the threads takes a small part of its time.
_LEAST_BYTES = 1 << 26
_ITEM = np.dtype(np.int64)


class Transfer:
    """Passes over some memory, each thread over its own part; see `engines.contract.Session`.

    A part is gone over several times within one call of numpy, which needs no lock of Python's
    meanwhile.

    Attributes:
        moved: Bytes that a launch reads and writes.
    """

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    device = "cpu"
    batch: tuple[int, int] | None = None
    stream: int | None = None

    def __init__(self, size: int, threads: int, *, write: bool) -> None:
        """Allocates the memory.

        Args:
            size: Bytes that are gone over, those that are written included.
            threads: How many threads share the work.
            write: Copy one half into the other; otherwise only read.
        """
        count = max(1, size // threads // _ITEM.itemsize // (2 if write else 1))
        moved = count * _ITEM.itemsize * threads * (2 if write else 1)
        passes = math.ceil(_LEAST_BYTES / moved)
        self.moved = moved * passes
        make = _copying if write else _reading
        self._parts = [make(count, passes) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def run(self, feeds: Feeds) -> Outputs:
        self.launch()
        return {}

    def bind(self, feeds: Feeds) -> None:
        """Does nothing: it takes no inputs."""

    def launch(self) -> None:
        if self._pool is None:
            self._parts[0]()
        else:
            for future in [self._pool.submit(part) for part in self._parts]:
                future.result()

    def synchronize(self) -> None:
        """Does nothing: a launch has completed when it returns."""

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def _copying(count: int, passes: int) -> Callable[[], object]:
    source, target = np.ones(count, _ITEM), np.zeros(count, _ITEM)
    # Rows that lie over each other.
    from_, to = (as_strided(a, (passes, count), (0, _ITEM.itemsize)) for a in (source, target))
    return lambda: np.copyto(to, from_)


def _reading(count: int, passes: int) -> Callable[[], object]:
    # The largest of integers is what numpy computes as fast as it reads.
    rows = as_strided(np.ones(count, _ITEM), (passes, count), (0, _ITEM.itemsize))
    largest = np.empty(passes, _ITEM)
    return lambda: np.maximum.reduce(rows, axis=1, out=largest)
