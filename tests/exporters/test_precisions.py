"""The table of precisions, and what follows from its columns."""

import dataclasses
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
import torch

import exporters
from engines.errors import NotAvailableError
from exporters import PRECISIONS, QUANTIZED
from exporters.cast import dtype_of
from pipeline.stages import build, engine_source, export
from pipeline.verification import noise_floor
from pipeline.workflow.artifacts import CPU_GRAPH, GRAPH, PROGRAM
from tests.conftest import Result


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=list(PRECISIONS))
def test_each_precision_is_consistent(precision: exporters.Precision) -> None:
    assert precision.quantized == bool(precision.quantizer)
    assert not precision.cpu_graph or precision.quantized
    assert PRECISIONS[precision.computed_in].dtype == precision.dtype
    if not precision.quantized:
        assert precision.unit == torch.finfo(dtype_of(precision.name)).eps
        assert np.dtype(getattr(ml_dtypes, precision.weights, precision.weights)).itemsize in (2, 4)
    reference = np.ones((2, 3))
    floor = noise_floor.floor(reference, np.zeros((2, 2)), precision.name)
    assert floor.rms.tolist() == [precision.unit] * 2


@pytest.fixture
def another(monkeypatch: pytest.MonkeyPatch) -> exporters.Precision:
    """A second quantized precision, without a graph for CPUs."""
    row = dataclasses.replace(PRECISIONS["int8"], name="int7", cpu_graph=False)
    monkeypatch.setitem(PRECISIONS, row.name, row)
    return row


def test_a_quantized_precision_needs_only_an_entry_in_the_table(
    another: exporters.Precision, assay: Callable[..., Result]
) -> None:
    params = export.Params(model="edge", precision=another.name)
    assert not {CPU_GRAPH, PROGRAM} & set(export.STAGE.outputs(params))
    assert CPU_GRAPH in export.STAGE.outputs(dataclasses.replace(params, precision=QUANTIZED[0]))
    assert engine_source("onnxruntime", another.name) == GRAPH
    assert engine_source("onnxruntime", QUANTIZED[0]) == CPU_GRAPH
    with pytest.raises(
        NotAvailableError, match="'pytorch' does not support int7: it runs the PyTorch"
    ):
        build.resolve(build.Params(model="edge", precision=another.name, engine="pytorch"))
    assert "unknown precision 'int6'" in assay("export", "edge", "--precision", "int6").err
    result = assay("export", "edge", "--precision", another.name, "--calibration", "no.npz")
    assert "no.npz does not exist" in result.err
