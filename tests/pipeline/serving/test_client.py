"""Servers that fail in many ways, which check has to explain."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay import ParityError, check_server
from engines.errors import UsageError
from pipeline.golden import file as goldens
from pipeline.serving.client import Server
from pipeline.workflow.runner import Store
from tests.bundles import bundle_of
from tests.conftest import Result
from tests.servers import free_ports

pytest.importorskip("tritonclient")
Assay = Callable[..., Result]

INPUT = {"name": "image", "datatype": "UINT8", "shape": [-1, 1, 28, 28]}
OUTPUT = {"name": "logits", "datatype": "FP32", "shape": [-1, 10]}


@dataclasses.dataclass
class Behaviour:
    """What a fake server answers.

    Attributes:
        changes: What changes it, by the number of inferences after which it does.
        reply: Makes the outputs of the v2 reply from the golden rows that were asked for.
        inferences: How many were asked for.
    """

    inputs: list[dict[str, Any]] = dataclasses.field(default_factory=lambda: [INPUT])
    outputs: list[dict[str, Any]] = dataclasses.field(default_factory=lambda: [OUTPUT])
    live: int = 200
    ready: int = 200
    infer: int = 200
    seconds: float = 0.0
    reply: Callable[[np.ndarray], list[dict[str, Any]]] | None = None
    models: list[dict[str, str]] = dataclasses.field(default_factory=lambda: [{"name": "served"}])
    versions: tuple[str, ...] = ("1",)
    inferences: int = 0
    changes: dict[int, Callable[["Behaviour"], None]] = dataclasses.field(default_factory=dict)


def tensor(array: np.ndarray, kind: str = "FP32", name: str = "logits") -> list[dict[str, Any]]:
    data = array.ravel().tolist()
    return [{"name": name, "datatype": kind, "shape": list(array.shape), "data": data}]


@contextmanager
def serving(behaviour: Behaviour, golden: goldens.Golden) -> Iterator[str]:
    """Runs a server that answers with golden outputs, changed by `behaviour`; yields its URL."""
    pairs = zip(golden.inputs["image"], golden.native["logits"], strict=True)
    known = {row.tobytes(): out for row, out in pairs}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # headers and body in one packet, which is not held back

        def send(self, code: int, content: object) -> None:
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            if self.path == "/v2":
                self.send(200, {"name": "fake", "version": "1", "extensions": []})
            elif self.path == "/v2/health/live":
                self.send(behaviour.live, {})
            elif self.path.endswith("/ready"):
                self.send(behaviour.ready, {})
            elif self.path == "/v2/models/served":
                sides = {"inputs": behaviour.inputs, "outputs": behaviour.outputs}
                about = {"platform": "fake", "versions": behaviour.versions}
                self.send(200, {"name": "served", **about, **sides})
            else:
                self.send(404, {"error": "not here"})

        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
            if self.path == "/v2/repository/index":
                self.send(200, behaviour.models)
                return
            behaviour.changes.get(behaviour.inferences, lambda _: None)(behaviour)
            behaviour.inferences += 1
            time.sleep(behaviour.seconds)
            if behaviour.infer != 200:
                self.send(behaviour.infer, {"error": "the GPU fell off"})
                return
            (entry,) = content["inputs"]
            rows = np.array(entry["data"], np.uint8).reshape(entry["shape"])
            outputs = np.stack([known[row.tobytes()] for row in rows])
            self.send(
                200, {"model_name": "served", "outputs": (behaviour.reply or tensor)(outputs)}
            )

        def log_message(self, *words: object) -> None:
            """Prints nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def ask(built: Store, assay: Assay, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Judges a fake server by LeNet's bundle."""
    monkeypatch.setattr("pipeline.serving.proof._SECONDS", 0.1)
    golden = goldens.load(built.root / "lenet/fp32/golden.npz")

    def judge(behaviour: Behaviour, *words: object) -> Result:
        with serving(behaviour, golden) as url:
            return assay("check", bundle_of(built), "--url", url, "--wait", "0.5", *words)

    return judge


@pytest.mark.slow(3)
def test_a_server_with_the_right_outputs_passes(ask: Callable[..., Result]) -> None:
    result = ask(Behaviour(), "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert document["server_model"] == "served"
    assert [entry["batch"] for entry in document["latencies"]] == [1, 262]


@pytest.mark.slow(3)
def test_a_server_is_judged_from_python(built: Store) -> None:
    golden = goldens.load(built.root / "lenet/fp32/golden.npz")
    with serving(Behaviour(), golden) as url:
        checked = check_server(bundle_of(built), url, model_name="served")
    assert (checked.model, checked.verdict.status) == ("served", "pass")
    assert checked.manifest["model"] == "lenet"
    assert [latency.batch for latency in checked.latencies] == [1, 262]
    with (
        serving(Behaviour(reply=lambda outputs: tensor(outputs[::-1])), golden) as url,
        pytest.raises(ParityError, match="times the noise floor"),
    ):
        check_server(bundle_of(built), url)


@pytest.mark.slow(3)
def test_a_server_that_does_not_tell_its_inputs_is_judged_by_its_replies(
    ask: Callable[..., Result],
) -> None:
    assert ask(Behaviour(inputs=[], outputs=[])).code == 0


def with_nan(outputs: np.ndarray) -> list[dict[str, Any]]:
    return tensor(np.where(outputs == outputs.max(), np.nan, outputs))


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (with_nan, "has NaN or Inf"),
        (lambda outputs: tensor(outputs[:, :9]), ", 9] where float32["),
        (lambda outputs: tensor(outputs[:0]), "where float32["),
        (lambda outputs: tensor(outputs[0]), "where float32["),
        (lambda outputs: tensor(outputs, "FP64"), "gives float64["),
        (lambda outputs: tensor(outputs[::-1]), "times the noise floor"),
        (lambda outputs: tensor(np.ones_like(outputs)), "does not depend on the input"),
    ],
)
def test_wrong_replies_are_mismatches(
    ask: Callable[..., Result], reply: Callable[..., Any], message: str
) -> None:
    result = ask(Behaviour(reply=reply))
    assert result.code == 3
    assert message in result.err


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (lambda _outputs: [], "has no output 'logits'"),
        (lambda outputs: tensor(outputs, name="scores"), "has no output 'logits'"),
        (lambda outputs: [{**tensor(outputs)[0], "shape": [7, 7]}], "cannot reshape"),
        (lambda _outputs: [{"name": "logits"}], "datatype"),
    ],
)
def test_replies_that_cannot_be_read_are_errors(
    ask: Callable[..., Result], reply: Callable[..., Any], message: str
) -> None:
    result = ask(Behaviour(reply=reply))
    assert result.code == 1
    assert message in result.err


