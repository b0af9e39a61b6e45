"""Whether the intervals of `assay bench` keep their promise, on this machine.

Three sessions on one graph, LeNet in ONNX Runtime with batch 1, are compared as `assay bench` does,
at both boundaries:

- A/A: the second with the first. An interval that excludes 1 is a false alarm; a true 5 % exceeds
  15 of 200 once in 20 times.
- slower: the third with the first, each of its calls taking 3 % longer, by waiting. An interval
  that includes 1 is a fault missed.

A result that is marked busy claims nothing. Besides: how much the ratio of the same file twice
varies over 30 runs, beside a mean of 20 calls, ONNX Runtime's own profile and, where it is
installed, Polygraphy's runner; and what one turn of the timing loop costs.

    PYTHONPATH=. python benchmarks/method.py [--runs N] [--busy] > benchmarks/results/method.md

`--busy` runs another process meanwhile that takes all of one CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import engines
from benchmarks.export import OWN
from engines import hardware
from engines.contract import Feeds, OpenOptions, Outputs, Session
from pipeline.benchmarking import clock
from pipeline.benchmarking.contention import Others
from pipeline.golden import file as goldens

MODEL = "own.py:model"
SLOWER = 0.03
RUNS = 30  # of which the spread is taken
BOUNDARIES = clock.BOUNDARIES


class Slowed:
    """A session each of whose calls takes a part longer."""

    def __init__(self, session: Session, part: float) -> None:
        self._session, self._part = session, part
        self.device, self.batch, self.stream = session.device, session.batch, session.stream
        self.inputs, self.outputs = session.inputs, session.outputs
        self.bind, self.close = session.bind, session.close

    def run(self, feeds: Feeds) -> Outputs:
        start = time.perf_counter_ns()
        outputs = self._session.run(feeds)
        self._wait(start)
        return outputs

    def launch(self) -> None:
        start = time.perf_counter_ns()
        self._session.launch()
        self._session.synchronize()
        self._wait(start)

    def synchronize(self) -> None:
        """Does nothing: `launch` has waited."""

    def _wait(self, start: int) -> None:
        now = time.perf_counter_ns()
        end = now + (now - start) * self._part
        while time.perf_counter_ns() < end:
            pass


class Graph:
    """A built graph that can be opened many times."""

    def __init__(self, folder: Path, threads: int) -> None:
        (folder / "own.py").write_text(OWN)
        for stage in (["train"], ["export"], ["build", "--engine", "onnxruntime"]):
            command = [sys.executable, "-m", "pipeline.cli", stage[0], MODEL, *stage[1:]]
            root = {"PYTHONPATH": str(Path(__file__).parent.parent)}
            subprocess.run(
                command, cwd=folder, env=os.environ | root, check=True, capture_output=True
            )
        (self.path,) = folder.glob("artifacts/*/fp32/onnxruntime/engine.onnx")
        self.golden = self.path.parent.parent / "golden.npz"
        self.feeds = goldens.load(self.golden).feeds(1)
        self._options = OpenOptions("cpu", threads)

    @contextlib.contextmanager
    def sessions(self, count: int) -> Iterator[list[Session]]:
        """Gives so many sessions."""
        engine = engines.get("onnxruntime")
        with contextlib.ExitStack() as stack:
            yield [
                stack.enter_context(contextlib.closing(engine.open(self.path, self._options)))
                for _ in range(count)
            ]


def compared(graph: Graph, budget: float, seed: int, *parts: float) -> list[clock.Timing]:
    """Returns the timings of sessions, each slower by a part than the first, which is not."""
    with graph.sessions(clock.SESSIONS * (1 + len(parts))) as opened:
        candidates = []
        for number, part in enumerate((0.0, *parts)):
            own = opened[number * clock.SESSIONS : (number + 1) * clock.SESSIONS]
            # All of them, since looking at the clock takes time, too.
            first, *others = [Slowed(session, part) for session in own]
            candidates.append(clock.Candidate(f"{number}", first, graph.feeds, others))
        return clock.measure(candidates, budget=budget, seed=seed)


def once(graph: Graph, budget: float, seed: int) -> tuple[list[clock.Timing], float, float | None]:
    """Compares an equal and a slower session with one.

    Returns:
        The timings, the seconds they took, and the part of the CPUs that other processes took.
    """
    others, start = Others(), time.perf_counter()
    timings = compared(graph, budget, seed, 0.0, SLOWER)
    return timings, time.perf_counter() - start, others.part()


@contextlib.contextmanager
def another_process(wanted: bool) -> Iterator[None]:
    """Keeps one CPU busy while its body runs, if wanted."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def claims(
    graph: Graph, runs: int, budget: float
) -> tuple[dict[str, list[dict[str, Any]]], list[float]]:
    """Returns what the intervals of many runs say of an equal and of a slower session.

    And the part of the CPUs that other processes took in each run, where that is known.
    """
    names = {"1": "A/A", "2": f"{SLOWER:.0%} slower"}
    every: dict[tuple[str, str], list[clock.Timing]] = {
        (name, boundary): [] for name in names for boundary in BOUNDARIES
    }
    seconds, parts = [], []
    for seed in range(runs):
        # In one process, all runs would get their memory in the same places.
        with multiprocessing.get_context("spawn").Pool(1) as process:
            timings, spent, part = process.apply(once, (graph, budget, seed))
        for entry in timings:
            if entry.name in names:
                every[entry.name, entry.boundary].append(entry)
        seconds.append(spent)
        if part is not None:
            parts.append(part)
        print(f"{seed + 1} of {runs}", file=sys.stderr)
    rows = {
        text: [
            {
                "boundary": boundary,
                "excluded": sum(not e.ratio.low <= 1 <= e.ratio.high and not e.busy for e in one),
                "faster": sum(e.ratio.low > 1 and not e.busy for e in one),
                "busy": sum(e.busy for e in one),
                "unsettled": sum(not e.settled for e in one),
                "ratio": statistics.median(e.ratio.value for e in one),
                "reach": statistics.median(e.ratio.reach for e in one),
                "seconds": statistics.median(seconds),
            }
            for boundary in BOUNDARIES
            for one in [every[name, boundary]]
        ]
        for name, text in names.items()
    }
    return rows, parts


