"""Exports a module as a torch.export program whose batch, and maybe other axes, are dynamic."""

from __future__ import annotations

import inspect
import io
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from engines.backends.pytorch import SIGNATURE, load_program
from engines.contract import TensorSpec
from engines.errors import DeployError
from exporters.trace_errors import at_line, guarded, line_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


def export_program(
    module: nn.Module,
    examples: Sequence[torch.Tensor],
    names: Sequence[str] = (),
    dynamic: Mapping[str, Mapping[int, tuple[str, int, int]]] | None = None,
) -> Any:
    """Traces a module into a torch.export program.

    Args:
        module: In evaluation mode.
        examples: One tensor for each positional argument. The first axis is the batch, of two
            rows: torch.export would take a batch of one for a constant.
        names: The names of the inputs, for error messages and `dynamic`.
        dynamic: By input, the other axes that are dynamic: the name of each, its least and its
            largest size.

    Raises:
        DeployError: The module cannot be traced, or fixes a dynamic axis; the message names the
            line of the model.
    """
    # DYNAMIC, unlike AUTO or a named Dim, is an error where the model fixes the axis.
    dim = torch.export.Dim.DYNAMIC
    shapes: tuple[Any, ...] = tuple({0: dim} for _ in examples)
    for shape, name in zip(shapes, names, strict=False):
        for axis, (_, low, high) in (dynamic or {}).get(name, {}).items():
            if low < high:
                shape[axis] = dim(min=low, max=high)
    kinds = {parameter.kind for parameter in inspect.signature(module.forward).parameters.values()}
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        shapes = (shapes,)  # `*inputs` is one argument to torch.export
    axes = {n: {axis: part[0] for axis, part in p.items()} for n, p in (dynamic or {}).items()}
    program = guarded(
        "torch.export",
        lambda: torch.export.export(module, tuple(examples), dynamic_shapes=shapes),
        names,
        axes,
    )
    _check_pools(program, names, axes)
    return program


def _check_pools(program: Any, names: Sequence[str], axes: Mapping[str, Mapping[int, str]]) -> None:
    """Raises DeployError if a pooling to a fixed size has an input of any size.

    Its translation to ONNX has the size that it was traced with, and gives no error.
    """
    symbols: dict[str, str] = {}
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    user = [node for node in placeholders if node.name in program.graph_signature.user_inputs]
    for node, name in zip(user, names, strict=False):
        for axis, axis_name in axes.get(name, {}).items():
            symbols |= dict.fromkeys(_symbols(node.meta["val"].shape[axis]), axis_name)
    for node in program.graph.nodes:
        if not re.match(r"aten\.adaptive_(avg|max)_pool", str(node.target)):
            continue
        sizes = node.args[1]
        shape = node.args[0].meta["val"].shape[-len(sizes) :]
        fixed = [
            *dict.fromkeys(
                symbols.get(symbol, symbol)
                for size, axis in zip(sizes, shape, strict=True)
                if size != 1
                for symbol in _symbols(axis)
            )
        ]
        if fixed:
            kind = str(node.target).split(".")[1]
            raise DeployError(
                f"the model pools {' and '.join(fixed)}, which Model.dynamic names, to"
                f" {'x'.join(map(str, sizes))} by {kind}{at_line(line_of(node))}: ONNX has no such"
                " pooling of an axis of any size",
                "pool to size 1 (or x.mean) or with a fixed kernel, such as avg_pool2d(x, 2), or"
                f" leave {' and '.join(fixed)} out of Model.dynamic",
            )


def _symbols(size: Any) -> list[str]:
    """Returns the symbols of an axis of any size; [] for a number."""
    return [] if isinstance(size, int) else sorted(map(str, size.node.expr.free_symbols))


class _Writer(io.BufferedWriter):
    """Writes a file, and keeps an error of `write` instead of raising it.

    After an error, torch's writer would write again when it is destroyed, and end the process.

    Attributes:
        error: The first error; nothing is written after it.
    """

    error: OSError | None = None

    def write(self, data: Buffer) -> int:
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


def save_program(
    program: Any, path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> None:
    """Saves a program together with the names, dtypes and shapes of its inputs and outputs.

    Raises:
        OSError: The file cannot be written.
    """
    signature = {
        "inputs": [vars(spec) for spec in inputs],
        "outputs": [vars(spec) for spec in outputs],
    }
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            node.meta.pop("stack_trace", None)  # it holds paths of this machine
    # Loading would unpickle the samples and execute the guards, so `load_program` refuses both.
    kept = program.example_inputs, program._guards_code
    program.example_inputs, program._guards_code = None, []
    try:
        with _Writer(io.FileIO(path, "wb")) as file, warnings.catch_warnings():
            # A buffer may be a view, as the window of a Fourier transform is. On CPUs that is fine.
            warnings.filterwarnings("ignore", "No complete tensor found in the group")
            # An open file, since a path would have to end in .pt2.
            torch.export.save(program, file, extra_files={SIGNATURE: json.dumps(signature)})
            if file.error is not None:
                raise file.error
    finally:
        program.example_inputs, program._guards_code = kept


def read_program(path: Path) -> Any:
    """Reads a program that `save_program` wrote.

    Raises:
        DeployError: The file is not an exported program, or one of another version of torch.
    """
    try:
        program, _ = load_program(torch, path)
    except DeployError as error:
        raise DeployError(error.message, "export the model again") from error
    return program
