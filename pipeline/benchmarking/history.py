"""What engines took before on this machine, and whether they are slower now.

A number from another day says nothing for itself: the machine was another one then, warmer or
busier. It only says where to look. Whether an engine is slower is settled by running the kept file
of then beside the one of now.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.cache import slug, write_atomic
from engines.errors import DeployError
from pipeline.workflow.artifacts import record_beside
from pipeline.workflow.digests import read_json, replace_json

# An engine may take this many percent longer.
TOLERANCE = 2.0
# Earlier runs that are kept; the quickest one of each engine is kept besides.
_KEPT = 20
_END_TO_END = "end to end"


@dataclass(frozen=True)
class Slower:
    """An engine that took surely longer than in an earlier run.

    Attributes:
        then: The entry of the earlier run.
        low: It took at least this many times as long, by the ends of both intervals.
    """

    name: str
    batch: int
    size: str
    then: dict[str, Any]
    low: float


class History:
    """The runs of bench for a model at a precision, and the engines that were measured in them.

    Raises:
        DeployError: The file of the runs is damaged, or of another version.
    """

    def __init__(self, root: Path, model: str, precision: str) -> None:
        self._folder = root / ".history" / slug(model) / precision
        self._file = self._folder / "runs.json"
        self.entries: list[dict[str, Any]] = read_json(self._file) if self._file.exists() else []
        if not _valid(self.entries):
            raise DeployError(
                f"{self._file} is damaged, or of another version", "remove it and run this again"
            )

    def add(
        self,
        started: str,
        measurements: Mapping[str, Any],
        versions: Mapping[str, str],
        files: Mapping[str, tuple[Path, str]],
    ) -> dict[str, Any]:
        """Keeps a run and its engines; returns its entry, which may be that of the last run.

        Args:
            started: When it was, in UTC.
            measurements: The content of `measurements.json`.
            versions: Those of the engines' libraries.
            files: By engine, its file and its SHA-256.
        """
        last = self.entries[-1] if self.entries else None
        if last is not None and last["started"] == started:
            return last
        machine = measurements["machine"]
        entry = {
            "started": started,
            "machine": {name: machine[name] for name in ("cpu", "cpus", "threads", "gpus")},
            "devices": measurements["devices"],
            "versions": dict(versions),
            "engines": {name: digest for name, (_, digest) in files.items()},
            "results": [
                {name: part[name] for name in ("name", "batch", "size", "seconds") if name in part}
                for part in measurements["results"]
                if part["boundary"] == _END_TO_END and not part["busy"]
            ],
        }
        for path, digest in files.values():
            self._keep(path, digest)
        self.entries = [*self._worth_keeping(self.entries), entry]
        replace_json(self._file, self.entries)
        self._drop({digest for one in self.entries for digest in one["engines"].values()})
        return entry

    def file(self, digest: str) -> Path | None:
        """Returns the kept file of an engine, with its record beside it; None if it is gone."""
        return next((self._folder / digest).glob("engine.*"), None)

    def _keep(self, path: Path, digest: str) -> None:
        """Keeps an engine and its record, which an engine is not opened without."""
        for source in (record_beside(path), path):
            target = self._folder / digest / source.name
            if target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)  # stages replace files, and change none
            except OSError:
                with write_atomic(target) as part:
                    shutil.copyfile(source, part)

    def _worth_keeping(self, entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        best = {id(self.quickest(entries, one, part)) for one in entries for part in one["results"]}
        recent = {id(entry) for entry in entries[-_KEPT:]}
        return [entry for entry in entries if id(entry) in best | recent]

    def _drop(self, digests: Iterable[str]) -> None:
        """Removes the engines of no run."""
        for folder in self._folder.iterdir():
            if folder.is_dir() and folder.name not in digests:
                with suppress(OSError):
                    shutil.rmtree(folder)

    def slower(self, entry: Mapping[str, Any]) -> list[Slower]:
        """Returns the engines of a run that took surely longer than in their quickest run before.

        Only runs on the same machine with as many threads count.
        """
        before = self.entries[: self.entries.index(dict(entry))]
        slower = []
        for part in entry["results"]:
            then = self.quickest(before, entry, part)
            if then is None:
                continue
            low = part["seconds"]["low"] / _result(then, part)["seconds"]["high"]
            if low > 1 + TOLERANCE / 100:
                size = part.get("size", "")
                slower.append(Slower(part["name"], part["batch"], size, then, low))
        return slower

    @staticmethod
    def quickest(
        entries: Sequence[dict[str, Any]], now: Mapping[str, Any], part: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Returns the run in which an engine was the quickest; None if none can be compared."""
        comparable = [
            entry
            for entry in entries
            if entry["machine"] == now["machine"] and _result(entry, part) is not None
        ]
        return min(
            comparable,
            key=lambda entry: float(_result(entry, part)["seconds"]["high"]),
            default=None,
        )


def _valid(entries: Any) -> bool:
    """Whether the content of a file is what `History.add` keeps."""
    try:
        return isinstance(entries, list) and all(
            isinstance(entry["started"], str)
            and isinstance(entry["machine"], dict)
            and isinstance(entry["versions"], dict)
            and all(isinstance(digest, str) for digest in entry["engines"].values())
            and all(
                isinstance(part["name"], str)
                and isinstance(part["batch"], int)
                and 0 < part["seconds"]["low"] <= part["seconds"]["high"]
                for part in entry["results"]
            )
            for entry in entries
        )
    except (AttributeError, KeyError, TypeError):
        return False


def _result(entry: Mapping[str, Any], part: Mapping[str, Any]) -> Any:
    """Returns the result of the same engine, batch and size in a run, or None."""
    key = ("name", "batch", "size")
    wanted = [part.get(name) for name in key]
    return next((o for o in entry["results"] if [o.get(name) for name in key] == wanted), None)
