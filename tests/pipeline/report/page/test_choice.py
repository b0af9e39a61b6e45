import dataclasses

from pipeline.report.page.choice import Candidate, Choice, choose, frontier, named

USUAL = Candidate(
    engine="onnxruntime",
    precision="fp32",
    computed_in="",
    device="cpu",
    batch=1,
    size="",
    seconds=1e-3,
    low=0.9e-3,
    high=1.1e-3,
    settled=True,
    busy=False,
    others=None,
    accuracy=0.9,
    p99=None,
    counted="images",
    run="fp32",
    memory=None,
    threads=1,
)


def candidate(seconds: float, **more: object) -> Candidate:
    """Returns a candidate whose interval reaches 1 % to either side."""
    interval = {"low": seconds * 0.99, "high": seconds * 1.01}
    return dataclasses.replace(USUAL, seconds=seconds, **{**interval, **more})


def chosen(*known: Candidate) -> tuple[Choice, Choice]:
    latency, throughput = choose("lenet", known)
    assert (latency.goal, throughput.goal) == ("latency", "throughput")
    return latency, throughput


def test_latency_and_throughput_have_their_own_best() -> None:
    quick = candidate(1e-3, engine="openvino")
    large = candidate(8e-3, batch=64)
    latency, throughput = chosen(large, quick)
    assert latency.candidate == quick
    assert throughput.candidate == large
    assert "8,000 images/s" in throughput.reasons[0]
    assert "the best of 2 proved engines measured at batch 1, 64" in latency.reasons[0]


def test_precision_is_not_given_up_for_a_difference_within_the_intervals() -> None:
    precise = candidate(1.01e-3, run="fp32")
    rough = candidate(1.00e-3, precision="int8", run="int8")
    latency, _ = chosen(rough, precise)
    assert latency.candidate == precise
    assert "may be as fast but less precise" in latency.doubts[0]
    rougher = candidate(0.5e-3, precision="int8", run="int8")
    latency, _ = chosen(rougher, precise)
    assert latency.candidate == rougher
    assert "the 95 % intervals do not overlap" in latency.reasons[1]


def test_precisions_of_different_runs_are_not_compared_without_a_word() -> None:
    latency, _ = chosen(candidate(1e-3), candidate(5e-4, precision="fp16", run="fp16"))
    (doubt,) = latency.doubts
    assert "fp32 was measured in another run" in doubt
    command = "`assay bench lenet --precision fp16 --engine onnxruntime --against fp32`"
    assert command in doubt
    latency, _ = chosen(candidate(1e-3), candidate(5e-4, precision="fp16"))
    assert not latency.doubts


def test_a_precision_that_is_in_the_same_run_needs_no_other_comparison() -> None:
    side_by_side = candidate(1e-3), candidate(5e-4, precision="fp16")
    apart = candidate(3e-3, engine="pytorch", precision="fp16", run="fp16")
    latency, _ = chosen(*side_by_side, apart)
    assert not latency.doubts


def test_the_first_run_of_an_engine_counts() -> None:
    latency, _ = chosen(candidate(1e-3), candidate(5e-4, run="alone"))
    assert latency.candidate.seconds == 1e-3


def test_other_types_than_the_graphs_are_a_doubt() -> None:
    latency, _ = chosen(candidate(1e-3, precision="fp16", computed_in="fp32"))
    assert latency.doubts == ("It computes in fp32 here, so a target may differ.",)


def test_no_comparison_is_suggested_that_no_engine_allows() -> None:
    other = candidate(5e-4, precision="fp16", engine="openvino", run="fp16")
    latency, _ = chosen(candidate(1e-3), other)
    assert latency.doubts == ("fp32 was measured in another run.",)


def test_an_unstable_time_is_a_doubt() -> None:
    latency, _ = chosen(candidate(1e-3, settled=False))
    assert "the only proved engine" in latency.reasons[0]
    assert latency.doubts == ("Its time is unstable; a larger --budget helps.",)


def test_a_time_on_a_busy_machine_is_a_doubt() -> None:
    latency, _ = chosen(candidate(1e-3, busy=True))
    assert latency.doubts == ("Other processes slowed it down; measure on a quiet machine.",)


def test_only_the_first_size_counts() -> None:
    small = candidate(1e-4, size="image 1x32")
    usual = candidate(1e-3, size="image 1x64")
    latency, throughput = chosen(usual, small)
    assert latency.candidate == throughput.candidate == usual


def test_nothing_measured_gives_no_choice() -> None:
    assert choose("lenet", ()) == ()


def test_the_frontier_has_what_nothing_else_beats_in_both() -> None:
    quick, slow = candidate(1e-3), candidate(2e-3, engine="pytorch")
    large, larger = candidate(4e-3, batch=8), candidate(9e-3, batch=16)
    assert frontier([larger, slow, large, quick]) == [quick, large]


def test_names_in_measurements_have_an_engine_and_a_precision() -> None:
    assert named("openvino", "int8") == ("openvino", "int8")
    assert named("openvino fp32", "int8") == ("openvino", "fp32")
    assert named("pytorch fp16 graph", "fp32") == ("pytorch graph", "fp16")


def test_what_other_processes_took_is_a_doubt() -> None:
    latency, _ = chosen(candidate(1e-3, others=0.75))
    assert latency.doubts == ("Other processes took 75% of the CPUs meanwhile.",)
    latency, _ = chosen(candidate(1e-3, others=0.05))
    assert not latency.doubts


def test_sessions_that_work_at_the_same_time_serve_more() -> None:
    alone = candidate(1e-3, served=(1000.0, 990.0, 1010.0))
    two = candidate(1.2e-3, sessions=2, served=(1650.0, 1600.0, 1700.0))
    latency, throughput = chosen(alone, two)
    assert latency.candidate == alone
    assert throughput.candidate == two
    assert (
        "1,650 images/s end to end, 2 at a time, each by a session of 1 thread"
        in (throughput.reasons[0])
    )
