"""Whether `assay load` and MLPerf's LoadGen tell the same latency, on this machine.

The same open sessions serve random arrivals at the same rate, in turns: those of `assay load`, then
those of LoadGen's scenario Server, and so on with another seed. Each turn gives a median and a p99;
the ratio of the two tools has an interval by signed ranks over the turns. The sessions do nothing,
sleep for a known time, or run LeNet in ONNX Runtime with 1 or 64 images in a request.

    PYTHONPATH=. python benchmarks/loadgen.py [--turns N] > benchmarks/results/loadgen.md
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import engines
from benchmarks.method import Graph
from engines import hardware
from engines.contract import Array, Feeds, OpenOptions, Outputs, Session, TensorSpec
from pipeline.benchmarking import intervals, loadgen
from pipeline.benchmarking.contention import Others
from pipeline.benchmarking.load import arrivals, closed
from pipeline.benchmarking.loadgen import Library, Settings
from pipeline.golden import file as goldens

SECONDS = 1.5
LOADS = (0.3, 0.7)
SESSIONS = (1, 2)
SLEEP = 0.002
EMPTY_SECONDS = 0.5
IDLE_RATE = 150.0
BATCHES = (1, 64)


@dataclass
class Sleeper:
    """A session that sleeps."""

    seconds: float = SLEEP
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    device: str = "cpu"
    batch: tuple[int, int] | None = None
    stream: int | None = None

    def run(self, feeds: Feeds) -> Outputs:
        if self.seconds:
            time.sleep(self.seconds)
        return {}

    def bind(self, feeds: Feeds) -> None: ...

    def launch(self) -> None: ...

    def synchronize(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Case:
    """Sessions, and the request that they serve.

    Attributes:
        feeds: The inputs of a request; LoadGen's library has it once.
    """

    name: str
    open_session: Callable[[], Session]
    feeds: dict[str, Array]


@dataclass
class Told:
    """What the turns told, in seconds: by percentile, of each tool."""

    ours: dict[int, list[float]] = field(default_factory=lambda: {50: [], 99: []})
    loadgen: dict[int, list[float]] = field(default_factory=lambda: {50: [], 99: []})
    waking: list[float] = field(default_factory=list)


def cases(folder: Path) -> Iterator[Case]:
    """Yields what is loaded."""
    yield Case(f"sleeps {SLEEP * 1000:g} ms", Sleeper, {"x": np.zeros((1, 1), np.float32)})
    graph = Graph(folder, threads=1)
    engine, golden = engines.get("onnxruntime"), goldens.load(graph.golden)
    for batch in BATCHES:
        yield Case(
            f"LeNet, {batch} image{'s' if batch > 1 else ''}",
            lambda: engine.open(graph.path, OpenOptions("cpu", 1)),
            golden.feeds(batch),
        )


def turns(case: Case, count: int, rate: float, number: int) -> Told:
    """Returns what both tools tell of so many sessions at a rate."""
    # Each "row" of the library is a whole request.
    library = Library(
        {name: array[np.newaxis] for name, array in case.feeds.items()}, batched=False
    )
    told = Told()
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="assay-") as folder:
        sessions = [stack.enter_context(closing(case.open_session())) for _ in range(count)]
        for seed in range(number):
            times: list[float] = []
            result = arrivals(
                sessions, case.feeds, rate=rate, seconds=SECONDS, seed=seed, latencies=times
            )
            told.waking.append(result.waking or 0.0)
            settings = Settings("Server", False, SECONDS, rate, 10.0, 1, seed)
            summary, _ = loadgen.run(sessions, library, settings, Path(folder))
            for percent in told.ours:
                told.ours[percent].append(float(np.percentile(times, percent)))
                name = f"{percent}.00 percentile latency (ns)"
                told.loadgen[percent].append(summary.figures[name] / 1e9)
    return told


def throughput(case: Case, count: int) -> float:
    """Returns how many requests a second so many sessions serve to clients that wait."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(case.open_session())) for _ in range(count)]
        served = closed(sessions, case.feeds, seconds=1)
    return served.requests / served.seconds


def row(case: Case, count: int, load: str, rate: float, told: Told) -> str:
    """Returns a line of the table."""
    cells = [case.name, f"{count}", load, f"{rate:,.0f}"]
    for percent, ours in told.ours.items():
        theirs = told.loadgen[percent]
        ratio = intervals.location(np.array(ours) / np.array(theirs))
        apart = np.median(np.array(theirs) - np.array(ours))
        cells += [
            f"{np.median(ours) * 1e6:,.0f}",
            f"{np.median(theirs) * 1e6:,.0f}",
            f"{ratio.value:.2f} ({ratio.low:.2f}-{ratio.high:.2f})",
            f"{apart * 1e6:,.0f}",
        ]
    cells.append(f"{np.median(told.waking) * 1e6:,.0f}")
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=6)
    arguments = parser.parse_args()
    others = Others()
    before = os.getloadavg()[0]
    columns = ["requests", "sessions", "load", "requests/s"]
    for percent in Told().ours:
        columns += [f"p{percent}, ours, µs", "LoadGen, µs", "ours / LoadGen", "apart, µs"]
    columns.append("waking, µs")
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    with tempfile.TemporaryDirectory(prefix="assay-") as folder:
        nothing = Case("nothing", lambda: Sleeper(0), {"x": np.zeros((1, 1), np.float32)})
        told = turns(nothing, 1, IDLE_RATE, arguments.turns)
        lines.append(row(nothing, 1, "", IDLE_RATE, told))
        for case in cases(Path(folder)):
            for count in SESSIONS:
                for load in LOADS:
                    rate = load * throughput(case, count)
                    told = turns(case, count, rate, arguments.turns)
                    lines.append(row(case, count, f"{load:.0%}", rate, told))
                    print(lines[-1], file=sys.stderr)
    words = " ".join(["python benchmarks/loadgen.py", *sys.argv[1:]])
    part = others.part()
    print(
        f"`{words}`: LoadGen {hardware.version('mlcommons-loadgen')}, ONNX Runtime"
        f" {hardware.version('onnxruntime-gpu')}, {hardware.cpu_model()},"
        f" {hardware.available_cpus()} CPUs; load average {before:.1f} before, other processes took"
        f" {'an unknown part' if part is None else f'{part:.0%}'} of the CPUs;"
        f" {arguments.turns} turns of {SECONDS:g} s for each tool in each row.\n"
    )
    print("\n".join(lines))
    for count in SESSIONS:
        served = closed([Sleeper(0)] * count, {}, seconds=EMPTY_SECONDS)
        cost = count * served.seconds / served.requests
        print(
            f"\nA client of `assay load` that waits takes {cost * 1e6:.2f} µs for a request to a"
            f" session that does nothing, with {count} session{'s' if count > 1 else ''}."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
