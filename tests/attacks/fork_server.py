"""Starts commands as forks of a process that has already imported third-party libraries.

A command takes seconds to start, nearly all of it imports of torch and the like. A fork starts at
once. The server never imports our own modules, so they run from their first line in each fork.
`python -m tests.attacks.fork_server DESCRIPTOR LIBRARIES` serves the requests of a `ForkServer`.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import site
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# ONNX Runtime and OpenVINO start threads when they are imported, which a fork would lack.
LIBRARIES = (
    "PIL.Image",
    "click",
    "google.protobuf",
    "networkx",
    "numpy",
    "onnx",
    "onnxscript.function_libs.torch_lib.ops",
    "onnxslim",
    "rich.progress",
    "rich.table",
    "safetensors.torch",
    "torch._dynamo",
    "torch._inductor.output_code",
    "torch.export._trace",
    "torch.export.pt2_archive",
    "torch.onnx._internal.exporter._core",
)
_REQUEST_BYTES = 1 << 16


@dataclass
class Forked:
    """A command that runs in a fork, used like a `subprocess.Popen`.

    Attributes:
        reply: Descriptor from which its exit code is read.
    """

    args: list[str]
    pid: int
    reply: int
    returncode: int | None = None

    def poll(self) -> int | None:
        """Returns the exit code, or None if the command runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit code, which is negative after a signal; may raise TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self.reply], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(os.read(self.reply, 16))
            os.close(self.reply)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless the command has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """A server for the commands of one user; it ends when this process ends."""

    def __init__(
        self,
        prefix: tuple[str, ...],
        environment: dict[str, str],
        libraries: tuple[str, ...] = LIBRARIES,
    ) -> None:
        """Starts the server.

        Args:
            prefix: The program that runs a command as the user, with its arguments.
            environment: Environment in which it imports libraries.
            libraries: Names of the modules that it imports.
        """
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [*prefix, sys.executable, "-m", __name__, str(theirs.fileno()), *libraries],
                cwd="/",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def start(
        self, module: str, words: tuple[str, ...], cwd: Path, environment: dict[str, str], err: int
    ) -> Forked:
        """Starts `python -m MODULE WORDS` in a process group of its own.

        Args:
            err: Descriptor for its stderr. Its stdin and stdout are /dev/null.
        """
        reply, theirs = os.pipe()
        request = {"module": module, "words": words, "cwd": str(cwd), "environment": environment}
        try:
            socket.send_fds(self._requests, [json.dumps(request).encode()], [err, theirs])
        finally:
            os.close(theirs)
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(reply, 1)
            if not byte:
                raise RuntimeError(f"the fork server ended with {self._process.wait()}")
            line += byte
        return Forked([module, *words], int(line), reply)

    def close(self) -> None:
        """Ends the server."""
        self._requests.close()
        self._process.wait()


def _serve(requests: socket.socket) -> dict[str, Any] | None:
    """Forks for each request; returns it in the fork, and None in the server once it is done."""
    replies: dict[int, tuple[int, int]] = {}  # pid and reply by pidfd
    while True:
        for ready in select.select([requests, *replies], [], [])[0]:
            if ready is not requests:
                pid, reply = replies.pop(ready)
                os.close(ready)
                _, status = os.waitpid(pid, 0)
                with suppress(BrokenPipeError):
                    os.write(reply, b"%d\n" % os.waitstatus_to_exitcode(status))
                os.close(reply)
                continue
            content, descriptors, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, 2)
            if not content:
                return None
            err, reply = descriptors
            pid = os.fork()
            if not pid:
                os.dup2(err, 2)
                requests.detach()  # or it would close a descriptor that the command has opened
                os.dup2(reply, 3)
                os.closerange(4, os.sysconf("SC_OPEN_MAX"))
                return dict(json.loads(content))
            os.close(err)
            replies[os.pidfd_open(pid)] = pid, reply


def _become(request: dict[str, Any], installed: list[str]) -> None:
    """Makes this fork what a new interpreter would be for a request.

    Args:
        installed: The part of the search path that does not depend on the environment.
    """
    os.setsid()
    os.chdir(request["cwd"])
    locale = os.environ.get("LC_CTYPE")  # which the interpreter sets at its start
    os.environ.clear()
    os.environ.update(request["environment"])
    if locale is not None:
        os.environ.setdefault("LC_CTYPE", locale)
    first = os.environ["PYTHONPATH"].split(os.pathsep)
    sys.path[:] = dict.fromkeys([request["cwd"], *first, *installed])
    sys.argv[:] = ["-m", *request["words"]]
    tempfile.tempdir = None
    importlib.invalidate_caches()
    if any((Path(folder) / "sitecustomize.py").exists() for folder in first):
        sys.modules.pop("sitecustomize", None)
        site.execsitecustomize()


def _run(module: str) -> None:
    """Runs a module and ends this process as the interpreter would, but without freeing memory.

    Freeing all that was imported would copy it first, which takes longer than most commands.
    """
    code, interrupted = 0, False
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code, interrupted = 1, isinstance(error, KeyboardInterrupt)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


def main() -> None:
    """Runs the server and, in each of its forks, a command."""
    ours = (str(Path.cwd()), *os.environ["PYTHONPATH"].split(os.pathsep))
    installed = [folder for folder in sys.path if folder not in ours]
    descriptor, *libraries = sys.argv[1:]
    for name in libraries:
        importlib.import_module(name)
    if len(threads := list(Path("/proc/self/task").iterdir())) > 1:
        raise RuntimeError(f"a fork would have only one of the threads {threads}")
    gc.freeze()  # or a collection in a fork would copy all that was imported
    request = _serve(socket.socket(fileno=int(descriptor)))
    if request is None:
        return
    _become(request, installed)
    os.write(3, b"%d\n" % os.getpid())
    os.close(3)
    _run(request["module"])


if __name__ == "__main__":
    main()
