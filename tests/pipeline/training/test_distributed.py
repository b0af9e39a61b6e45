"""Training one model in several processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Process
from tests.subset import ROOT, python_path

LAUNCHER = """
import sys
import tests.subset
from pipeline.data import registry
from pipeline.cli import training_processes

registry.DATASETS["fashion-mnist"] = tests.subset.SUBSET
training_processes.end(training_processes.main(sys.argv[1:]))
"""


def together(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    script = folder / "launch.py"
    script.write_text(LAUNCHER)
    torchrun = "torch.distributed.run"
    command = [sys.executable, "-m", torchrun, "--standalone", "--nproc-per-node", "2", script]
    environment = {**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*map(str, command), *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


@pytest.mark.long
def test_two_processes_give_the_weights_of_one_process(
    tmp_path: Path, process: Callable[..., Process]
) -> None:
    # 512 images do not split evenly: the last batch has 12, its halves 6.
    words = ("lenet", "--epochs", 3, "--batch-size", 25, "--lr", 0.5, "--root")
    for folder in ("one", "two"):
        assert process("data", "--root", tmp_path / folder).run().code == 0
    alone = process("train", *words, tmp_path / "one", "--threads", 1).run()
    assert alone.code == 0, alone.err
    answer = together(tmp_path, *words, tmp_path / "two")
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr.count("epoch 3/3") == 1  # rank 0 alone prints
    records = [
        json.loads((tmp_path / n / "lenet/training.json").read_text()) for n in ("one", "two")
    ]
    assert [record["processes"] for record in records] == [1, 2]
    assert abs(records[0]["test_accuracy"] - records[1]["test_accuracy"]) <= 0.02
    losses = [[entry["loss"] for entry in record["curve"]] for record in records]
    assert torch.allclose(*map(torch.tensor, losses), rtol=1e-3)
    # LeNet has neither dropout nor batch norm, so the gradients differ only by rounding.
    weights = [load_file(tmp_path / n / "lenet/checkpoint.safetensors") for n in ("one", "two")]
    for name in weights[0]:
        assert torch.allclose(weights[0][name], weights[1][name], atol=1e-3)
    again = together(tmp_path, *words, tmp_path / "two")
    assert again.returncode == 0
    assert "nothing changed, skipped" in again.stderr


@pytest.mark.slow(4)
def test_a_failure_ends_all_processes(tmp_path: Path) -> None:
    answer = together(tmp_path, "lenet", "--root", tmp_path / "empty")
    assert answer.returncode == 1
    assert "no training images here" in answer.stderr


def test_without_torchrun_the_error_names_the_command() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "pipeline.training", "lenet"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 2
    assert "torchrun --nproc-per-node" in answer.stderr
