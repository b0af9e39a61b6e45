"""Runs a stage: key, lock, temporary folder, atomic publish, record."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engines import hardware, temporary
from engines.cache import sync
from engines.errors import DeployError
from pipeline import __version__
from pipeline.workflow import console, hints, leftovers, lock, signals
from pipeline.workflow.artifacts import Artifact, Paths, failure_report, lock_file
from pipeline.workflow.digests import replace_json, sha256_file, sha256_json
from pipeline.workflow.records import SCHEMA, Record, RecordVerifier, last, load
from pipeline.workflow.stage import Difference, Stage, options, validate_params


@dataclass(frozen=True)
class Store:
    """The folders of a command, and how stages are run there.

    Attributes:
        root: Folder of the artifacts.
        dist: Folder of the bundles.
        force: Run a stage even if nothing it depends on has changed.
        wait: Seconds to wait for another process that runs the same stage.
        images: The image folder given as the data set, if any.
    """

    root: Path
    dist: Path
    force: bool = False
    wait: float = 3600.0
    images: Path | None = None

    @property
    def place(self) -> hints.Place:
        """The folders, as hints need them."""
        return hints.Place(self.root, self.dist, self.images)


@dataclass(frozen=True)
class Outcome:
    """The result of running or skipping a stage.

    Attributes:
        skipped: Nothing had changed, so the stage was not run.
        reason: Why the stage was run; empty if skipped.
        outputs: Paths of the outputs.
    """

    stage: str
    params: dict[str, Any]
    skipped: bool
    reason: str
    record: Record
    outputs: Paths

    def document(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "stage": self.stage,
            "skipped": self.skipped,
            "reason": self.reason,
            "record": dataclasses.asdict(self.record),
        }


def run(
    stage: Stage[Any], params: Any, store: Store, explicit: frozenset[str] | None = None
) -> Outcome:
    """Runs a stage, unless its outputs exist and nothing they depend on has changed.

    Args:
        explicit: Names of the options that the user gave; None means all.

    Raises:
        DeployError: An input is missing, damaged or out of date, a file cannot be read or
            written, or the stage itself failed. Outputs are left complete or as they were.
    """
    validate_params(params)
    with hints.completed(store.place):
        if explicit is None:
            explicit = frozenset(option.name for option in options(stage.params))
        job = _Job(
            stage, stage.resolve(_inherited(stage, params, store, explicit)), store, explicit
        )
        with _disk_errors(store), lock.held(job.lock, job.title, store.wait):
            return job.run()


def _inherited(stage: Stage[Any], params: Any, store: Store, explicit: frozenset[str]) -> Any:
    """Returns parameters completed by those of the last record; see `Stage.inherit`."""
    artifact = stage.outputs(params)[0]  # all have one record
    old = last(store.root, artifact, _joined(dataclasses.asdict(params)))
    return params if old is None else stage.inherit(params, explicit, old)


def require(artifact: Artifact, params: Any, store: Store) -> Path:
    """Returns the path of an artifact after checking it against its record.

    Args:
        params: Parameters that fill the artifact's template.

    Raises:
        DeployError: The file is missing, damaged or out of date.
    """
    fields = dataclasses.asdict(params)
    filled = artifact.at(**fields)
    paths = Paths(store.root, store.dist, fields, (filled,))
    with hints.completed(store.place):
        RecordVerifier(store.root).digest(filled, paths, fields)
    return paths.locate(filled)


def _disk_hints(store: Store) -> dict[Path, str]:
    """Returns what to do if a disk is full, by the folder on it."""
    return {
        store.root: "free some space there, or choose another folder with --root",
        store.dist: "free some space there, or choose another folder with --dist",
    }


@contextmanager
def _disk_errors(store: Store) -> Iterator[None]:
    """Turns an error of the file system into one the user can act on."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        if full := temporary.full_disk(error, _disk_hints(store)):
            raise full from error
        place = f" {error.filename}" if error.filename is not None else " the outputs"
        raise DeployError(
            f"cannot write or read{place}: {error.strerror or error}",
            "check permissions and free space, or choose another folder with --root or --dist",
        ) from error


