"""Terminal output."""

import io
import json
import os
import re
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


COLUMNS = ("engine", "verdict", ">error x floor", ">batch 1")
ROWS = [("onnxruntime_cuda", "pass", "0.68", "54.3 µs"), ("openvino", "not run", "", "1,511 µs*")]


def drawn(width: int, monkeypatch: pytest.MonkeyPatch, **options: object) -> str:
    out = io.StringIO()
    out.isatty = lambda: True
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "stdout", out)
    console.table("Title", COLUMNS, ROWS, **options)
    return out.getvalue()


def test_a_table_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = drawn(100, monkeypatch)
    assert "error x floor" in wide
    assert "error x floor" not in drawn(50, monkeypatch)  # its words are below each other
    narrow = drawn(45, monkeypatch, optional=(">error x floor",))
    narrow, note = narrow.split("left out, as the terminal is narrow: ")
    assert "error x floor" not in narrow
    assert note.startswith("error x floor;")
    for text in (wide, narrow):
        for name, *_, time in ROWS:
            (line,) = (line for line in text.splitlines() if name in line)
            assert time in line
    plain = re.sub("\x1b\\[[0-9;]*m", "", narrow)
    assert max(map(len, plain.splitlines())) <= 45


def test_a_column_is_left_out_before_a_text_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "output at 3x64x96"
    monkeypatch.setattr(sys.modules[__name__], "ROWS", [("graph", long, "0.68", "54.3 µs")])
    assert long in drawn(50, monkeypatch, optional=(">error x floor",))
    assert long not in drawn(30, monkeypatch, optional=(">error x floor",))


def test_without_rows_no_empty_table_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROWS", [])
    assert drawn(100, monkeypatch) == "Title: none\n"


def test_a_wide_character_takes_two_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "COLUMNS", ("模型", ">类别"))
    monkeypatch.setattr(sys.modules[__name__], "ROWS", [("日本語の名前", "花")])
    text = re.sub("\x1b\\[[0-9;]*m", "", drawn(40, monkeypatch))
    assert "日本語の名前" in text
    assert "模型" in text
    assert "类别" in text


def test_rows_are_blocks_where_a_table_would_break_words(monkeypatch: pytest.MonkeyPatch) -> None:
    text = drawn(30, monkeypatch)
    assert "engine: onnxruntime_cuda\nverdict: pass\nerror x floor: 0.68\n" in text
    assert "batch 1: 1,511 µs*" in text


def test_terms_are_explained_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "rounding noise" not in drawn(100, monkeypatch)
    monkeypatch.setattr(console.settings, "explain", True)
    text = drawn(100, monkeypatch)
    assert "error x floor: root mean square error" in text
    assert "verdict: pass: equal to PyTorch" in text
    assert "SQNR" not in text


def test_an_empty_column_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROWS", [(a, b, "", d) for a, b, _, d in ROWS])
    assert "error x floor" not in drawn(100, monkeypatch)


def test_a_file_gets_all_columns(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f">column {number}" for number in range(40)]
    console.table("Title", names, [["12345"] * 40], names)
    assert "column 39" in capsys.readouterr().out
    console.table("Title", ("name", "why"), [["x", "several words " * 20]], ("why",))
    out = capsys.readouterr().out
    assert out.count("several") == 20
    assert "left out" not in out
