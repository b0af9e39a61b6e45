"""The contract of engines and sessions, tested on every engine."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest

import engines
from engines import backends
from engines.checks import choose_device
from engines.contract import BuildOptions, Engine, OpenOptions, Session
from engines.errors import DeployError, UsageError
from pipeline.golden import file as goldens
from pipeline.workflow.artifacts import ENGINE
from pipeline.workflow.runner import Store
from tests.conftest import Result

RUNNABLE = [name for name in engines.names() if engines.get(name).available().run]
BUILDABLE = [name for name in engines.names() if engines.get(name).available().build]


def sources(store: Store, engine: Engine) -> Path:
    name = "model.pt2" if engine.source == "program" else "model.onnx"
    return store.root / "lenet/fp32" / name


@pytest.fixture(params=RUNNABLE)
def session(request: pytest.FixtureRequest, built: Store) -> Iterator[Session]:
    engine = engines.get(request.param)
    path = built.root / ENGINE.at(model="lenet", precision="fp32", engine=request.param).path
    opened = engine.open(path, OpenOptions(device=choose_device(engine, "auto"), threads=2))
    yield opened
    opened.close()


@pytest.fixture
def images(built: Store) -> np.ndarray:
    return goldens.load(built.root / "lenet/fp32/golden.npz").inputs["image"]


def test_the_engines_of_the_design_are_found() -> None:
    assert {"onnxruntime", "pytorch", "tensorrt", "tensorrt_rtx"} <= set(engines.names())
    assert {"onnxruntime", "pytorch"} <= set(RUNNABLE)


@pytest.mark.parametrize("name", engines.names())
def test_an_engine_fulfils_the_contract(name: str) -> None:
    engine = engines.get(name)
    assert isinstance(engine, Engine)
    assert engine.name == name
    state = engine.available()
    assert state.reason
    assert state.build or state.install.startswith("pip install") or state.reason
    assert all(isinstance(value, str) for value in engine.fingerprint().values())
    assert engine.build_options <= {field.name for field in dataclasses.fields(BuildOptions)}
    assert engine.cuda_graphs <= ("cuda" in engine.devices)
    assert engine.unsupported("12.0") == ""
    assert engine.incompatibility(engine.fingerprint(), {}) == ""


def test_an_engine_has_defaults() -> None:
    engine = engines.get("openvino")
    assert not engine.cuda_graphs
    assert engine.build_options == frozenset()
    assert engine.incompatibility({"openvino": "1.0"}, {}) == ""
    assert "9.0" in engines.get("tensorrt_rtx").unsupported("9.0")


def test_every_batch_gives_the_same_rows(session: Session, images: np.ndarray) -> None:
    (spec,) = session.outputs
    whole = session.run({"image": images[:64]})[spec.name]
    assert (whole.shape, whole.dtype) == ((64, 10), np.float32)
    for size in (1, 2, 7, 64):
        rows = session.run({"image": np.ascontiguousarray(images[:size])})[spec.name]
        assert np.allclose(rows, whole[:size], atol=1e-4)


@pytest.mark.parametrize("name", RUNNABLE)
def test_sessions_of_several_threads_do_not_disturb_each_other(
    name: str, built: Store, images: np.ndarray
) -> None:
    engine = engines.get(name)
    path = built.root / ENGINE.at(model="lenet", precision="fp32", engine=name).path
    options = OpenOptions(device=choose_device(engine, "auto"))
    sizes = (1, 3, 8, 16)

    def work(size: int) -> list[np.ndarray]:
        with closing(engine.open(path, options)) as session:
            feeds = {"image": np.ascontiguousarray(images[size : 2 * size])}
            return [session.run(feeds)["logits"] for _ in range(20)]

    with closing(engine.open(path, options)) as session:
        wanted = session.run({"image": images[:32]})["logits"]
    with ThreadPoolExecutor(len(sizes)) as pool:
        for size, outputs in zip(sizes, pool.map(work, sizes), strict=True):
            for rows in outputs:
                assert np.allclose(rows, wanted[size : 2 * size], atol=1e-4)


def test_the_batch_beyond_the_largest_is_refused(session: Session, images: np.ndarray) -> None:
    if session.batch is None:
        assert session.run({"image": np.tile(images, (4, 1, 1, 1))})
        return
    beyond = np.resize(images, (session.batch[1] + 1, *images.shape[1:]))
    with pytest.raises(DeployError, match="outside the engine's range"):
        session.run({"image": beyond})


def test_nan_input_gives_nan_output(tmp_path: Path) -> None:
    """NaN in an input must not become a finite output that looks valid."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["y"])],
        "g",
        [value("x", onnx.TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [value("y", onnx.TensorProto.FLOAT, ["batch", 1, 2, 2])],
        [onnx.numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "w")],
    )
    path = tmp_path / "conv.onnx"
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    images = np.ones((2, 1, 4, 4), np.float32)
    images[1, 0, 0, 0] = np.nan
    for name in RUNNABLE:
        engine = engines.get(name)
        if engine.source != "graph":
            continue
        engine.build(path, tmp_path / name, BuildOptions())
        options = OpenOptions(device=choose_device(engine, "auto"))
        with closing(engine.open(tmp_path / name, options)) as session:
            outputs = session.run({"x": images})["y"]
        assert np.isnan(outputs[1, 0, 0, 0]), name
        assert np.isfinite(outputs[0]).all(), name


