"""Checks of inputs and outputs in Triton's configurations against the graph or golden file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.contract import TensorSpec
from engines.errors import DeployError
from exporters import onnx_files
from exporters.onnx_nodes import inputs_of, spec_of
from pipeline.golden.file import Golden
from pipeline.serving import config as configs
from pipeline.serving import config_text


@dataclass(frozen=True)
class Signature:
    """What a model takes and returns.

    Attributes:
        inputs: `[batch, …]`.
        outputs: Likewise. Those that are no tensors are left out.
        shapeless: Names of those without a shape.
        batched: The first axis of all of them is the batch.
        source: What tells so, in words.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    shapeless: frozenset[str]
    batched: bool
    source: str

    @property
    def known(self) -> dict[str, TensorSpec]:
        """All of them, by name."""
        return {spec.name: spec for spec in (*self.inputs, *self.outputs)}

    def axes(self, spec: TensorSpec, *, without_batch: bool) -> list[int]:
        """Returns the dims that a configuration has for one of them, -1 for a dynamic axis."""
        whole = [-1 if axis is None else axis for axis in spec.shape]
        return whole[1:] if without_batch else whole


def of_golden(golden: Golden) -> Signature:
    """Returns what a golden file says."""
    return Signature(
        golden.input_specs, golden.output_specs, frozenset(), golden.batched, "the golden file"
    )


def of_graph(path: Path) -> Signature:
    """Returns what an ONNX graph says.

    Raises:
        DeployError: It cannot be read.
    """
    graph = onnx_files.read(path, data=False).graph
    values = {"in": inputs_of(graph), "out": [*graph.output]}
    tensors = {
        side: [one for one in entries if one.type.HasField("tensor_type")]
        for side, entries in values.items()
    }
    everything = [*tensors["in"], *tensors["out"]]
    shapeless = {one.name for one in everything if not one.type.tensor_type.HasField("shape")}
    inputs, outputs = (tuple(map(spec_of, tensors[side])) for side in ("in", "out"))
    shaped = [spec for spec in (*inputs, *outputs) if spec.name not in shapeless]
    batched = all(spec.shape[:1] == (None,) for spec in shaped)
    return Signature(inputs, outputs, frozenset(shapeless), batched, "the graph")


def problems(config: Any, wanted: Signature, named_by_model: bool) -> Iterator[str]:
    """Yields what is wrong with the inputs and outputs of a configuration, in words.

    Args:
        config: The `ModelConfig`.
        wanted: What the model takes and returns.
        named_by_model: Triton can complete inputs and outputs from the model.
    """
    # Triton gives these itself: controls and states of sequences, and what it knows of a batch.
    sequences = config.sequence_batching
    by_triton = {entry.name for entry in sequences.control_input}
    by_triton |= {
        name for entry in sequences.state for name in (entry.input_name, entry.output_name)
    }
    by_triton |= {name for entry in config.batch_input for name in entry.target_name}
    gathered = {name for entry in config.batch_output for name in entry.target_name}
    ragged = any(entry.allow_ragged_batch for entry in config.input)
    # Triton completes the batch, too, unless both sides are there.
    ragged |= named_by_model and not ((config.input and config.output) or config.max_batch_size)
    for side, specs, entries in (
        ("input", wanted.inputs, config.input),
        ("output", wanted.outputs, config.output),
    ):
        named = {entry.name: entry for entry in entries}
        if len(named) < len(entries):
            yield f"an {side} is there twice"
        if not named and named_by_model:
            continue
        for name in named:
            if name not in {spec.name for spec in specs}:
                known = ", ".join(spec.name for spec in specs)
                yield f"{side} {name!r} is not in {wanted.source}, which has {known}"
        for spec in specs:
            if spec.name in named:
                free = ragged or spec.name in gathered | wanted.shapeless
                yield from _tensor(config, side, spec, named[spec.name], wanted, free)
            # A server need not return every output.
            elif spec.name not in by_triton and (side == "input" or not named):
                yield f"{side} {spec.name!r} of {wanted.source} is missing"


