"""The smallest part of a graph on which an engine fails."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import engines
from pipeline.golden.graph_ranges import SizedRows
from pipeline.verification import reduction
from tests import foreign
from tests.conftest import Process, Result, need_engine
from tests.subset import FAULTY, python_path


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_an_operator_that_cannot_be_built_is_all_that_is_left(assay: Callable[..., Result]) -> None:
    need_engine("tensorrt_rtx", run=False)
    foreign.unsupported(Path("net.onnx"))
    reduced = assay("reduce", "net.onnx", "--engine", "tensorrt_rtx")
    assert reduced.code == 0, reduced.err
    assert "refused" in reduced.out
    graph = onnx.load("net-reduced.onnx").graph
    assert [node.op_type for node in graph.node] == ["Det"]
    with np.load("net-reduced.npz") as inputs:
        assert {name: inputs[name].shape for name in inputs} == {"c": (2, 4, 4)}


@pytest.mark.long
def test_a_wrong_result_is_traced_to_a_node(
    process: Callable[..., Process], tmp_path: Path
) -> None:
    foreign.detector(tmp_path / "net.onnx")
    reduced = process(
        *("reduce", "net.onnx", "--engine", "wrong", "--shape", "images=1x3x16x16"),
    ).run(machine={"PYTHONPATH": python_path(FAULTY)})
    assert reduced.code == 0, reduced.err
    assert "wrong: mismatch" in reduced.out
    assert len(onnx.load(tmp_path / "net-reduced.onnx").graph.node) == 1


def test_an_engine_that_does_not_fail_is_said(assay: Callable[..., Result]) -> None:
    foreign.detector(Path("net.onnx"))
    failed = assay("reduce", "net.onnx", "--shape", "images=1x3x16x16")
    assert failed.code == 1
    assert "onnxruntime does not fail on this graph" in failed.err
    assert not Path("net-reduced.onnx").exists()


def test_engines_of_programs_cannot_be_named(assay: Callable[..., Result]) -> None:
    foreign.detector(Path("net.onnx"))
    failed = assay("reduce", "net.onnx", "--engine", "pytorch")
    assert failed.code == 2
    assert "builds no ONNX graphs" in failed.err


@pytest.mark.slow(10)
def test_a_graph_of_any_size_is_built_for_that_of_the_rows(assay: Callable[..., Result]) -> None:
    need_engine("tensorrt_rtx", run=False)
    foreign.detector(Path("net.onnx"))
    built = assay("reduce", "net.onnx", "--engine", "tensorrt_rtx", "--shape", "images=1x3x16x16")
    assert built.code == 1
    assert "does not fail on this graph: it builds" in built.err
    assert ("cannot be run here" in built.err) != engines.get("tensorrt_rtx").available().run


def test_all_rows_are_tried_a_few_at_a_time() -> None:
    rows = SizedRows({"x": np.arange(8)}, tuple("abcdefgh"))
    parts = [*reduction._few(rows)]
    assert [row for part in parts for row in part.cases] == [*"abcdefgh"]
    assert [int(row) for part in parts for row in part.inputs["x"]] == [*range(8)]


@pytest.mark.slow(5)
def test_a_missing_kernel_of_a_precision_is_a_failure(assay: Callable[..., Result]) -> None:
    foreign.detector(Path("net.onnx"))
    words = ("--precision", "bf16", "--shape", "images=1x3x16x16")
    reduced = assay("reduce", "net.onnx", *words)
    assert reduced.code == 0, reduced.err
    assert "refused: ONNX Runtime has no CPU kernel for a node of the graph" in reduced.out
    (node,) = onnx.load("net-reduced.onnx").graph.node
    assert node.op_type == "Conv"
    refused = assay("reduce", "net.onnx", "--precision", "int8")
    assert refused.code == 2
    assert "available: fp32, fp16, bf16" in refused.err
