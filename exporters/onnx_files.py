"""Writes graphs as canonical bytes, and reads them once all external references are checked."""

from __future__ import annotations

import math
import re
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
        _check_text(model)
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


def _check_text(message: Message) -> None:
    """Raises ValueError if a text in a message is not UTF-8: protobuf returns bytes for it."""
    if isinstance(message, onnx.TensorProto):
        # Not its numbers, which would be copied.
        fields = [("name", message.name), ("doc_string", message.doc_string)]
        for part in (*message.external_data, *message.metadata_props):
            _check_text(part)
    else:
        fields = []
        for field, value in message.ListFields():
            if field.type == field.TYPE_MESSAGE:
                for part in value if field.is_repeated else (value,):
                    _check_text(part)
            elif field.type == field.TYPE_STRING:
                fields += [
                    (field.name, text) for text in (value if field.is_repeated else (value,))
                ]
    for name, text in fields:
        if not isinstance(text, str):
            raise ValueError(f"{name} {text[:40]!r} is not UTF-8")


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
        if len(entries) != len(tensor.external_data):
            raise DeployError(
                f"{path}: tensor {tensor.name!r} names its external data twice", "export it again"
            )
        location = entries.get("location", "")
        plain = location == Path(location).name and location not in ("", ".", "..")
        if not plain or "\\" in location or not location.isprintable():
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
        numbers = [entries.get(key, default) for key, default in _default_place(size)]
        if not all(re.fullmatch("-?[0-9]{1,19}", number) for number in numbers):
            raise DeployError(
                f"{path}: tensor {tensor.name!r} is stored at {numbers}, which are not an offset"
                " and a length",
                "the file is damaged; export it again",
            )
        offset, length = map(int, numbers)
        if offset < 0 or length != size or offset + length > status.st_size:
            raise DeployError(
                f"{path}: tensor {tensor.name!r} takes {size:,} bytes, but is stored in bytes"
                f" {offset:,} to {offset + length:,} of {location}, which has {status.st_size:,}",
                "the data file is damaged or belongs to another graph; export it again",
            )


def _default_place(size: int) -> tuple[tuple[str, str], ...]:
    return (("offset", "0"), ("length", str(size)))


def external_locations(path: Path) -> list[str]:
    """Returns the files beside a graph that hold its tensors.

    Raises:
        DeployError: As `read`.
    """
    model = read(path, data=False)
    stored = {
        entry.value
        for tensor in tensors(model)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sorted(stored)


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yields every tensor of a model, wherever it is: initializers, attributes, sparse parts."""
    todo = [model.graph]
    for training in model.training_info:
        todo += [training.initialization, training.algorithm]
    attributes = []
    for function in model.functions:
        attributes += function.attribute_proto
        attributes += [attribute for node in function.node for attribute in node.attribute]
    while todo or attributes:
        while attributes:
            attribute = attributes.pop()
            yield from [attribute.t] if attribute.HasField("t") else []
            yield from attribute.tensors
            sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            for part in (*sparse, *attribute.sparse_tensors):
                yield from (part.values, part.indices)
            todo += [attribute.g] if attribute.HasField("g") else []
            todo += attribute.graphs
        if todo:
            graph = todo.pop()
            yield from graph.initializer
            for part in graph.sparse_initializer:
                yield from (part.values, part.indices)
            attributes += [attribute for node in graph.node for attribute in node.attribute]


def _bytes(tensor: onnx.TensorProto, path: Path) -> int:
    """Returns the size in bytes of a tensor with these dimensions and dtype."""
    bits = _BITS.get(tensor.data_type)
    if bits is None or any(dim < 0 for dim in tensor.dims):
        kinds = {number: name for name, number in onnx.TensorProto.DataType.items()}
        kind = (
            kinds.get(tensor.data_type, str(tensor.data_type)) if tensor.data_type else "no dtype"
        )
        raise DeployError(
            f"{path}: tensor {tensor.name!r} has an invalid dtype or shape:"
            f" {kind}{list(tensor.dims)}",
            "the file is damaged; export it again",
        )
    return int(math.prod(tensor.dims) * bits + 7) // 8
