"""assay's own server: its replies, what it refuses, and the command around it."""

import json
import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engines
from engines.contract import OpenOptions, Session
from pipeline.golden import file as goldens
from pipeline.serving import own_server
from pipeline.workflow.runner import Store
from tests import bare
from tests.bundles import bundle_of
from tests.conftest import Process, Result
from tests.servers import free_ports

Assay = Callable[..., Result]
HEADER = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def golden(built: Store) -> goldens.Golden:
    return goldens.load(built.root / "lenet/fp32/golden.npz")


@pytest.fixture(scope="module")
def session(built: Store) -> Iterator[Session]:
    path = built.root / "lenet/fp32/onnxruntime/engine.onnx"
    with closing(engines.get("onnxruntime").open(path, OpenOptions())) as opened:
        yield opened


@pytest.fixture(scope="module")
def url(session: Session) -> Iterator[str]:
    (port,) = free_ports(1)
    with own_server.running("127.0.0.1", port, "lenet", session):
        yield f"http://127.0.0.1:{port}"


def ask(url: str, content: object = None, tail: bytes = b"", **headers: str) -> tuple[int, Any]:
    """Returns the status of a reply, and its body: JSON, or JSON and bytes."""
    body = None
    if content is not None:
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        body = text + tail
        if tail:
            headers = {HEADER: str(len(text)), **headers}
    request = urllib.request.Request(url, body, headers)  # noqa: S310 - our own server
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:  # noqa: S310
            received = reply.read()
            length = int(reply.headers.get(HEADER, len(received)))
            parts = json.loads(received[:length]), received[length:]
            return reply.status, parts if HEADER in reply.headers else parts[0]
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def tensor(array: np.ndarray, **more: object) -> dict[str, Any]:
    return {"name": "image", "datatype": "UINT8", "shape": [*array.shape], **more}


def test_the_server_describes_itself_and_its_model(url: str) -> None:
    assert "binary_tensor_data" in ask(f"{url}/v2")[1]["extensions"]
    for path in ("health/live", "health/ready", "models/lenet/ready", "models/lenet/versions/1"):
        assert ask(f"{url}/v2/{path}")[0] == 200
    metadata = ask(f"{url}/v2/models/lenet")[1]
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 1, 28, 28]}]
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]
    assert ask(f"{url}/v2/repository/index", {})[1][0]["name"] == "lenet"
    for path in ("models/other", "models/lenet/versions/2", "nothing", "models/lenet/infer"):
        assert ask(f"{url}/v2/{path}")[0] == 404


@pytest.mark.parametrize("way", ["flat", "nested", "bytes"])
def test_replies_are_what_the_engine_computes(
    url: str, session: Session, golden: goldens.Golden, way: str
) -> None:
    rows = golden.inputs["image"][:3]
    expected = session.run({"image": rows})["logits"]
    infer, tail = f"{url}/v2/models/lenet/infer", b""
    if way == "bytes":
        entry, tail = tensor(rows, parameters={"binary_data_size": rows.nbytes}), rows.tobytes()
    else:
        entry = tensor(rows, data=(rows if way == "nested" else rows.ravel()).tolist())
    status, reply = ask(infer, {"id": "7", "inputs": [entry]}, tail)
    assert status == 200
    assert (reply["id"], reply["model_name"]) == ("7", "lenet")
    (output,) = reply["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("logits", "FP32", [3, 10])
    assert np.array_equal(np.float32(output["data"]), expected.ravel())
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
    status, (text, content) = ask(infer, {"inputs": [entry], "outputs": outputs}, tail)
    assert text["outputs"][0]["parameters"] == {"binary_data_size": expected.nbytes}
    assert content == expected.tobytes()


ROW = np.zeros((1, 1, 28, 28), np.uint8)
VALUES = ROW.ravel().tolist()
REFUSED = {
    "no JSON": b"{",
    "a list": [],
    "no inputs": {},
    "another input": {"inputs": [{**tensor(ROW, data=VALUES), "name": "picture"}]},
    "another output": {"inputs": [tensor(ROW, data=VALUES)], "outputs": [{"name": "x"}]},
    "another type": {"inputs": [tensor(ROW, data=VALUES) | {"datatype": "FP32"}]},
    "an unknown type": {"inputs": [tensor(ROW, data=VALUES) | {"datatype": "BYTES"}]},
    "another shape": {"inputs": [tensor(ROW, data=VALUES) | {"shape": [1, 784]}]},
    "too few values": {"inputs": [tensor(ROW, data=VALUES[1:])]},
    "a value beyond the type": {"inputs": [tensor(ROW, data=[256, *VALUES[1:]])]},
    "a fraction": {"inputs": [tensor(ROW, data=[0.5, *VALUES[1:]])]},
    "text": {"inputs": [tensor(ROW, data=["1", *VALUES[1:]])]},
    "a ragged list": {"inputs": [tensor(ROW, data=[[1, 2], [3]])]},
    "a negative axis": {"inputs": [tensor(ROW, data=VALUES) | {"shape": [-1, 1, 28, 28]}]},
    "an empty batch": {"inputs": [tensor(ROW, data=[]) | {"shape": [0, 1, 28, 28]}]},
    "bytes that were not sent": {"inputs": [tensor(ROW, parameters={"binary_data_size": 784})]},
    "a negative size": {"inputs": [tensor(ROW, parameters={"binary_data_size": -1})]},
    "a repeated key": b'{"inputs": [], "inputs": []}',
}


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED)
def test_requests_that_are_not_valid_are_refused(url: str, content: object) -> None:
    status, reply = ask(f"{url}/v2/models/lenet/infer", content)
    assert status == 400
    assert reply["error"]
    assert ask(f"{url}/v2/health/ready")[0] == 200


