"""What bounds the time of an inference on a GPU: launches, transfers or the computation."""

from __future__ import annotations

import statistics
import time

from engines.contract import Session

# A GPU that waits for launches: enqueueing takes at least this part of the time on the device.
_LAUNCH_PART = 0.8
# At least this part of the time end to end is not on the device.
_TRANSFER_PART = 0.5
_REPEATS = 5


def enqueue_seconds(session: Session) -> float | None:
    """Returns the median time in which the CPU enqueues one inference on an idle GPU, in seconds.

    The inputs must be bound. None on a CPU, where a launch computes.
    """
    if session.stream is None:
        return None
    times = []
    session.launch()
    for _ in range(_REPEATS):
        session.synchronize()  # a full queue would block the launch
        start = time.perf_counter()
        session.launch()
        times.append(time.perf_counter() - start)
    session.synchronize()
    return statistics.median(times)


def bottleneck(enqueue: float, device: float, end_to_end: float) -> str:
    """Returns "launches", "transfers" or "computation", whichever bounds the time.

    Args:
        enqueue: See `enqueue_seconds`.
        device: Seconds from launch to completion.
        end_to_end: Seconds from numpy arrays to numpy arrays.
    """
    if enqueue >= _LAUNCH_PART * device:
        return "launches"
    if end_to_end - device >= _TRANSFER_PART * end_to_end:
        return "transfers"
    return "computation"
