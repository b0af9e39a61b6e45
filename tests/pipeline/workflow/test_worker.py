"""The child process: results, errors, progress, limits and deaths."""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engines.errors import CrashedError, NotAvailableError
from pipeline.workflow import console, worker
from tests.conftest import Process
from tests.subset import FAULTY, ROOT, python_path


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(worker, "settings", worker.Settings())
    yield
    worker.end()


def refuse() -> None:
    raise NotAvailableError("no such thing", "install it")


class UnpicklableError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def raise_unpicklable() -> None:
    raise UnpicklableError("not to be ", "rebuilt")


def progress() -> None:
    console.say("a line")
    with console.bar("a bar", 2) as bar:
        bar.advance(1, "half")
        bar.line("a line above the bar")
        bar.advance(1)


def allocate(count: int) -> int:
    taken = b"\1" * count
    time.sleep(5)
    return len(taken)


def test_a_result_comes_from_one_other_process() -> None:
    first, second = worker.call("asking", os.getpid), worker.call("asking", os.getpid)
    assert first == second != os.getpid()


def test_the_child_works_in_the_folder_of_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path, ROOT):
        monkeypatch.chdir(folder)
        assert worker.call("asking", os.getcwd) == str(folder)


def test_a_changed_environment_starts_a_new_child(monkeypatch: pytest.MonkeyPatch) -> None:
    before = worker.call("asking", os.getpid)
    monkeypatch.setenv("ASSAY_TEST_VALUE", "changed")
    assert worker.call("asking", os.getenv, "ASSAY_TEST_VALUE") == "changed"
    assert worker.call("asking", os.getpid) != before


def test_an_error_keeps_its_kind_hint_and_traceback_and_the_child() -> None:
    before = worker.call("asking", os.getpid)
    with pytest.raises(NotAvailableError, match="no such thing") as caught:
        worker.call("refusing", refuse)
    assert caught.value.hint == "install it"
    assert "in refuse" in str(caught.value.__cause__)
    assert worker.call("asking", os.getpid) == before


def test_an_error_that_cannot_be_pickled_is_described() -> None:
    with pytest.raises(RuntimeError, match="UnpicklableError: not to be rebuilt"):
        worker.call("raising", raise_unpicklable)


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGKILL, "SIGKILL")]
)
def test_a_death_is_an_error_and_the_next_call_works(number: int, name: str) -> None:
    if number == signal.SIGSEGV:
        die: Callable[[], object] = lambda: worker.call("reading", ctypes.string_at, 0)  # noqa: E731
    else:
        pid = worker.call("asking", os.getpid)
        die = lambda: worker.call("dying", os.kill, pid, number)  # noqa: E731
    with pytest.raises(CrashedError, match=rf"^signal {number} \({name}\) ended the process while"):
        die()
    assert worker.call("asking", os.getpid) != os.getpid()


def test_an_exit_is_an_error() -> None:
    with pytest.raises(CrashedError, match=r"^exit code 3 ended the process while leaving"):
        worker.call("leaving", os._exit, 3)


def test_a_child_that_died_between_two_calls_is_replaced() -> None:
    before = worker.call("asking", os.getpid)
    os.kill(before, signal.SIGKILL)
    os.waitid(os.P_PID, before, os.WEXITED | os.WNOWAIT)
    assert worker.call("asking", os.getpid) != before


def test_a_hang_is_stopped() -> None:
    worker.call("asking", os.getpid)
    worker.settings.seconds = 0.5
    start = time.monotonic()
    with pytest.raises(CrashedError, match=r"stopped after 0.5 s while sleeping"):
        worker.call("sleeping", time.sleep, 60)
    assert time.monotonic() - start < 30


def talk() -> None:
    while True:
        console.say("still at it")


def test_a_hang_that_talks_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.settings, "quiet", True)
    worker.settings.seconds = 0.5
    with pytest.raises(CrashedError, match=r"stopped after 0.5 s while talking"):
        worker.call("talking", talk)


def test_threads_call_one_after_the_other() -> None:
    with ThreadPoolExecutor(4) as pool:
        pids = set(pool.map(lambda _: worker.call("asking", os.getpid), range(8)))
    assert len(pids) == 1


def test_the_child_outlives_the_thread_that_started_it() -> None:
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(worker.call, "asking", os.getpid).result()
    time.sleep(0.2)
    assert worker.call("asking", os.getpid) == first


def test_memory_is_bounded() -> None:
    worker.settings.memory = 300 << 20
    with pytest.raises(CrashedError, match=r"stopped while taking: the process took .* GiB"):
        worker.call("taking", allocate, 500 << 20)
    assert worker.call("taking less", len, b"1") == 1


