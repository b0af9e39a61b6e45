"""Whether torch's own translation of a program is still the model, before anything runs its graph.

The exporter decomposes operators into simpler ones first. A graph can be right about those and
wrong about the model: then no node of it is at fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from engines.contract import Array
from exporters import trace_errors
from pipeline.golden import noise
from pipeline.golden.file import Golden
from pipeline.golden.float64 import in_float64
from pipeline.verification import limits, noise_floor
from pipeline.verification.bisection.walk import CHECKS

# Decompositions in float64 differ by rounding, by far less than this part of a value's size.
_TOLERANCE = 1e-6


def fault(
    program: Any, decomposed: Any, feeds: Mapping[str, Array], golden: Golden, rows: Array
) -> str:
    """Returns where a translated program differs from the model, in words; "" if it does not.

    Args:
        program: The torch.export program of the model.
        decomposed: The program that the exporter made of it.
        feeds: Golden inputs, `[rows, …]`, by name.
        rows: Their numbers in the golden file.
    """
    results = dict(_values(decomposed, feeds))
    outputs = [results[node] for node in _output_nodes(decomposed)]
    if not any(
        _differs(output, golden, name, rows)
        for name, output in zip(golden.reference, outputs, strict=True)
    ):
        return ""
    ends = {_origin(node): node for node in decomposed.graph.nodes if node.op == "call_function"}
    for node, value in _values(program, feeds):
        translated = results.get(ends.get(node.name))
        if translated is None or translated.shape != value.shape:
            continue
        size = np.abs(value.astype(np.float64)).max(initial=0.0)
        if np.abs(noise.difference(translated, value)).max(initial=0.0) > _TOLERANCE * size:
            operator = str(node.target).removeprefix("aten.").partition(".")[0]
            module, line = trace_errors.module_of(node), trace_errors.line_of(node)
            where = f" of {module}" if module else ""
            at = f", at {trace_errors.shortened(line)}" if line else ""
            return f"the translation changed the model here: {operator}{where}{at}"
    return "the exported program differs from the model in float64, before it is translated"


def _differs(output: Array, golden: Golden, name: str, rows: Array) -> bool:
    reference = golden.reference[name][rows]
    floor = noise_floor.floor(reference, golden.noise[name][rows], golden.precision)
    if output.shape != reference.shape:
        return True
    error = noise_floor.in_floors(
        np.abs(noise.difference(output, reference)).max(axis=1), floor.max
    )
    return bool((error[floor.comparable] > limits.MAX_ERROR_IN_FLOORS).any())


def _origin(node: Any) -> str:
    """Returns the name of the node that a node of a decomposed program was made from."""
    sources = node.meta.get("from_node") or []
    return sources[-1].name if sources else ""


def _output_nodes(program: Any) -> list[Any]:
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    return list(output.args[0])


def _values(program: Any, feeds: Mapping[str, Array]) -> Iterator[tuple[Any, Array]]:
    """Runs a program in float64 and yields its nodes with their values, where those are tensors."""
    signature = program.graph_signature
    held = {**program.constants, **program.state_dict}
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    inputs = iter(feeds.values())
    values: dict[Any, Any] = {}
    with torch.no_grad(), in_float64():
        for node in program.graph.nodes:
            if node.op == "placeholder":
                name = names.get(node.name)
                tensor = torch.from_numpy(next(inputs)) if name is None else held[name].detach()
                values[node] = tensor.double() if tensor.is_floating_point() else tensor
            elif node.op == "call_function":
                if any(word in str(node.target) for word in CHECKS):
                    continue
                args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
            if isinstance(values.get(node), torch.Tensor) and not values[node].is_complex():
                yield node, values[node].numpy()
