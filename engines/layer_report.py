"""Reads the layers of a built engine: the type in which each computes, and its time."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """One layer of a built engine, as its backend reports it.

    Attributes:
        kind: The backend's own word for what it computes, such as "Conv" or "correlation".
        precision: The type of its inputs: "fp32", "fp16", "bf16", "int8", "fp8"; "" if that is
            not known.
        nodes: The names of the ONNX nodes it computes, if the backend reports them.
    """

    name: str
    kind: str
    precision: str
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerTime:
    """How long one layer of an open engine takes, as its library's own profiler reports it.

    Attributes:
        kind: The library's word for what it computes.
        kernel: The library's name of the code that computes it; "" if it does not say.
        node: The node or the value of the graph that it is named after.
        seconds: The median of several inferences.
    """

    name: str
    kind: str
    kernel: str
    node: str
    seconds: float


def typical_times(
    runs: Sequence[Mapping[tuple[str, str, str], float]], node_of: Callable[[str], str]
) -> tuple[LayerTime, ...]:
    """Returns the median time of each layer over several inferences.

    Args:
        runs: For each inference, seconds by a layer's name, kind and kernel.
        node_of: Returns the name of a node or value of the graph, given that of a layer.
    """
    times: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for run in runs:
        for layer, seconds in run.items():
            times[layer].append(seconds)
    return tuple(
        LayerTime(*layer, node_of(layer[0]), statistics.median(values))
        for layer, values in times.items()
    )


# Element types by the names that TensorRT, numpy, ONNX and torch give them.
_PRECISIONS = {
    "float": "fp32",
    "float32": "fp32",
    "half": "fp16",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float64": "fp64",
    "double": "fp64",
    "fp8": "fp8",
    "float8_e4m3fn": "fp8",
}
# As in "Thirty-two wide channel vectorized row major Int8 format".
_FORMAT = re.compile(
    r"\b(FP32|FP16|BF16|INT8|UINT8|FP8|INT32|INT64|Float|Half|BFloat16)\b", re.IGNORECASE
)
# What backends call convolutions and products; not QuantizeLinear, QLinearAdd, upsample_bilinear2d.
_PRODUCT = re.compile(
    r"conv(?!ert)|correlation|gemm|mat_?mul|(?<![a-z])(?<!upsample_)linear|fullyconnected|addmm"
    r"|einsum",
    re.IGNORECASE,
)
_LAYER = re.compile(r"^Name: (.*?), LayerType: (.*?), Inputs: \[(.*?)\], Constants: ", re.MULTILINE)


def precision(dtype: str) -> str:
    """Returns our name of an element type, such as "fp32" for "float"."""
    name = dtype.lower()
    return _PRECISIONS.get(name, name)


def of_tensorrt(log: Iterable[str]) -> tuple[Layer, ...]:
    """Reads the layers of an engine from the log of TensorRT's build.

    The engine inspector reports the same, but needs a GPU to open the plan on.
    """
    (listed, *_) = [*(text for text in log if text.startswith("Layers:")), ""]
    layers = []
    for line in listed.splitlines():
        match = _LAYER.match(line)
        if match is None:
            continue
        name, kind, inputs = match.groups()
        types = re.findall(r"Datatype: (\w+)", inputs)
        nodes = re.findall(r"\[ONNX Layer: ([^\]]+)\]", line)
        layers.append(Layer(name, kind, precision(types[0]) if types else "", tuple(nodes)))
    return tuple(layers)


def of_inspector(report: str) -> tuple[Layer, ...]:
    """Reads the layers from the JSON of TensorRT's engine inspector, at full verbosity."""
    layers = []
    for entry in json.loads(report).get("Layers", []):
        if not isinstance(entry, dict):  # a name only: the plan was built with less verbosity
            continue
        types = [
            match.group(0)
            for tensor in entry.get("Inputs", [])
            if (match := _FORMAT.search(tensor.get("Format/Datatype", "")))
        ]
        nodes = re.findall(r"\[ONNX Layer: ([^\]]+)\]", entry.get("Metadata", ""))
        kind = precision(types[0]) if types else ""
        layers.append(Layer(entry["Name"], entry.get("LayerType", ""), kind, tuple(nodes)))
    return tuple(layers)


def multiplies(kind: str) -> bool:
    """Whether a kind of layer, in a backend's own words, is a convolution or matrix product."""
    return _PRODUCT.search(kind) is not None


def computed_in(layers: Iterable[Layer]) -> str:
    """Returns the types that convolutions and matrix products compute in, the commonest first.

    A backend without kernels for a type computes in another one: ONNX Runtime's CPU provider
    computes fp16 in fp32, so its outputs cannot show what fp16 would do to them.
    """
    counts = Counter(
        layer.precision for layer in layers if layer.precision and multiplies(layer.kind)
    )
    return " and ".join(precision for precision, _ in counts.most_common())


def counted(layers: Iterable[Layer]) -> str:
    """Returns how many layers of each kind compute in each type, as text."""
    counts = Counter((layer.kind, layer.precision) for layer in layers if layer.precision)
    return ", ".join(f"{count} {kind} in {type_}" for (kind, type_), count in counts.most_common())
