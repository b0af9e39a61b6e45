"""Graphs as files: external data, and what must be refused before it is loaded."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.errors import DeployError
from exporters import onnx_files
from exporters.onnx_graph import check_graph
from exporters.onnx_nodes import spec_of
from tests.conftest import Result


def model(size: int = 4096) -> onnx.ModelProto:
    weight = np.random.default_rng(0).normal(size=(4, size)).astype(np.float32)
    bias = np.arange(size, dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weight"], ["y"]),
            helper.make_node("Add", ["y", "bias"], ["z"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", size])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A graph whose tensors are in a file beside it."""
    path = tmp_path / "graph" / "model.onnx"
    path.parent.mkdir()
    onnx_files.write(model(), path, limit=1000)
    assert (path.parent / "model.onnx.data").stat().st_size > 4096 * 16
    return path


def test_a_small_graph_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx_files.write(model(), path)
    assert [item.name for item in tmp_path.iterdir()] == ["model.onnx"]
    assert onnx_files.read(path) == model()


def test_external_data_round_trips(graph: Path) -> None:
    loaded = onnx_files.read(graph)
    for before, after in zip(model().graph.initializer, loaded.graph.initializer, strict=True):
        assert np.array_equal(numpy_helper.to_array(before), numpy_helper.to_array(after))
    onnx.checker.check_model(graph, full_check=True)


def test_onnx_runtime_reads_external_data(graph: Path) -> None:
    import onnxruntime

    x = np.ones((3, 4), np.float32)
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    weight, bias = (numpy_helper.to_array(t) for t in model().graph.initializer)
    assert np.allclose(session.run(None, {"x": x})[0], x @ weight + bias, atol=1e-5)


def test_tensors_that_hold_shapes_stay_in_the_graph(tmp_path: Path) -> None:
    import onnxruntime

    sizes = np.full(260, 2)
    names = [f"y{index}" for index in range(len(sizes))]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Split", ["x", "sizes"], names, axis=1)],
        "graph",
        [value("x", TensorProto.FLOAT, ["batch", 520])],
        [value(name, TensorProto.FLOAT, ["batch", 2]) for name in names],
        [numpy_helper.from_array(sizes, "sizes")],
    )
    imports = [helper.make_opsetid("", 20)]
    path = tmp_path / "model.onnx"
    onnx_files.write(helper.make_model(graph, opset_imports=imports, ir_version=10), path, limit=0)
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = np.arange(520, dtype=np.float32).reshape(1, 520)
    assert np.array_equal(session.run(None, {"x": x})[-1], [[518, 519]])


def test_the_same_graph_gives_the_same_bytes(graph: Path, tmp_path: Path) -> None:
    again = tmp_path / "elsewhere" / "model.onnx"
    again.parent.mkdir()
    onnx_files.write(model(), again, limit=1000)
    for name in ("model.onnx", "model.onnx.data"):
        assert (again.parent / name).read_bytes() == (graph.parent / name).read_bytes()


def test_a_graph_too_large_for_one_message_is_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnx_files, "LIMIT", 1000)
    monkeypatch.setattr(onnx_files.write, "__defaults__", (1000,))
    loaded = model()
    specs = [tuple(spec_of(v) for v in side) for side in (loaded.graph.input, loaded.graph.output)]
    check_graph(loaded, *specs)
    loaded.graph.node[0].op_type = "MatMull"
    with pytest.raises(DeployError, match="not valid ONNX"):
        check_graph(loaded, *specs)


def location(text: str) -> Callable[[onnx.TensorProto, Path], None]:
    def change(tensor: onnx.TensorProto, _folder: Path) -> None:
        (entry,) = (item for item in tensor.external_data if item.key == "location")
        entry.value = text.format(folder=_folder)

    return change


def entry(name: str, value: int) -> Callable[[onnx.TensorProto, Path], None]:
    def change(tensor: onnx.TensorProto, _folder: Path) -> None:
        (loaded,) = (item for item in tensor.external_data if item.key == name)
        loaded.value = str(value)

    return change


