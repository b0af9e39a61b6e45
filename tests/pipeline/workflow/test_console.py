"""Terminal output."""

import json
import os
import subprocess
import sys

import pytest

from pipeline.workflow import console
from tests.subset import python_path


def test_nan_and_infinity_are_null_in_a_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console.settings, "json", True)
    console.document({"a": [float("nan"), 1.5], "b": (float("inf"), None)})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": [None, None]}


@pytest.mark.parametrize("shown", [False, True])
def test_only_our_own_lines_are_printed_unless_asked(shown: bool) -> None:
    code = """
import logging, sys
from pipeline.workflow import console
from tests.faulty_engines.backends import noisy

with console.own_lines_only():
    console.say("progress")
    noisy.clatter()
    logging.getLogger("engines.checks").warning("our log")
    console.error("an error")
print("after", file=sys.stderr)
"""
    environment = {**os.environ, "PYTHONPATH": python_path()}
    environment |= {console.LIBRARY_OUTPUT: "1"} if shown else {}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    ours = ["progress", "our log", "error: an error", "after"]
    assert [line for line in ended.stderr.splitlines() if "clatter" not in line] == ours or shown
    assert ("clatter" in ended.stdout) == shown
    assert ("clatter" in ended.stderr) == shown
