"""The benchmark scripts, on small cases."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu_report
from tests.subset import ROOT, python_path

pytestmark = pytest.mark.timeout(300)

OWN = ("assay", "benchmarks", "engines", "exporters", "pipeline", "tests")


def missing(path: Path) -> list[str]:
    """Returns what a script asks of modules of ours that they do not have."""
    tree = ast.parse(path.read_text())
    modules, problems = {}, []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").partition(".")[0] not in OWN:
            continue
        for alias in node.names:
            try:
                known = importlib.import_module(f"{node.module}.{alias.name}")
            except ModuleNotFoundError:
                if not hasattr(importlib.import_module(node.module), alias.name):
                    problems.append(f"{node.module}.{alias.name}")
            else:
                modules[alias.asname or alias.name] = known
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = modules.get(node.value.id)
            if owner is not None and not hasattr(owner, node.attr):
                problems.append(f"{owner.__name__}.{node.attr}")
    return problems


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_a_script_asks_for_what_exists(path: Path) -> None:
    assert missing(path) == []


def test_a_name_that_a_script_lacks_is_reported(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pipeline.benchmarking import clock\nfrom engines.contract import Nothing\n"
        "clock.measure\nclock.bootstrap\n"
    )
    assert missing(script) == ["engines.contract.Nothing", "pipeline.benchmarking.clock.bootstrap"]


def zoo(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/zoo.py", *map(str, words)]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={"PYTHONPATH": python_path(), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.long
def test_the_sweep_reports_the_result_of_a_model() -> None:
    result = zoo("--quick", "--models", "squeezenet1_1", "--precisions", "fp16,int8")
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if "squeezenet1_1" in line]
    for row, precision in zip(rows, ("fp16", "int8"), strict=True):
        assert f"| squeezenet1_1 | {precision} | pass |" in row


@pytest.mark.slow(4)
def test_the_sweep_resumes_and_keeps_its_memory_limit(tmp_path: Path) -> None:
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


def test_the_sweep_reports_a_killed_process() -> None:
    from benchmarks.zoo import command

    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    answer, _, ended = command(killed, limit=1000, seconds=60)
    assert answer == {}
    assert ended.startswith("ended by SIGKILL at ")


@pytest.mark.parametrize("name", ["lenet", "resnet18"])
def test_the_gpu_report_counts_work_at_the_networks_image_size(name: str) -> None:
    needed = gpu_report.work(name)
    pixels = int(np.prod(gpu_report.__dict__[name]().image))
    assert needed["bytes"] == pixels + 10 * 4
    assert needed["flop"] > 2 * needed["parameters"]  # each weight is multiplied at least once


def test_the_gpu_report_gives_times_as_parts_of_the_machines_rates() -> None:
    def timed(boundary: str, seconds: float) -> dict[str, object]:
        interval = {"value": seconds, "low": seconds, "high": seconds}
        ratio = {"value": 1.0, "low": 1.0, "high": 1.0}
        entry = {"name": "pytorch", "batch": 2, "boundary": boundary, "settled": True}
        return {**entry, "seconds": interval, "ratio": ratio}

    results = [timed("device", 1e-3), timed("end to end", 2e-3)]
    content = {
        "doctor": {"cpu": "a CPU", "cpus": 2, "gpus": []},
        "torch": "2",
        "peaks": {"copy": 1e9, "fp32": 1e10},
        "work": {"lenet": {"flop": 1e6, "parameters": 1000, "bytes": 3000}},
        "cases": [
            {"model": "lenet", "precision": "fp32", "measurements": {"results": results}},
            {"model": "lenet", "precision": "int8", "error": "out of time"},
        ],
    }
    page = gpu_report.page(content)
    # 2e6 flop in 1 ms of 1e10 flop/s; 4000 + 6000 bytes in 1 ms of 1e9 bytes/s.
    assert "| 1,000.0 | 2,000.0 | 2,000 | 1.00 (1.00 to 1.00) | 20.0% | 1.0% |" in page
    assert "- lenet int8: out of time" in page
