"""int8 by onnxruntime.quantization: one calibration, two graphs.

Quantization is static and per channel, by pairs of QuantizeLinear and DequantizeLinear in front of
the operators that compute in int8. TensorRT accepts only signed, symmetric types. The integer
kernels of CPUs without VNNI multiply unsigned activations by signed weights and saturate their
16-bit sums: there, TensorRT's graph would lose accuracy and gain no speed. So CPUs get a second
graph with unsigned activations and 7-bit weights, made from the same ranges.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from engines import temporary
from engines.contract import Feeds, TensorSpec
from engines.errors import DeployError
from exporters.kept_in_float import nodes_in_float
from exporters.onnx_describe import add_group_norm_types

METHODS = ("minmax", "entropy", "percentile")
# Operators worth computing in int8, and operators that pass int8 on. Activation functions are left
# out: they are fused into the layer before them.
_OPERATORS = (
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "Add",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Concat",
    "Flatten",
    "Reshape",
    "Transpose",
)
# Histogram bins by calibration method. The search for the least entropy takes time quadratic in
# their number.
_BINS = {"entropy": 512, "percentile": 2048}
_PERCENTILE = 99.99
# Activations this large hold the largest number of fp32, which masks positions as infinity does.
_SATURATED = 1e38
_CHUNK = 16  # rows at a time: calibration keeps all activations of a chunk in memory
# ONNX Runtime warns of graphs without this entry. Ours are simplified already.
_PREPROCESSED = ("onnx.quant.pre_process", "onnxruntime.quant")


@dataclass(frozen=True)
class Quantized:
    """A quantized graph, and how it was calibrated.

    Attributes:
        graph: For TensorRT and any other engine that computes signed int8 exactly.
        cpu_graph: For CPUs; None if they run `graph` as well.
        method: The calibration method that scored best, one of METHODS.
        scores: The score that `judge` gave each method.
        failed: The methods that failed, and why.
        in_float: Nodes that could be quantized but stay in float, by name, and why.
    """

    graph: onnx.ModelProto
    cpu_graph: onnx.ModelProto | None
    method: str
    scores: dict[str, tuple[float, ...]]
    failed: dict[str, str]
    in_float: dict[str, str]


def quantize(
    graph: onnx.ModelProto,
    rows: Feeds,
    judge: Callable[[onnx.ModelProto], tuple[float, ...]],
) -> Quantized:
    """Quantizes a float32 graph.

    Args:
        graph: With batch norms folded.
        rows: Representative inputs by name, `[rows, …]`, that `check_rows` has accepted.
        judge: Scores a quantized graph; larger is better.

    Raises:
        DeployError: ONNX Runtime cannot calibrate or quantize the graph.
    """
    graphs, scores, failed = {}, {}, {}
    with _float_file(graph) as path:
        unbounded: set[str] = set()
        for method in METHODS:
            try:
                ranges, unbounded = _calibrate(path, rows, method, unbounded)
                in_float = nodes_in_float(graph, _OPERATORS, unbounded)
                signed = _quantize_static(path, ranges, in_float, cpu=False)
                scores[method] = judge(signed)
                graphs[method] = signed, ranges, in_float
            except DeployError as error:
                failed[method] = error.message
        signed, ranges, in_float = graphs[best_method(scores, failed)]
        cpu_graph = _quantize_static(path, ranges, in_float, cpu=True)
    return Quantized(signed, cpu_graph, best_method(scores, failed), scores, failed, in_float)


def best_method(scores: Mapping[str, tuple[float, ...]], failed: Mapping[str, str]) -> str:
    """Returns the calibration method with the largest score; the first of several.

    Raises:
        DeployError: All methods failed.
    """
    if not scores:
        raise DeployError(
            f"no calibration method works for this model: {'; '.join(failed.values())}",
            "calibrate on other rows, by --calibration FILE.npz, or export another precision",
        )
    return max(scores, key=lambda method: scores[method])


def ranges_of(
    graph: onnx.ModelProto, rows: Feeds, methods: Sequence[str], failed: dict[str, str]
) -> Iterator[tuple[str, dict[str, tuple[float, float]]]]:
    """Yields each calibration method, and by name the least and largest value of activations.

    Activations that are infinite or saturated on some rows have no range.

    Args:
        graph: In float32, with batch norms folded.
        rows: As for `quantize`.
        failed: Gets the methods that fail, and why.
    """
    unbounded: set[str] = set()
    with _float_file(graph) as path:
        for method in methods:
            try:
                ranges, unbounded = _calibrate(path, rows, method, unbounded)
            except DeployError as error:
                failed[method] = error.message
                continue
            yield (
                method,
                {
                    name: (float(np.min(entry.range_value[0])), float(np.max(entry.range_value[1])))
                    for name, entry in ranges.data.items()
                },
            )


@contextlib.contextmanager
def _float_file(graph: onnx.ModelProto) -> Iterator[Path]:
    """Writes a graph to a temporary file for ONNX Runtime, and suppresses its output meanwhile."""
    source = onnx.ModelProto()
    source.CopyFrom(graph)
    add_group_norm_types(source)  # ONNX Runtime quantizes only tensors whose type it infers
    onnx.helper.set_model_props(source, dict([_PREPROCESSED]))
    with temporary.folder() as folder, _quietly():
        path = folder / "float.onnx"
        onnx.save(source, path)
        yield path


def check_rows(graph: onnx.ModelProto, rows: Feeds) -> None:
    """Raises DeployError unless calibration rows are finite and fit the graph's inputs."""
    from exporters.onnx_nodes import spec_of

    specs = [spec_of(value) for value in graph.graph.input]
    if sorted(rows) != sorted(spec.name for spec in specs):
        raise DeployError(
            f"calibration data has {', '.join(sorted(rows)) or 'nothing'}, but the graph takes"
            f" {', '.join(spec.name for spec in specs)}",
            "give one array for each input, under its name",
        )
    for spec in specs:
        array = rows[spec.name]
        if not spec.accepts(TensorSpec(spec.name, array.dtype.name, array.shape)):
            raise DeployError(
                f"calibration data: a row of {spec.name} is {array.dtype}{list(array.shape[1:])},"
                f" but the graph takes {spec}",
                "give rows of the dtype and shape that the model takes",
            )
        if not len(array):
            raise DeployError(f"calibration data: {spec.name} has no rows", "give 100 or more")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DeployError(f"calibration data: {spec.name} has NaN or Inf", "remove those rows")
    if len({len(array) for array in rows.values()}) != 1:
        raise DeployError("calibration data has different numbers of rows for its inputs")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Suppresses what ONNX Runtime prints, and what it writes to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _calibrate(
    path: Path, rows: Feeds, method: str, unbounded: Collection[str]
) -> tuple[Any, set[str]]:
    """Returns the ranges of the activations that may be quantized, and those without a range.

    Args:
        unbounded: Activations to leave out. A histogram cannot hold such values.

    Returns:
        ONNX Runtime's `TensorsData`, and the names in `unbounded` and of the activations that are
        infinite or saturated on some rows.
    """
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    options: dict[str, dict[str, Any]] = {
        "minmax": {},
        "entropy": {"num_bins": _BINS["entropy"], "symmetric": False},
        "percentile": {
            "num_bins": _BINS["percentile"],
            "percentile": _PERCENTILE,
            "symmetric": False,
        },
    }
    kinds = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    try:
        calibrator = create_calibrator(
            path,
            list(_OPERATORS),
            augmented_model_path=str(path.with_name(f"{method}.onnx")),
            calibrate_method=kinds[method],
            extra_options=options[method],
        )
        if method != "minmax":
            calibrator.tensors_to_calibrate -= set(unbounded)
        count = len(next(iter(rows.values())))
        for start in range(0, count, _CHUNK):
            chunk = {name: array[start : start + _CHUNK] for name, array in rows.items()}
            calibrator.collect_data(_Reader(chunk))
        ranges = calibrator.compute_data()
    except Exception as error:  # ONNX Runtime's errors share no public base
        raise DeployError(f"the {method} calibration failed: {error}") from error
    infinite = {
        name
        for name, entry in ranges.data.items()
        if not (np.abs(entry.range_value) < _SATURATED).all()
    }
    for name in infinite:
        del ranges.data[name]
    return ranges, infinite.union(unbounded)


