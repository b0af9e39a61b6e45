"""`assay watch` on a real Triton whose model changes. `make triton-test` runs it."""

import json
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pipeline.serving.client import Client, Server
from pipeline.workflow.runner import Store
from tests import servers
from tests.bundles import bundle_of
from tests.conftest import Result

pytestmark = [pytest.mark.triton, pytest.mark.timeout(300)]
NAME = "lenet_fp32_onnxruntime"
# 20 requests of a window, as by default, but faster one after the other.
WORDS = ("--model-name", NAME, "--rate", "100", "--stop", "--duration", "60", "--json")


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the seconds by which the server's inference takes longer."""
    monkeypatch.setenv("ASSAY_TEST_SLOW", str(tmp_path / "slow"))
    return tmp_path / "slow"


@pytest.fixture
def server(repository: Path, tmp_path: Path, slow: Path) -> Iterator[servers.Running]:
    """A Triton server that loads what is new in its repository, in `tmp_path / "served"`."""
    shutil.copytree(repository / NAME, tmp_path / "served" / NAME)
    (slow.parent / "server").mkdir()
    polling = ("--model-control-mode=poll", "--repository-poll-secs=1")
    with servers.triton(tmp_path / "served", slow.parent / "server", *polling) as running:
        yield running


def weights(graph: onnx.ModelProto) -> None:
    """Changes one weight tensor by a thousandth."""
    largest = max(graph.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    array = numpy_helper.to_array(largest) * np.float32(1.001)
    largest.CopyFrom(numpy_helper.from_array(array, largest.name))


def preprocessing(graph: onnx.ModelProto) -> None:
    """Divides pixels by 256 instead of 255."""
    for tensor in graph.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.size == 1 and float(array.ravel()[0]) in (255.0, np.float32(1 / 255)):
            scale = np.float32(256 / 255 if array.ravel()[0] > 1 else 255 / 256)
            tensor.CopyFrom(numpy_helper.from_array(array * scale, tensor.name))
            return
    raise AssertionError("the graph has no preprocessing")


@pytest.mark.parametrize("change", [weights, preprocessing])
def test_a_model_that_is_replaced_is_found_and_named(
    server: servers.Running,
    built: Store,
    tmp_path: Path,
    assay: Callable[..., Result],
    change: Callable[[onnx.ModelProto], None],
) -> None:
    folder = tmp_path / "served" / NAME

    def replace() -> None:
        graph = onnx.load(folder / "1" / "model.onnx")
        change(graph)
        (tmp_path / "new").mkdir()
        onnx.save(graph, tmp_path / "new" / "model.onnx")
        (tmp_path / "new").rename(folder / "2")

    threading.Timer(2, replace).start()
    result = assay("watch", server.http, bundle_of(built), *WORDS, "--tolerance", "900")
    assert result.code == 3, result.err
    (day,) = json.loads(result.out)["days"]
    kinds = [event["kind"] for event in day["events"]]
    assert kinds[-1] == "mismatch"
    assert "versions of the model was 1, is 2" in result.err


def inferences(url: str) -> float:
    client = Client(Server(url))
    try:
        return client.statistics(NAME, "")["rows"]
    finally:
        client.close()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_server_that_slows_by_a_fifth_is_found_in_time(
    server: servers.Running,
    built: Store,
    slow: Path,
    assay: Callable[..., Result],
    protocol: str,
) -> None:
    url = server.http if protocol == "http" else server.grpc
    slow.write_text("0.01")  # so that the time around it does not vary by as much
    counts: list[float] = []

    def slower() -> None:
        slow.write_text("0.0125")
        counts.append(inferences(server.http))

    # The baseline is 30 windows of 20.
    threading.Timer(9, slower).start()
    result = assay("watch", url, bundle_of(built), *WORDS, "--tolerance", "5")
    assert result.code == 5, result.err
    assert inferences(server.http) - counts[0] <= 5 * 20 + 2
    assert "the server's own time to compute was" in result.err


def test_a_server_as_proved_gives_no_alarm_under_load(
    server: servers.Running, built: Store, assay: Callable[..., Result]
) -> None:
    ending = threading.Event()
    waited: list[float] = []

    def ask(number: int) -> None:
        client = Client(Server(server.http if number else server.grpc))
        feeds = {"image": np.zeros((1, 1, 28, 28), np.uint8)}
        while not ending.is_set():
            start = time.perf_counter()
            client.infer(NAME, "", feeds, ("logits",))
            waited.append(time.perf_counter() - start)
            time.sleep(0.01)
        client.close()

    others = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in others:
        thread.start()
    words = (*WORDS[:-4], "--duration", "12", "--json", "--tolerance", "25")
    result = assay("watch", server.http, bundle_of(built), *words)
    ending.set()
    for thread in others:
        thread.join()
    assert result.code == 0, result.err
    assert statistics.median(waited) < 1
