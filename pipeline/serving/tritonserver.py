"""A Triton server that is started, watched and ended with the command that needs it."""

from __future__ import annotations

import collections
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from engines.errors import DeployError, NotAvailableError, UsageError
from pipeline.serving.forms import FORMS
from pipeline.workflow import signals

PROGRAM = "tritonserver"
_POLL = 0.2  # seconds
_END = 15.0  # seconds in which the server has to end after SIGTERM; its requests have 10
_KEPT, _SHOWN, _LONGEST = 2000, 5, 500  # lines that are kept, lines that are shown, characters
# The first fields of a line of the log: severity, date, time, thread and file, or protobuf's.
_PREFIX = re.compile(r"([EFWI])\d{4} \S+ +\d+ [^\]]+\] ?|\[libprotobuf (E)RROR [^\]]+\] ")
_FAILURE = re.compile(r"(?i)\b(error|failed|unable|cannot|invalid|not found)\b")
# Makes Linux end the server if this process is killed.
_LAUNCH = (
    "import ctypes, os, signal, sys\n"
    "if sys.platform == 'linux':\n"
    "    ctypes.CDLL(None).prctl(1, signal.SIGTERM)\n"
    "    if os.getppid() != int(sys.argv[1]): sys.exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        host: The address of the interface.
    """

    host: str = "127.0.0.1"
    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    @property
    def ports(self) -> tuple[int, int, int]:
        """The ports of HTTP, gRPC and metrics."""
        return self.http, self.grpc, self.metrics

    @property
    def http_url(self) -> str:
        """The URL by which this machine reaches the HTTP service."""
        return f"http://{self._reached}:{self.http}"

    @property
    def grpc_url(self) -> str:
        """The URL by which this machine reaches the gRPC service."""
        return f"grpc://{self._reached}:{self.grpc}"

    @property
    def _reached(self) -> str:
        # Every interface is also reached through loopback.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"[{host}]" if ":" in host else host


def find(program: str | None) -> str | None:
    """Returns the path of Triton's program, None if it is not installed.

    Args:
        program: Its path, or its name on PATH; None looks for `tritonserver` on PATH.

    Raises:
        NotAvailableError: `program` is not an executable file.
    """
    path = shutil.which(program or PROGRAM)
    if path is None and program is not None:
        raise NotAvailableError(
            f"{program} is not an executable file", "give the path of tritonserver"
        )
    return None if path is None else str(Path(path).absolute())


def arguments(repository: Path | str, address: Address, more: Sequence[str] = ()) -> list[str]:
    """Returns the options of `tritonserver` with which a repository of ours is served.

    Without completed configurations, since what is not in them was not proved; ready only once
    every model is; without a response cache, which is off unless it is configured.
    """
    return [
        f"--model-repository={repository}",
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        "--exit-on-error=true",
        "--exit-timeout-secs=10",
        f"--http-address={address.host}",
        f"--grpc-address={address.host}",
        f"--metrics-address={address.host}",
        f"--http-port={address.http}",
        f"--grpc-port={address.grpc}",
        f"--metrics-port={address.metrics}",
        *more,
    ]


def container(
    repository: str, engine_names: Sequence[str], address: Address, more: Sequence[str] = ()
) -> str:
    """Returns the `docker run` command that serves a repository with Triton's container.

    Args:
        repository: The folder, as a shell word on the host.
        engine_names: The backends of the models.
        address: Where the host listens.
    """
    gpu = "--gpus all " if any(FORMS[name].gpu for name in engine_names) else ""
    # In the container, every interface and the usual ports.
    inside = Address("0.0.0.0")  # noqa: S104
    words = " ".join(arguments("/models", inside, more))
    host = f"[{address.host}]" if ":" in address.host else address.host
    ports = " ".join(
        f"-p {host}:{outer}:{inner}"
        for outer, inner in zip(address.ports, inside.ports, strict=True)
    )
    return f'docker run --rm {gpu}{ports} -v "{repository}":/models:ro IMAGE {PROGRAM} {words}'


def require_free(host: str, ports: Sequence[int]) -> None:
    """Raises DeployError if the host is not of this machine, or a port is occupied.

    Otherwise whoever has the port would be taken for the server.
    """
    for port in ports:
        if ports.count(port) > 1:
            raise UsageError(f"port {port} is named twice", "give each service its own port")
        try:
            family, kind, number, _, place = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            with closing(socket.socket(family, kind, number)) as probe:
                # Connections that were closed lately do not count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
                probe.listen(1)
        except OSError as error:
            raise DeployError(
                f"port {port} of {host} cannot be opened: {error.strerror or error}",
                "give another --http-port, --grpc-port, --metrics-port or --host, or end what uses"
                " it",
            ) from error


class Running:
    """A Triton server of this process. Its log goes to `show`, line by line, once it is ready."""

    def __init__(self, command: Sequence[str], show: Callable[[str], None]) -> None:
        self._lines = collections.deque[str](maxlen=_KEPT)
        self._show, self._ready = show, False
        try:
            # A group of its own: Ctrl-C in the terminal is for us, and we end it.
            self.process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCH, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise DeployError(f"{command[0]} cannot be started: {error}") from error
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        stream = self.process.stdout
        if stream is None:
            return
        with stream:
            for raw in iter(lambda: stream.readline(_LONGEST * 8), b""):
                line = raw.decode(errors="replace").rstrip()
                self._lines.append(line)
                if self._ready and _severity(line) not in ("", "I"):
                    self._show(f"{PROGRAM}: {line[:_LONGEST]}")

    def wait_until_ready(self, address: Address, seconds: float) -> None:
        """Returns once every model is ready.

        Raises:
            DeployError: The server ended; the message has the cause from its log.
            NotAvailableError: It is not ready in time.
        """
        end = time.monotonic() + seconds
        while not _answers(f"{address.http_url}/v2/health/ready"):
            self.require_alive()
            if time.monotonic() >= end:
                raise NotAvailableError(
                    f"{PROGRAM} is not ready within {seconds:g} s: {self.cause()}",
                    "wait longer with --wait",
                )
            time.sleep(_POLL)
        self.require_alive()
        self._ready = True

    def watch(self) -> None:
        """Returns never; raises DeployError when the server ends."""
        while True:
            self.require_alive()
            time.sleep(_POLL)

    def require_alive(self, seconds: float = 0.0) -> None:
        """Raises DeployError if the server has ended; the message has the cause from its log.

        Args:
            seconds: How long to wait for its end.
        """
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return
        self._reader.join(timeout=1)  # processes that it started may still hold the pipe
        how = f"exit code {code}"
        if code < 0:
            with suppress(ValueError):
                how = f"signal {-code} ({signal.Signals(-code).name})"
        raise DeployError(
            f"{PROGRAM} ended with {how}: {self.cause()}",
            "options of tritonserver go after --, as in `-- --backend-directory=DIR`; --engine"
            " serves one engine only",
        )

    def cause(self) -> str:
        """Returns the lines of the log that tell errors, or else its last ones."""
        lines = [line for line in self._lines if line.strip()]
        errors = [line for line in lines if _severity(line) in ("E", "F")]
        # Some lines are of this severity on every machine without a GPU.
        errors = [line for line in errors or lines if _FAILURE.search(line)] or errors
        chosen = dict.fromkeys(_PREFIX.sub("", line)[:_LONGEST] for line in errors or lines)
        # The first errors are the causes, the last ones their consequences.
        shown = [*chosen][:_SHOWN] if errors else [*chosen][-_SHOWN:]
        return "; ".join(shown) or "its log is empty"

    def end(self) -> None:
        """Ends the server and whatever it has started."""
        with signals.deferred():
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_END)
            self._signal(signal.SIGKILL)  # also what it has left behind, in its group
            self.process.wait()
            self._reader.join(timeout=1)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


@contextmanager
def running(
    program: str,
    repository: Path,
    address: Address,
    more: Sequence[str],
    show: Callable[[str], None],
) -> Iterator[Running]:
    """Runs a server while the block runs.

    Args:
        program: The path of `tritonserver`.
        more: More options of it.
        show: Called with warnings and errors of its log, once it is ready.

    Raises:
        DeployError: A port is occupied.
    """
    require_free(address.host, address.ports)
    with signals.deferred():  # a server that is not assigned yet could not be ended
        server = Running([program, *arguments(repository, address, more)], show)
    try:
        yield server
    finally:
        server.end()


def _severity(line: str) -> str:
    """Returns "F", "E", "W" or "I"; "" for a line that has no severity."""
    match = _PREFIX.match(line)
    return "" if match is None else match[1] or match[2]


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as reply:
            return bool(reply.status == 200)  # noqa: PLR2004
    except (urllib.error.URLError, OSError, ValueError):
        return False
