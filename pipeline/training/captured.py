"""A step of training as one CUDA graph: a hundred launches become one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# cuBLAS and cuDNN set themselves up in the first calls, and a compiler compiles; none of that may
# happen while the graph is captured.
_WARM_UP = 3


class CapturedStep:
    """A step on a batch of fixed size, captured once and replayed.

    Replays draw new random numbers: torch moves its generator on by what the step uses.
    """

    def __init__(
        self,
        step: Callable[[torch.Tensor], None],
        rows: torch.Tensor,
        state: Iterable[torch.Tensor],
    ) -> None:
        """Captures the step, and leaves no other trace of having run it.

        Args:
            step: Trains on the samples with these numbers, int64 `[batch]`; enqueues its work on
                the current stream and never waits for it.
            rows: Numbers of samples, on the device: those the step is tried with.
            state: All tensors that the step changes in place.

        Raises:
            RuntimeError: The step cannot be captured: it waits for the device, or copies to the
                host.
        """
        import torch

        device = rows.device
        self._rows = rows.clone()
        # Also if that fails: the caller then trains without a graph.
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
        """Enqueues a step on these samples, as many as it was captured with."""
        self._rows.copy_(rows)
        self._graph.replay()