@pytest.mark.parametrize(
    "lines",
    [
        ["GET /v2 HTTP/1.1", "Content-Length: 5", "", "GET /"],
        ["POST /v2/repository/index HTTP/1.1", "Content-Length: 2", "Content-Length: 3", "", "{}"],
        [
            *("POST /v2/repository/index HTTP/1.1", "Content-Length: 2"),
            *("Transfer-Encoding: chunked", "", "{}"),
        ],
        ["BREW /v2 HTTP/1.1", "", ""],
    ],
)
def test_one_request_has_one_reply(url: str, lines: list[str]) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        lines = [lines[0], "Host: a", *lines[1:], "GET /v2 HTTP/1.1", "Host: a", "", ""]
        connection.sendall("\r\n".join(lines).encode())
        reply = b"".join(iter(lambda: connection.recv(4096), b""))
    assert reply.count(b"HTTP/1.1") == 1
    assert reply.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501"))
    assert "error" in json.loads(reply.partition(b"\r\n\r\n")[2])


def test_the_list_of_models_needs_no_body(url: str) -> None:
    request = urllib.request.Request(f"{url}/v2/repository/index", method="POST")  # noqa: S310
    with urllib.request.urlopen(request, timeout=20) as reply:  # noqa: S310 - our own server
        assert json.loads(reply.read())[0]["name"] == "lenet"


def test_a_small_request_has_no_large_reply(url: str, golden: goldens.Golden) -> None:
    rows = golden.inputs["image"][:1]
    entry = tensor(rows, data=rows.ravel().tolist())
    twice = {"inputs": [entry], "outputs": [{"name": "logits"}, {"name": "logits"}]}
    for request, message in ((twice, "asked for twice"), ({"inputs": [entry] * 2}, "there twice")):
        code, reply = ask(f"{url}/v2/models/lenet/infer", request)
        assert code == 400
        assert message in reply["error"]
    nothing = {"inputs": [{**entry, "parameters": None}], "parameters": None}
    assert ask(f"{url}/v2/models/lenet/infer", nothing)[0] == 200


def test_it_listens_on_ipv6(session: Session) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
            port = probe.getsockname()[1]
    except OSError:
        pytest.skip("this machine has no IPv6")
    with own_server.running("::1", port, "lenet", session):
        assert ask(f"http://[::1]:{port}/v2")[0] == 200


def test_bytes_of_no_input_and_bad_headers_are_refused(url: str) -> None:
    infer, entry = f"{url}/v2/models/lenet/infer", tensor(ROW, data=VALUES)
    status, reply = ask(infer, {"inputs": [entry]}, b"more")
    assert (status, reply["error"]) == (400, "4 bytes belong to no input")
    assert ask(infer, {"inputs": [entry]}, b"x", **{HEADER: "10000000"})[0] == 400
    assert ask(infer, {"inputs": [entry]}, **{"Content-Encoding": "gzip"})[0] == 411
    assert ask(infer, b"{}", **{"Content-Length": str(1 << 40)})[0] == 413


@pytest.mark.slow(10)
def test_check_passes_against_it(
    built: Store, assay: Assay, process: Callable[..., Process], tmp_path: Path
) -> None:
    pytest.importorskip("tritonclient")
    (port,) = free_ports(1)
    (tmp_path / "temporary").mkdir()
    command = process(
        *("serve", bundle_of(built), "--server", "assay", "--engine", "onnxruntime", "--trust"),
        *("--http-port", port),
    )
    started = command.start(machine={"TMPDIR": str(tmp_path / "temporary")})
    try:
        lines = iter(started.stdout.readline, "")
        assert next((line for line in lines if line.startswith("serving")), "")
        words = ("check", bundle_of(built), "--url", f"http://127.0.0.1:{port}", "--json")
        result = assay(*words)
        assert result.code == 0, result.err
        (verdict,) = json.loads(result.out)["verdicts"]
        assert verdict["status"] == "pass"
        started.send_signal(signal.SIGINT)
        _, err = started.communicate(timeout=30)
        assert started.returncode == 130, err
        assert not [*(tmp_path / "temporary").iterdir()]
    finally:
        started.kill()
        started.communicate()


@pytest.mark.slow(15)
def test_a_target_with_onnxruntime_alone_serves(built: Store, tmp_path: Path) -> None:
    python = bare.environment(tmp_path / "target", "onnxruntime")
    (port,) = free_ports(1)
    command = [
        *(python, "-m", "pipeline.cli", "serve", bundle_of(built), "--trust"),
        *("--engine", "onnxruntime", "--http-port", port),
    ]
    environment = {key: text for key, text in os.environ.items() if key != "PYTHONPATH"}
    started = subprocess.Popen(
        [str(word) for word in command],
        cwd=tmp_path,
        env={**environment, "PATH": "/nowhere", "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = started.stdout.readline()
        assert line.startswith("serving lenet_fp32 by onnxruntime on cpu"), started.communicate()[1]
        assert ask(f"http://127.0.0.1:{port}/v2/models/lenet_fp32/ready")[0] == 200
        started.terminate()
        _, err = started.communicate(timeout=30)
        assert started.returncode == 143
        assert "not proved over the wire" in err
    finally:
        started.kill()
        started.communicate()
