"""Checks of devices."""

import pytest

import engines
from engines.checks import choose_device
from engines.errors import NotAvailableError, UsageError


def test_no_device_falls_back_to_another() -> None:
    ort = engines.get("onnxruntime")
    with pytest.raises(NotAvailableError, match="runs on cpu, not on 'cuda'"):
        choose_device(ort, "cuda")
    with pytest.raises(NotAvailableError, match="'cuda:99' does not exist here"):
        choose_device(engines.get("pytorch"), "cuda:99")
    for word in ("gpu", "cpu:1", "cuda:x"):
        with pytest.raises(UsageError, match="unknown device"):
            choose_device(ort, word)
