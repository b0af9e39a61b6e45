"""Size of a model's bundle, and the time and memory of writing and checking it.

    assay run MODEL …            (first, with the same --root)
    PYTHONPATH=. python benchmarks/bundles.py [--root artifacts] MODEL …

Three archives of the same engines side by side: everything as tar.gz, everything as `assay bundle
--include checkpoint,source` writes it, and what it writes by default. Memory is the peak of the
largest process of a command.

Prints a table.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.bundling import archive

_HEAD = (
    "| model | archive | files | content MB | archive MB | command | seconds | peak MB |\n"
    "|---|---|---:|---:|---:|---|---:|---:|"
)


@dataclass
class Cost:
    """What a command took: seconds, and the peak memory of its largest process in bytes."""

    seconds: float
    peak: int


def main() -> None:
    """Measures each model and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, default=Path("artifacts"))
    parser.add_argument("models", nargs="+")
    arguments = parser.parse_args()
    print(_HEAD)
    for model in arguments.models:
        measure(model, arguments.root)


def measure(model: str, root: Path) -> None:
    """Prints the rows of a model."""
    with tempfile.TemporaryDirectory(prefix="assay-") as folder:
        for what, options in (
            ("everything", ("--include", "checkpoint,source")),
            ("default", ()),
        ):
            dist = Path(folder) / what
            where = ("--root", root, "--dist", dist, "--force", "--no-measurements")
            written = run("bundle", model, *where, *options)
            (bundle,) = dist.iterdir()
            content = Path(folder) / f"{what}-content"
            members = archive.extract(bundle, content)["members"]
            size = sum(entry["bytes"] for entry in members.values())
            if what == "everything":
                packed = Path(folder) / "everything.tar.gz"
                cost = pack_as_gzip(packed, content, members)
                row(model, "everything, tar.gz", members, size, packed, "tarfile", cost)
            row(model, what, members, size, bundle, "bundle", written)
            for flag in ("--digests-only", "--trust"):
                row(model, what, members, size, bundle, f"check {flag}", run("check", flag, bundle))


def pack_as_gzip(target: Path, folder: Path, members: Iterable[str]) -> Cost:
    """Writes members as files to a tar.gz, so that content that links share counts each time."""
    start = time.perf_counter()
    with tarfile.open(target, "w:gz", compresslevel=6) as archive_file:
        for name in members:
            info = tarfile.TarInfo(name)
            info.size = (folder / name).stat().st_size
            with (folder / name).open("rb") as file:
                archive_file.addfile(info, file)
    return Cost(time.perf_counter() - start, 0)


def row(
    model: str,
    what: str,
    members: dict[str, object],
    size: int,
    path: Path,
    command: str,
    cost: Cost,
) -> None:
    """Prints one row."""
    peak = f"{cost.peak / 1e6:.0f}" if cost.peak else ""
    print(
        f"| {model} | {what} | {len(members)} | {size / 1e6:.1f} | {path.stat().st_size / 1e6:.1f}"
        f" | {command} | {cost.seconds:.1f} | {peak} |",
        flush=True,
    )


def run(*words: object) -> Cost:
    """Runs a command of assay.

    Raises:
        CalledProcessError: It failed.
    """
    command = [sys.executable, "-m", "pipeline.cli", *map(str, words)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Cost(time.perf_counter() - start, usage.ru_maxrss * 1024)


if __name__ == "__main__":
    main()
