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
