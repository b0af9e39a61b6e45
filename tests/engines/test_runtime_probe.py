"""The probe of CUDA's runtimes: the real runtimes, on a stand-in for CUDA's driver."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines import runtime_probe
from engines.checks import is_installed
from tests import machines
from tests.machines import H100
from tests.subset import ROOT, python_path

pytestmark = pytest.mark.skipif(
    machines.COMPILER is None, reason="the stand-in driver needs a C compiler"
)

ASK = """
import json
import engines
from engines import hardware
from engines.checks import choose_device
from engines.errors import NotAvailableError
hardware._RUNTIME_SECONDS = 2
engine = engines.get("onnxruntime_cuda")
try:
    choose_device(engine, "auto")
except NotAvailableError as error:
    refusal = [error.message, error.hint]
state = engine.available()
print(json.dumps([state.build, state.run, state.reason, refusal]))
"""
# A package that hides NVIDIA's bindings.
BINDINGS = "import os, time\ndef cudaSetDevice(index):\n    {}\n"


@pytest.fixture(scope="module")
def h100(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("driver")
    machines.compile_driver(folder)
    return machines.with_driver(folder, H100)


def ask(code: str, *arguments: str, machine: dict[str, str]) -> list[object]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CUDA_")} | machine
    command = [sys.executable, "-P", "-c", code, *arguments]
    answer = subprocess.run(
        command,
        cwd=ROOT,
        env={"PYTHONPATH": python_path(), **environment, **machine},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(answer.stdout)


@pytest.mark.parametrize(
    ("module", "distribution"),
    [("cuda.bindings.runtime", "cuda-bindings"), ("onnxruntime", "onnxruntime-gpu")],
)
def test_a_runtime_that_needs_another_driver_says_so(
    h100: dict[str, str], module: str, distribution: str
) -> None:
    if not is_installed((distribution,)):
        pytest.skip(f"{distribution} is not installed")
    code = "import json, sys; from engines.runtime_probe import problem_of\n"
    code += "print(json.dumps([problem_of(sys.argv[1], 0)]))"
    (problem,) = ask(code, module, machine=h100)
    assert f"runtime of {runtime_probe.RUNTIMES[module].name} cannot use GPU 0: " in problem
    # The stand-in has the functions of the probe of the driver, and a runtime needs more.
    assert "cudaSetDevice returned cudaErrorCallRequiresNewerDriver (API call is not" in problem
    assert problem.endswith("; install a newer NVIDIA driver, or libraries for an older CUDA")


def test_an_engine_runs_only_where_the_runtime_opens_the_gpu(h100: dict[str, str]) -> None:
    if not is_installed(("onnxruntime-gpu",)):
        pytest.skip("onnxruntime-gpu is not installed")
    build, run, reason, (message, hint) = ask(ASK, machine=h100)
    assert (build, run) == (True, False)
    assert "cudaErrorCallRequiresNewerDriver" in reason
    assert message.startswith("engine 'onnxruntime_cuda' cannot use 'cuda': the CUDA ")
    assert hint == "install what fits"


@pytest.mark.parametrize(
    ("action", "problem"),
    [
        ("os.abort()", "CUDA's runtime ended the process that asked it, by SIGABRT"),
        ("time.sleep(60)", "CUDA's runtime did not answer in 2 s"),
        ("return (0,)", "CUDA's runtime ended the process that asked it, with status 1"),
    ],
)
def test_a_runtime_that_fails_is_reported(
    h100: dict[str, str], tmp_path: Path, action: str, problem: str
) -> None:
    if not is_installed(("onnxruntime-gpu",)):
        pytest.skip("onnxruntime-gpu is not installed")
    package = tmp_path / "cuda/bindings"
    package.mkdir(parents=True)
    (package / "runtime.py").write_text(BINDINGS.format(action))
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    machine = h100 | {"PYTHONPATH": python_path(tmp_path)}
    _, run, reason, _ = ask(ASK, machine=machine)
    assert not run
    assert reason.endswith(f"; {problem}")
