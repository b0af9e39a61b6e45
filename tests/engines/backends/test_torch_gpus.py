"""Which GPUs PyTorch can use."""

from types import SimpleNamespace
from typing import Any

import pytest

from engines import hardware
from engines.backends._torch_cuda import gpu_problem


@pytest.mark.parametrize(
    ("kernels", "capability", "runs"),
    [
        ("sm_90", "9.0", True),
        ("sm_80", "8.9", True),  # a later minor version
        ("sm_86", "8.0", False),
        ("sm_80", "9.0", False),  # another major version
        ("sm_120", "12.0", True),
        ("sm_90a", "9.0", True),
        ("sm_100a", "10.3", False),  # of one architecture
        ("compute_90", "12.0", True),  # intermediate code
        ("compute_90", "8.9", False),
        ("unknown", "9.0", True),
    ],
)
def test_kernels_run_on_some_compute_capabilities(
    monkeypatch: pytest.MonkeyPatch, kernels: str, capability: str, runs: bool
) -> None:
    problem = of(torch([kernels]), capability, monkeypatch)
    assert (problem == "") is runs
    if not runs:
        assert problem == (
            f"torch 9.9 has kernels for {kernels}, and not for the compute capability"
            f" {capability} of a GPU"
        )


def test_a_build_without_cuda_uses_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert of(torch([], cuda=None), "9.0", monkeypatch) == "torch 9.9 is built without CUDA"


def torch(kernels: list[str], cuda: str | None = "13.0") -> Any:
    """Returns what is asked of a torch that this machine does not have."""
    calls = SimpleNamespace(is_available=lambda: True, get_arch_list=lambda: kernels)
    version = SimpleNamespace(cuda=cuda)
    return SimpleNamespace(__version__="9.9", version=version, cuda=calls)


def of(library: Any, capability: str, monkeypatch: pytest.MonkeyPatch) -> str:
    gpu = {"name": "a GPU", "compute_capability": capability, "driver": "1", "cuda": "13.2"}
    monkeypatch.setattr(hardware, "gpus", lambda: (gpu,))
    return gpu_problem(library, 0)
