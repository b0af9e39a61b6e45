"""What is printed of several builds of an engine, and of one that was built again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.report import units
from pipeline.report.verify import ratio_text
from pipeline.workflow import console

if TYPE_CHECKING:
    from pipeline.rebuilding.region import Build, Builds, Error, Region

_DIGITS = 12  # of a digest
_OPTIONAL = (">seconds", ">bytes", "sha256")


def show(engine: str, builds: Builds) -> None:
    """Prints a row for each build, and the acceptance region that follows from them."""
    table(f"{engine}: {len(builds.builds)} builds", *rows_of(builds))
    if builds.region and builds.region.wide:
        console.say(
            f"{engine}: of the error, {len(builds.builds)} builds tell no more than the verdict"
            " does; more builds give a narrower region"
        )
    for number, build in enumerate(builds.builds, 1):
        if build.reason:
            console.result(f"{engine}: build {number}: {build.status}: {build.reason}")


def rows_of(builds: Builds) -> tuple[dict[str, Build], dict[str, Region]]:
    """Returns builds and their region, by what a table calls them."""
    numbered = {str(number): build for number, build in enumerate(builds.builds, 1)}
    return numbered, {"accepted": builds.region} if builds.region else {}


def table(title: str, builds: Mapping[str, Build], regions: Mapping[str, Region]) -> None:
    """Prints the figures of builds, and below them the limits of regions, by what they are."""
    console.table(title, *cells(builds, regions), _OPTIONAL)


def cells(
    builds: Mapping[str, Build], regions: Mapping[str, Region]
) -> tuple[list[str], list[list[str]]]:
    """Returns the titles and rows of a table of builds and regions, by what they are called."""
    sizes = sorted({int(size) for build in builds.values() for size in build.latency})
    titles = ["build", "verdict", ">rms x floor", ">max x floor", ">flips"]
    titles += [f">batch {size} on device" for size in sizes]
    rows = [
        [
            name,
            build.status,
            *_errors(build.errors),
            "" if build.flips is None else str(build.flips),
            *(_latency(build, str(size)) for size in sizes),
            f"{build.seconds:.2f}",
            f"{build.bytes:,}",
            build.sha256[:_DIGITS],
        ]
        for name, build in builds.items()
    ]
    rows += [
        [
            name,
            "",
            *_errors(region.errors),
            "" if region.flips is None else str(region.flips),
            *(_time(region.latency.get(str(size))) for size in sizes),
            *("", "", ""),
        ]
        for name, region in regions.items()
    ]
    return [*titles, *_OPTIONAL], rows


def _errors(errors: Mapping[str, Error]) -> list[str]:
    """Returns the largest errors of any output."""
    if not errors:
        return ["", ""]
    return [ratio_text(max(getter(error) for error in errors.values())) for getter in _GETTERS]


_GETTERS: Sequence[Callable[[Error], float]] = (lambda error: error.rms, lambda error: error.max)


def _latency(build: Build, size: str) -> str:
    return _time(build.latency[size].value) if size in build.latency else ""


def _time(seconds: float | None) -> str:
    return "" if seconds is None else units.duration(seconds)


def line(engine: str, builds: Builds) -> str:
    """Returns what the builds of an engine differ in, in one line."""
    files = len({build.sha256 for build in builds.builds})
    parts = [f"{files} different files" if files > 1 else "all of the same bytes"]
    errors = [max(e.rms for e in build.errors.values()) for build in builds.builds if build.errors]
    if errors:
        parts.append(f"rms error {min(errors):.2f} to {max(errors):.2f} times the noise floor")
    for size in builds.builds[0].latency:
        times = [build.latency[size].value for build in builds.builds if size in build.latency]
        parts.append(
            f"batch {size} {units.duration(min(times))} to {units.duration(max(times))} on device"
        )
    return f"{engine}: {len(builds.builds)} builds: {'; '.join(parts)}"
