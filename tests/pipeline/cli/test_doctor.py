"""The report of `assay doctor`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.workflow import worker
from tests.conftest import Result

Assay = Callable[..., Result]


def test_doctor_reports_what_each_engine_lacks(assay: Assay) -> None:
    import engines
    from engines import hardware

    result = assay("doctor", "--json")
    document = json.loads(result.out)
    assert set(document["engines"]) == set(engines.names())
    if not hardware.gpus():
        assert not document["engines"]["tensorrt_rtx"]["run"]
        assert f"none: {hardware.no_gpu()}" in " ".join(result.err.split())
    for state in document["engines"].values():
        assert state["run"] or state["reason"]


def test_doctor_finds_a_library_that_does_not_load(
    assay: Assay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libgone.so.1: not found')")
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    worker.end()  # it may have imported the real one
    state = json.loads(assay("doctor", "--json").out)["engines"]["onnxruntime"]
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    assert (state["build"], state["run"]) == (False, False)
    assert "libgone.so.1" in state["reason"]
