"""`assay serve` up to the server: what is checked before one starts, and servers that fail."""

import json
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.workflow.runner import Store
from tests.bundles import bundle_of
from tests.conftest import Process, Result
from tests.servers import free_ports

Assay = Callable[..., Result]


def script(folder: Path, text: str) -> Path:
    """Writes a program in place of Triton's, which starts like it and then fails."""
    path = folder / "tritonserver"
    path.write_text(f"#!/bin/sh\ntouch {folder}/started\n{text}\n")
    path.chmod(0o755)
    return path


def words(bundle: Path, program: Path, *more: object) -> tuple[object, ...]:
    http, grpc, metrics = free_ports(3)
    ports = ("--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics)
    return ("serve", bundle, "--tritonserver", program, *ports, *more)


def test_a_damaged_bundle_starts_nothing(store: Store, assay: Assay, tmp_path: Path) -> None:
    bundle = bundle_of(store)
    content = bytearray(bundle.read_bytes())
    content[len(content) // 2] ^= 1
    bundle.write_bytes(content)
    program = script(tmp_path, "sleep 60")
    for more in ((), ("--server", "assay")):
        which = words(bundle, program) if not more else ("serve", bundle, *more)
        result = assay(*which, "--trust")
        assert result.code == 1
        assert "damaged" in result.err
    assert not (tmp_path / "started").exists()


def test_nothing_starts_without_trust(built: Store, assay: Assay, tmp_path: Path) -> None:
    pytest.importorskip("tritonclient")
    program = script(tmp_path, "sleep 60")
    result = assay(*words(bundle_of(built), program))
    assert result.code == 2
    assert "give --trust if you trust its source" in result.err
    result = assay("serve", bundle_of(built), "--server", "assay")
    assert result.code == 2
    result = assay(*words(bundle_of(built), program, "--require-signature"))
    assert result.code == 2
    assert not (tmp_path / "started").exists()


def test_without_triton_the_container_is_named(
    built: Store, assay: Assay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ports = ("--http-port", "9000", "--metrics-port", "9002")
    result = assay(
        *("serve", bundle_of(built), "--server", "triton", *ports, "--", "--log-verbose=1")
    )
    assert result.code == 4
    assert "error: tritonserver is not installed" in result.err
    assert "`assay triton lenet model-repository`" in result.err
    assert (
        '-v "$PWD/model-repository":/models:ro IMAGE tritonserver --model-repository=/models'
        in result.err
    )
    # The host's ports are those that were asked for.
    assert " -p 127.0.0.1:9000:8000 -p 127.0.0.1:8001:8001 -p 127.0.0.1:9002:8002 " in result.err
    assert "--metrics-port=8002 --log-verbose=1" in result.err
    result = assay("serve", bundle_of(built), "--tritonserver", tmp_path / "missing")
    assert result.code == 4
    assert "is not an executable file" in result.err
    result = assay("serve", bundle_of(built), "--server", "assay", "--", "--log-verbose=1")
    assert result.code == 2


def test_more_threads_than_cpus_are_refused(built: Store, assay: Assay) -> None:
    result = assay("serve", bundle_of(built), "--trust", "--threads", "1024")
    assert result.code == 2
    assert "--threads 1024" in result.err


def test_what_triton_cannot_serve_is_named(built: Store, assay: Assay, tmp_path: Path) -> None:
    result = assay(*words(bundle_of(built), script(tmp_path, ""), "--engine", "pytorch"))
    assert result.code == 4
    assert "TorchScript" in result.err
    assert "`--server assay` serves any engine that runs here" in result.err


def test_a_server_that_ends_shows_its_cause(built: Store, assay: Assay, tmp_path: Path) -> None:
    pytest.importorskip("tritonclient")
    line = "E1128 12:00:00.000001 42 server.cc:1] failed to load model"
    program = script(tmp_path, f"echo '{line}'; echo 'I1128 bye'; exit 3")
    result = assay(*words(bundle_of(built), program, "--trust"))
    assert result.code == 1
    assert "error: tritonserver ended with exit code 3: failed to load model\n" in result.err


def test_a_server_that_is_never_ready_is_stopped(
    built: Store, assay: Assay, tmp_path: Path
) -> None:
    pytest.importorskip("tritonclient")
    program = script(tmp_path, f"echo $$ > {tmp_path}/number; echo loading; exec sleep 600")
    result = assay(*words(bundle_of(built), program, "--trust", "--wait", "0.5"))
    assert result.code == 4
    assert "tritonserver is not ready within 0.5 s: loading" in result.err
    number = (tmp_path / "number").read_text().strip()
    assert not Path(f"/proc/{number}").exists()


@pytest.mark.slow(5)
def test_an_interrupted_start_leaves_nothing(
    built: Store, process: Callable[..., Process], tmp_path: Path
) -> None:
    pytest.importorskip("tritonclient")
    (tmp_path / "temporary").mkdir()
    # A child of the server, too.
    text = f"sleep 600 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/number; wait"
    command = process(*words(bundle_of(built), script(tmp_path, text), "--trust"))
    started = command.start(machine={"TMPDIR": str(tmp_path / "temporary")})
    end = time.monotonic() + 60
    while not (tmp_path / "number").exists() and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(0.2)
    started.send_signal(signal.SIGTERM)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 143, err
    for name in ("number", "child"):
        place = Path("/proc") / (tmp_path / name).read_text().strip()
        assert not place.exists() or " Z " in (place / "stat").read_text()
    assert not [*(tmp_path / "temporary").iterdir()]


@pytest.mark.slow(5)
def test_the_document_of_a_server_is_printed_when_it_is_ready(
    built: Store, process: Callable[..., Process]
) -> None:
    (port,) = free_ports(1)
    own = ("serve", bundle_of(built), "--server", "assay", "--trust", "--http-port", port)
    server = process(*own, "--engine", "onnxruntime", "--json").start()
    try:
        lines = []
        for line in iter(server.stdout.readline, ""):
            lines.append(line)
            if line == "}\n":
                break
        assert json.loads("".join(lines)) == {
            "server": "assay",
            "models": ["lenet_fp32"],
            "engine": "onnxruntime",
            "device": "cpu",
            "urls": [f"http://127.0.0.1:{port}"],
        }
        server.send_signal(signal.SIGINT)
        out, _ = server.communicate(timeout=60)
        assert (out, server.returncode) == ("", 130)
    finally:
        server.kill()
        server.communicate()


def test_an_engine_that_the_bundle_does_not_have_is_wrong_usage(
    built: Store, assay: Assay, tmp_path: Path
) -> None:
    pytest.importorskip("tritonclient")
    program = script(tmp_path, "sleep 60")
    own = ("serve", bundle_of(built), "--server", "assay")
    for which in (own, words(bundle_of(built), program)):
        result = assay(*which, "--trust", "--engine", "onnxruntim")
        assert result.code == 2
        assert "the bundle has no engine 'onnxruntim' in fp32" in result.err
        assert "did you mean 'onnxruntime'" in result.err
    assert not (tmp_path / "started").exists()


def test_an_occupied_port_starts_nothing(built: Store, assay: Assay, tmp_path: Path) -> None:
    pytest.importorskip("tritonclient")
    program = script(tmp_path, "sleep 60")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = assay(*words(bundle_of(built), program, "--trust", "--http-port", port))
        assert result.code == 1
        assert f"port {port} of 127.0.0.1 cannot be opened" in result.err
        own = ("serve", bundle_of(built), "--server", "assay", "--trust", "--http-port", port)
        result = assay(*own, "--engine", "onnxruntime")
        assert result.code == 1
        assert f"port {port} of 127.0.0.1 cannot be opened" in result.err
    assert not (tmp_path / "started").exists()
