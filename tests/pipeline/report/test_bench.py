"""The printed report of the bench stage."""

import pytest

from pipeline.report import bench


def test_each_row_names_its_engine_and_the_baseline_has_no_speed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seconds = {"value": 2e-6, "low": 1e-6, "high": 3e-6}
    ratio = {"value": 1.5, "low": 1.25, "high": 1.75}
    common = {"batch": 4, "boundary": "device", "baseline": "a", "seconds": seconds, "ratio": ratio}
    bench.show(
        {
            "baseline": "a",
            "devices": {"a": "cpu", "b": "cuda:0"},
            "results": [
                {**common, "name": "a", "settled": True},
                {**common, "name": "b", "settled": False},
            ],
        }
    )
    first, second = (line.split() for line in capsys.readouterr().out.splitlines()[-3:-1])
    assert first == ["a", "cpu", "4", "device", "2.0", "1.0", "to", "3.0", "2,000,000", "settled"]
    speed = ["1.50x", "(1.25", "to", "1.75)", "unstable"]
    assert second == ["b", "cuda:0", *first[2:-1], *speed]


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
        "a at batch 8 is bound by launches: the CPU takes 283.0 µs to enqueue 280.0 µs of work;"
        " --cuda-graph replays them as one",
        "b at batch 8 is bound by transfers: 1,000.0 of 4,000.0 µs are on the device",
    ]
