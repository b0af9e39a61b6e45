"""The GPUs that TensorRT for RTX supports; these tests do not need the library."""

import pytest

import engines
from engines import hardware
from engines.backends import _tensorrt
from engines.contract import Availability

ENGINE = engines.get("tensorrt_rtx")


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "8.9", "12.0", "12.1", "13.0"])
def test_rtx_runs_on_supported_gpus(capability: str) -> None:
    assert ENGINE.unsupported(capability) == ""


@pytest.mark.parametrize("capability", ["7.0", "8.7", "9.0", "10.0", "10.3", "11.0"])
def test_rtx_does_not_run_on_other_gpus(capability: str) -> None:
    assert ENGINE.unsupported(capability) == (
        f"TensorRT for RTX does not run on compute capability {capability}, but on 7.5, 8.0, 8.6,"
        " 8.9 and from 12.0"
    )


@pytest.mark.parametrize(("capability", "runs"), [("9.0", False), ("8.9", True)])
def test_an_unsupported_gpu_is_named(
    monkeypatch: pytest.MonkeyPatch, capability: str, runs: bool
) -> None:
    gpu = {"name": "the GPU", "driver": "580.159.04", "compute_capability": capability}
    monkeypatch.setattr(hardware, "gpus", lambda: (gpu,))
    monkeypatch.setattr(hardware, "no_gpu", lambda: "")
    monkeypatch.setattr(hardware, "runtime_problem", lambda _: "")
    library = Availability(True, True, "tensorrt-rtx-cu13 1.7.1")
    monkeypatch.setattr(_tensorrt, "available_on_cpu", lambda *_: library)
    state = ENGINE.available()
    assert (state.build, state.run) == (True, runs)
    assert state.reason.startswith("tensorrt-rtx-cu13 1.7.1")
    assert "the GPU" in state.reason
    assert ("does not run on compute capability 9.0" in state.reason) is not runs