class _Job:
    """One run of one stage."""

    def __init__(
        self, stage: Stage[Any], params: Any, store: Store, explicit: frozenset[str]
    ) -> None:
        self.stage = stage
        self.params = params
        self.store = store
        self.explicit = explicit
        self.fields = dataclasses.asdict(params)
        self.conditions = self._paths(stage.conditions(params)).declared
        self.inputs = self._paths((*stage.inputs(params), *stage.conditions(params)))
        self.outputs = self._paths(stage.outputs(params))
        (record,) = {artifact.record for artifact in self.outputs.declared}
        self.record = store.root / record
        self.lock = lock_file(store.root, record)
        self.scratch = leftovers.prefix(store.root, self.lock.name)
        self.title = self.lock.name.replace("-", " ")

    def _paths(self, artifacts: tuple[Artifact, ...]) -> Paths:
        filled = tuple(artifact.at(**_joined(self.fields)) for artifact in artifacts)
        return Paths(self.store.root, self.store.dist, _joined(self.fields), filled)

    def run(self) -> Outcome:
        verifier = RecordVerifier(self.store.root)
        inputs = {
            artifact.label: {
                "sha256": self._digest(verifier, artifact),
                "record": artifact.record,
            }
            for artifact in self.inputs.declared
            if not artifact.optional or self.inputs.locate(artifact).exists()
        }
        for artifact in self.conditions:
            inputs.pop(artifact.label, None)
        wanted = self._wanted(inputs)
        try:
            old = load(self.record)
        except DeployError as error:
            old = None
            damage = Difference("record", "", error.message)
            self.stage.protect(self.params, self.explicit, None, [damage])
        missing = None if old is None else self._missing(old)
        reason = f"running again: {missing} is missing" if missing else "running"
        if old is not None and missing is None:
            differences = self._differences(old, wanted)
            if not differences:
                console.say(f"{self.title}: nothing changed, skipped")
                return self._outcome(old, "")
            if self.stage.protect(self.params, self.explicit, old, differences):
                console.say(f"{self.title}: kept, though {differences[0].text}")
                return self._outcome(old, "")
            reason = f"running again: {differences[0].text}"
        console.say(f"{self.title}: {reason}")
        started, clock = datetime.now(UTC), time.perf_counter()
        with self._scratch_paths() as scratch:
            with signals.not_swallowed(), self._reported():
                self.stage.run(self.inputs, scratch, self.params)
            self._check_inputs(inputs)
            record = Record(
                **wanted,
                outputs=self._describe(scratch),
                started=started.isoformat(timespec="seconds"),
                seconds=round(time.perf_counter() - clock, 3),
            )
            self._publish(scratch, record)
        return self._outcome(record, reason)

    def _digest(self, verifier: RecordVerifier, artifact: Artifact) -> str:
        """Returns the digest of an input; the error for an engine's says how to do without it."""
        try:
            return verifier.digest(artifact, self.inputs, self.fields)
        except DeployError as error:
            engines, broken = self.fields.get("engine"), dict(artifact.values).get("engine")
            if broken and isinstance(engines, tuple):
                sound = tuple(name for name in engines if self._is_sound(verifier, name))
                words = {**self.fields, "engine": sound}
                if sound:
                    command = hints.again(self.stage.name, words)
                    error.hint += f", or leave {broken} out: `{command}`"
            raise

    def _is_sound(self, verifier: RecordVerifier, engine: str) -> bool:
        """Whether all inputs that belong to an engine are up to date."""
        own = [
            artifact
            for artifact in self.inputs.declared
            if dict(artifact.values).get("engine") == engine
            and not (artifact.optional and not self.inputs.locate(artifact).exists())
        ]
        try:
            for artifact in own:
                verifier.digest(artifact, self.inputs, self.fields)
        except DeployError:
            return False
        return bool(own)

    def _wanted(self, inputs: dict[str, dict[str, str]]) -> dict[str, Any]:
        """Returns the part of the record that is known before the stage runs."""
        key_names = [option.name for option in options(self.stage.params) if option.key]
        known: dict[str, Any] = {
            "stage": self.stage.name,
            "params": {name: _plain(self.fields[name]) for name in key_names},
            "inputs": inputs,
            "tools": {"assay": __version__}
            | {tool: hardware.version(tool) for tool in self.stage.tools},
            "facts": dict(self.stage.facts(self.params)),
        }
        version = {"schema": SCHEMA, "revision": self.stage.revision}
        return {**known, "key": sha256_json({**version, **known})}

    def _missing(self, old: Record) -> Path | None:
        """Returns the first output of a record that is not there."""
        for artifact in self.outputs.declared:
            path = self.outputs.locate(artifact)
            if not path.exists() and (not artifact.optional or artifact.label in old.outputs):
                return path
        return None

    def _differences(self, old: Record, wanted: Mapping[str, Any]) -> list[Difference]:
        """Returns why the stage has to run although its outputs are there; [] if it need not."""
        differences = [Difference("force", "", "it is to run again")] if self.store.force else []
        for part in ("params", "inputs", "tools", "facts"):
            before, now = getattr(old, part), wanted[part]
            differences += [
                Difference(part, name, _change(name, before.get(name), now.get(name)))
                for name in sorted({*before, *now})
                if before.get(name) != now.get(name)
            ]
        if differences:
            return differences
        if old.key != wanted["key"]:
            text = "this version of assay makes other outputs"
            return [Difference("revision", "", text)]
        for artifact in self.outputs.declared:
            path, label = self.outputs.locate(artifact), artifact.label
            if label in old.outputs and sha256_file(path) != old.outputs[label]["sha256"]:
                return [Difference("outputs", label, f"{path} has changed since it was made")]
        why = self.stage.run_again(self.outputs, self.params)
        return [Difference("outputs", "", why)] if why else []

    @contextmanager
    def _scratch_paths(self) -> Iterator[Paths]:
        """Yields paths in temporary folders, on the file systems of the outputs."""
        folders: list[Path] = []
        try:
            for base in (self.store.root, self.store.dist):
                if base is self.store.dist and not any(a.dist for a in self.outputs.declared):
                    folders.append(folders[0])
                    continue
                base.mkdir(parents=True, exist_ok=True)
                # We hold the lock, so no other process uses what an earlier run left here.
                for stale in base.glob(f"{self.scratch}*"):
                    shutil.rmtree(stale)
                folders.append(Path(tempfile.mkdtemp(prefix=self.scratch, dir=base)))
            scratch = dataclasses.replace(self.outputs, root=folders[0], dist=folders[1])
            for artifact in scratch.declared:
                scratch.locate(artifact).parent.mkdir(parents=True, exist_ok=True)
            with temporary.full_disk_named(_disk_hints(self.store)):
                yield scratch
        finally:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)

    def _check_inputs(self, inputs: Mapping[str, Mapping[str, str]]) -> None:
        for artifact in self.inputs.declared:
            path = self.inputs.locate(artifact)
            if artifact in self.conditions or (artifact.label not in inputs and not path.exists()):
                continue
            if not path.exists() or sha256_file(path) != inputs[artifact.label]["sha256"]:
                raise DeployError(
                    f"{path} changed while {self.title} was reading it", "run the command again"
                )

    def _describe(self, scratch: Paths) -> dict[str, dict[str, Any]]:
        described = {}
        for artifact in scratch.declared:
            path = scratch.locate(artifact)
            if artifact.optional and not path.exists():
                continue
            if not path.exists():
                raise RuntimeError(f"stage {self.stage.name} did not write {artifact.path}")
            sync(path)
            described[artifact.label] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        return described

    def _publish(self, scratch: Paths, record: Record) -> None:
        """Moves the outputs into place, the record last: outputs without one are ignored."""
        with signals.deferred():
            self.stage.replacing(self.outputs)
            self.record.unlink(missing_ok=True)
            for artifact in scratch.declared:
                target = self.outputs.locate(artifact)
                target.parent.mkdir(parents=True, exist_ok=True)
                if artifact.label in record.outputs:
                    scratch.locate(artifact).replace(target)
                else:
                    target.unlink(missing_ok=True)
                sync(target.parent)
            self.record.parent.mkdir(parents=True, exist_ok=True)
            replace_json(self.record, dataclasses.asdict(record))
            self.stage.published(self.outputs, self.params)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Writes the report of an error to a file and names the file in the hint."""
        file = failure_report(self.record)
        file.unlink(missing_ok=True)
        try:
            yield
        except DeployError as error:
            if error.report:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(error.report, encoding="utf-8")
                error.hint += f"; the whole report is in {file}"
            raise

    def _outcome(self, record: Record, reason: str) -> Outcome:
        fields = {name: _plain(value) for name, value in self.fields.items()}
        return Outcome(self.stage.name, fields, not reason, reason, record, self.outputs)


def _joined(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns fields as they fill a path: the items of a tuple are joined by a plus."""
    return {
        name: "+".join(map(str, value)) if isinstance(value, tuple) else value
        for name, value in fields.items()
    }


def _plain(value: Any) -> Any:
    """Returns a parameter in its JSON form."""
    if isinstance(value, tuple):
        return list(value)
    return os.fspath(value) if isinstance(value, Path) else value


def _change(name: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) or isinstance(now, dict):
        return f"{name} has changed"
    if before is None:
        return f"{name} is now {now}"
    return f"{name} was {before}" if now is None else f"{name} was {before}, is now {now}"
