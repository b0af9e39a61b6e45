"""The memory of a training step."""

from collections.abc import Callable

import pytest

from engines import hardware
from tests.conftest import Result

Assay = Callable[..., Result]


def test_a_batch_larger_than_memory_is_refused_in_advance(
    store: object, assay: Assay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "free_memory", lambda: 10 << 20)
    words = ("--retrain", "--batch-size", 512, "--root", store.root)
    result = assay("train", "lenet", *words)
    assert result.code == 1
    assert "a batch of 512 needs about" in result.err
    assert "--batch-size" in result.err