def test_bound_inputs_stay_for_many_launches(session: Session, images: np.ndarray) -> None:
    session.bind({"image": images[:8]})
    for _ in range(3):
        session.launch()
    session.synchronize()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: {"picture": a}, r"inputs \['picture'\] given"),
        (lambda _: {}, "inputs"),
        (lambda a: {"image": a, "more": a}, "inputs"),
        (lambda a: {"image": a.astype(np.float32)}, "dtype float32, expected uint8"),
        (lambda a: {"image": a[0]}, "has shape"),
        (lambda a: {"image": a.tolist()}, "not a numpy array"),
        (lambda a: {"image": a[:, :, :27]}, "has shape"),
        (lambda a: {"image": a[:0]}, "empty batch"),
    ],
)
def test_wrong_inputs_are_refused_with_the_same_messages(
    session: Session, images: np.ndarray, change: Callable[..., dict], words: str
) -> None:
    for call in (session.run, session.bind):
        with pytest.raises(DeployError, match=words):
            call(change(images[:4]))
    assert session.run({"image": images[:4]})  # and it still works


def test_launching_needs_bound_inputs(session: Session) -> None:
    with pytest.raises(DeployError, match=r"launch\(\) before bind\(\)"):
        session.launch()


def test_using_a_closed_session_is_an_error(session: Session, images: np.ndarray) -> None:
    session.close()
    session.close()
    for call in (session.run, session.bind):
        with pytest.raises(DeployError, match="session is closed"):
            call({"image": images[:1]})
    with pytest.raises(DeployError, match="session is closed"):
        session.launch()


def made(tmp_path: Path) -> Path:
    """Writes a graph with two inputs: y = x + 2 z, `[batch, 40000]`."""
    value, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    make = onnx.helper.make_node
    nodes = [make("Mul", ["z", "two"], ["twice"]), make("Add", ["x", "twice"], ["y"])]
    inputs = [value(name, kind, ["batch", 40_000]) for name in "xz"]
    two = onnx.numpy_helper.from_array(np.float32(2), "two")
    outputs = [value("y", kind, ["batch", 40_000])]
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, [two])
    path = tmp_path / "two.onnx"
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.mark.parametrize("name", [n for n in RUNNABLE if engines.get(n).source == "graph"])
def test_inputs_of_any_memory_layout_are_read_correctly(name: str, tmp_path: Path) -> None:
    engine = engines.get(name)
    engine.build(made(tmp_path), tmp_path / "engine", BuildOptions())
    options = OpenOptions(device=choose_device(engine, "auto"))
    x = np.random.default_rng(0).random((8, 80_000), np.float32)
    z = np.ones((8, 40_000), np.float32)
    with closing(engine.open(tmp_path / "engine", options)) as session:
        for _ in range(5):
            # Nothing else holds these arrays: the session has to keep them alive.
            outputs = session.run({"x": x[::-1, ::2], "z": z})["y"]
            np.testing.assert_allclose(outputs, x[::-1, ::2] + 2, rtol=1e-6)
        with pytest.raises(DeployError, match="batches of different sizes: x 8, z 3"):
            session.run({"x": x[:, ::2], "z": z[:3]})
        with pytest.raises(DeployError, match="float32 in the byte order of another machine"):
            session.run({"x": x[:, ::2], "z": z.astype(">f4")})


