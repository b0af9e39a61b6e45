"""How near an engine comes to what the machine can do: the roofline model.

Williams, Waterman and Patterson, Roofline: An Insightful Visual Performance Model for Multicore
Architectures, Communications of the ACM 52 (4), 2009:

    attainable operations/s = min(peak operations/s, operational intensity x bandwidth)

- **Operations** are those of the graph's convolutions and matrix products, without those that a
  convolution's padding takes part in. Each type has a peak of its own, and the times at these peaks
  are added. A graph with products that are not counted gets none.
- The **peak** is measured, since a CPU's clock depends on its load and a virtual machine may get a
  part of a core: large matrix products and convolutions, run by the engines of this machine, with
  as many threads, in the same rounds as the engine. It does not depend on the engine that reaches
  it: the fastest of them is the machine's.
- **Intensity** is operations divided by compulsory bytes: the weights in the graph's types, inputs
  and outputs. Every engine has to read or write these once for each inference. Of a table, only
  what is picked counts, and of a convolution's weights, only what meets more than padding. Values
  between layers do not count, since fused layers keep them in registers or in a cache.
- The **bandwidth** is that of the faster of a copy and of reading, over as much memory as there are
  compulsory bytes. What fits in a cache is compared with the cache.

So the attainable is a bound from above. A share of more than 100 % would say that it is wrong.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import engines
from engines.contract import BuildOptions, Feeds, OpenOptions, Outputs, Session
from engines.errors import DeployError
from exporters.work import Work
from pipeline.benchmarking import clock
from pipeline.benchmarking.clock import Candidate, Timing
from pipeline.benchmarking.comparison import Load
from pipeline.benchmarking.intervals import Interval
from pipeline.benchmarking.transfers import Transfer

# Seconds for each graph of products, when the fastest engine for it is looked for.
SEARCH_SECONDS = 0.3
# Products this many times slower than the fastest do not become the fastest by what else runs.
_FAR = 4
# How often a product runs in one launch at most.
_MOST = 16
_COPY, _READ = "copy", "read"
_DEVICE = clock.BOUNDARIES[0]


@dataclass(frozen=True)
class Product:
    """A graph of products that shows how fast the machine multiplies.

    Attributes:
        precision: The type that it computes in.
        kind: What it computes.
        operations: In one inference.
        path: The graph, or what an engine was built into from it.
        engine: The engine that it is built for; "" for a graph.
    """

    precision: str
    kind: str
    operations: int
    path: Path
    engine: str = ""

    @property
    def name(self) -> str:
        """A name for tables."""
        return f"{self.precision} {self.kind} by {self.engine}"


@dataclass(frozen=True)
class ProductTime:
    """A product with the median seconds that it took."""

    product: Product
    seconds: float

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.product.operations / self.seconds


@dataclass(frozen=True)
class Roofline:
    """What an engine reached of what is attainable.

    Attributes:
        intensity: Operations for each compulsory byte.
        peak: Operations per second, of the types together.
        peaks: That of each type.
        peak_by: The names of the products that reached it.
        bandwidth: Bytes per second.
        bandwidth_by: "copy" or "read", whichever was faster.
        attainable: Operations per second.
        bound: "computation" or "memory", whichever bounds it.
        reached: Operations per second.
        share: The part of the attainable that was reached. The interval takes the ends of those of
            all times, so it is wide rather than narrow.
    """

    intensity: float
    peak: float
    peaks: Mapping[str, float]
    peak_by: tuple[str, ...]
    bandwidth: float
    bandwidth_by: str
    attainable: float
    bound: str
    reached: float
    share: Interval


def time_products(
    name: str, graphs: Sequence[Product], folder: Path, threads: int, budget: float
) -> tuple[list[ProductTime], list[str]]:
    """Builds graphs for an engine and times them on the CPU, side by side.

    Args:
        budget: Seconds for timing each; it runs at least once.

    Returns:
        The times, and why graphs could not be built or run.
    """
    engine, options = engines.get(name), OpenOptions("cpu", threads)
    problems = []
    with ExitStack() as stack:
        opened = []
        for number, graph in enumerate(graphs):
            path = folder / f"{name}-{number}{engine.suffix}"
            try:
                engine.build(graph.path, path, BuildOptions())
                session = stack.enter_context(closing(engine.open(path, options)))
                session.run(_feeds(session))
            except DeployError as error:
                problems.append(f"{name}, {graph.precision} {graph.kind}: {error.message}")
                continue
            product = Product(graph.precision, graph.kind, graph.operations, path, name)
            opened.append((product, session))
        medians = _medians([session for _, session in opened], budget * len(opened))
    return [
        ProductTime(product, seconds) for (product, _), seconds in zip(opened, medians, strict=True)
    ], problems


def _medians(sessions: Sequence[Session], budget: float) -> list[float]:
    """Returns the median seconds of sessions that run in turns."""
    for session in sessions:
        session.bind(_feeds(session))
    times: list[list[float]] = [[] for _ in sessions]
    start = time.perf_counter()
    while sessions and (not times[0] or time.perf_counter() - start < budget):
        for session, own in zip(sessions, times, strict=True):
            began = time.perf_counter()
            session.launch()
            session.synchronize()
            own.append(time.perf_counter() - began)
    return [statistics.median(own) for own in times]


def fastest(times: Sequence[ProductTime]) -> list[ProductTime]:
    """Returns the fastest product of each engine, for each precision.

    Not only that of one engine: which is the fastest depends on what else the machine does. An
    engine that is far slower has none.
    """
    best: dict[tuple[str, str], ProductTime] = {}
    for entry in times:
        key = entry.product.precision, entry.product.engine
        if key not in best or entry.rate > best[key].rate:
            best[key] = entry
    peaks = {
        kind: max(entry.rate for (of, _), entry in best.items() if of == kind) for kind, _ in best
    }
    return [entry for (kind, _), entry in best.items() if entry.rate * _FAR >= peaks[kind]]


class _Repeated:
    """A session that runs several times in one launch; see `engines.contract.Session`."""

    def __init__(self, session: Session, count: int) -> None:
        self._session, self.count = session, count
        self.inputs, self.outputs = session.inputs, session.outputs
        self.device, self.batch, self.stream = session.device, session.batch, session.stream

    def run(self, feeds: Feeds) -> Outputs:
        for _ in range(self.count - 1):
            self._session.run(feeds)
        return self._session.run(feeds)

    def bind(self, feeds: Feeds) -> None:
        self._session.bind(feeds)

    def launch(self) -> None:
        for _ in range(self.count):
            self._session.launch()

    def synchronize(self) -> None:
        self._session.synchronize()

    def close(self) -> None:
        self._session.close()


class Ceilings:
    """The open sessions that show what the machine can do; a context manager that closes them."""

    def __init__(self, products: Sequence[ProductTime], threads: int) -> None:
        self._threads = threads
        self._times = {entry.product.name: entry for entry in products}
        with ExitStack() as stack:
            self._sessions = {
                name: stack.enter_context(closing(_open(entry.product, threads)))
                for name, entry in self._times.items()
            }
            self._stack = stack.pop_all()

    def __enter__(self) -> Ceilings:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def missing(self, work: Work) -> str:
        """Returns why some work gets no roofline, or ""."""
        if work.uncounted:
            return f"what these operators multiply is not counted: {', '.join(work.uncounted)}"
        if not work.operations:
            return "the graph has no convolution or matrix product"
        known = {entry.product.precision for entry in self._times.values()}
        if lacking := [kind for kind in work.operations if kind not in known]:
            return f"no engine that runs here could be timed on products in {', '.join(lacking)}"
        return ""

    def measure(
        self,
        session: Session,
        load: Load,
        work: Work,
        *,
        seconds: float,
        budget: float,
        seed: int,
        progress: Callable[[float], None] = lambda _seconds: None,
    ) -> tuple[list[Timing], Roofline]:
        """Times a session side by side with the products, a copy and reading.

        Products run as often in a launch as takes about as long as the session: a short one after a
        long one would begin with cold caches, and a scheduler treats the two differently.

        Args:
            seconds: How long an inference takes, about.
            progress: Called after every round with the seconds it took.

        Returns:
            The session's own timings, and what it reached.
        """
        size = work.compulsory_bytes
        repeated = {
            name: _Repeated(own, min(_MOST, max(1, round(seconds / self._times[name].seconds))))
            for name, own in self._sessions.items()
        }
        with (
            closing(Transfer(size, self._threads, write=True)) as copy,
            closing(Transfer(size, self._threads, write=False)) as read,
        ):
            candidates = [
                Candidate("", session, load.feeds),
                *(Candidate(name, own, _feeds(own)) for name, own in repeated.items()),
                Candidate(_COPY, copy, {}),
                Candidate(_READ, read, {}),
            ]
            timings = clock.measure(candidates, budget=budget, seed=seed, progress=progress)
            moved = {_COPY: copy.moved, _READ: read.moved}
        taken = {entry.name: entry.seconds for entry in timings if entry.boundary == _DEVICE}
        taken |= {name: _times(taken[name], 1 / own.count) for name, own in repeated.items()}
        products = [entry.product for entry in self._times.values()]
        own_timings = [entry for entry in timings if not entry.name]
        return own_timings, _roofline(work, taken, products, moved)


def _open(product: Product, threads: int) -> Session:
    return engines.get(product.engine).open(product.path, OpenOptions("cpu", threads))


def _roofline(
    work: Work,
    seconds: Mapping[str, Interval],
    products: Sequence[Product],
    moved: Mapping[str, int],
) -> Roofline:
    """Returns what was reached.

    Args:
        seconds: By the name of a product or transfer; "" for the engine.
        moved: Bytes by the name of a transfer.
    """
    operations, size = sum(work.operations.values()), work.compulsory_bytes
    computing, peaks, peak_by = Interval(0.0, 0.0, 0.0), {}, []
    for precision, count in work.operations.items():
        best = min(
            (product for product in products if product.precision == precision),
            key=lambda product: seconds[product.name].value / product.operations,
        )
        computing = _sum(computing, _times(seconds[best.name], count / best.operations))
        peaks[precision] = best.operations / seconds[best.name].value
        peak_by.append(best.name)
    transfer = min(moved, key=lambda name: seconds[name].value / moved[name])
    moving = _times(seconds[transfer], size / moved[transfer])
    least = max(computing, moving, key=lambda interval: interval.value)
    own = seconds[""]
    return Roofline(
        intensity=operations / size,
        peak=operations / computing.value,
        peaks=peaks,
        peak_by=tuple(peak_by),
        bandwidth=size / moving.value,
        bandwidth_by=transfer,
        attainable=operations / least.value,
        bound="computation" if least is computing else "memory",
        reached=operations / own.value,
        share=Interval(least.value / own.value, least.low / own.high, least.high / own.low),
    )


def _times(interval: Interval, factor: float) -> Interval:
    return Interval(*(end * factor for end in (interval.value, interval.low, interval.high)))


def _sum(first: Interval, second: Interval) -> Interval:
    return Interval(first.value + second.value, first.low + second.low, first.high + second.high)


def _feeds(session: Session) -> dict[str, np.ndarray[Any, Any]]:
    """Returns inputs of a product, whose shapes are fixed."""
    random = np.random.default_rng(0)
    return {
        spec.name: random.integers(1, 3, [axis or 1 for axis in spec.shape]).astype(spec.dtype)
        for spec in session.inputs
    }
