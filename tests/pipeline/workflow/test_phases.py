"""The phases of a long stage: lines in a log, a bar on a terminal."""

import contextlib
import os
import pty
import sys
import threading
import time

import pytest

from pipeline.workflow import console, phases


def test_a_long_phase_is_named_in_a_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "_FIRST_LINE", 0.2)
    with phases.showing("export"):
        phases.start("short")
        phases.start("long", total=4)
        phases.advance()
        time.sleep(0.7)
        phases.start("again short")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "export: long, 25%, 0 s"
    assert second.startswith("export: long, 25%")
    assert "phases" not in " ".join(thread.name for thread in threading.enumerate())


def test_naming_a_phase_outside_of_a_stage_does_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    phases.start("nothing")
    phases.advance()
    assert capsys.readouterr().err == ""


def test_the_lines_end_with_the_stage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "_FIRST_LINE", 0.1)
    with contextlib.suppress(ValueError), phases.showing("export"):
        phases.start("long")
        raise ValueError
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_shows_the_phase_and_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    main, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setitem(console.settings.streams, "stderr", stream)
        with phases.showing("export"):
            phases.start("golden rows in float64", total=8)
            phases.advance(2)
            time.sleep(0.3)
            console.say("export: a line of its own")
            phases.start("translating to ONNX")
            time.sleep(0.3)
    drawn = os.read(main, 1 << 16).decode()
    os.close(main)
    assert "golden rows in float64" in drawn
    assert "25%" in drawn
    assert "\nexport: a line of its own" in drawn.replace("\r", "\n").replace("\x1b[2K", "")
    assert "translating to ONNX" in drawn