def test_inputs_with_negative_strides_are_accepted(session: Session, images: np.ndarray) -> None:
    (spec,) = session.outputs
    wanted = session.run({"image": images[:4]})[spec.name][::-1]
    assert np.allclose(session.run({"image": images[3::-1]})[spec.name], wanted, atol=1e-4)


def test_read_only_inputs_are_accepted(session: Session, images: np.ndarray) -> None:
    frozen = images[:4].copy()
    frozen.flags.writeable = False
    assert session.run({"image": frozen})


@pytest.mark.parametrize("name", RUNNABLE)
def test_opening_a_file_that_is_not_an_engine_is_an_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / "engine"
    engine = engines.get(name)
    for content in (b"", b"nonsense", b"\0" * 1000):
        path.write_bytes(content)
        with pytest.raises(DeployError, match=r"does not accept|is not opened"):
            engine.open(path, OpenOptions(device=choose_device(engine, "auto")))


@pytest.mark.parametrize("name", BUILDABLE)
def test_building_from_an_invalid_source_is_an_error(name: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"nonsense")
    with pytest.raises(DeployError):
        engines.get(name).build(source, tmp_path / "engine", BuildOptions())


@pytest.mark.parametrize(
    ("sizes", "words"), [((0, 1, 2), "rising order"), ((4, 2, 8), "rising"), ((1, 9, 8), "rising")]
)
def test_batch_sizes_out_of_order_are_wrong_usage(sizes: tuple[int, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        BuildOptions(*sizes)


def test_an_unknown_engine_gets_the_nearest_suggested() -> None:
    with pytest.raises(UsageError) as caught:
        engines.get("onnxruntme")
    assert "did you mean 'onnxruntime'?" in caught.value.hint


DUMMY = '''"""The graph again, as another engine."""

import dataclasses

from engines.backends import onnxruntime

ENGINE = dataclasses.replace(onnxruntime.ENGINE, name="dummy")
'''


@pytest.fixture
def dummy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "more_engines"
    folder.mkdir()
    (folder / "dummy.py").write_text(DUMMY)
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(folder)])
    monkeypatch.delitem(__import__("sys").modules, "engines.backends.dummy", raising=False)


@pytest.mark.slow(2)
@pytest.mark.usefixtures("dummy")
@pytest.mark.usefixtures("in_process")
def test_a_new_backend_file_is_a_new_engine_everywhere(
    store: Store, assay: Callable[..., Result]
) -> None:
    where = ("--root", store.root, "--dist", store.dist)
    assert "dummy" in json.loads(assay("doctor", "--json").out)["engines"]
    assert assay("build", "lenet", *where, "--engine", "dummy").code == 0
    assert assay("verify", "lenet", *where, "--engine", "dummy").code == 0
    bench = assay("bench", "lenet", *where, "--batch", "1", "--budget", "0.1", "--json")
    results = json.loads(bench.out)["outcomes"][0]["results"]["measurements"]["results"]
    assert {entry["name"] for entry in results} == {"dummy", *RUNNABLE}
    assert assay("bundle", "lenet", *where).code == 0
    assert "dummy" in assay("check", "--trust", store.dist / "lenet-fp32.tar.zst").out
