"""The acceptance region: how far error, flips and latency of a further build may lie."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.errors import CrashedError, DeployError, FailedError, ParityError
from pipeline.rebuilding.prediction import FALSE_ALARMS, upper
from pipeline.verification import limits
from pipeline.verification.verdict import Verdict
from pipeline.workflow.digests import read_json, sha256_file

# The least standard deviation of the logarithm of an error. Builds that happen to choose the same
# kernels have the same error, but sums in another order draw their rounding anew. LeNet in PyTorch
# and OpenVINO, limited to the instructions of SSE 4.1, AVX2 and AVX-512, had up to 0.05 for the
# root mean square, and 0.17 for the largest error.
LEAST_RMS_SPREAD = 0.1
LEAST_MAX_SPREAD = 0.2
# That of a latency, which is another accident in each process (`clock.SESSIONS_DIFFER`).
LEAST_LATENCY_SPREAD = 0.02
# That of the root of a count of flips, if they are independent of each other (Anscombe, Biometrika
# 35, 1948).
LEAST_FLIP_SPREAD = 0.5
_ANSCOMBE = 3 / 8
# An error no larger than the noise floor is never outside: PyTorch's own is not smaller.
NEVER_OUTSIDE = 1.0
_LEAST_ERROR = 1e-3  # in floors; an exact engine has 0, which has no logarithm
_REGENERATE = "`assay build --repeat N` writes it"


@dataclass(frozen=True)
class Error:
    """The error of one output, in units of the noise floor.

    Attributes:
        rms: Root mean square over the rows.
        max: The largest of any row.
    """

    rms: float
    max: float


@dataclass(frozen=True)
class Latency:
    """The median time of one inference on the device, in seconds, with its 95 % interval.

    Attributes:
        busy: Other processes slowed it down, so that it tells nothing.
    """

    value: float
    low: float
    high: float
    busy: bool = False


@dataclass(frozen=True)
class Build:
    """One build of an engine, and what was measured of it.

    Attributes:
        sha256: Of the engine's file.
        bytes: Its size.
        seconds: How long the build took.
        status: Of the verdict.
        reason: Why the verdict is not "pass", in words.
        errors: By output; empty unless it ran.
        flips: Golden images with another class than in float64; None without classes.
        images: How many were classified.
        latency: By batch size; empty if it was not measured.
    """

    sha256: str
    bytes: int
    seconds: float
    status: str
    reason: str
    errors: dict[str, Error]
    flips: int | None
    images: int
    latency: dict[str, Latency]

    @classmethod
    def of(
        cls, path: Path, seconds: float, verdict: Verdict, latency: Mapping[str, Latency]
    ) -> Build:
        """Returns the figures of an engine's file, from its verdict and its latencies."""
        flips = verdict.flips
        return cls(
            sha256_file(path),
            path.stat().st_size,
            seconds,
            verdict.status,
            verdict.reason,
            {
                output.label: Error(output.rms_ratio, output.max_ratio)
                for output in verdict.outputs
                if math.isfinite(output.rms_ratio) and math.isfinite(output.max_ratio)
            },
            None if flips is None else flips.explained + flips.unexplained,
            0 if flips is None else flips.images,
            dict(latency),
        )


@dataclass(frozen=True)
class Region:
    """How large the figures of a further build may be; the verdict's limits hold besides.

    Attributes:
        errors: By output.
        flips: None without classes.
        latency: Seconds by batch size.
    """

    errors: dict[str, Error]
    flips: int | None
    latency: dict[str, float]

    @property
    def wide(self) -> bool:
        """Whether the limits of all errors are the verdict's own, so that they add nothing."""
        nearly = 1 - 1e-9
        return bool(self.errors) and all(
            error.rms >= nearly * limits.MAX_RMS_IN_FLOORS
            and error.max >= nearly * limits.MAX_ERROR_IN_FLOORS
            for error in self.errors.values()
        )

    def outside(self, build: Build) -> list[str]:
        """Returns what of a build's error and flips is outside, in words.

        Raises:
            DeployError: The region is of other outputs.
        """
        if self.errors.keys() != build.errors.keys():
            raise DeployError(
                f"the acceptance region is of the outputs {', '.join(self.errors)}, but the engine"
                f" has {', '.join(build.errors)}",
                _REGENERATE,
            )
        faults = []
        for label, error in build.errors.items():
            limit = self.errors[label]
            faults += [
                f"{label}: {name} error is {value:.3g} noise floors, {allowed:.3g} accepted"
                for name, value, allowed in (
                    ("rms", error.rms, limit.rms),
                    ("largest", error.max, limit.max),
                )
                if value > allowed
            ]
        if self.flips is not None and build.flips is not None and build.flips > self.flips:
            faults.append(
                f"{build.flips} of {build.images} golden images change class, {self.flips} accepted"
            )
        return faults

    def slower(self, build: Build) -> list[str]:
        """Returns which latencies are outside with their whole interval, in words."""
        return [
            f"batch {batch} takes {1e3 * build.latency[batch].value:.3g} ms, {1e3 * limit:.3g} ms"
            " accepted"
            for batch, limit in self.latency.items()
            if batch in build.latency
            and not build.latency[batch].busy
            and build.latency[batch].low > limit
        ]