class _Reader:
    """A `CalibrationDataReader` of ONNX Runtime for a single batch."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds: Feeds | None = feeds

    def get_next(self) -> Feeds | None:
        feeds, self._feeds = self._feeds, None
        return feeds

    def __iter__(self) -> Iterator[Feeds]:
        return iter(self.get_next, None)


def _quantize_static(
    path: Path, ranges: Any, in_float: Collection[str], *, cpu: bool
) -> onnx.ModelProto:
    from onnxruntime.quantization import (
        QuantFormat,
        QuantType,
        quantize_static,
        save_tensors_data,
    )

    cache, target = path.with_suffix(".json"), path.with_name("int8.onnx")
    save_tensors_data(ranges, cache)
    try:
        quantize_static(
            path,
            target,
            calibration_cache_path=cache,
            calibrate_method=ranges.calibration_method,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_OPERATORS),
            nodes_to_exclude=[*in_float],
            per_channel=True,
            reduce_range=cpu,
            activation_type=QuantType.QUInt8 if cpu else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "ActivationSymmetric": not cpu,
                "WeightSymmetric": True,
                # TensorRT adds biases in float.
                "QuantizeBias": cpu,
                # Quantize only the inputs of these operators, behind the activation functions.
                "OpTypesToExcludeOutputQuantization": list(_OPERATORS),
            },
        )
    except Exception as error:  # ONNX Runtime's errors share no public base
        raise DeployError(f"ONNX Runtime cannot quantize the graph: {error}") from error
    return onnx.load(target)