def notes(config: Any, wanted: Signature) -> Iterator[str]:
    """Yields what clients meet besides what the model takes and returns, in words."""
    named = {entry.name for entry in config.output}
    for spec in wanted.outputs:
        if named and spec.name not in named:
            yield f"output {spec.name!r} of {wanted.source} is not returned"
    for entry in (*config.input, *config.output):
        if entry.HasField("reshape"):
            yield (
                f"clients use dims {list(entry.dims)} for {entry.name!r}, and the model"
                f" {list(entry.reshape.shape)}"
            )


def _tensor(
    config: Any, side: str, spec: TensorSpec, entry: Any, wanted: Signature, free: bool
) -> Iterator[str]:
    """Yields how an input or output differs from the model's; `free` leaves out its shape."""
    what = f"{side} {spec.name!r}"
    kind = configs.type_of(entry)
    try:
        own = configs.type_name(spec.dtype) if spec.dtype else kind
    except DeployError as error:
        yield f"{what}: {error.message}"
        return
    if kind != own:
        yield f"{what} is {kind}; {wanted.source} has {own}"
    if free:
        return
    adds_batch = config.max_batch_size > 0
    if adds_batch and not wanted.batched:
        yield (
            f"max_batch_size is {config.max_batch_size}, but {spec.name} of {wanted.source} has no"
            f" dynamic batch: {spec}"
            if spec.shape[:1] != (None,)
            else f"max_batch_size is {config.max_batch_size}, but not all inputs and outputs of"
            f" {wanted.source} have a dynamic batch"
        )
        return
    expected = wanted.axes(spec, without_batch=adds_batch)
    dims = list(entry.dims)
    if not dims:
        yield f"{what} has no dims: {_advice(expected)}"
    elif entry.HasField("reshape"):
        seen = list(entry.reshape.shape)
        if not config_text.fits(seen, expected):
            yield f"{what} is reshaped to {seen}; {wanted.source} has {expected}"
        elif -1 not in (*dims, *seen) and math.prod(dims) != math.prod(seen):
            yield f"{what} has dims {dims}, which cannot be reshaped to {seen}"
    elif not config_text.fits(dims, expected) and (expected or adds_batch or dims != [1]):
        yield _misfit(config, what, dims, spec, wanted)


def _misfit(config: Any, what: str, dims: list[int], spec: TensorSpec, wanted: Signature) -> str:
    adds_batch = config.max_batch_size > 0
    expected = wanted.axes(spec, without_batch=adds_batch)
    if adds_batch and config_text.fits(dims[1:], expected):
        return (
            f"{what} has dims {dims} with the batch in them, which Triton adds itself as"
            f" max_batch_size is not 0: {_advice(expected)}"
        )
    row = wanted.axes(spec, without_batch=True)
    if not adds_batch and wanted.batched and config_text.fits(dims, row):
        return (
            f"{what} has dims {dims} without the batch, and max_batch_size is 0: write {expected},"
            " or set max_batch_size"
        )
    return f"{what} has dims {dims}; {wanted.source} has {expected}"


def _advice(expected: Sequence[int]) -> str:
    # Triton wants dims, even of a tensor without axes besides the batch.
    return f"write {expected}" if expected else "write dims: [1] and reshape { shape: [] }"


def labels(config: Any, folder: Path, wanted: Signature | None) -> Iterator[str]:
    """Yields what is wrong with the files of labels, in words.

    Args:
        folder: The model's folder.
        wanted: What the model returns; None if that is not known.
    """
    for entry in config.output:
        name = entry.label_filename
        if not name:
            continue
        if not config_text.within(name):
            yield f"label_filename {name!r} is outside of the model's folder"
            continue
        if not (folder / name).is_file():
            yield f"the file of labels {name} is missing"
            continue
        content = config_text.content(folder / name)
        if len(content) > config_text.MAX_BYTES:
            yield f"{name} has more than {config_text.MAX_BYTES:,} bytes"
            continue
        count = len(content.rstrip(b"\n").splitlines())
        spec = None if wanted is None else wanted.known.get(entry.name)
        if wanted is None or spec is None or entry.name in wanted.shapeless:
            continue
        row = wanted.axes(spec, without_batch=wanted.batched)
        if -1 not in row and count != (values := math.prod(row)):
            yield f"{name} has {count} labels, and {entry.name} has {values} values"
