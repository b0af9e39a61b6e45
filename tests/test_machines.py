"""The commands on machines without some libraries, GPUs or drivers."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import engines
from engines import hardware
from tests import machines
from tests.conftest import Process, Result
from tests.machines import H100

Run = Callable[..., Result]
CHAIN = ("run", "edge", "--engine", "all", "--batch", 1, "--budget", 0.1)
HIDDEN = ("openvino", "tensorrt", "tensorrt_rtx")
LISTED = f"nvidia-smi lists {H100.name} (driver 580.159.04)"


@pytest.fixture
def on(process: Callable[..., Process]) -> Run:
    """Runs a command with the environment variables of a machine from `tests.machines`."""

    def call(machine: Mapping[str, str], *words: object) -> Result:
        return process(*words).run(machine=machine)

    return call


def require_no_gpu() -> None:
    if hardware.gpus():
        pytest.skip("this machine has a GPU")


def examine(on: Run, machine: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """Returns doctor's JSON document, and the words of its tables."""
    result = on(machine, "doctor", "--json")
    assert result.code == 0, result.err
    return json.loads(result.out), " ".join(result.err.split())


@pytest.mark.long
def test_the_chain_runs_on_the_engines_that_are_installed(on: Run, tmp_path: Path) -> None:
    machine = machines.without(tmp_path / "hiding", "openvino", "tensorrt")
    document, tables = examine(on, machine)
    states = document["engines"]
    for name in HIDDEN:
        state = states[name]
        assert (state["build"], state["run"]) == (False, False)
        assert state["reason"].endswith("is not installed")
        assert state["fix"].startswith("pip install ")
        assert f"{name} no no {state['reason']}" in tables
        assert f"to get {name}: {state['fix']}" in tables
    result = on(machine, *CHAIN)
    assert result.code == 0, result.err
    assert "Traceback" not in result.err
    for name in HIDDEN:
        assert f"build: without {name}: {states[name]['reason']}" in result.err
    summary = result.out[result.out.index("edge, fp32") :]
    for name in ("onnxruntime", "pytorch"):
        assert f"  {name} " in summary
    if not hardware.gpus():
        assert "onnxruntime_cuda: not run on this machine: " in summary
    result = on(machine, "build", "edge", "--engine", "openvino")
    assert result.code == 4
    assert "hint: pip install openvino" in result.err


@pytest.mark.long
def test_a_gpu_without_a_cuda_driver_is_reported_and_the_chain_runs_on_the_cpu(
    on: Run, tmp_path: Path
) -> None:
    require_no_gpu()
    machine = machines.with_tool(tmp_path / "tool", f"{H100.name}, 580.159.04")
    document, tables = examine(on, machine)
    assert document["gpus"] == []
    assert document["no_gpu"].endswith(f"; {LISTED}")
    assert f"GPU none: {document['no_gpu']}" in tables
    result = on(machine, *CHAIN)
    assert result.code == 0, result.err
    assert "onnxruntime_cuda: not run on this machine: " in result.out
    assert LISTED in result.out


@pytest.mark.long
@pytest.mark.skipif(machines.COMPILER is None, reason="the stand-in driver needs a C compiler")
def test_pytorch_runs_on_the_cpu_where_it_cannot_use_the_gpu(on: Run, tmp_path: Path) -> None:
    machines.compile_driver(tmp_path)
    machine = machines.with_driver(tmp_path, H100)  # torch needs more of a driver than it has
    why = "opens no GPU with driver 580.159.04 (CUDA 13.2)"
    result = on(machine, "run", "edge", "--engine", "pytorch", "--batch", 1, "--budget", 0.1)
    assert result.code == 0, result.err
    for who in ("training", "engine 'pytorch'"):
        # Each process that chooses a device says it.
        (line,) = {line for line in result.err.splitlines() if line.startswith(f"{who} runs on")}
        assert line.endswith(why)
    assert "UserWarning" not in result.err
    result = on(machine, "verify", "edge", "--engine", "pytorch", "--device", "cuda")
    assert result.code == 4
    assert "engine 'pytorch' cannot use 'cuda': torch " in result.err
    document, _ = examine(on, machine)
    state = document["engines"]["pytorch"]
    assert state["run"]
    assert state["reason"].endswith(why)


@pytest.mark.slow(8)
@pytest.mark.skipif(machines.COMPILER is None, reason="the stand-in driver needs a C compiler")
def test_doctor_describes_gpus_and_engines_that_do_not_run_on_them(on: Run, tmp_path: Path) -> None:
    machines.compile_driver(tmp_path)
    machine = machines.with_driver(tmp_path, H100)
    document, tables = examine(on, machine)
    (gpu,) = document["gpus"]
    assert (gpu["name"], gpu["compute_capability"]) == (H100.name, "9.0")
    assert document["no_gpu"] == ""
    state = document["engines"]["tensorrt_rtx"]
    assert not state["run"]
    if engines.get("tensorrt_rtx").available().build:
        assert "does not run on compute capability 9.0" in state["reason"]
    assert f"GPU 0 {H100.name}, 80.0 GiB, compute capability 9.0, driver 580.159.04" in tables


MIG = machines.Gpu("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "9.0", 10)
# GPUs that the driver shows, and what cuInit answers: see the CUDA Driver API's error codes.
PRETENDED: dict[str, tuple[tuple[machines.Gpu, ...], str]] = {
    "Hopper": ((H100,), "0"),
    "two different cards": ((machines.RTX_4090, H100), "0"),
    "an instance of a card": ((MIG,), "0"),
    "no card, or all hidden": ((), "100"),
    "a driver of another version": ((H100,), "803"),
    "a multi-process service that is down": ((H100,), "805"),
}


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.skipif(machines.COMPILER is None, reason="the stand-in driver needs a C compiler")
@pytest.mark.parametrize(("gpus", "answer"), PRETENDED.values(), ids=PRETENDED)
def test_the_chain_works_on_every_kind_of_machine(
    on: Run, tmp_path: Path, gpus: tuple[machines.Gpu, ...], answer: str
) -> None:
    require_no_gpu()
    machines.compile_driver(tmp_path)
    machine = machines.with_driver(tmp_path, *gpus, answer=answer)
    document, _ = examine(on, machine)
    shown = [gpu["name"] for gpu in document["gpus"]]
    assert shown == ([gpu.name for gpu in gpus] if answer == "0" else [])
    assert bool(document["no_gpu"]) == (answer != "0")
    result = on(machine, *CHAIN)
    assert result.code == 0, result.err
    assert "Traceback" not in result.err
    assert "onnxruntime_cuda: not run on this machine: " in result.out
    assert "tensorrt_rtx: not run on this machine: " in result.out
    bench = on(machine, "bench", "edge", "--engine", "all", "--batch", 2, "--budget", 0.1)
    assert bench.code == 0, bench.err
    refused = on(machine, "verify", "edge", "--engine", "onnxruntime_cuda", "--device", "cuda")
    assert refused.code == 4, refused.err
