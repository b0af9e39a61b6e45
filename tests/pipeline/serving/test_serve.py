"""Serving a bundle with the real Triton. `make triton-test` runs them."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.serving import repository as repositories
from pipeline.workflow.runner import Store
from tests import servers, test_examples
from tests.bundles import FOLDER, bundle_of, opened
from tests.conftest import Process, Result

pytestmark = [pytest.mark.triton, pytest.mark.timeout(300)]

Assay = Callable[..., Result]
MODEL = "lenet_fp32_onnxruntime"


@dataclass
class Serving:
    """`assay serve` in a process of its own.

    Attributes:
        url: The address of the server.
        line: What it printed once it served.
        temporary: Its TMPDIR.
    """

    process: subprocess.Popen[str]
    url: str
    line: str
    temporary: Path

    def children(self) -> list[int]:
        """Returns the numbers of the processes that serve the repository."""
        ours = []
        for place in Path("/proc").iterdir():
            if place.name.isdecimal():
                try:
                    command = (place / "cmdline").read_bytes()
                except OSError:
                    continue
                if str(self.temporary).encode() in command:
                    ours.append(int(place.name))
        return [number for number in ours if number != self.process.pid]

    def gone(self) -> bool:
        """Whether no process of the server is left, within some seconds."""
        end = time.monotonic() + 20
        while self.children() and time.monotonic() < end:
            time.sleep(0.1)
        return not self.children()


def words(built: Store, folder: Path, ports: list[int], *more: object) -> tuple[object, ...]:
    return (
        *("serve", bundle_of(built), "--engine", "onnxruntime", "--trust"),
        *("--tritonserver", servers.triton_script(folder), "--http-port", ports[0]),
        *("--grpc-port", ports[1], "--metrics-port", ports[2], *more),
        *("--", f"--backend-directory={servers.backends(folder)}"),
    )


@contextmanager
def serving(
    built: Store, folder: Path, process: Callable[..., Process], *more: object
) -> Iterator[Serving]:
    ports = servers.free_ports(3)
    temporary = folder / "temporary"
    temporary.mkdir()
    command = process(*words(built, folder, ports, *more))
    started = command.start(machine={"TMPDIR": str(temporary)})
    try:
        lines = iter(started.stdout.readline, "")
        line = next((line for line in lines if line.startswith("serving")), "")
        assert line, started.communicate()[1]
        yield Serving(started, f"http://127.0.0.1:{ports[0]}", line, temporary)
    finally:
        started.kill()
        started.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_bundle_is_served_and_nothing_is_left_behind(
    built: Store,
    assay: Assay,
    process: Callable[..., Process],
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    with serving(built, tmp_path, process) as server:
        assert MODEL in server.line
        (folder,) = server.temporary.glob("assay-tmp-*")
        assert folder.stat().st_mode & 0o777 == 0o700
        result = assay("check", bundle_of(built), "--url", server.url, "--json")
        assert result.code == 0, result.err
        assert json.loads(result.out)["server_model"] == MODEL
        assert server.children()
        server.process.send_signal(number)
        _, err = server.process.communicate(timeout=60)
        assert server.process.returncode == 128 + number
        assert "error: interrupted" in err
        assert server.gone()
        assert not [*server.temporary.iterdir()]


def test_a_server_that_dies_ends_the_command(
    built: Store, process: Callable[..., Process], tmp_path: Path
) -> None:
    with serving(built, tmp_path, process) as server:
        for number in server.children():
            if b"tritonserver" in Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")[0]:
                os.kill(number, signal.SIGKILL)
        _, err = server.process.communicate(timeout=60)
        assert server.process.returncode == 1
        assert "error: tritonserver ended with signal 9 (SIGKILL)" in err
        assert server.gone()
        assert not [*server.temporary.iterdir()]


def test_the_server_ends_with_a_command_that_is_killed(
    built: Store, process: Callable[..., Process], tmp_path: Path
) -> None:
    with serving(built, tmp_path, process) as server:
        server.process.kill()
        server.process.wait()
        assert server.gone()


def test_an_occupied_port_is_named(built: Store, assay: Assay, tmp_path: Path) -> None:
    ports = servers.free_ports(3)
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports[1]))
        other.listen()
        result = assay(*words(built, tmp_path, ports))
    assert result.code == 1
    assert f"error: port {ports[1]} of 127.0.0.1 cannot be opened" in result.err
    assert "hint: give another --grpc-port" in result.err


def test_the_cause_of_a_broken_configuration_is_shown(
    built: Store, assay: Assay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = repositories.write

    def broken(target: Path, *sources: object, **options: object) -> list[str]:
        names = write(target, *sources, **options)
        path = target / MODEL / "config.pbtxt"
        path.write_text(path.read_text().replace("TYPE_FP32", "TYPE_FP33"))
        return names

    monkeypatch.setattr(repositories, "write", broken)
    result = assay(*words(built, tmp_path, servers.free_ports(3)))
    assert result.code == 1
    assert "error: tritonserver ended with exit code 1" in result.err
    assert "TYPE_FP33" in result.err


def test_a_missing_backend_is_named(built: Store, assay: Assay, tmp_path: Path) -> None:
    command = [*words(built, tmp_path, servers.free_ports(3))]
    command[-1] = f"--backend-directory={tmp_path / 'nowhere'}"
    result = assay(*command)
    assert result.code == 1
    assert "unable to find backend library for backend 'onnxruntime'" in result.err


def test_triton_serves_an_unpacked_bundle_unchanged(
    store: Store, assay: Assay, tmp_path: Path
) -> None:
    where = ("--root", store.root, "--dist", store.dist)
    words = ("bundle", "lenet", "--engine", "onnxruntime", "--include", "triton")
    assert assay(*words, *where).code == 0
    bundle = bundle_of(store)
    with opened(bundle) as files:
        files.extractall(tmp_path / "unpacked")  # our own, and some Python 3.11 have no filters
    folder = tmp_path / "unpacked" / FOLDER / "triton"
    (tmp_path / "server").mkdir()
    with servers.triton(folder, tmp_path / "server", "--disable-auto-complete-config") as server:
        result = assay("check", bundle, "--url", server.grpc)
        assert result.code == 0, result.err
        unpacked = tmp_path / "unpacked" / FOLDER
        for image, label in test_examples.images(unpacked):
            words = ("triton_client.py", unpacked, server.http.removeprefix("http://"), image)
            assert test_examples.run(*words).splitlines()[-1] == label
