"""What other processes take of the CPUs, with real ones."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from engines import hardware
from pipeline.benchmarking import contention
from tests.timed import timed

pytestmark = pytest.mark.skipif(
    not contention._STAT.exists(), reason="only Linux tells how long threads wait for a CPU"
)


@contextmanager
def a_busy_process(cpu: int) -> Iterator[None]:
    code = f"import os; os.sched_setaffinity(0, [{cpu}]); print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def spin(seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
    end = clock() + seconds
    while clock() < end:
        pass


@timed
def test_a_process_on_the_same_cpu_makes_us_wait() -> None:
    cpu = hardware.affinity()[0]
    waiting = contention.Waiting()
    with hardware.keeping_to([cpu]):
        others = contention.Others()
        with a_busy_process(cpu), waiting:
            spin(0.5)
        part = others.part()
    assert waiting.part > 0.2
    assert part is not None
    assert part > 0.2


@timed
def test_a_thread_that_spins_is_seen() -> None:
    done = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        # It spins once all threads have been looked at, which takes longer while it does.
        pool.submit(lambda: (time.sleep(0.1), spin(0.1, time.thread_time), done.wait()))
        busiest = contention.longest_run(0.5)
        done.set()
    assert busiest is not None
    assert 0.05 < busiest < 0.2
    idle = contention.longest_run(0.05)
    assert idle is not None
    assert idle < 0.02


@timed
def test_our_own_work_is_not_that_of_others() -> None:
    with hardware.keeping_to(hardware.affinity()[:1]):
        before = os.times()
        others = contention.Others()
        spin(0.5)
        own = sum(os.times()[:2]) - sum(before[:2])
        part = others.part()
    assert part is not None
    assert part <= 1.1 - own / 0.5  # what is left of the CPU, up to ticks of the clock


def test_systems_that_tell_nothing_are_not_judged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(contention, "_TASKS", tmp_path / "none")
    monkeypatch.setattr(contention, "_STAT", tmp_path / "none")
    assert contention.waited_seconds() == 0
    assert contention.longest_run(0) is None
    assert contention.Others().part() is None
