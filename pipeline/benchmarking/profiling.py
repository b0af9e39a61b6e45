"""Profiles engines: cold start, cost, roofline and layers, each engine in a process of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import engines
from engines import temporary
from engines.contract import OpenOptions, Session
from engines.errors import CrashedError, DeployError
from exporters.work import Work
from pipeline.benchmarking import clock
from pipeline.benchmarking.cold_start import cold_start
from pipeline.benchmarking.comparison import Load
from pipeline.benchmarking.contention import Others, blamed
from pipeline.benchmarking.cost import cost
from pipeline.benchmarking.layer_times import layer_times, losses
from pipeline.benchmarking.roofline import (
    SEARCH_SECONDS,
    Ceilings,
    Product,
    ProductTime,
    fastest,
    time_products,
)
from pipeline.workflow import console, worker, worker_child

_ON_GPU = "it is measured on CPUs only"


@dataclass(frozen=True)
class Subject:
    """A built engine to profile.

    Attributes:
        options: With the device that it runs on.
        loads: What it is run on, the smallest batch first.
        works: What each load has to compute and to move.
    """

    engine: str
    built: Path
    options: OpenOptions
    loads: tuple[Load, ...]
    works: tuple[Work, ...]


def profile(
    subjects: Sequence[Subject],
    graphs: Sequence[Product],
    makers: Sequence[str],
    *,
    threads: int,
    budget: float,
    seed: int,
) -> dict[str, Any]:
    """Returns the profiles of engines, one process after the other, in their JSON form.

    An engine that crashes, or cannot be opened or run, has an "error" instead of its profile.

    Args:
        graphs: Graphs of products in the types that the engines compute in.
        makers: The engines that time these, to find the fastest.
        threads: CPU threads for products and copies, those of the engines.
        budget: Seconds for each engine and load.
        seed: Seed of the order within rounds.
    """
    with temporary.folder() as folder:
        times, problems = _products(graphs, makers, folder, threads, min(budget, SEARCH_SECONDS))
        products = fastest(times)
        profiles = [_profile(subject, products, budget, seed) for subject in subjects]
    return {
        "products": [
            {
                "engine": entry.product.engine,
                "precision": entry.product.precision,
                "kind": entry.product.kind,
                "operations_per_second": entry.rate,
            }
            for entry in times
        ],
        "product_problems": problems,
        "engines": profiles,
    }


def _products(
    graphs: Sequence[Product], makers: Sequence[str], folder: Path, threads: int, budget: float
) -> tuple[list[ProductTime], list[str]]:
    times: list[ProductTime] = []
    problems: list[str] = []
    for name in makers if graphs else ():
        worker.end()
        console.say(f"profile: how fast {name} multiplies here")
        try:
            timed, failed = worker.call(
                f"timing products by {name}", time_products, name, graphs, folder, threads, budget
            )
        except DeployError as error:
            problems.append(f"{name}: {error.message}")
        else:
            times += timed
            problems += failed
    return times, problems


def _profile(
    subject: Subject, products: Sequence[ProductTime], budget: float, seed: int
) -> dict[str, Any]:
    name = subject.engine
    console.say(f"profile: {name} at {', '.join(map(str, subject.loads))}")
    try:
        # The libraries of the engine before are not loaded in a new process.
        return worker.call_alone(f"opening {name}", profile_here, subject, products, budget, seed)
    except DeployError as error:
        crashed = isinstance(error, CrashedError)
        return {"engine": name, "error": error.message, "crashed": crashed}


def profile_here(
    subject: Subject, products: Sequence[ProductTime], budget: float, seed: int
) -> dict[str, Any]:
    """Returns the profile of an engine, opened in this process."""
    engine = engines.get(subject.engine)
    session, start = cold_start(engine, subject.built, subject.options, subject.loads)
    entries: list[dict[str, Any]] = []
    with (
        closing(session),
        console.bar(f"profile {engine.name}", len(subject.loads) * budget) as bar,
    ):
        # Before the libraries of the products are loaded.
        costs = [cost(session, load.feeds, budget) for load in subject.loads]
        on_cpu = session.device == "cpu"
        with Ceilings(products if on_cpu else (), subject.options.threads) as ceilings:
            for number, (load, work) in enumerate(zip(subject.loads, subject.works, strict=True)):
                worker_child.doing(f"running {engine.name} at {load}")
                why = ceilings.missing(work) if on_cpu else _ON_GPU
                others = Others()
                left = budget

                def progress(seconds: float, load: Load = load) -> None:
                    nonlocal left
                    bar.advance(min(seconds, left), str(load))
                    left = max(0.0, left - seconds)

                timings, roofline = (
                    (_alone(session, load, budget, seed, progress), None)
                    if why
                    else ceilings.measure(
                        session,
                        load,
                        work,
                        seconds=costs[number].wall_seconds,
                        budget=budget,
                        seed=seed,
                        progress=progress,
                    )
                )
                whole = next(entry for entry in timings if entry.boundary == clock.BOUNDARIES[1])
                part = others.part()
                worker_child.doing(f"profiling the layers of {engine.name} at {load}")
                layers = layer_times(
                    engine, subject.built, subject.options, load.feeds, whole.seconds.value
                )
                entries.append(
                    {
                        **load.document(),
                        "first_seconds": start.first[number],
                        "seconds": asdict(whole.seconds),
                        "settled": whole.seconds.reach <= clock.SETTLED,
                        "busy": blamed(whole.busy, part),
                        "others": part,
                        **asdict(costs[number]),
                        "work": asdict(dataclasses.replace(work, products=())),
                        "roofline": None if roofline is None else asdict(roofline),
                        "no_roofline": why,
                        "layers": losses(layers, work.products, roofline, whole.seconds.value),
                    }
                )
                bar.advance(left, str(load))
    return {
        "engine": engine.name,
        "device": session.device,
        "file_bytes": subject.built.stat().st_size,
        "library_seconds": start.library,
        "open_seconds": start.opening,
        "memory": asdict(start.memory),
        "loads": entries,
    }


def _alone(
    session: Session, load: Load, budget: float, seed: int, progress: Callable[[float], None]
) -> list[clock.Timing]:
    candidates = [clock.Candidate("", session, load.feeds)]
    return clock.measure(candidates, budget=budget, seed=seed, progress=progress)
