"""Exports a module as a torch.export program whose batch, and maybe other axes, are dynamic."""

from __future__ import annotations

import inspect
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from engines.backends.pytorch import SIGNATURE, load_program
from engines.contract import TensorSpec
from engines.errors import DeployError
from exporters.trace_errors import guarded

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


def export_program(
    module: nn.Module,
    examples: Sequence[torch.Tensor],
    names: Sequence[str] = (),
    dynamic: Mapping[str, Mapping[int, tuple[int, int]]] | None = None,
) -> Any:
    """Traces a module into a torch.export program.

    Args:
        module: In evaluation mode.
        examples: One tensor for each positional argument. The first axis is the batch, of two
            rows: torch.export would take a batch of one for a constant.
        names: The names of the inputs, for error messages and `dynamic`.
        dynamic: By input, the other axes that are dynamic, with their least and largest size.

    Raises:
        DeployError: The module cannot be traced, or fixes a dynamic axis; the message names the
            line of the model.
    """
    # DYNAMIC, unlike AUTO or a named Dim, is an error where the model fixes the axis.
    dim = torch.export.Dim.DYNAMIC
    shapes: tuple[Any, ...] = tuple({0: dim} for _ in examples)
    for shape, name in zip(shapes, names, strict=False):
        for axis, (low, high) in (dynamic or {}).get(name, {}).items():
            if low < high:
                shape[axis] = dim(min=low, max=high)
    kinds = {parameter.kind for parameter in inspect.signature(module.forward).parameters.values()}
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        shapes = (shapes,)  # `*inputs` is one argument to torch.export
    return guarded(
        "torch.export",
        lambda: torch.export.export(module, tuple(examples), dynamic_shapes=shapes),
        names,
    )


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
