"""Writes graphs as canonical bytes, and reads them once all external references are checked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import Message

from engines.errors import DeployError

# The largest message of protobuf, less some room for everything but tensors.
LIMIT = 2**31 - 2**24
# Tensors of fewer bytes stay in the graph, and so do int64 tensors: they may be shapes, sizes or
# axes, which neither shape inference nor ONNX Runtime reads from another file.
_THRESHOLD = 1024
# The fields that may hold a tensor's numbers instead of `raw_data`.
_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_SUB_BYTE_BITS = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}
_BITS = {
    kind: _SUB_BYTE_BITS.get(name) or onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize * 8
    for name, kind in onnx.TensorProto.DataType.items()
    if name not in ("UNDEFINED", "STRING")
}
_ALIGNMENT = 4096  # a page, so that backends can memory-map the tensors


def data_name(graph: Path) -> str:
    """Returns the name of the external data file of a graph."""
    return f"{graph.name}.data"


def write(model: onnx.ModelProto, path: Path, limit: int = LIMIT) -> None:
    """Writes a graph; the same graph gives the same bytes.

    The large tensors of a graph that does not fit in one protobuf message go into an external
    data file in the same folder.

    Args:
        limit: The largest size of a graph, in bytes, that is written as one file.
    """
    if size(model) <= limit:
        path.write_bytes(model.SerializeToString(deterministic=True))
        return
    # Copied without the tensors: a full copy of a large graph may not fit in memory.
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
    """Returns the size of a graph in bytes, or of its tensors alone if they exceed LIMIT."""
    held = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    # Protobuf returns a wrong size for a message beyond its limit.
    return held if held > LIMIT else model.ByteSize()


def read(path: Path, *, data: bool = True) -> onnx.ModelProto:
    """Reads a graph and its external data.

    Args:
        data: False checks external data without loading it.

    Raises:
        DeployError: The file is not an ONNX graph, or `check_external` rejects its tensors.
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
    """Checks the sizes and external references of all tensors, before external data is read.

    Raises:
        DeployError: External data is missing, outside the graph's folder, a link, or too short;
            or a tensor's size does not match its dimensions and dtype.
    """
    folder = path.parent
    for tensor in tensors(model):
        if tensor.data_type == onnx.TensorProto.STRING:
            continue  # never external, and of no fixed size
        size = _bytes(tensor, path)
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            held = len(tensor.raw_data)
            if held != size and (held or not any(len(getattr(tensor, f)) for f in _FIELDS)):
                raise DeployError(
                    f"{path}: tensor {tensor.name!r} should have {size:,} bytes, but has {held:,}",
                    "the file is damaged; export it again",
                )
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        plain = location == Path(location).name and location not in ("", ".", "..")
        if not plain or "\\" in location:
            raise DeployError(
                f"{path}: tensor {tensor.name!r} is in {location!r}, outside the graph's folder",
                "external data must be a file in the graph's folder, referenced by its plain name",
            )
        file = folder / location
        try:
            status = file.lstat()
        except OSError as error:
            raise DeployError(
                f"{path}: external data {location} is missing", "copy it to the graph's folder"
            ) from error
        if not file.is_file() or file.is_symlink() or status.st_nlink != 1:
            raise DeployError(
                f"{path}: external data {location} is a link or not a regular file",
                "copy the file to the graph's folder; links are not followed",
            )
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
        except ValueError as error:
            raise DeployError(f"{path}: tensor {tensor.name!r}: {error}") from error
        if offset < 0 or length != size or offset + length > status.st_size:
            raise DeployError(
                f"{path}: tensor {tensor.name!r} takes {size:,} bytes, but is stored in bytes"
                f" {offset:,} to {offset + length:,} of {location}, which has {status.st_size:,}",
                "the data file is damaged or belongs to another graph; export it again",
            )


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yields every tensor of a graph, its subgraphs and functions: initializers and attributes."""
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
    """Returns the size in bytes of a tensor with these dimensions and dtype."""
    bits = _BITS.get(tensor.data_type)
    if bits is None or any(dim < 0 for dim in tensor.dims):
        kind = onnx.TensorProto.DataType.Name(tensor.data_type) if tensor.data_type else "no dtype"
        raise DeployError(
            f"{path}: tensor {tensor.name!r} has an invalid dtype or shape:"
            f" {kind}{list(tensor.dims)}",
            "the file is damaged; export it again",
        )
    return int(math.prod(tensor.dims) * bits + 7) // 8