def dims(*sizes: int) -> Callable[[onnx.TensorProto, Path], None]:
    def change(tensor: onnx.TensorProto, _folder: Path) -> None:
        del tensor.dims[:]
        tensor.dims.extend(sizes)

    return change


def link(kind: Callable[[Path, Path], None]) -> Callable[[onnx.TensorProto, Path], None]:
    def change(_tensor: onnx.TensorProto, folder: Path) -> None:
        data, moved = folder / "model.onnx.data", folder / "moved"
        data.rename(moved)
        kind(moved, data)

    return change


def removed(_tensor: onnx.TensorProto, folder: Path) -> None:
    (folder / "model.onnx.data").unlink()


def as_folder(_tensor: onnx.TensorProto, folder: Path) -> None:
    (folder / "model.onnx.data").unlink()
    (folder / "model.onnx.data").mkdir()


def shortened(_tensor: onnx.TensorProto, folder: Path) -> None:
    data = folder / "model.onnx.data"
    os.truncate(data, data.stat().st_size - 1)


REFUSED = [
    (location("{folder}/model.onnx.data"), "outside the graph's folder"),
    (location("../graph/model.onnx.data"), "outside the graph's folder"),
    (location("sub/model.onnx.data"), "outside the graph's folder"),
    (location(".."), "outside the graph's folder"),
    (location(""), "outside the graph's folder"),
    (location("..\\model.onnx.data"), "outside the graph's folder"),
    (link(os.symlink), "a link"),
    (link(os.link), "a link"),
    (removed, "is missing"),
    (as_folder, "not a regular file"),
    (shortened, "which has"),
    (entry("offset", 2**50), "which has"),
    (entry("offset", -4096), "which has"),
    (entry("length", 8), "which has"),
    (dims(2**40, 2**20), "which has"),
    (dims(-1, 4096), r"\[-1, 4096\]"),
    (dims(2**62, 4, 4), "which has"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
@pytest.mark.parametrize("tool", ["read", "inspect", "verify"])
def test_unsafe_or_damaged_external_data_is_refused(
    graph: Path,
    change: Callable[[onnx.TensorProto, Path], None],
    message: str,
    tool: str,
    assay: Callable[..., Result],
) -> None:
    altered = onnx.load(graph, load_external_data=False)
    change(altered.graph.initializer[-1], graph.parent)
    graph.write_bytes(altered.SerializeToString())
    if tool == "read":
        with pytest.raises(DeployError, match=message):
            onnx_files.read(graph)
        return
    words = ["inspect", graph] if tool == "inspect" else ["verify", "edge", "--file", graph]
    if tool == "verify":
        words += ["--golden", graph]
    result = assay(*words)
    assert result.code == 1
    assert "error: " in result.err
    assert "bug" not in result.err
    if tool == "inspect":
        assert message.strip("\\[]-1, 4096") in result.err


def test_an_embedded_tensor_of_the_wrong_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for change in (dims(2**40), dims(3), dims(2**20, 2**20, 2**20)):
        altered = model()
        change(altered.graph.initializer[0], tmp_path)
        path.write_bytes(altered.SerializeToString())
        with pytest.raises(DeployError, match="should have"):
            onnx_files.read(path)


def test_a_tensor_in_a_nodes_attribute_is_checked_too(tmp_path: Path) -> None:
    altered = model()
    constant = helper.make_node(
        "Constant", [], ["c"], value=TensorProto(data_type=TensorProto.FLOAT, dims=[1], name="far")
    )
    tensor = constant.attribute[0].t
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    altered.graph.node.insert(0, constant)
    path = tmp_path / "model.onnx"
    path.write_bytes(altered.SerializeToString())
    with pytest.raises(DeployError, match="/etc/passwd"):
        onnx_files.read(path)


def test_a_graph_truncated_anywhere_is_an_error(
    tmp_path: Path, assay: Callable[..., Result]
) -> None:
    content = model(16).SerializeToString()
    path = tmp_path / "model.onnx"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        result = assay("inspect", path)
        assert result.code == 1, length
        assert "bug" not in result.err
    path.write_bytes(content)
    assert assay("inspect", path).code == 0
