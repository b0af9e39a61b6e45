"""The engines on a real GPU: the numbers of the CPU, whatever the shapes and the launches."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import engines
from engines import hardware, runtime_probe
from engines.contract import BuildOptions, OpenOptions, Session
from engines.cuda import Cuda
from engines.errors import DeployError
from pipeline.golden import file as goldens
from pipeline.workflow.runner import Store

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not hardware.gpus(), reason=hardware.no_gpu()),
]

NAMES = [
    name
    for name in engines.names()
    if "cuda" in engines.get(name).devices and engines.get(name).available().run
]


@pytest.fixture(scope="module")
def images(exported: Store) -> np.ndarray:
    return goldens.load(exported.root / "lenet/fp32/golden.npz").inputs["image"]


@pytest.fixture(scope="module")
def expected(exported: Store, images: np.ndarray) -> np.ndarray:
    """The logits on the CPU."""
    engine = engines.get("onnxruntime")
    with closing(engine.open(exported.root / "lenet/fp32/model.onnx", OpenOptions())) as session:
        return session.run({"image": images})["logits"]


@pytest.fixture(scope="module", params=NAMES)
def engine_file(
    request: pytest.FixtureRequest, exported: Store, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """An engine's name, and LeNet built for it here."""
    engine = engines.get(request.param)
    target = tmp_path_factory.mktemp(request.param) / "engine"
    source = "model.pt2" if engine.source == "program" else "model.onnx"
    engine.build(exported.root / "lenet/fp32" / source, target, BuildOptions())
    return request.param, target


@pytest.fixture(params=[False, True], ids=["launches", "graph"])
def session(request: pytest.FixtureRequest, engine_file: tuple[str, Path]) -> Iterator[Session]:
    name, path = engine_file
    if request.param and not engines.get(name).cuda_graphs:
        pytest.skip(f"{name} has no CUDA graphs")
    options = OpenOptions(device="cuda:0", cuda_graph=request.param)
    with closing(engines.get(name).open(path, options)) as opened:
        yield opened


def test_the_outputs_are_those_of_the_cpu(
    session: Session, images: np.ndarray, expected: np.ndarray
) -> None:
    for size in (1, 7, 32, 7, 1, 32):  # shapes come back, so that kept graphs are replayed
        outputs = session.run({"image": images[:size]})["logits"]
        np.testing.assert_allclose(outputs, expected[:size], atol=1e-4)


def test_other_rows_of_the_same_shape_give_other_outputs(
    session: Session, images: np.ndarray, expected: np.ndarray
) -> None:
    session.run({"image": images[:8]})
    outputs = session.run({"image": images[8:16]})["logits"]
    np.testing.assert_allclose(outputs, expected[8:16], atol=1e-4)


def test_launches_are_enqueued_on_the_sessions_stream(session: Session, images: np.ndarray) -> None:
    assert session.stream is not None
    session.bind({"image": images[:8]})
    for _ in range(3):
        session.launch()
    session.synchronize()
    times = Cuda(session.device).timed(session.stream, 20, session.launch)
    # An empty pair of events is 1 to 3 microseconds apart: the work lies between them.
    assert 5e-6 < float(np.median(times)) < 1e-1


def test_outputs_belong_to_the_caller(session: Session, images: np.ndarray) -> None:
    first = session.run({"image": images[:4]})["logits"]
    before = first.copy()
    session.run({"image": images[4:8]})
    assert np.array_equal(first, before)


def test_read_only_and_strided_inputs_are_taken(
    session: Session, images: np.ndarray, expected: np.ndarray
) -> None:
    rows = images[:8][::-1]
    rows.flags.writeable = False
    outputs = session.run({"image": rows})["logits"]
    np.testing.assert_allclose(outputs, expected[:8][::-1], atol=1e-4)


def test_using_a_closed_session_is_an_error(
    engine_file: tuple[str, Path], images: np.ndarray
) -> None:
    name, path = engine_file
    session = engines.get(name).open(path, OpenOptions(device="cuda:0"))
    session.run({"image": images[:2]})
    session.close()
    session.close()
    with pytest.raises(DeployError, match="closed"):
        session.run({"image": images[:2]})


def test_a_device_that_is_not_here_is_refused(engine_file: tuple[str, Path]) -> None:
    from engines.checks import choose_device

    name, _ = engine_file
    with pytest.raises(DeployError, match="CUDA opens"):
        choose_device(engines.get(name), f"cuda:{len(hardware.gpus())}")


@pytest.mark.skipif("onnxruntime_cuda" not in NAMES, reason="onnxruntime_cuda does not run here")
@pytest.mark.parametrize("prefer_nhwc", [False, True])
def test_the_layout_reaches_the_session(
    exported: Store, tmp_path: Path, images: np.ndarray, expected: np.ndarray, prefer_nhwc: bool
) -> None:
    engine, path = engines.get("onnxruntime_cuda"), tmp_path / "engine.onnx"
    graph = exported.root / "lenet/fp32/model.onnx"
    engine.build(graph, path, BuildOptions(prefer_nhwc=prefer_nhwc))
    with closing(engine.open(path, OpenOptions(device="cuda:0"))) as session:
        options = session._session.get_provider_options()["CUDAExecutionProvider"]
        assert options["prefer_nhwc"] == str(int(prefer_nhwc))
        outputs = session.run({"image": images[:8]})["logits"]
    np.testing.assert_allclose(outputs, expected[:8], atol=1e-4)


@pytest.mark.parametrize("module", runtime_probe.RUNTIMES)
def test_the_probe_of_the_runtimes_opens_the_gpu(module: str) -> None:
    # If the probe failed on a working GPU, NAMES above would be empty and nothing would be tested.
    assert hardware.runtime_problem(0, module) == ""
