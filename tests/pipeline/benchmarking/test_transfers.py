"""Copies and reading, as sessions."""

from contextlib import closing

import numpy as np
import pytest

from pipeline.benchmarking import transfers
from pipeline.benchmarking.transfers import Transfer


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("write", [True, False])
def test_a_launch_moves_what_it_says(
    monkeypatch: pytest.MonkeyPatch, threads: int, write: bool
) -> None:
    moved = []
    for name in ("_copying", "_reading"):
        make = getattr(transfers, name)
        factor = 2 if name == "_copying" else 1

        def counted(count: int, passes: int, make=make, factor=factor):
            action = make(count, passes)
            return lambda: (action(), moved.append(count * passes * 8 * factor))

        monkeypatch.setattr(transfers, name, counted)
    with closing(Transfer(1 << 20, threads, write=write)) as session:
        session.launch()
        assert sum(moved) == session.moved
        assert 1 << 26 <= session.moved < 1 << 27


def test_a_copy_copies_and_reading_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = []
    for name in ("ones", "zeros", "empty"):
        make = getattr(np, name)
        monkeypatch.setattr(np, name, lambda *a, make=make: arrays.append(make(*a)) or arrays[-1])
    transfers._copying(1000, 3)()
    assert len(arrays) == 2
    assert all((array == 1).all() for array in arrays)
    transfers._reading(1000, 3)()
    assert arrays[-1].tolist() == [1, 1, 1]
