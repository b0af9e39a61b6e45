"""TensorRT for RTX: plans built ahead of time, on any machine, for any RTX-class GPU."""

from __future__ import annotations

from engines.backends._tensorrt import TensorRTEngine

# It builds without a GPU; the plan is compiled for the card on which it is first opened.
ENGINE = TensorRTEngine(
    name="tensorrt_rtx",
    module="tensorrt_rtx",
    distributions=("tensorrt-rtx-cu13",),
    install="pip install tensorrt-rtx-cu13",
    builds_without_gpu=True,
    special=frozenset({"target_sm"}),
)
