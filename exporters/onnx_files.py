"""Graphs as files: written in canonical bytes, and read with every reference checked first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import Message

from engines.errors import DeployError

# What protobuf can hold in one message, less some room for everything but tensors.
LIMIT = 2**31 - 2**24
# Smaller tensors stay in the graph, and int64: they may be shapes, sizes or axes, which neither
# shape inference nor ONNX Runtime reads from another file.
_THRESHOLD = 1024
# Where a tensor may hold its numbers, if not as raw bytes.
_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_SMALL = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}
_BITS = {
    kind: _SMALL.get(name) or onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize * 8
    for name, kind in onnx.TensorProto.DataType.items()
    if name not in ("UNDEFINED", "STRING")
}
_ALIGNMENT = 4096  # so that a backend can map a tensor from the file as it is


def data_name(graph: Path) -> str:
    """Returns the name of the file beside a graph that holds its large tensors."""
    return f"{graph.name}.data"


def write(model: onnx.ModelProto, path: Path, limit: int = LIMIT) -> None:
    """Writes a graph; the same graph gives the same bytes.

    What protobuf cannot hold goes into one file beside it, referenced by its plain name.

    Args:
        limit: Bytes from which on large tensors go into the other file.
    """
    if size(model) <= limit:
        path.write_bytes(model.SerializeToString(deterministic=True))
        return
    # Not a copy of all, from which the tensors are taken: of a large graph, that is too much.
    outside = onnx.ModelProto()
    _copy(model, outside, but="graph")
    _copy(model.graph, outside.graph, but="initializer")
    with path.with_name(data_name(path)).open("wb") as file:
        for tensor in model.graph.initializer:
            raw = tensor.raw_data
            copied = outside.graph.initializer.add()
            if len(raw) < _THRESHOLD or tensor.data_type == onnx.TensorProto.INT64:
                copied.CopyFrom(tensor)
                continue
            file.write(bytes(-file.tell() % _ALIGNMENT))
            entries = {
                "location": data_name(path),
                "offset": str(file.tell()),
                "length": str(len(raw)),
            }
            file.write(raw)
            _copy(tensor, copied, but="raw_data")
            copied.data_location = onnx.TensorProto.EXTERNAL
            del copied.external_data[:]
            for key, value in entries.items():
                copied.external_data.add(key=key, value=value)
    path.write_bytes(outside.SerializeToString(deterministic=True))


def _copy(source: Message, target: Message, *, but: str) -> None:
    """Copies a message into an empty one of its type, except for one field."""
    for field, value in source.ListFields():
        if field.name == but:
            continue
        if field.is_repeated:
            getattr(target, field.name).MergeFrom(value)
        elif field.type == field.TYPE_MESSAGE:
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def size(model: onnx.ModelProto) -> int:
    """Returns the bytes of a graph, or of its tensors alone where those are too many."""
    held = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    # Asked for the size of what it cannot hold, protobuf answers nonsense.
    return held if held > LIMIT else model.ByteSize()


def read(path: Path, *, data: bool = True) -> onnx.ModelProto:
    """Reads a graph, its external tensors too.

    Args:
        data: False leaves external tensors where they are, though they are checked.

    Raises:
        DeployError: It is not an ONNX graph, or refers to data that it must not or that is not
            there; see `check_external`.
    """
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # protobuf's errors share no public base
        raise DeployError(
            f"{path} is not an ONNX graph, or is damaged: {error}", "export it again"
        ) from error
    if not model.graph.node:
        raise DeployError(f"{path} is not an ONNX graph: it has no nodes", "export it again")
    check_external(model, path)
    if data:
        onnx.load_external_data_for_model(model, str(path.parent))
    return model


def check_external(model: onnx.ModelProto, path: Path) -> None:
    """Checks all that a graph says of its tensors before anything is read.

    Raises:
        DeployError: External data lies outside the graph's folder, is a link, or is shorter
            than the graph says; or a tensor's dimensions do not fit the bytes it has.
    """
    folder = path.parent
    for tensor in tensors(model):
        if tensor.data_type == onnx.TensorProto.STRING:
            continue  # never external, and of no size
        size = _bytes(tensor, path)
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            held = len(tensor.raw_data)
            if held != size and (held or not any(len(getattr(tensor, f)) for f in _FIELDS)):
                raise DeployError(
                    f"{path}: tensor {tensor.name!r} should have {size:,} bytes, and has {held:,}",
                    "the file is damaged; export it again",
                )
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        plain = location == Path(location).name and location not in ("", ".", "..")
        if not plain or "\\" in location:
            raise DeployError(
                f"{path}: tensor {tensor.name!r} lies in {location!r}, outside the graph's folder",
                "external data has to be a file beside the graph, by its plain name",
            )
        file = folder / location
        try:
            status = file.lstat()
        except OSError as error:
            raise DeployError(
                f"{path}: external data {location} is not there", "copy it beside the graph"
            ) from error
        if not file.is_file() or file.is_symlink() or status.st_nlink != 1:
            raise DeployError(
                f"{path}: external data {location} is a link or no plain file",
                "put a copy beside the graph; a link may lead anywhere",
            )
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
        except ValueError as error:
            raise DeployError(f"{path}: tensor {tensor.name!r}: {error}") from error
        if offset < 0 or length != size or offset + length > status.st_size:
            raise DeployError(
                f"{path}: tensor {tensor.name!r} is {size:,} bytes and lies at {offset:,} to"
                f" {offset + length:,} of {location}, which has {status.st_size:,}",
                "the file is damaged or another; export it again",
            )


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yields every tensor of a graph: initializers and attributes, subgraphs' too."""
    todo = [model.graph]
    for function in model.functions:
        todo.append(onnx.GraphProto(node=function.node))
    while todo:
        graph = todo.pop()
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                todo += [attribute.g] if attribute.HasField("g") else []
                todo += attribute.graphs


def _bytes(tensor: onnx.TensorProto, path: Path) -> int:
    """Returns the bytes that a tensor's dimensions and type ask for."""
    bits = _BITS.get(tensor.data_type)
    if bits is None or any(dim < 0 for dim in tensor.dims):
        kind = onnx.TensorProto.DataType.Name(tensor.data_type) if tensor.data_type else "nothing"
        raise DeployError(f"{path}: tensor {tensor.name!r} is {kind}{list(tensor.dims)}")
    return int(math.prod(tensor.dims) * bits + 7) // 8
