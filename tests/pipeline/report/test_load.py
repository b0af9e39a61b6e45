"""The printed report of load."""

from typing import Any

import pytest

from pipeline.report import load
from pipeline.workflow.table_layout import fitting_columns, least_width

INTERVAL = {"value": 20_123.4, "low": 19_012.3, "high": 21_234.5}
SERVED: dict[str, Any] = {
    "concurrency": 8,
    "threads": 16,
    "rows": 64,
    "throughput": INTERVAL,
    "latency": {f"p{q}": {"value": 0.123456, "low": 0.1, "high": 0.2} for q in (50, 90, 99)},
    "cpu_seconds": 0.123456,
    "others": 0.0,
    "failure": "",
}
OFFERED = SERVED | {"rate": 20_000, "load": 0.999, "waiting": 12_345, "saturated": False}
ENGINE: dict[str, Any] = {
    "name": "onnxruntime_tensorrt",
    "device": "cuda:0",
    "closed": [SERVED],
    "arrivals": [
        OFFERED | {"borne": True},
        OFFERED | {"borne": False},
        OFFERED | {"borne": False, "saturated": True, "latency": {}},
    ],
    "saturation": {"concurrency": 1, "threads": 16, "rate": 20_000, "refused": 21_000},
    "failure": "",
}


def results(*engines: dict[str, Any], bound: float | None = None) -> dict[str, Any]:
    return {"counted": "images", "rows": 64, "p99": bound, "engines": [*engines]}


@pytest.mark.parametrize("table", [load.closed_table, load.arrivals_table])
def test_the_tables_fit_a_terminal_of_80_columns(table: Any) -> None:
    _, columns, rows = table(results(ENGINE))
    every = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    kept = fitting_columns(columns, rows, every, load._OPTIONAL, 80)
    assert least_width(columns, rows, kept) <= 80


def test_a_rate_that_is_not_borne_says_why() -> None:
    _, columns, rows = load.arrivals_table(results(ENGINE, bound=0.1))
    assert [row[columns.index("borne")] for row in rows] == ["yes", "no: p99", "no: queue"]


def test_a_p99_that_ended_a_run_is_beyond_the_bound() -> None:
    ended = OFFERED | {"borne": False, "latency": {}}
    engine = ENGINE | {"arrivals": [ended, ended | {"saturated": True}]}
    _, columns, rows = load.arrivals_table(results(engine, bound=0.1))
    assert [row[columns.index(">p99")] for row in rows] == ["> 100 ms", ""]


def test_the_largest_rate_is_a_sentence() -> None:
    slow = ENGINE | {"saturation": ENGINE["saturation"] | {"rate": 0, "refused": 0}}
    assert [*load.limits(results(slow, bound=0.1))] == [
        "onnxruntime_tensorrt bears no rate with a p99 of at most 100 ms: a request alone takes"
        " longer"
    ]
    none = ENGINE | {"name": "openvino", "saturation": ENGINE["saturation"] | {"rate": 0}}
    assert [*load.limits(results(ENGINE, none, bound=0.1))] == [
        "onnxruntime_tensorrt bears 20,000 requests/s with a p99 of at most 100 ms, with 1 session;"
        " not 21,000",
        "openvino bears no rate that was tried with a p99 of at most 100 ms, with 1 session; not"
        " 21,000",
    ]
    assert [*load.most(results(ENGINE))] == [
        "onnxruntime_tensorrt serves 1,287,898 images/s with 8 sessions"
    ]


def test_other_processes_are_a_doubt() -> None:
    assert load.doubts(results(ENGINE)) == []
    busy = ENGINE | {"closed": [SERVED | {"others": 0.25}]}
    assert "other processes took up to 25% of the CPUs" in load.doubts(results(busy))[0]


def test_an_engine_that_could_not_be_opened_is_a_row() -> None:
    failed = ENGINE | {"closed": [], "arrivals": [], "saturation": None, "failure": "no memory"}
    _, _, rows = load.closed_table(results(failed))
    assert (rows[0][0], rows[0][-1]) == ("onnxruntime_tensorrt", "no memory")
    assert load.failures(results(failed, ENGINE | {"name": "openvino"})) == {
        "onnxruntime_tensorrt": "no memory"
    }
