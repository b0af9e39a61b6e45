"""Bounds on latency, throughput and accuracy, on candidates of known speed."""

from typing import Any

import pytest

from engines.errors import UsageError
from pipeline.report import units
from pipeline.report.page import bounds, bounds_table
from pipeline.report.page.bounds import Bounds
from tests.pipeline.report.page.test_choice import candidate


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5ms", 5e-3), ("800us", 8e-4), ("0.1s", 0.1), (".5 ms", 5e-4), ("5\u03bcs", 5e-6)],
)
def test_times_have_units(text: str, seconds: float) -> None:
    assert units.seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["5", "ms", "-1ms", "0ms", "5 min", "1e-3s", "nan s", f"{'9' * 400}s"]
)
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time"):
        units.seconds(text)


@pytest.mark.parametrize(
    ("text", "count"), [("500MB", 5 * 10**8), ("1.5 GB", 15 * 10**8), ("256MiB", 2**28)]
)
def test_sizes_have_units(text: str, count: int) -> None:
    assert units.byte_count(text) == count


@pytest.mark.parametrize(
    "text", ["5", "MB", "-1MB", "0GB", "5 Mb", "5TB", f"{'9' * 400}GB", "0.0001kB"]
)
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        units.byte_count(text)


# A candidate of 1 ms at batch 4, from 0.99 to 1.01 ms, with a p99 from 1.9 to 2.1 ms.
USUAL = candidate(1e-3, batch=4, p99=(1.9e-3, 2.1e-3), accuracy=0.9, memory=2 * 10**8)


@pytest.mark.parametrize(
    ("limits", "status", "words"),
    [
        ({"p99": 2.2e-3}, "yes", ()),
        ({"p99": 2.0e-3}, "unsure", ("p99 1.90 ms to 2.10 ms",)),
        ({"p99": 1.8e-3}, "no", ("p99 1.90 ms to 2.10 ms",)),
        ({"latency": 1.02e-3}, "yes", ()),
        ({"latency": 1.0e-3}, "unsure", ("median 990 µs to 1.01 ms",)),
        ({"throughput": 3900}, "yes", ()),
        ({"throughput": 4000}, "unsure", ("3,960 to 4,040 images/s",)),
        ({"throughput": 4100}, "no", ("3,960 to 4,040 images/s",)),
        ({"drop": 1.1}, "yes", ()),
        ({"drop": 0.5}, "no", ("it loses 1.00 points of accuracy",)),
        ({"memory": 3 * 10**8}, "yes", ()),
        ({"memory": 10**8}, "no", ("it takes 190.7 MiB",)),
        ({"p99": 1e-3, "drop": 2.0}, "no", ("p99 1.90 ms to 2.10 ms",)),
    ],
)
def test_a_bound_is_kept_if_the_whole_interval_is_within(
    limits: dict[str, float], status: str, words: tuple[str, ...]
) -> None:
    entry = bounds.kept(USUAL, Bounds(**limits), accuracy=0.91)
    assert (entry.status, entry.failing) == (status, words)


@pytest.mark.parametrize(
    ("more", "limit", "status"),
    [
        ({"p99": None}, {"p99": 5e-3}, "unsure"),
        ({"p99": None}, {"p99": 0.5e-3}, "no"),  # the median is above it
        ({"accuracy": None}, {"drop": 1.0}, "unsure"),
        ({"memory": None}, {"memory": 10**9}, "unsure"),
        ({"busy": True}, {"p99": 5e-3}, "unsure"),
        ({"others": 0.7}, {"p99": 1e-3}, "unsure"),  # it may be the others' fault
        ({"others": 0.7}, {"p99": 3e-3}, "yes"),
        ({"others": 0.7, "accuracy": 0.8}, {"drop": 0.5}, "no"),
        ({"sessions": 2}, {"memory": 10**9}, "unsure"),
    ],
)
def test_what_is_not_known_is_not_sure(
    more: dict[str, Any], limit: dict[str, float], status: str
) -> None:
    entry = candidate(1e-3, **{"p99": (1e-3, 2e-3), **more})
    assert bounds.kept(entry, Bounds(**limit), accuracy=0.9).status == status


def test_a_bound_on_time_leaves_the_highest_throughput() -> None:
    quick, large = candidate(1e-3), candidate(4e-3, batch=64)
    slow = candidate(9e-3, batch=256)

    def best(limits: Bounds) -> object:
        chosen = bounds.best([bounds.kept(e, limits, None) for e in (quick, large, slow)], limits)
        return chosen and chosen.candidate

    assert best(Bounds(latency=5e-3)) == large
    assert best(Bounds(throughput=900)) == quick
    assert best(Bounds(throughput=5000)) == large
    assert best(Bounds(latency=1e-4)) is None


def test_what_is_better_and_not_sure_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    # By throughput, 0.99 to 1.01 of 1,000, 1,000 and 8,000 images/s.
    usual, other, large = candidate(2e-3, batch=2), candidate(1e-3), candidate(1e-3, batch=8)

    def perhaps(limits: Bounds, *known: Any) -> object:
        compared = [bounds.kept(entry, limits, None) for entry in known]
        chosen = bounds.best(compared, limits)
        assert chosen is not None
        better = bounds.perhaps(compared, chosen, limits)
        bounds_table.show(compared, chosen, better, limits)
        return better and better.candidate

    assert perhaps(Bounds(throughput=990), usual, other) is None  # both are sure
    few = candidate(1e-3, batch=8, p99=None)
    assert perhaps(Bounds(p99=1.0), few, candidate(2e-3, p99=(2e-3, 3e-3))) == few
    out = capsys.readouterr().out
    assert "serves more, and may keep the bounds: too few inferences to know the p99" in out
    edge = Bounds(throughput=1000)
    assert perhaps(edge, candidate(9e-3, batch=90), other) == other
    assert "is quicker, and may keep the bounds: 990 to 1,010 images/s" in capsys.readouterr().out
    assert perhaps(edge, large, other) is None  # not surely quicker
    assert perhaps(Bounds(throughput=1100), large, other) is None  # it does not keep it
    assert "may keep" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lost", "bound", "status"),
    [
        ((0.2, 0.1, 0.4), 0.5, "yes"),
        ((0.2, 0.1, 0.6), 0.5, "unsure"),
        ((0.0, -8.6, 8.6), 0.5, "unsure"),  # few images tell nothing
        ((0.7, 0.6, 0.9), 0.5, "no"),
        ((0.0, 0.0, 0.0), 0.0, "yes"),
    ],
)
def test_the_whole_interval_of_the_accuracy_counts(
    lost: tuple[float, float, float], bound: float, status: str
) -> None:
    entry = bounds.kept(candidate(1e-3, lost=lost), Bounds(drop=bound), accuracy=0.9)
    assert entry.status == status


def test_what_others_disturbed_is_told_only_if_it_may_keep_the_bounds() -> None:
    limits = Bounds(p99=1e-3)
    chosen = candidate(5e-4, p99=(5e-4, 8e-4))
    far = candidate(1e-3, batch=64, p99=(7e-3, 9e-3), others=0.5)
    near = candidate(8e-4, batch=8, p99=(9e-4, 2e-3), others=0.5)
    compared = [bounds.kept(entry, limits, None) for entry in (chosen, far, near)]
    assert [entry.status for entry in compared] == ["yes", "unsure", "unsure"]
    better = bounds.perhaps(compared, compared[0], limits)
    assert better is not None
    assert better.candidate == near
