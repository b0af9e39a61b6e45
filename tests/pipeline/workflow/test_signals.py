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
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signals.install()
    yield
    signals.install()  # forgets what was received
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
