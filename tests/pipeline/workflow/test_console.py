"""Terminal output."""

import json

import pytest

from pipeline.workflow import console


def test_nan_and_infinity_are_null_in_a_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console.settings, "json", True)
    console.document({"a": [float("nan"), 1.5], "b": (float("inf"), None)})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": [None, None]}
