"""The bench stage: its options and its record."""

import json
import os
from collections.abc import Callable

import pytest

from engines import hardware
from pipeline.workflow.runner import Store
from tests.conftest import Result

Assay = Callable[..., Result]
BRIEF = ("--budget", "0.05", "--force", "--json")


@pytest.mark.slow(1)
def test_threads_and_cpus_are_recorded_and_restored(store: Store, assay: Assay) -> None:
    first, *_ = before = hardware.affinity()
    words = ("bench", "lenet", "--root", store.root, "--engine", "onnxruntime", "--batch", "1")
    result = assay(*words, "--affinity", first, *BRIEF)
    assert result.code == 0, result.err
    facts = json.loads(result.out)["outcomes"][-1]["results"]["measurements"]["machine"]
    assert (facts["affinity"], facts["threads"]) == ([first], 1)
    assert hardware.affinity() == before
    result = assay(*words, "--affinity", first, "--threads", 3, *BRIEF)
    facts = json.loads(result.out)["outcomes"][-1]["results"]["measurements"]["machine"]
    assert facts["threads"] == 3


@pytest.mark.slow(9)
def test_a_list_option_may_be_repeated(store: Store, assay: Assay) -> None:
    parts = ("--engine", "onnxruntime", "--engine", "pytorch", "--batch", "1,2", "--batch", "3")
    result = assay("bench", "lenet", "--root", store.root, *parts, *BRIEF)
    measured = json.loads(result.out)["outcomes"][-1]["results"]["measurements"]["results"]
    assert {(entry["name"], entry["batch"]) for entry in measured} == {
        (name, batch) for name in ("onnxruntime", "pytorch") for batch in (1, 2, 3)
    }


def test_unavailable_cpus_are_wrong_usage(store: Store, assay: Assay) -> None:
    absent = (os.cpu_count() or 1) + 7
    result = assay("bench", "lenet", "--root", store.root, "--affinity", absent)
    assert result.code == 2
    assert f"--affinity {absent}: this process may only use the" in result.err


@pytest.mark.skipif(bool(hardware.gpus()), reason="this machine has a GPU")
def test_cuda_graphs_without_a_gpu_are_not_available(store: Store, assay: Assay) -> None:
    result = assay("bench", "lenet", "--root", store.root, "--cuda-graph")
    assert result.code == 4
    assert "has CUDA graphs on this machine" in result.err
