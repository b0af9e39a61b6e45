"""Acceptance regions: how they follow from builds, and what is outside of them."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from engines.errors import DeployError, ParityError
from pipeline.rebuilding import region
from pipeline.rebuilding.prediction import FALSE_ALARMS
from pipeline.rebuilding.region import Build, Builds, Error, Latency
from pipeline.verification import limits
from pipeline.workflow.digests import dump_json


def build(
    rms: float = 1.5, largest: float = 2.0, flips: int | None = 1, seconds: float = 1e-3
) -> Build:
    latency = Latency(seconds, seconds * 0.99, seconds * 1.01)
    errors = {"logits": Error(rms, largest)}
    return Build("0" * 64, 9, 1.0, "pass", "", errors, flips, 256, {"1": latency})


def test_of_builds_of_one_kind_few_are_outside() -> None:
    random = np.random.default_rng(0)
    trials, wrong, slow = 2000, 0, 0
    for _ in range(trials):
        builds = [
            build(
                math.exp(random.normal(0.2, 0.15)),
                math.exp(random.normal(0.6, 0.2)),
                int(random.poisson(2)),
                math.exp(random.normal(-7, 0.05)),
            )
            for _ in range(6)
        ]
        accepted = region.derive(builds[:-1])
        assert accepted is not None
        wrong += bool(accepted.outside(builds[-1]))
        slow += bool(accepted.slower(builds[-1]))
    allowed = FALSE_ALARMS + 3 * math.sqrt(FALSE_ALARMS * (1 - FALSE_ALARMS) / trials)
    assert wrong / trials <= allowed
    assert slow / trials <= allowed
    assert wrong
    assert slow


def test_a_less_exact_build_is_outside_of_the_region_of_five() -> None:
    accepted = region.derive([build()] * 5)
    assert accepted is not None
    assert not accepted.outside(build(1.6, 2.1, 2))
    assert accepted.outside(build(rms=3.0)) == [
        f"logits: rms error is 3 noise floors, {accepted.errors['logits'].rms:.3g} accepted"
    ]
    assert "largest error is 5 noise floors" in accepted.outside(build(largest=5.0))[0]
    assert "40 of 256 golden images change class" in accepted.outside(build(flips=40))[0]


def test_the_limits_of_the_verdict_hold_in_any_case() -> None:
    accepted = region.derive([build(0.01, 0.02), build(3.9, 5.9)])
    assert accepted is not None
    assert accepted.errors["logits"] == Error(limits.MAX_RMS_IN_FLOORS, limits.MAX_ERROR_IN_FLOORS)
    assert accepted.wide


def test_two_builds_tell_no_more_than_the_verdict_and_five_do() -> None:
    accepted = [region.derive([build()] * count) for count in (2, 5)]
    assert [known is not None and known.wide for known in accepted] == [True, False]


def test_an_error_below_the_noise_floor_is_never_outside() -> None:
    accepted = region.derive([build(0.01, 0.02)] * 10)
    assert accepted is not None
    assert not accepted.outside(build(1.0, 1.0))


def test_an_exact_engine_has_a_region() -> None:
    accepted = region.derive([build(0.0, 0.0)] * 3)
    assert accepted is not None
    assert accepted.errors["logits"].rms == region.NEVER_OUTSIDE


def test_a_latency_is_outside_only_with_its_whole_interval_on_a_quiet_machine() -> None:
    accepted = region.derive([build()] * 5)
    assert accepted is not None
    slow = Latency(2e-3, 1.9e-3, 2.1e-3)
    assert accepted.slower(dataclasses.replace(build(), latency={"1": slow}))
    for doubtful in (Latency(2e-3, 0.9e-3, 3e-3), dataclasses.replace(slow, busy=True)):
        assert not accepted.slower(dataclasses.replace(build(), latency={"1": doubtful}))


def test_the_quicker_of_two_measurements_counts_batch_by_batch() -> None:
    slow, quick = Latency(2.0, 1.9, 2.1), Latency(1.0, 0.9, 1.1)
    chosen = region.quicker({"1": slow, "64": quick, "8": slow}, {"1": quick, "64": slow})
    assert chosen == {"1": quick, "64": quick, "8": slow}


def test_without_classes_flips_are_not_judged() -> None:
    accepted = region.derive([build(flips=None)] * 3)
    assert accepted is not None
    assert accepted.flips is None
    assert not accepted.outside(build(flips=None))


@pytest.mark.parametrize("status", ["mismatch", "not run", "vacuous", "crashed"])
def test_builds_that_are_not_proved_have_no_region(status: str) -> None:
    assert region.derive([build(), dataclasses.replace(build(), status=status)]) is None


def test_one_build_has_no_region() -> None:
    assert region.derive([build()]) is None


def test_a_build_that_is_a_mismatch_is_an_error_that_names_it() -> None:
    builds = (build(), dataclasses.replace(build(), status="mismatch", reason="NaN"))
    (error,) = region.faults("openvino", Builds({}, "cpu", builds, None))
    assert isinstance(error, ParityError)
    assert "build 2 of 2: mismatch: NaN" in error.message
    assert not region.faults("openvino", Builds({}, "cpu", (build(), build()), None))


def test_other_outputs_than_the_regions_are_an_error() -> None:
    accepted = region.derive([build()] * 3)
    assert accepted is not None
    other = dataclasses.replace(build(), errors={"boxes": Error(1, 1)})
    with pytest.raises(DeployError, match="outputs logits, but the engine has boxes"):
        accepted.outside(other)


def written(tmp_path: Path) -> tuple[Path, Builds]:
    builds = (build(), build(1.2))
    whole = Builds({"cpu": "x"}, "cpu", builds, region.derive(builds))
    path = tmp_path / "builds.json"
    path.write_bytes(dump_json(whole.document()))
    return path, whole


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path, whole = written(tmp_path)
    assert region.load(path) == whole


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("region", {"errors": {"logits": {"rms": "1", "max": 1}}, "flips": 0, "latency": {}}),
        ("region", {"errors": {"logits": {"rms": -1, "max": 1}}, "flips": 0, "latency": {}}),
        ("region", {"errors": {}, "flips": 0.5, "latency": {}}),
        ("region", {"errors": {}, "flips": None, "latency": {"x": 1}}),
        ("region", []),
        ("machine", {"cpu": 1}),
        ("device", "cuda:x"),
        ("builds", [{}]),
    ],
)
def test_a_file_with_a_bad_value_is_refused(tmp_path: Path, field: str, value: object) -> None:
    path, _ = written(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(DeployError, match="does not list the builds of an engine"):
        region.load(path)
