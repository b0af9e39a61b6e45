"""The probe of GPUs, with a stand-in for CUDA's driver."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import machines
from tests.machines import H100, RTX_4090, Gpu
from tests.subset import ROOT

pytestmark = pytest.mark.skipif(
    machines.COMPILER is None, reason="the stand-in driver needs a C compiler"
)

ASK = """
import json
from engines import hardware
hardware._PROBE_SECONDS = {seconds}
print(json.dumps([hardware.gpus(), hardware.no_gpu(), hardware.gpu_fingerprint()]))
"""
LISTED = f"nvidia-smi lists {H100.name} (driver 580.159.04)"


@dataclass
class Answer:
    """What `hardware` returns in a child process."""

    gpus: list[dict[str, str]]
    no_gpu: str
    fingerprint: dict[str, str]


def ask(*machine: dict[str, str], seconds: int = 20) -> Answer:
    # Without variables that hide GPUs on the machine that runs the tests, or that pretend one.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CUDA_", "STAND_IN_"))
    }
    for variables in machine:
        environment |= variables
    answer = subprocess.run(
        [sys.executable, "-c", ASK.format(seconds=seconds)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return Answer(*json.loads(answer.stdout))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("driver")
    machines.compile_driver(path)
    return path


@pytest.fixture
def no_tool(tmp_path: Path) -> dict[str, str]:
    """Variables that make the stand-in for nvidia-smi list no GPU."""
    return machines.with_tool(tmp_path / "no-tool", "NVIDIA-SMI has failed")


@pytest.fixture
def tool(tmp_path: Path) -> dict[str, str]:
    return machines.with_tool(tmp_path / "tool", f"{H100.name}, 580.159.04")


def test_a_gpu_is_described(folder: Path, no_tool: dict[str, str]) -> None:
    answer = ask(no_tool, machines.with_driver(folder, H100))
    assert answer.gpus == [
        {
            "name": "NVIDIA H100 80GB HBM3",
            "uuid": "abababab-abab-abab-abab-ababababab00",
            "compute_capability": "9.0",
            "memory_gib": "80.0",
            "driver": "580.159.04",
            "cuda": "13.2",
        }
    ]
    assert answer.no_gpu == ""
    assert answer.fingerprint == {
        "gpu_name": "NVIDIA H100 80GB HBM3",
        "gpu_driver": "580.159.04",
        "gpu_compute_capability": "9.0",
    }


def test_two_gpus_keep_the_order_of_cuda(folder: Path, no_tool: dict[str, str]) -> None:
    answer = ask(no_tool, machines.with_driver(folder, RTX_4090, H100))
    facts = [(gpu["name"], gpu["compute_capability"], gpu["memory_gib"]) for gpu in answer.gpus]
    assert facts == [(RTX_4090.name, "8.9", "24.0"), (H100.name, "9.0", "80.0")]
    assert len({gpu["uuid"] for gpu in answer.gpus}) == 2
    assert answer.fingerprint["gpu_name"] == RTX_4090.name


def test_both_numbers_of_a_compute_capability_are_read(
    folder: Path, no_tool: dict[str, str]
) -> None:
    (gpu,) = ask(no_tool, machines.with_driver(folder, Gpu("NVIDIA B300", "10.3"))).gpus
    assert gpu["compute_capability"] == "10.3"


def test_a_driver_without_a_version_is_used(folder: Path, no_tool: dict[str, str]) -> None:
    (gpu,) = ask(no_tool, machines.with_driver(folder, H100, version="")).gpus
    assert (gpu["name"], gpu["driver"]) == (H100.name, "")


def test_hidden_gpus_are_named_with_the_variable_that_hides_them(
    folder: Path, tool: dict[str, str]
) -> None:
    answer = ask(tool, machines.with_driver(folder), {"CUDA_VISIBLE_DEVICES": ""})
    assert answer.gpus == []
    assert answer.no_gpu == f"CUDA shows no GPU here; {LISTED}, and CUDA_VISIBLE_DEVICES is ''"
    assert answer.fingerprint == {"gpu": "none"}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("100", "CUDA opens no GPU here: cuInit returned CUDA_ERROR_NO_DEVICE"),
        ("803", "CUDA opens no GPU here: cuInit returned CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        ("4711", "CUDA opens no GPU here: cuInit returned 4711"),
        ("abort", "CUDA's driver ended the process that asked it, by SIGABRT"),
        ("exit", "CUDA's driver ended the process that asked it, with status 3"),
    ],
)
def test_a_driver_that_opens_no_gpu_says_why(
    folder: Path, no_tool: dict[str, str], tool: dict[str, str], code: str, reason: str
) -> None:
    machine = machines.with_driver(folder, H100, answer=code)
    assert ask(no_tool, machine) == Answer([], reason, {"gpu": "none"})
    assert ask(tool, machine).no_gpu == f"{reason}; {LISTED}"


def test_a_driver_that_does_not_answer_times_out(folder: Path, no_tool: dict[str, str]) -> None:
    machine = machines.with_driver(folder, H100, answer="hang")
    answer = ask(no_tool, machine, seconds=1)
    assert answer == Answer([], "CUDA's driver did not answer in 1 s", {"gpu": "none"})


def test_a_driver_library_that_does_not_load_is_reported(
    tmp_path: Path, tool: dict[str, str]
) -> None:
    (tmp_path / "libcuda.so.1").write_bytes(b"")
    answer = ask(tool, {"LD_LIBRARY_PATH": str(tmp_path)})
    assert answer.gpus == []
    assert answer.no_gpu.startswith("CUDA's driver does not load here: ")
    assert "libcuda.so.1: file too short" in answer.no_gpu
    assert answer.no_gpu.endswith(LISTED)
