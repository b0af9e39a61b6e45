"""The printed report of the bench stage."""

import pytest

from pipeline.report import bench
from pipeline.report.units import duration


def measured(name: str, boundary: str, **more: object) -> dict[str, object]:
    seconds = {"value": 2e-6, "low": 1e-6, "high": 3e-6}
    ratio = {"value": 1.5, "low": 1.25, "high": 1.75}
    common = {"batch": 4, "baseline": "a", "seconds": seconds, "ratio": ratio, "settled": True}
    common |= {"busy": False, "others": 0.0}
    percentiles = {"p99": {"value": 4e-3, "low": 3e-3, "high": 5e-3}}
    return {"name": name, "boundary": boundary, **common, "percentiles": percentiles, **more}


def shown(*results: dict[str, object]) -> None:
    devices = {"a": "cpu", "b": "cuda:0"}
    bench.show({"baseline": "a", "devices": devices, "results": [*results]})


def test_an_engine_at_a_batch_size_is_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    late = {"value": 0.05, "low": 0.04, "high": 0.06}
    shown(
        measured("a", "device"),
        measured("b", "device", settled=False),
        measured("a", "end to end"),
        measured("b", "end to end", seconds=late),
    )
    out = capsys.readouterr().out
    assert "\n* unstable: " in out
    first, second = (line.split() for line in out.splitlines()[-4:-2])
    assert first[:3] == ["a", "cpu", "4"]
    assert " ".join(first[3:]) == "2.00 µs 2.00 µs 1.00 µs to 3.00 µs 4.00 ms 2,000,000"
    words = "2.00 µs* 50.0 ms 40.0 ms to 60.0 ms 4.00 ms 80 1.50x (1.25-1.75)"
    assert second == ["b", "cuda:0", "4", *words.split()]


@pytest.mark.parametrize("slowed", ["a", "b"])
def test_a_ratio_to_an_engine_that_others_slowed_is_not_printed(
    capsys: pytest.CaptureFixture[str], slowed: str
) -> None:
    shown(*(measured(n, "end to end", busy=n == slowed, others=0.45) for n in "ab"))
    out = capsys.readouterr().out
    assert "1.50x" not in out
    assert "busy: other processes took up to 45% of the CPUs" in out


def test_the_cause_of_an_unstable_result_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    shown(measured("a", "end to end", settled=False, others=0.3))
    assert "* unstable: other processes took up to 30% of the CPUs" in capsys.readouterr().out
    shown(measured("a", "end to end", settled=False, others=None))
    assert "* unstable: too few rounds" in capsys.readouterr().out


def test_a_ratio_that_is_hardly_known_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    wide = {"value": 1102.0, "low": 5.0, "high": 1752.0}
    shown(measured("a", "end to end"), measured("b", "end to end", ratio=wide))
    out = capsys.readouterr().out
    assert "1102" not in out
    assert "not known" in out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.00 µs"),
        (2.34e-7, "0.23 µs"),
        (5.43e-5, "54.3 µs"),
        (9.996e-4, "1,000 µs"),
        (1.5e-3, "1.50 ms"),
        (0.25, "250 ms"),
        (12.0, "12.0 s"),
        (5000.0, "5,000 s"),
    ],
)
def test_a_time_has_the_unit_of_its_size(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_bounds_an_engine_on_a_gpu_is_printed_below_the_table() -> None:
    def timed(name: str, boundary: str, seconds: float, **more: object) -> dict[str, object]:
        return {
            "name": name,
            "batch": 8,
            "boundary": boundary,
            "seconds": {"value": seconds},
            **more,
        }

    sentences = bench.bounds(
        [
            timed("a", "device", 280e-6, bound="launches", enqueue_seconds=283e-6),
            timed("a", "end to end", 300e-6),
            timed("b", "device", 1e-3, bound="transfers", enqueue_seconds=1e-5),
            timed("b", "end to end", 4e-3),
            timed("c", "device", 1e-3, bound="computation", enqueue_seconds=1e-5),
            timed("c", "end to end", 1.1e-3),
            timed("cpu", "device", 1e-3),
            timed("cpu", "end to end", 1.1e-3),
        ]
    )
    assert sentences == [
        "a at batch 8 is bound by launches: the CPU takes 283 µs to enqueue 280 µs of work;"
        " --cuda-graph replays them as one",
        "b at batch 8 is bound by transfers: 1.00 ms of 4.00 ms are on the device",
    ]


def test_one_engine_is_compared_with_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    results = [measured("a", "device"), measured("a", "end to end")]
    devices = {"a": "cpu"}
    document = {"baseline": "a", "devices": devices, "counted": "rows", "results": results}
    bench.show(document)
    out = capsys.readouterr().out
    assert out.startswith("Latency ")
    assert "speed" not in out
    assert "rows/s" in out
    assert "images/s" not in out