@pytest.mark.parametrize(
    "changed",
    [
        {"inputs": [{**INPUT, "name": "images"}]},
        {"inputs": [{**INPUT, "datatype": "FP32"}]},
        {"inputs": [{**INPUT, "shape": [-1, 28, 28, 1]}]},
        {"inputs": [INPUT, {**INPUT, "name": "mask"}]},
        {"outputs": [{**OUTPUT, "shape": [-1, 1000]}]},
        {"outputs": [{**OUTPUT, "datatype": "FP16"}]},
    ],
)
def test_contradicting_metadata_is_named_before_anything_is_sent(
    ask: Callable[..., Result], changed: dict[str, Any]
) -> None:
    behaviour = Behaviour(**changed)
    result = ask(behaviour)
    assert result.code == 3
    assert "expected image: uint8[batch, 1, 28, 28]" in result.err or (
        "expected logits: float32[batch, 10]" in result.err
    )
    assert behaviour.inferences == 0


def test_metadata_of_an_unknown_type_is_an_error(ask: Callable[..., Result]) -> None:
    result = ask(Behaviour(inputs=[{**INPUT, "datatype": "FP13"}]))
    assert result.code == 1
    assert "unknown type 'FP13'" in result.err


def test_an_error_of_the_server_is_shown(ask: Callable[..., Result]) -> None:
    result = ask(Behaviour(infer=500))
    assert result.code == 1
    assert "the GPU fell off" in result.err


