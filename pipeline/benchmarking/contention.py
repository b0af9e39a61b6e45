"""How much other processes take of the CPUs while something is timed."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from engines import hardware

# Above this part of the CPUs, other processes may be what slows an engine down.
NOTICEABLE = 0.1
_TASKS = Path("/proc/self/task")
_STAT = Path("/proc/stat")
# The columns of /proc/stat that a CPU spends idle: idle and iowait.
_IDLE = (3, 4)
_COLUMNS = 8  # user to steal; guests' times are part of user's


@dataclass
class Waiting:
    """How long this process's threads waited for a CPU; a context manager adds its body's time."""

    seconds: float = 0.0
    waited: float = 0.0
    _began: tuple[float, float] = field(default=(0.0, 0.0), repr=False)

    def __enter__(self) -> None:
        self._began = waited_seconds(), time.perf_counter()

    def __exit__(self, *_error: object) -> None:
        ended = time.perf_counter()
        self.waited += waited_seconds() - self._began[0]
        self.seconds += ended - self._began[1]

    @property
    def part(self) -> float:
        """Seconds waited for each second; of all threads together, so it may exceed 1."""
        return self.waited / self.seconds if self.seconds else 0.0


def blamed(busy: bool, part: float | None) -> bool:
    """Whether others made a timing busy; else its threads wait for those of the other engines.

    Args:
        busy: Its threads waited for CPUs, and it was slower for it.
        part: The part of the CPUs that other processes took; None if it is not known.
    """
    return busy and (part is None or part > NOTICEABLE)


def waited_seconds() -> float:
    """Returns how long this process's threads have waited for a CPU; 0 where that is not known."""
    return sum(waited for _ran, waited in _threads().values()) / 1e9


def longest_run(seconds: float) -> float | None:
    """Sleeps, and returns how many seconds the busiest other thread of this process ran meanwhile.

    None where the system does not tell.
    """
    before = _threads()
    time.sleep(seconds)
    after = _threads()
    own = str(threading.get_native_id())
    ran = [after[name][0] - before[name][0] for name in before.keys() & after.keys() - {own}]
    return max(ran, default=0) / 1e9 if after else None


def _threads() -> dict[str, tuple[int, int]]:
    """Returns for how many nanoseconds each thread ran, and waited for a CPU; {} if not known."""
    times = {}
    try:
        for task in _TASKS.iterdir():
            try:
                ran, waited = (task / "schedstat").read_bytes().split()[:2]
            except (OSError, ValueError):
                continue  # a thread that has just ended, or a kernel that does not tell
            times[task.name] = int(ran), int(waited)
    except OSError:
        return {}
    return times


class Others:
    """What other processes take of the CPUs that this one may use, from here to `part`."""

    def __init__(self) -> None:
        self._before = _busy(), time.process_time(), time.perf_counter()

    def part(self) -> float | None:
        """Returns their part of the CPUs, 0 to 1; None where /proc/stat does not tell."""
        busy, own, began = self._before
        now = _busy()
        if busy is None or now is None:
            return None
        seconds = (time.perf_counter() - began) * hardware.available_cpus()
        taken = (now - busy) / os.sysconf("SC_CLK_TCK") - (time.process_time() - own)
        return min(1.0, max(0.0, taken / seconds)) if seconds else 0.0


def _busy() -> int | None:
    """Returns how many ticks of the clock the CPUs that this process may use were busy."""
    wanted = {f"cpu{number}".encode() for number in hardware.affinity()}
    try:
        lines = [line.split() for line in _STAT.read_bytes().splitlines()]
        times = [[int(n) for n in words[1:]] for words in lines if words and words[0] in wanted]
    except (OSError, ValueError):
        return None
    if len(times) != len(wanted):
        return None
    return sum(
        number for row in times for index, number in enumerate(row[:_COLUMNS]) if index not in _IDLE
    )
