"""Building an engine several times, each time from nothing, and measuring every build."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import engines
from engines import hardware, temporary
from engines.contract import OpenOptions
from engines.errors import DeployError, NotAvailableError
from pipeline.benchmarking.comparison import Load
from pipeline.benchmarking.measuring import Built, measure
from pipeline.golden import file as goldens
from pipeline.rebuilding.region import Build, Builds, Latency, derive
from pipeline.verification.engine_proof import fitted, prove
from pipeline.verification.verdict import Verdict
from pipeline.workflow import console

T = TypeVar("T")

# Seconds for the latency at each batch size: the least in which the clock ends by itself.
SECONDS = 1.0
# The largest batch that is measured, as by `assay bench`.
LARGEST_BATCH = 64
_CACHES = ("ASSAY_CACHE", "TORCHINDUCTOR_CACHE_DIR")


@dataclass(frozen=True)
class Subject:
    """An engine of a model, as it is proved and measured.

    Attributes:
        batches: The least and the largest batch that it was built for.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads of one inference.
    """

    engine: str
    golden: Path
    precision: str
    batches: tuple[int, int]
    device: str
    threads: int


@contextmanager
def fresh_caches() -> Iterator[None]:
    """Gives what is built within the block empty caches, such as TensorRT's of tactic timings.

    With those of an earlier build, a library chooses the same kernels again.
    """
    before = {name: os.environ.get(name) for name in _CACHES}
    with temporary.folder() as folder:
        os.environ.update({name: str(folder / name.lower()) for name in _CACHES})
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def repeat(
    build: Callable[[Path], T], target: Path, count: int, subject: Subject
) -> tuple[T, Builds]:
    """Builds an engine so many times; keeps the first, and measures each after it is built.

    The first one is kept, whatever the others are: one chosen by its figures, such as the fastest,
    would be better than a further build can be expected to be. They are measured one after the
    other, not side by side, since the machine is not in the same state later, either.

    Args:
        build: Builds into a file.
        target: The file of the build that is kept.
        count: Two or more.

    Returns:
        What the first call of `build` returned, and the figures of all builds.
    """
    kept: list[T] = []
    builds: list[Build] = []
    device = ""
    for number in range(count):
        console.say(f"build {subject.engine}: {number + 1} of {count}")
        path = target.with_name(f"build-{number}{target.suffix}") if number else target
        with fresh_caches():
            start = time.perf_counter()
            result = build(path)
            seconds = round(time.perf_counter() - start, 3)
            if not number:
                kept.append(result)
            verdict = prove(
                subject.engine,
                path,
                subject.golden,
                subject.precision,
                device=subject.device,
                threads=subject.threads,
                or_failed=True,
            )
            builds.append(Build.of(path, seconds, verdict, latencies(path, verdict, subject)))
        device = device or verdict.facts.get("device", "")
        if number:
            path.unlink()
    return kept[0], Builds(kind(device, subject.threads), device, tuple(builds), derive(builds))


def latencies(path: Path, verdict: Verdict, subject: Subject) -> dict[str, Latency]:
    """Returns the median latency of a proved engine at the least and the largest batch.

    It is that on the device, from launch to completion. An engine that is not proved, or fails
    while it is measured, has none.
    """
    if verdict.status != "pass":
        return {}
    golden = goldens.load(subject.golden)
    engine = engines.get(subject.engine)
    try:
        options = fitted(engine, path, OpenOptions(subject.device, subject.threads))
    except NotAvailableError:  # it has just run; a GPU may be gone
        return {}
    sizes = loads(subject.batches) if golden.batched else [1]
    try:
        measured = measure(
            [Built(subject.engine, subject.engine, path, options)],
            [Load(size, golden.feeds(size)) for size in sizes],
            budget=SECONDS,
            seed=0,
            affinity=(),
        )
    except DeployError as error:
        console.say(f"{subject.engine} was not measured: {error.message}")
        return {}
    return {
        str(entry["batch"]): Latency(
            **{name: entry["seconds"][name] for name in ("value", "low", "high")},
            busy=bool(entry["busy"]),
        )
        for entry in measured.results
        if entry["boundary"] == "device"
    }


def loads(batches: tuple[int, int]) -> Sequence[int]:
    """Returns the batch sizes to measure, from the least and the largest that an engine takes."""
    least, largest = batches
    return sorted({least, max(least, min(largest, LARGEST_BATCH))})


def kind(device: str, threads: int) -> dict[str, str]:
    """Returns the kind of machine: latencies on machines of one kind are comparable.

    Args:
        device: Where an engine ran, "cpu" or "cuda:N"; "" if it did not run.
    """
    name, _, index = device.partition(":")
    if name == "cuda":
        facts = hardware.gpu_fingerprint(int(index or 0))
        return {key: value for key, value in facts.items() if key != "gpu_driver"}
    return {**hardware.cpu_fingerprint(), "threads": str(threads)}
