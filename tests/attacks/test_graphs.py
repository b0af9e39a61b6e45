"""Hostile ONNX graphs, as `assay inspect` and every other reader takes them."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.errors import DeployError
from exporters import onnx_files
from tests.conftest import Result

Assay = Callable[..., Result]


def tensor(**external: str) -> TensorProto:
    """Returns a tensor of 4 floats that is stored in another file."""
    stored = numpy_helper.from_array(np.ones(4, np.float32), "w")
    if external:
        stored.ClearField("raw_data")
        stored.data_location = TensorProto.EXTERNAL
        for key, value in external.items():
            stored.external_data.add(key=key, value=value)
    return stored


def sparse(**external: str) -> onnx.SparseTensorProto:
    indices = numpy_helper.from_array(np.arange(4), "i")
    return helper.make_sparse_tensor(tensor(**external), indices, [4])


def graph(*nodes: onnx.NodeProto, **parts: object) -> onnx.GraphProto:
    value = helper.make_tensor_value_info
    return helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="relu"), *nodes],
        "g",
        [value("x", TensorProto.FLOAT, ["n", 4])],
        [value("y", TensorProto.FLOAT, ["n", 4])],
        **parts,
    )


def model(*nodes: onnx.NodeProto, **parts: object) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph(*nodes, **parts), opset_imports=opsets, ir_version=9)


def constant(**attribute: object) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], **attribute)


def _in_subgraph(bad: TensorProto) -> onnx.ModelProto:
    return model(helper.make_node("If", ["x"], ["z"], then_branch=graph(initializer=[bad])))


def _in_function(bad: TensorProto) -> onnx.ModelProto:
    hostile = model()
    hostile.functions.add(name="f", domain="d").node.append(constant(value=bad))
    return hostile


def _in_default(bad: TensorProto) -> onnx.ModelProto:
    hostile = model()
    function = hostile.functions.add(name="f", domain="d")
    function.attribute_proto.append(helper.make_attribute("a", bad))
    return hostile


def _in_training(bad: TensorProto) -> onnx.ModelProto:
    hostile = model()
    hostile.training_info.add().algorithm.CopyFrom(graph(initializer=[bad]))
    return hostile


def _with(bad: TensorProto) -> onnx.SparseTensorProto:
    tensor = sparse()
    tensor.values.CopyFrom(bad)
    return tensor


PLACES: dict[str, Callable[[TensorProto], onnx.ModelProto]] = {
    "an initializer": lambda bad: model(initializer=[bad]),
    "a sparse initializer": lambda bad: model(sparse_initializer=[_with(bad)]),
    "an attribute": lambda bad: model(constant(value=bad)),
    "a list of tensors": lambda bad: model(helper.make_node("Mine", [], ["c"], a=[bad, bad])),
    "a sparse attribute": lambda bad: model(constant(sparse_value=_with(bad))),
    "a list of sparse tensors": lambda bad: model(
        helper.make_node("Mine", [], ["c"], a=[_with(bad), _with(bad)])
    ),
    "a subgraph": _in_subgraph,
    "a function": _in_function,
    "the default of a function's attribute": _in_default,
    "a training graph": _in_training,
}
LOCATIONS = {
    "an absolute path": {"location": "/etc/passwd"},
    "a parent": {"location": "../secret"},
    "a folder below": {"location": "below/secret"},
    "a backslash": {"location": "..\\secret"},
    "a NUL": {"location": "data\0/etc/passwd"},
    "a line break": {"location": "data\nx"},
    "nothing": {"location": ""},
    "no location": {"offset": "0"},
    "the folder": {"location": "."},
    "a missing file": {"location": "missing"},
    "a link": {"location": "link"},
    "a hard link": {"location": "hard"},
    "a FIFO": {"location": "fifo"},
    "a socket": {"location": "socket"},
    "a directory": {"location": "below"},
    "a device": {"location": "zero"},
    "a long name": {"location": "x" * 5000},
    "an offset past the end": {"location": "data", "offset": "1000"},
    "a negative offset": {"location": "data", "offset": "-4"},
    "an offset of 2^70": {"location": "data", "offset": str(1 << 70)},
    "an offset of 5,000 digits": {"location": "data", "offset": "9" * 5000},
    "an offset with an underscore": {"location": "data", "offset": "1_0"},
    "an offset with a space": {"location": "data", "offset": " 4"},
    "an offset in other digits": {"location": "data", "offset": "\N{ARABIC-INDIC DIGIT FOUR}"},
    "an offset that is text": {"location": "data", "offset": "start"},
    "another length": {"location": "data", "length": "8"},
    "a negative length": {"location": "data", "length": "-16"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    below = tmp_path / "graph"
    (below / "below").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(bytes(64))
    for name in ("data", "below/secret", "hard"):
        (below / name).write_bytes(bytes(64))
    (below / "hard2").hardlink_to(below / "hard")
    (below / "link").symlink_to("data")
    (below / "zero").symlink_to("/dev/zero")
    os.mkfifo(below / "fifo")
    with socket.socket(socket.AF_UNIX) as opened:
        here = os.open(below, os.O_RDONLY)
        opened.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    return below


@pytest.mark.parametrize("location", LOCATIONS)
def test_external_data_elsewhere_is_refused(folder: Path, location: str, assay: Assay) -> None:
    path = folder / "bad.onnx"
    path.write_bytes(model(initializer=[tensor(**LOCATIONS[location])]).SerializeToString())
    result = assay("inspect", path)
    assert result.code == 1
    assert result.err.startswith(f"error: {path}: ")
    with pytest.raises(DeployError):
        onnx_files.read(path)


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_refused_wherever_it_is(folder: Path, place: str, assay: Assay) -> None:
    path = folder / "bad.onnx"
    path.write_bytes(PLACES[place](tensor(location="../secret")).SerializeToString())
    result = assay("inspect", path)
    assert result.code == 1
    assert "outside the graph's folder" in result.err


def test_external_data_given_twice_is_refused(folder: Path) -> None:
    bad = tensor(location="data")
    bad.external_data.add(key="location", value="../secret")
    (folder / "bad.onnx").write_bytes(model(initializer=[bad]).SerializeToString())
    with pytest.raises(DeployError, match="twice"):
        onnx_files.read(folder / "bad.onnx")


@pytest.mark.parametrize("word", ["relu", "Relu", "x", "y", "g", "n", "producer", "key", "value"])
def test_a_text_that_is_not_utf8_is_refused(tmp_path: Path, word: str, assay: Assay) -> None:
    hostile = model()
    hostile.producer_name = "producer"
    hostile.metadata_props.add(key="key", value="value")
    hostile.doc_string = "doc"
    path = tmp_path / "bad.onnx"
    raw = word.encode()
    content = hostile.SerializeToString().replace(
        bytes([len(raw)]) + raw, bytes([len(raw)]) + b"\xff" + raw[1:]
    )
    path.write_bytes(content)
    result = assay("inspect", path)
    assert result.code == 1
    assert "is not UTF-8" in result.err


def _dims(*dims: int) -> TensorProto:
    bad = tensor()
    bad.dims[:] = dims
    return bad


def _typed(kind: int) -> TensorProto:
    bad = tensor()
    bad.data_type = kind
    return bad


BROKEN: dict[str, Callable[[], onnx.ModelProto]] = {
    "a negative dimension": lambda: model(initializer=[_dims(-4)]),
    "dimensions of 2^62": lambda: model(initializer=[_dims(1 << 62, 1 << 62)]),
    "no type": lambda: model(initializer=[_typed(0)]),
    "an unknown type": lambda: model(initializer=[_typed(9999)]),
    "a negative type": lambda: model(initializer=[_typed(-1)]),
    "another type": lambda: model(initializer=[_typed(TensorProto.DOUBLE)]),
    "no nodes": onnx.ModelProto,
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_tensor_that_is_not_valid_is_refused(tmp_path: Path, case: str, assay: Assay) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(BROKEN[case]().SerializeToString())
    result = assay("inspect", path)
    assert result.code == 1
    assert str(path) in result.err


@pytest.mark.parametrize("content", [b"", b"\0", b"\xff" * 100, b"\x3a" * 5000, b"text\n" * 50])
def test_a_file_of_anything_else_is_refused(tmp_path: Path, content: bytes, assay: Assay) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    result = assay("inspect", path)
    assert result.code == 1
    assert "is not an ONNX graph" in result.err


def _length(size: int) -> bytes:
    """Returns a length as protobuf writes it."""
    low, rest = size & 127, size >> 7
    return bytes([low | 128]) + _length(rest) if rest else bytes([low])


def test_a_graph_within_graphs_without_end_is_refused(tmp_path: Path, assay: Assay) -> None:
    inner = graph()
    for _ in range(30):  # three messages each, of 100 that protobuf allows
        inner = graph(helper.make_node("If", ["x"], ["z"], then_branch=inner))
    hostile = model()
    hostile.graph.CopyFrom(inner)
    content = hostile.SerializeToString()
    for _ in range(100):
        content = b"\x3a" + _length(len(content)) + content
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    assert assay("inspect", path).code == 1
