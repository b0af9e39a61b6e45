"""A fork runs a module as a new interpreter does."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.fork_server import Forked, ForkServer
from tests.subset import python_path

ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": python_path(), "LEFT": "out"}
STATE = """
import os, signal, sys, threading, tempfile
handlers = [signal.getsignal(number) for number in (1, 2, 13, 15, 17)]
folders = [folder for folder in sys.path if not folder.endswith("-dynload")]
descriptors = len(os.listdir("/proc/self/fd"))
values = (sys.argv, folders, os.getcwd(), sorted(os.environ.items()), handlers, __name__,
    threading.active_count(), tempfile.gettempdir(), descriptors, os.getpgid(0) == os.getpid(),
    "sitecustomize" in sys.modules and sys.modules["sitecustomize"].__file__, sys.flags,
    signal.pthread_sigmask(signal.SIG_BLOCK, []), os.umask(0))
print(*values, sep="\\n", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    folder = tmp_path_factory.mktemp("library")
    (folder / "library.py").write_text("import tempfile; tempfile.gettempdir()", encoding="utf-8")
    server = ForkServer((), {**ENVIRONMENT, "PYTHONPATH": python_path(folder)}, ("library",))
    yield server
    server.close()


def _both(
    server: ForkServer, folder: Path, text: str, *words: str, **more: str
) -> list[tuple[int, str]]:
    """Returns the exit code and stderr of a module in a new interpreter and in a fork."""
    (folder / "ending.py").write_text(text, encoding="utf-8")
    environment = {**ENVIRONMENT, **more}
    del environment["LEFT"]
    command = [sys.executable, "-m", "ending", *words]
    fresh = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )
    with tempfile.TemporaryFile("w+") as err:
        code = server.start("ending", words, folder, environment, err.fileno()).wait(20)
        err.seek(0)
        return [(fresh.returncode, fresh.stderr), (code, err.read())]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "import sys; sys.exit(3)",
        "import sys; sys.exit(-1)",
        "import sys; sys.exit('why')",
        "import sys; sys.exit()",
        "1 / 0",
        "raise KeyboardInterrupt",
        "import atexit; atexit.register(print, 1, file=__import__('sys').stderr); raise SystemExit",
        "import os; os.kill(os.getpid(), 15)",
        "import os; os.abort()",
        "import threading; threading.Timer(0.1, lambda: __import__('os')._exit(7)).start()",
    ],
)
def test_it_ends_in_the_same_way(server: ForkServer, tmp_path: Path, text: str) -> None:
    fresh, forked = _both(server, tmp_path, text)
    assert forked[0] == fresh[0]
    assert forked[1].splitlines()[-1:] == fresh[1].splitlines()[-1:]


def test_it_starts_in_the_same_state(server: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "sitecustomize.py").touch()
    path = python_path(tmp_path / "first")
    fresh, forked = _both(
        server, tmp_path, STATE, "a", "b c", PYTHONPATH=path, TMPDIR=str(tmp_path / "tmp")
    )
    assert forked[1].splitlines() == fresh[1].splitlines()
    assert forked[0] == fresh[0] == 0


def _sleeping(server: ForkServer, folder: Path, err: int) -> Forked:
    (folder / "ending.py").write_text("import time; time.sleep(20)", encoding="utf-8")
    return server.start("ending", (), folder, ENVIRONMENT, err)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_signal_ends_it(server: ForkServer, tmp_path: Path, number: int) -> None:
    with tempfile.TemporaryFile() as err:
        forked = _sleeping(server, tmp_path, err.fileno())
        with pytest.raises(subprocess.TimeoutExpired):
            forked.wait(0)
        forked.send_signal(number)
        assert forked.wait(10) == -number
        forked.send_signal(number)  # to nobody


def test_several_run_at_the_same_time(server: ForkServer, tmp_path: Path) -> None:
    with tempfile.TemporaryFile() as err:
        first, second = (_sleeping(server, tmp_path, err.fileno()) for _ in range(2))
        second.kill()
        assert second.wait(10) == -signal.SIGKILL
        assert first.poll() is None
        first.kill()
        assert first.wait(10) == -signal.SIGKILL


def test_a_server_that_ended_is_noticed(tmp_path: Path) -> None:
    server = ForkServer((), ENVIRONMENT, ("no_such_library",))
    with tempfile.TemporaryFile() as err, pytest.raises((RuntimeError, OSError)):
        _sleeping(server, tmp_path, err.fileno())
    server.close()