@dataclass(frozen=True)
class Builds:
    """Several builds of one engine on one machine; the first is the one that is kept.

    Attributes:
        machine: The kind of machine, on which latencies are comparable; see `spread.kind`.
        device: Where the builds ran; "" if they did not.
        builds: Two or more.
        region: None unless every build passed.
    """

    machine: dict[str, str]
    device: str
    builds: tuple[Build, ...]
    region: Region | None

    def document(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {**asdict(self), "builds": [asdict(build) for build in self.builds]}


def faults(engine: str, builds: Builds) -> list[DeployError]:
    """Returns an error for the first build that is a mismatch, crashed or failed; [] if none."""
    kinds = {"mismatch": ParityError, "crashed": CrashedError, "failed": FailedError}
    return [
        kinds[build.status](
            f"{engine}: build {number} of {len(builds.builds)}: {build.status}: {build.reason}",
            "its builds are not alike, so the next one may be wrong, too; build another engine",
        )
        for number, build in enumerate(builds.builds, 1)
        if build.status in kinds
    ][:1]


def derive(builds: Sequence[Build]) -> Region | None:
    """Returns the acceptance region of builds; None unless all of two or more passed.

    Errors and latencies are judged by their logarithms, flips by their roots; see `prediction`.
    Of a further build of the same kind, some error or the flips are outside at most in
    `prediction.FALSE_ALARMS` of all cases, if these are normal, and so is some latency. Whatever
    the distribution, each quantity is outside at most once in N + 1 times.
    """
    if len(builds) < 2 or any(build.status != "pass" for build in builds):  # noqa: PLR2004
        return None
    labels = [*builds[0].errors]
    share = FALSE_ALARMS / (2 * len(labels) + (builds[0].flips is not None))
    errors = {
        label: Error(
            _error(
                [build.errors[label].rms for build in builds],
                share,
                LEAST_RMS_SPREAD,
                limits.MAX_RMS_IN_FLOORS,
            ),
            _error(
                [build.errors[label].max for build in builds],
                share,
                LEAST_MAX_SPREAD,
                limits.MAX_ERROR_IN_FLOORS,
            ),
        )
        for label in labels
    }
    flips = None
    counts = [build.flips for build in builds if build.flips is not None]
    if len(counts) == len(builds):
        roots = [math.sqrt(count + _ANSCOMBE) for count in counts]
        most = upper(roots, share, LEAST_FLIP_SPREAD) ** 2 - _ANSCOMBE
        flips = max(*counts, min(math.floor(most), builds[0].images))
    common = [
        batch for batch in builds[0].latency if all(batch in build.latency for build in builds)
    ]
    latency = {
        batch: math.exp(
            upper(
                [math.log(build.latency[batch].value) for build in builds],
                FALSE_ALARMS / len(common),
                LEAST_LATENCY_SPREAD,
            )
        )
        for batch in common
    }
    return Region(errors, flips, latency)


def _error(values: Sequence[float], share: float, least: float, hard: float) -> float:
    """Returns the limit of an error, from its values in units of the noise floor.

    Args:
        share: How often it may be exceeded.
        least: The standard deviation of the logarithm, if that of the values is smaller.
        hard: The verdict's own limit.
    """
    logs = [math.log(max(value, _LEAST_ERROR)) for value in values]
    # Bounded before the exponential, which would overflow for two builds that differ much.
    far = math.exp(min(upper(logs, share, least), math.log(hard)))
    return max(far, *values, NEVER_OUTSIDE)


def quicker(one: Mapping[str, Latency], other: Mapping[str, Latency]) -> dict[str, Latency]:
    """Returns the smaller of two latencies of the same engine, batch by batch."""
    return {
        batch: min(latency, other.get(batch, latency), key=lambda entry: entry.value)
        for batch, latency in one.items()
    }


def load(path: Path) -> Builds:
    """Reads what `assay build --repeat` wrote, and checks every value, as others may have made it.

    Raises:
        DeployError: It is not such a file.
    """
    content = read_json(path)
    try:
        region = content["region"]
        return Builds(
            {_text(name): _text(value) for name, value in content["machine"].items()},
            _device(content["device"]),
            tuple(_build(entry) for entry in content["builds"]),
            None
            if region is None
            else Region(
                _errors(region["errors"]),
                None if region["flips"] is None else _count(region["flips"]),
                {_batch(name): _number(value) for name, value in region["latency"].items()},
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DeployError(
            f"{path} does not list the builds of an engine: {error!r}", _REGENERATE
        ) from error


def _build(entry: Mapping[str, Any]) -> Build:
    return Build(
        _text(entry["sha256"]),
        _count(entry["bytes"]),
        _number(entry["seconds"]),
        _text(entry["status"]),
        _text(entry["reason"]),
        _errors(entry["errors"]),
        None if entry["flips"] is None else _count(entry["flips"]),
        _count(entry["images"]),
        {
            _batch(name): Latency(
                _number(value["value"]),
                _number(value["low"]),
                _number(value["high"]),
                value["busy"] is True,
            )
            for name, value in entry["latency"].items()
        },
    )


def _errors(entries: Mapping[str, Any]) -> dict[str, Error]:
    return {
        _text(label): Error(_number(entry["rms"]), _number(entry["max"]))
        for label, entry in entries.items()
    }


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not text")
    return value


def _device(name: Any) -> str:
    if not re.fullmatch("|cpu|cuda:[0-9]{1,4}", _text(name)):
        raise ValueError(f"{name!r:.40} is not a device")
    return str(name)


def _batch(name: str) -> str:
    if not name.isdecimal():
        raise ValueError(f"{name!r:.40} is not a batch size")
    return name


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.40} is not a count")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError(f"{value!r:.40} is not a number from 0 on")
    return float(value)
