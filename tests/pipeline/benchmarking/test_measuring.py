"""Timing engines in a process of their own, one of which ends it."""

import numpy as np
import pytest

from engines import hardware
from engines.contract import OpenOptions
from engines.errors import CrashedError
from pipeline.benchmarking.comparison import Load
from pipeline.benchmarking.measuring import Built, Crew, Plan, measure, race
from pipeline.workflow.runner import Store

LOADS = (Load(1, {"image": np.zeros((1, 1, 28, 28), np.uint8)}),)


def built_engines(store: Store, *names: str) -> list[Built]:
    graph = store.root / "lenet/fp32/onnxruntime/engine.onnx"
    return [Built(f"{name} graph", name, graph, OpenOptions()) for name in names]


@pytest.mark.slow(2)
@pytest.mark.usefixtures("faulty_engines")
def test_an_engine_that_ends_the_process_leaves_the_others(built: Store) -> None:
    chosen = built_engines(built, "onnxruntime", "segfaulting")
    whole = measure(chosen, LOADS, budget=0.1, seed=0, affinity=hardware.affinity()[:1])
    assert {entry["name"] for entry in whole.results} == {"onnxruntime graph"}
    assert whole.devices == {"onnxruntime graph": "cpu"}
    (failure,) = whole.failures
    assert failure["name"] == "segfaulting graph"
    assert "SIGSEGV" in failure["reason"]


@pytest.mark.slow(2)
@pytest.mark.usefixtures("faulty_engines")
def test_a_crew_that_ends_the_process_leaves_the_others(built: Store) -> None:
    sound, broken = built_engines(built, "onnxruntime", "segfaulting")
    crews = [Crew(broken, 1), Crew(sound, 2)]
    feeds = LOADS[0].feeds
    plans = [
        Plan(f"{crew} {count}", crew, count, feeds, 1, None)
        for crew, count in ((0, 1), (1, 1), (1, 2))
    ]
    results = race(crews, plans, budget=0.1, seed=0, prune=False).results
    assert [bool(result.failure) for result in results] == [True, False, False]
    assert "SIGSEGV" in results[0].failure
    assert all(result.throughput is not None for result in results[1:])
    with pytest.raises(CrashedError):
        race(crews[:1], plans[:1], budget=0.1, seed=0, prune=False)
