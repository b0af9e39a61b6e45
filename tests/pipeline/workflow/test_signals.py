"""Signals are never lost, wherever they arrive."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pipeline.workflow import signals
from tests.subset import ROOT, python_path


@pytest.fixture
def _installed() -> Iterator[None]:
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` ignores it
    signals.install()
    yield
    signals.install()  # forgets what was received
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_installed")
def test_a_command_under_nohup_outlives_its_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.install()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGHUP)


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("error", [ValueError, None])
def test_an_interrupt_that_a_library_swallows_is_raised_again(
    number: signal.Signals, error: type[Exception] | None
) -> None:
    def library() -> None:
        try:
            os.kill(os.getpid(), number)
        except BaseException:
            if error is not None:
                raise error from None

    with pytest.raises(signals.Interrupted) as caught, signals.not_swallowed():
        library()
    assert caught.value.exit_code == 128 + number


@pytest.mark.usefixtures("_installed")
def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(ValueError, match="other"), signals.not_swallowed():
        raise ValueError("other")


def test_a_signal_before_the_command_begins_prints_nothing() -> None:
    code = "import os, pipeline.cli.__main__; os.kill(os.getpid(), 2)"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, b"")


HANGS = """
import atexit, signal, sys, threading
import numpy as np, onnx.parser, onnxruntime
from pipeline.benchmarking.load import closed
from pipeline.cli import __main__ as entry

model = onnx.parser.parse_model('''
    <ir_version: 9, opset_import: ["": 17]>
    endless (float[4, 4] x) => (float[4, 4] y)
    <int64 count = {1000000000000}, bool go = {1}> {
        y = Loop (count, go, x) <body = body (int64 i, bool c, float[4, 4] a)
            => (bool d, float[4, 4] b) { d = Identity(c)  b = MatMul(a, x) }>
    }
''')

class Endless:
    def __init__(self):
        self.runs = 0
        self.session = onnxruntime.InferenceSession(model.SerializeToString())

    def run(self, feeds):
        self.runs += 1
        return self.session.run(None, feeds) if self.runs > 1 else None

def main():
    threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
    try:
        closed([Endless()], {"x": np.eye(4, dtype=np.float32)}, seconds=0.1)
    except KeyboardInterrupt:
        return 130

atexit.register(print, "cleaned up")
signal.signal(signal.SIGINT, signal.default_int_handler)
entry.main = main
sys.exit(entry.run())
"""


@pytest.mark.slow(3)
def test_native_code_that_never_returns_does_not_abort_the_process() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HANGS],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "cleaned up\n", "")