def test_a_slow_server_is_not_waited_for(ask: Callable[..., Result]) -> None:
    result = ask(Behaviour(seconds=2.0), "--timeout", "0.3")
    assert result.code == 1
    assert "no reply within 0.3 s" in result.err
    assert "--timeout" in result.err


@pytest.mark.timeout(30)
def test_a_reply_that_comes_byte_by_byte_is_not_waited_for(built: Store, assay: Assay) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):
                self.send_response(200)
                self.end_headers()
                for _ in range(200):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.1)

        def log_message(self, *words: object) -> None:
            """Prints nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        start = time.monotonic()
        words = ("--model-name", "m", "--wait", "2", "--timeout", "1")
        result = assay("check", bundle_of(built), "--url", url, *words)
        server.shutdown()
    assert result.code == 1
    assert "no reply within 1 s" in result.err
    assert time.monotonic() - start < 10


def test_a_server_that_is_not_ready_is_not_available(ask: Callable[..., Result]) -> None:
    result = ask(Behaviour(live=503))
    assert result.code == 4
    assert "is not live" in result.err
    loading = [{"name": "served", "state": "UNAVAILABLE", "reason": "out of memory"}]
    result = ask(Behaviour(ready=400, models=loading))
    assert result.code == 4
    assert "out of memory" in result.err


def test_models_are_listed_if_the_name_is_wrong(ask: Callable[..., Result]) -> None:
    result = ask(Behaviour(ready=400), "--model-name", "serve")
    assert result.code == 2
    assert "did you mean 'served'" in result.err
    result = ask(Behaviour(models=[{"name": "a"}, {"name": "b"}]))
    assert result.code == 2
    assert "a, b" in result.err
    assert ask(Behaviour(models=[])).code == 4


def test_versions_are_listed_if_the_version_is_wrong(ask: Callable[..., Result]) -> None:
    models = [{"name": "served", "version": "1"}, {"name": "served", "version": "3"}]
    result = ask(Behaviour(ready=400, models=models), "--model-version", "2")
    assert result.code == 2
    assert "has no version '2' of served" in result.err
    assert "available: 1, 3" in result.err
    # It may be loading: this list does not tell versions.
    assert ask(Behaviour(ready=400), "--model-version", "2").code == 4


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_port_without_a_server_is_not_available(built: Store, assay: Assay, scheme: str) -> None:
    url = f"{scheme}://127.0.0.1:{free_ports(1)[0]}"
    words = ("check", bundle_of(built), "--url", url, "--model-name", "served", "--wait", "0.5")
    start = time.monotonic()
    result = assay(*words)
    assert result.code == 4
    assert url in result.err
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://a:1",
        "http://",
        "http://a:99999",
        "http://u:p@a:1",
        "http://a:b",
        "http://[::1",
        "",
    ],
)
def test_what_is_no_address_is_wrong_usage(url: str) -> None:
    with pytest.raises(UsageError):
        Server(url)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model-name", "a"), "--model-name without --url"),
        (("--url", "http://a:1", "--digests-only"), "exclude each other"),
        (("--url", "http://a:1", "--engine", "onnxruntime"), "exclude each other"),
        (("--url", "http://a:1", "--device", "cpu"), "--url and --device exclude each other"),
        (("--url", "http://a:1", "--threads", "1"), "--url and --threads exclude each other"),
    ],
)
def test_contradicting_options_are_wrong_usage(
    assay: Assay, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    result = assay("check", tmp_path / "bundle.tar.zst", *words)
    assert result.code == 2
    assert message in result.err


def test_a_missing_client_library_is_named_with_its_cure(
    built: Store, assay: Assay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tritonclient.http", None)
    result = assay("check", bundle_of(built), "--url", "http://127.0.0.1:1")
    assert result.code == 4
    assert "pip install 'tritonclient[http,grpc]'" in result.err
