"""The printed report of the verify stage."""

import dataclasses

import pytest

from pipeline.report import verify
from pipeline.verification.verdict import OutputVerdict, Verdict, not_run

OUTPUT = OutputVerdict("logits", 1e-6, 0.5, 2e-6, 0.75, 1.0, "test image 0", sqnr=31.0)
PASSED = Verdict("graph", "pass", "fp32", outputs=(OUTPUT,))


def test_a_verdict_has_a_row_for_each_output(capsys: pytest.CaptureFixture[str]) -> None:
    verify.show([PASSED, not_run("tensorrt", "fp32", "no GPU")])
    out = capsys.readouterr().out
    (row,) = [line.split() for line in out.splitlines() if line.split()[:1] == ["graph"]]
    assert row == ["graph", "pass", "logits", "1.00e-06", "0.50", "2.00e-06", "0.75"]
    assert "tensorrt: not run: no GPU" in out
    assert "SQNR" not in out


def test_a_quantized_verdict_shows_the_signal_to_noise_ratio(
    capsys: pytest.CaptureFixture[str],
) -> None:
    verify.show([dataclasses.replace(PASSED, precision="int8")])
    out = capsys.readouterr().out
    assert "SQNR (dB)" in out
    assert "31.0" in out
