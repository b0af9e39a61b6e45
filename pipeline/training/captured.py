"""A training step as one CUDA graph, which replaces a hundred launches by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# The first calls initialise cuBLAS and cuDNN, and compile; neither may happen during a capture.
_WARM_UP = 3


class CapturedStep:
    """A step on a batch of fixed size, captured once and replayed.

    Each replay draws new random numbers: torch advances its generator by what the step uses.
    """

    def __init__(
        self,
        step: Callable[[torch.Tensor], None],
        rows: torch.Tensor,
        state: Iterable[torch.Tensor],
    ) -> None:
        """Captures the step; restores `state` and the random numbers afterwards.

        Args:
            step: Trains on the samples with these indices, int64 `[batch]`; enqueues its work on
                the current stream and never waits for it.
            rows: Indices of samples to capture the step with, int64 `[batch]` on the device.
            state: All tensors that the step changes in place.

        Raises:
            RuntimeError: The step cannot be captured: it waits for the device, or copies to the
                host.
        """
        import torch

        device = rows.device
        self._rows = rows.clone()
        # Restored also if the capture fails: the caller then trains without a graph.
        kept = [(tensor, tensor.detach().clone()) for tensor in state]
        generator = torch.cuda.get_rng_state(device)
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        try:
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    step(self._rows)
            stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=stream):
                step(self._rows)
        finally:
            torch.cuda.synchronize(device)
            with torch.no_grad():
                for tensor, value in kept:
                    tensor.copy_(value)
            torch.cuda.set_rng_state(generator, device)

    def __call__(self, rows: torch.Tensor) -> None:
        """Enqueues a step on the samples with these indices, int64 `[batch]` as captured."""
        self._rows.copy_(rows)
        self._graph.replay()