def mean_of_20(graph: Graph) -> Callable[[Session], float]:
    """Returns a timing as scripts often do it: the mean of 20 calls after one to warm up."""

    def timed(session: Session) -> float:
        session.run(graph.feeds)
        start = time.perf_counter()
        for _ in range(20):
            session.run(graph.feeds)
        return (time.perf_counter() - start) / 20

    return timed


def profile_ratio(graph: Graph, folder: Path) -> float:
    """Returns the ratio of two sessions by ONNX Runtime's own profiles, of 100 runs each."""
    import onnxruntime

    means = []
    for number in range(2):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = graph._options.threads
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / f"profile{number}")
        session = onnxruntime.InferenceSession(
            str(graph.path), options, providers=["CPUExecutionProvider"]
        )
        for _ in range(101):
            session.run(None, dict(graph.feeds))
        events = json.loads(Path(session.end_profiling()).read_text())
        times = [event["dur"] for event in events if event["name"] == "model_run"]
        means.append(statistics.mean(times[1:]))
    return float(means[0] / means[1])


def polygraphy_ratio(graph: Graph) -> float | None:
    """Returns the ratio of two of Polygraphy's runners, of 20 runs each; None without it."""
    try:
        from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
        from polygraphy.logger import G_LOGGER
    except ImportError:
        return None
    G_LOGGER.module_severity = G_LOGGER.ERROR  # it would write into the table
    means = []
    for _ in range(2):
        load = SessionFromOnnx(str(graph.path), providers=["CPUExecutionProvider"])
        with OnnxrtRunner(load) as runner:
            runner.infer(dict(graph.feeds))  # to warm up
            times = []
            for _ in range(20):
                runner.infer(dict(graph.feeds))
                times.append(runner.last_inference_time())
            means.append(statistics.mean(times))
    return float(means[0] / means[1])


def spread(graph: Graph, budget: float, folder: Path) -> list[tuple[str, float, float, float]]:
    """Returns the standard deviation and extremes of the ratio of equal sessions, by method."""
    ratios: dict[str, list[float]] = {}
    for seed in range(RUNS):
        *_, ours = compared(graph, budget, seed, 0.0)
        ratios.setdefault("assay bench", []).append(ours.ratio.value)
        with graph.sessions(2) as sessions:
            one, two = map(mean_of_20(graph), sessions)
        ratios.setdefault("mean of 20 calls", []).append(one / two)
        own = profile_ratio(graph, folder)
        ratios.setdefault("ONNX Runtime's profile, mean of 100", []).append(own)
        if (runner := polygraphy_ratio(graph)) is not None:
            ratios.setdefault("Polygraphy's runner, mean of 20", []).append(runner)
        print(f"spread: {seed + 1} of {RUNS}", file=sys.stderr)
    return [
        (name, statistics.stdev(values), min(values), max(values))
        for name, values in ratios.items()
    ]


def loop_seconds() -> float:
    """Returns what one turn of the timing loop takes besides the action that it times."""
    calls = 100_000
    start = time.perf_counter()
    timed = clock._wall(calls, lambda: None)
    whole = time.perf_counter() - start
    return float(whole / calls - np.median(timed))


def main() -> int:
    """Prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--budget", type=float, default=8.0, help="seconds for each run, at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--no-spread", action="store_true")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="assay-") as path, another_process(arguments.busy):
        graph = Graph(Path(path), arguments.threads)
        results, parts = claims(graph, arguments.runs, arguments.budget)
        spreads = [] if arguments.no_spread else spread(graph, arguments.budget, Path(path))
    words = " ".join(["python benchmarks/method.py", *sys.argv[1:]])
    print(
        f"`{words}`: ONNX Runtime {hardware.version('onnxruntime-gpu')}, {hardware.cpu_model()},"
        f" {hardware.available_cpus()} CPUs, {arguments.threads} thread(s); load average {load:.1f}"
        f" before and {os.getloadavg()[0]:.1f} after; other processes took"
        f" {f'{statistics.median(parts):.0%}' if parts else 'an unknown part'} of the CPUs in the"
        " median run.\n"
    )
    print(
        f"| beside the first session, {arguments.runs} runs | boundary | interval excludes 1 |",
        end="",
    )
    print(
        " faster | busy | unsettled | median ratio | half-width | seconds a run |\n|" + "---|" * 9
    )
    for name, rows in results.items():
        for row in rows:
            print(
                f"| {name} | {row['boundary']} | {row['excluded']} | {row['faster']} |"
                f" {row['busy']} | {row['unsettled']} | {row['ratio']:.4f} | {row['reach']:.2%} |"
                f" {row['seconds']:.1f} |"
            )
    if spreads:
        print(f"\n| ratio of equal sessions, {RUNS} runs | deviation | range |\n|---|---|---|")
        for name, deviation, low, high in spreads:
            print(f"| {name} | {deviation:.2%} | {low:.3f} to {high:.3f} |")
    print(
        f"\nOne turn of the timing loop costs {loop_seconds() * 1e9:.0f} ns besides what it times."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
