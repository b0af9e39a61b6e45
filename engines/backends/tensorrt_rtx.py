"""TensorRT for RTX: plans built ahead of time, on any machine, for any RTX-class GPU."""

from __future__ import annotations

from engines.backends._tensorrt import COMMON_OPTIONS, TensorRTEngine

# What its runtime reports as supported, and Turing (7.5), for which a plan has to be built.
_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9")
_FROM_MAJOR = 12


def _unsupported(capability: str) -> str:
    """Returns why a GPU cannot run its plans, or ""; the runtime itself fails only on opening."""
    if capability in _CAPABILITIES or int(capability.split(".", maxsplit=1)[0]) >= _FROM_MAJOR:
        return ""
    return (
        f"TensorRT for RTX does not run on compute capability {capability}, but on"
        f" {', '.join(_CAPABILITIES)} and from {_FROM_MAJOR}.0"
    )


# It builds without a GPU; the plan is compiled for the card on which it is first opened.
ENGINE = TensorRTEngine(
    name="tensorrt_rtx",
    module="tensorrt_rtx",
    distributions=("tensorrt-rtx-cu13",),
    install="pip install tensorrt-rtx-cu13",
    builds_without_gpu=True,
    build_options=COMMON_OPTIONS | {"target_sm"},
    gpu_limits=_unsupported,
)
