"""Which values of a graph its half types cannot hold: the reason behind many a mismatch."""

from __future__ import annotations

from contextlib import closing

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

import engines
from engines import temporary
from engines.contract import OpenOptions
from exporters import name_of, onnx_files, typed_graph
from pipeline.golden.file import EXTREMES, Reference
from pipeline.workflow.artifacts import GRAPH

_ROWS = 64
_BFLOAT16 = ml_dtypes.finfo(ml_dtypes.bfloat16)  # type: ignore[no-untyped-call]
_LARGEST: dict[int, tuple[str, float]] = {
    TensorProto.FLOAT16: (name_of("float16"), float(np.finfo(np.float16).max)),
    TensorProto.BFLOAT16: (name_of("bfloat16"), float(_BFLOAT16.max)),
}


def out_of_range(model: onnx.ModelProto, golden: Reference) -> list[str]:
    """Returns the values of a graph that its types cannot hold on golden rows, in words.

    Each node is computed in float32 from values in their types. So a value that overflows is
    named, and not those that are infinite because of it.

    Args:
        golden: Rows are taken from it, without those that are extreme on purpose.
    """
    if not typed_graph.can_round(model):
        return []
    halves = typed_graph.half_values(model)
    if not halves:
        return []
    faults = []
    for tensor in model.graph.initializer:
        if tensor.data_type in _LARGEST and not _is_finite_or_mask(tensor):
            faults.append(f"the constant {tensor.name} is not finite")
    typed = typed_graph.as_typed(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    peaks = typed_graph.with_peaks(typed, [name for name in halves if name in makers])
    rows = np.flatnonzero(~np.isin(golden.cases, EXTREMES))
    rows = rows[:: max(1, len(rows) // _ROWS)]
    feeds = {name: np.ascontiguousarray(array[rows]) for name, array in golden.inputs.items()}
    with temporary.folder() as folder:
        path = folder / GRAPH.name
        onnx_files.write(typed, path)
        options = OpenOptions("cpu", threads=1, optimize=False)
        with closing(engines.get("onnxruntime").open(path, options)) as session:
            outputs = session.run(feeds)
    for name, peak in peaks.items():
        precision, largest = _LARGEST[halves[name]]
        value = float(outputs[peak])
        if largest < value < np.inf:
            node = makers[name]
            faults.append(
                f"{node.op_type} {node.name or name} reaches {value:.3g} ({precision} holds"
                f" {largest:.3g})"
            )
    return faults


def _is_finite_or_mask(tensor: onnx.TensorProto) -> bool:
    """Whether a constant is finite, or consists of 0 and -inf, as attention masks do."""
    array = numpy_helper.to_array(tensor).astype(np.float32)
    return bool(np.isfinite(array).all() or np.isin(array, (0.0, -np.inf)).all())
