"""Real servers, judged over the wire. `make triton-test` runs them."""

import json
import queue
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import engines
from engines.contract import OpenOptions
from pipeline.golden import file as goldens
from pipeline.serving import proof
from pipeline.serving.client import Client, Server
from pipeline.workflow.runner import Store
from tests import servers
from tests.bundles import bundle_of
from tests.conftest import Result

pytestmark = [pytest.mark.triton, pytest.mark.timeout(600)]

MODELS = (
    "lenet_fp32_onnxruntime",
    "benchmarks.roofline-resnet18_fp32_onnxruntime",
    "benchmarks.roofline-vgg11_slim_fp32_onnxruntime",
)
Assay = Callable[..., Result]
CLIENTS, REQUESTS = 8, 10_000


def golden_of(name: str, three_models: Path, built: Store) -> Path:
    root = built.root if name.startswith("lenet") else three_models
    return root / name.removesuffix("_fp32_onnxruntime") / "fp32" / "golden.npz"


def only_onnx(repository: Path, folder: Path) -> Path:
    """Returns a repository without the models that the server of the tests has no backend for."""
    shutil.copytree(
        repository / "lenet_fp32_onnxruntime", folder / "served" / "lenet_fp32_onnxruntime"
    )
    return folder / "served"


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("name", MODELS)
def test_triton_serves_the_repository_as_proved(
    triton: servers.Running, three_models: Path, built: Store, name: str, protocol: str
) -> None:
    golden = goldens.load(golden_of(name, three_models, built))
    url = triton.http if protocol == "http" else triton.grpc
    verdict, latencies = proof.prove(golden, Server(url, name))
    assert verdict.status == "pass", verdict.reason
    assert verdict.batches[-1] == len(golden.cases)
    assert int(verdict.facts["requests"]) > 0
    assert [latency.batch for latency in latencies] == [1, len(golden.cases)]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_check_judges_triton_by_the_bundle(
    triton: servers.Running, built: Store, assay: Assay, protocol: str
) -> None:
    url = triton.http if protocol == "http" else triton.grpc
    words = ("check", bundle_of(built), "--url", url, "--model-name", "lenet_fp32_onnxruntime")
    result = assay(*words, "--model-version", "1", "--json")
    assert result.code == 0, result.err
    (verdict,) = json.loads(result.out)["verdicts"]
    assert verdict["status"] == "pass"
    assert verdict["facts"]["platform"] == "onnxruntime_onnx"


def test_the_models_of_triton_are_named(
    triton: servers.Running, built: Store, assay: Assay
) -> None:
    result = assay("check", bundle_of(built), "--url", triton.http, "--model-name", "lenet_fp32")
    assert result.code == 2
    assert "did you mean 'lenet_fp32_onnxruntime'" in result.err
    result = assay("check", bundle_of(built), "--url", triton.grpc)
    assert result.code == 2
    assert "has 3 models" in result.err


def test_another_model_is_a_mismatch(triton: servers.Running, built: Store, assay: Assay) -> None:
    name = "benchmarks.roofline-resnet18_fp32_onnxruntime"
    words = ("check", bundle_of(built), "--url", triton.http, "--model-name", name, "--json")
    result = assay(*words)
    assert result.code == 3
    (verdict,) = json.loads(result.out)["verdicts"]
    assert "times the noise floor" in verdict["reason"]


def test_concurrent_requests_are_neither_lost_nor_mixed_up(
    triton: servers.Running, built: Store
) -> None:
    golden = goldens.load(built.root / "lenet/fp32/golden.npz")
    engine = engines.get("onnxruntime")
    session = engine.open(built.root / "lenet/fp32/onnxruntime/engine.onnx", OpenOptions())
    rows = golden.inputs
    expected = session.run(rows)["logits"]
    session.close()
    # Rows whose outputs are alike could be mixed up without a trace.
    gaps = np.abs(expected[:, None] - expected[None]).max(axis=2)
    distinct = [row for row in range(len(expected)) if (gaps[row] < 0.1).sum() == 1]
    assert len(distinct) > 200
    jobs: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(REQUESTS):
        jobs.put(distinct[index % len(distinct)])
    wrong: list[str] = []
    counts = [0] * CLIENTS

    def ask(number: int) -> None:
        url = triton.http if number % 2 else triton.grpc
        client = Client(Server(url, "lenet_fp32_onnxruntime"))
        try:
            while True:
                row = jobs.get_nowait()
                feeds = {name: array[row : row + 1] for name, array in rows.items()}
                reply = client.infer("lenet_fp32_onnxruntime", "", feeds, ("logits",))["logits"]
                counts[number] += 1
                if reply.shape != (1, 10) or np.abs(reply[0] - expected[row]).max() > 1e-3:
                    wrong.append(f"row {row}")
        except queue.Empty:
            pass
        except Exception as error:
            wrong.append(repr(error))
        finally:
            client.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert wrong == []
    assert sum(counts) == REQUESTS
    client = Client(Server(triton.http))
    statistics = client._client.get_inference_statistics("lenet_fp32_onnxruntime")
    client.close()
    batches = [entry["batch_size"] for entry in statistics["model_stats"][0]["batch_stats"]]
    assert set(batches) & set(range(2, 9)), "the requests were not batched"


def test_check_judges_mlserver(mlserver: servers.Running, built: Store, assay: Assay) -> None:
    for url in (mlserver.http, mlserver.grpc):
        result = assay("check", bundle_of(built), "--url", url, "--model-name", "served", "--json")
        assert result.code == 0, result.err
        document = json.loads(result.out)
        assert document["server_model"] == "served"
        assert document["verdicts"][0]["status"] == "pass"


def test_a_server_that_dies_is_an_error(
    repository: Path, built: Store, assay: Assay, tmp_path: Path
) -> None:
    (tmp_path / "server").mkdir()
    served = only_onnx(repository, tmp_path)
    with servers.triton(served, tmp_path / "server") as server:
        threading.Timer(1.0, server.process.kill).start()
        words = ("check", bundle_of(built), "--url", server.http, "--wait", "2")
        result = assay(*words, "--model-name", "lenet_fp32_onnxruntime")
        while result.code == 0:
            result = assay(*words, "--model-name", "lenet_fp32_onnxruntime")
    assert result.code in (1, 4)
    assert server.http in result.err


def test_an_occupied_port_is_the_reason(repository: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    served = only_onnx(repository, tmp_path)
    with servers.triton(served, folders[0]) as first:
        port = first.http.rpartition(":")[2]
        with (
            pytest.raises(RuntimeError, match=r"(?i)address already in use|failed to start HTTP"),
            servers.triton(served, folders[1], "--http-port", port),
        ):
            pass
