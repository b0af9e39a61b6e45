"""The scripts that measure run, on small cases."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.subset import ROOT

pytestmark = pytest.mark.timeout(300)


def zoo(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/zoo.py", *map(str, words)]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_sweep_says_what_became_of_a_model() -> None:
    result = zoo("--quick", "--models", "squeezenet1_1", "--precisions", "fp16,int8")
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if "squeezenet1_1" in line]
    for row, precision in zip(rows, ("fp16", "int8"), strict=True):
        assert f"| squeezenet1_1 | {precision} | pass |" in row


def test_the_sweep_goes_on_where_it_stopped_and_keeps_within_its_memory(tmp_path: Path) -> None:
    path = tmp_path / "zoo.json"
    known = {"model": "squeezenet1_1", "precision": "fp32", "exported": True, "verdict": "pass"}
    path.write_text(json.dumps({"cases": [known]}))
    words = ("--models", "squeezenet1_1", "--precisions", "fp32,fp16", "--results", path)
    result = zoo(*words, "--memory", 0.2)
    assert result.returncode == 0, result.stderr
    first, second = json.loads(path.read_text())["cases"]
    assert first["verdict"] == "pass"
    assert (second["precision"], second["exported"]) == ("fp16", False)
    assert "takes more than 0.2 GiB of memory" in second["reason"]
    assert "- fp16, 1 of 80 models so far: 1 not exported" in path.with_suffix(".md").read_text()
