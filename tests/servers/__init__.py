"""Real model servers for tests of `pipeline.serving`, which `make triton-test` installs."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

# The environments of the servers, by the variables that name them.
TRITON, MLSERVER = "ASSAY_TRITON_VENV", "ASSAY_MLSERVER_VENV"
_BACKEND = Path(__file__).parent / "onnxruntime_backend.py"
_RUNTIME = Path(__file__).parent / "mlserver_runtime.py"
_START = 60.0  # seconds in which a server has to be ready


@dataclass(frozen=True)
class Running:
    """A server that runs: the addresses of its two protocols, its process, and its log."""

    http: str
    grpc: str
    process: subprocess.Popen[bytes]
    log: Path


def environment(variable: str) -> Path:
    """Returns the folder of a server's environment."""
    folder = Path(os.environ.get(variable, ""))
    if not (folder / "bin" / "python").exists():
        raise RuntimeError(f"{variable} names no environment; run `make triton-test`")
    return folder


def packages(folder: Path) -> Path:
    return next(folder.glob("lib/python3.*/site-packages"))


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as reply:  # noqa: S310 - our own server
            return reply.status == 200
    except (URLError, OSError):
        return False


@contextmanager
def running(
    command: Sequence[object],
    env: Mapping[str, str],
    log: Path,
    ports: Sequence[int],
    ready: Callable[[str], bool] = lambda http: answers(f"{http}/v2/health/ready"),
) -> Iterator[Running]:
    """Starts a server, waits until it is ready, and stops it when the block ends.

    Raises:
        RuntimeError: It ended, or is not ready in time; with the end of its log.
    """
    http = f"http://127.0.0.1:{ports[0]}"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(word) for word in command],
            env={**os.environ, **env},
            cwd=log.parent,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + _START
        while not ready(http):
            if process.poll() is not None or time.monotonic() > end:
                state = "ended" if process.poll() is not None else "is not ready"
                raise RuntimeError(f"the server {state}: {_causes(log)}")
            time.sleep(0.1)
        yield Running(http, f"grpc://127.0.0.1:{ports[1]}", process, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        # The processes of Triton's Python-based backend outlive a server that was killed.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _causes(log: Path) -> str:
    """Returns the lines of a log that tell an error, or its last ones."""
    lines = log.read_text(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("E") or "rror" in line]
    return "\n".join((errors or lines)[-20:])


def backends(folder: Path) -> Path:
    """Makes Triton's folder of backends, with `onnxruntime_backend.py` as its ONNX Runtime."""
    server = packages(environment(TRITON)) / "pytriton" / "tritonserver"
    target = folder / "backends"
    shutil.copytree(server / "backends" / "python", target / "python")
    stub = server / "python_backend_stubs" / "3.11" / "triton_python_backend_stub"
    shutil.copy(stub, target / "python")
    (target / "python" / stub.name).chmod(0o755)
    (target / "onnxruntime").mkdir()
    shutil.copy(_BACKEND, target / "onnxruntime" / "model.py")
    return target


def triton_environment() -> dict[str, str]:
    """Returns the environment variables that the Triton server needs."""
    venv = environment(TRITON)
    libraries = [packages(venv) / "nvidia_pytriton.libs", _python_library(venv)]
    return {
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        # The backend's interpreter reads no PYTHONPATH, but belongs to the first Python of PATH.
        "PATH": os.pathsep.join([str(venv / "bin"), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
    }


def triton_program() -> Path:
    """Returns the program of the Triton server."""
    return packages(environment(TRITON)) / "pytriton" / "tritonserver" / "bin" / "tritonserver"


def triton_script(folder: Path) -> Path:
    """Writes a script that runs the Triton server in its environment, as an installed one runs."""
    lines = [f"export {name}={shlex.quote(text)}" for name, text in triton_environment().items()]
    path = folder / "tritonserver"
    path.write_text("\n".join(["#!/bin/sh", *lines, f'exec "{triton_program()}" "$@"', ""]))
    path.chmod(0o755)
    return path


@contextmanager
def triton(repository: Path, folder: Path, *more: object) -> Iterator[Running]:
    """Runs a Triton server whose ONNX Runtime backend is `onnxruntime_backend.py`.

    Args:
        folder: An empty folder for the backends and the log.
        more: More options of the server.
    """
    ports = free_ports(2)
    command = [
        *(triton_program(), "--model-repository", repository),
        *("--backend-directory", backends(folder), "--allow-metrics=false"),
        *("--http-address", "127.0.0.1", "--grpc-address", "127.0.0.1"),
        *("--http-port", ports[0], "--grpc-port", ports[1], *more),
    ]
    with running(command, triton_environment(), folder / "triton.log", ports) as server_running:
        yield server_running


def _python_library(venv: Path) -> str:
    """Returns the folder of the shared library of an environment's Python."""
    code = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"
    command = [venv / "bin" / "python", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def for_cpu(repository: Path) -> None:
    """Rewrites KIND_GPU, since the server of the tests has no GPU."""
    for path in repository.glob("*/config.pbtxt"):
        path.write_text(path.read_text().replace("KIND_GPU", "KIND_CPU"))


@contextmanager
def mlserver(graph: Path, folder: Path) -> Iterator[Running]:
    """Runs an MLServer with a graph as the model "served", by `mlserver_runtime.py`."""
    venv = environment(MLSERVER)
    shutil.copy(_RUNTIME, folder / "mlserver_runtime.py")
    model = (
        '{"name": "served", "implementation": "mlserver_runtime.Onnx", "parameters": {"uri": %s}}'
    )
    (folder / "model-settings.json").write_text(model % f'"{graph}"')
    ports = free_ports(3)
    settings = (
        '{"host": "127.0.0.1", "http_port": %d, "grpc_port": %d, "metrics_port": %d,'
        ' "parallel_workers": 0}'
    )
    (folder / "settings.json").write_text(settings % tuple(ports))
    command = [venv / "bin" / "mlserver", "start", folder]
    env = {"PYTHONPATH": str(folder)}
    ready = lambda http: answers(f"{http}/v2/models/served/ready")  # noqa: E731
    with running(command, env, folder / "mlserver.log", ports, ready) as server_running:
        yield server_running