def test_progress_is_shown_by_the_caller(capfd: pytest.CaptureFixture[str]) -> None:
    worker.call("telling", progress)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == ["a line", "a line above the bar"]


def test_what_a_library_prints_is_discarded(capfd: pytest.CaptureFixture[str]) -> None:
    worker.call("printing", os.system, "echo a library; echo more >&2")
    assert capfd.readouterr() == ("", "")


def test_what_a_library_prints_is_never_on_stdout(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(console.LIBRARY_OUTPUT, "1")
    worker.call("printing", os.system, "echo a library")
    assert capfd.readouterr() == ("", "a library\n")


def print_and_die() -> None:
    os.system("seq 100000")  # noqa: S605 - as native code prints: not through Python
    os.abort()


def test_the_last_lines_of_a_library_that_died_are_printed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(CrashedError):
        worker.call("dying", print_and_die)
    lines = capfd.readouterr().err.splitlines()
    assert lines == [str(number) for number in range(100000 - len(lines) + 1, 100001)]
    assert 10 < len(lines) < 50


def test_the_child_leaves_no_temporary_files() -> None:
    folder = Path(worker.call("asking", tempfile.gettempdir))
    assert folder.is_dir()
    assert folder != Path(tempfile.gettempdir())
    worker.end()
    assert not folder.exists()


@pytest.mark.parametrize("thread", ["main", "other"])
def test_a_killed_parent_leaves_no_process_and_the_next_one_no_folder(
    thread: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder of its own: processes of other tests remove what is left in the common one.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    source = """
import os, sys, tempfile, threading, time
from pipeline.workflow import worker

def work():
    print(worker.call("asking", os.getpid), worker.call("asking", tempfile.gettempdir), flush=True)
    worker.call("sleeping", time.sleep, 100)

if sys.argv[1] == "main":
    work()
threading.Thread(target=work).start()
"""
    environment = {**os.environ, "PYTHONPATH": python_path()}
    parent = subprocess.Popen(
        [sys.executable, "-c", source, thread], env=environment, stdout=subprocess.PIPE, text=True
    )
    child, folder = parent.stdout.readline().split()
    parent.kill()
    parent.communicate(timeout=30)
    for _ in range(100):
        if not Path(f"/proc/{child}").exists():
            break
        time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists()
    assert Path(folder).is_dir()
    worker.call("asking", os.getpid)
    assert not Path(folder).exists()


def test_the_child_starts_no_children_of_its_own() -> None:
    child, inner = worker.call("asking", os.getpid), worker.call("asking", _inner)
    assert inner == child


def _inner() -> int:
    return worker.call("asking", os.getpid)


@pytest.mark.slow(25)
@pytest.mark.timeout(300)
def test_engines_that_crash_are_rows_and_the_others_are_measured(
    process: Callable[..., Process], tmp_path: Path
) -> None:
    failing = ("aborting", "hanging", "hungry", "segfaulting", "wrong")
    names = (*failing, "noisy", "onnxruntime", "openvino")
    engines = [word for name in names for word in ("--engine", name)]
    limits = ("--time-limit", 15, "--memory-limit", 1.5)
    machine = {"PYTHONPATH": python_path(FAULTY)}
    result = process("run", "edge", *engines, *limits).run(machine=machine)
    assert result.code == 1, result.err
    table = result.out.partition("end-to-end latency")[2]
    cells = [line.split() for line in table.splitlines()]
    verdicts = {name: rest[0] for name, *rest in filter(None, cells) if name in names}
    assert verdicts == {
        "hanging": "crashed",
        "hungry": "crashed",
        "noisy": "pass",
        "onnxruntime": "pass",
        "openvino": "pass",
        "segfaulting": "crashed",
        "wrong": "mismatch",
    }
    *_, error, _hint = result.err.splitlines()
    assert "signal 6 (SIGABRT) ended the process while building aborting" in error
    assert "hanging crashed: stopped after 15 s while running hanging" in error
    assert "hungry crashed: stopped while opening hungry: the process took" in error
    assert "segfaulting crashed: signal 11 (SIGSEGV) ended the process while opening" in error
    assert "wrong is not proved equal to the model" in error
    assert (tmp_path / "dist/edge-fp32.tar.zst").exists()
    assert "Traceback" not in result.err
    assert "last words of a library" in result.err
    assert "clatter" not in result.out + result.err

    again = process("bench", "edge", "--engine", "hanging").run(machine=machine)
    assert again.code == 3
    assert "hanging is not measured, since its verdict in fp32 is 'crashed'" in again.err
    report = process("verify", "edge", "--engine", "segfaulting").run(machine=machine)
    assert report.code == 1
    assert "running again: it crashed last time" in report.err
