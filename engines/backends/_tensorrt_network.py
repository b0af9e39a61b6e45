"""TensorRT's network of an ONNX graph, and how its types compare with the graph's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engines import profiles
from engines.checks import import_vendor
from engines.contract import BuildOptions
from engines.errors import DeployError
from engines.layer_report import Layer, precision

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def strongly_typed(vendor: Any) -> int:
    """Returns the flags of a strongly typed network, from TensorRT 11 on the only kind."""
    flag = getattr(vendor.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def parse(vendor: Any, network: Any, logger: Any, source: Path, rewritten: bytes | None) -> None:
    """Fills a network from an ONNX graph, or from `rewritten` in its place."""
    parser = vendor.OnnxParser(network, logger)
    if parser.parse(rewritten) if rewritten else parser.parse_from_file(str(source)):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    causes = dict.fromkeys(map(_cause, errors))
    raise DeployError(
        f"{vendor.__name__} cannot parse {source}: " + "; ".join(causes),
        "export with operators it supports, or build another engine",
    )


def _cause(error: Any) -> str:
    """Returns an error of the parser with its node, operator and reason."""
    reason = error.desc() if error.desc() != "false" else "not supported"
    where = f"node {error.node_name()!r} ({error.node_operator()})"
    if not error.node_operator():
        where = "an input, output or weight"
    return f"{where}: {error.code().name}: {reason}"


def add_profiles(builder: Any, network: Any, config: Any, options: BuildOptions) -> None:
    """Adds the optimization profile for all sizes of the options, then the more special ones.

    Raises:
        DeployError: An axis other than the first is dynamic, and the options have no sizes for it.
        UsageError: A profile names another axis, or sizes that are not among them.
    """
    whole: dict[str, list[profiles.Range]] = {}
    words: dict[tuple[str, int], str] = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 not in tensor.shape:
            continue
        whole[tensor.name] = _ranges(tensor, options)
        for axis, size in enumerate(tensor.shape):
            if size == -1:
                words[tensor.name, axis] = tensor.get_dimension_name(axis)
    profiles.check_names(options.profiles, words)
    for wanted in ({}, *options.profiles):
        profile = builder.create_optimization_profile()
        for name, ranges in whole.items():
            chosen = [
                profiles.range_of(wanted, name, axis, words[name, axis], sizes)
                if (name, axis) in words
                else sizes
                for axis, sizes in enumerate(ranges)
            ]
            profile.set_shape(name, *zip(*chosen, strict=True))
        config.add_optimization_profile(profile)


def _ranges(tensor: Any, options: BuildOptions) -> list[profiles.Range]:
    """Returns the least, the usual and the largest size of each axis of an input."""
    shape = tuple(tensor.shape)
    sizes = options.sizes.get(tensor.name)
    if -1 in shape[1:] and (sizes is None or len(sizes) != len(shape)):
        raise DeployError(
            f"input {tensor.name!r} has shape {shape}: an axis other than the batch is dynamic",
            "say its sizes when the model is exported: assay.Model(dynamic=...), or --shape for"
            " an ONNX file",
        )
    batches = (options.batch_min, options.batch_opt, options.batch_max)
    ranges = []
    for axis, size in zip(shape, sizes or [None] * len(shape), strict=True):
        least, usual, largest = (axis,) * 3 if axis != -1 else size or batches
        ranges.append((least, usual, largest))
    return ranges


def type_mismatches(source: Path, layers: Iterable[Layer]) -> list[str]:
    """Returns the products of a graph that no layer computes in the type of their weights.

    A precision is chosen for its products; the operators between them may be fused.
    """
    onnx = import_vendor("onnx", "pip install onnx")
    graph = onnx.load(source, load_external_data=False).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in types:
            types[node.output[0]] = types[node.input[0]]
    layer_types: dict[str, set[str]] = {}
    for layer in layers:
        for name in layer.nodes:
            layer_types.setdefault(name, set()).add(layer.precision)
    missed = []
    for node in graph.node:
        if node.op_type not in _PRODUCTS or types.get(node.input[1]) is None:
            continue
        wanted = precision(onnx.helper.tensor_dtype_to_np_dtype(types[node.input[1]]).name)
        actual = layer_types.get(node.name)
        if actual and wanted not in actual:
            missed.append(f"{node.op_type} {node.name!r} in {', '.join(sorted(actual))}")
    return missed
