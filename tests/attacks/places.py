"""Folders in which commands are interrupted: a reference chain, its states, and users."""

from __future__ import annotations

import gzip
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pipeline.workflow.digests import sha256_file
from tests.subset import FOLDER, python_path

ENGINES = "onnxruntime,openvino,pytorch"
SECONDS = 60  # after which a command counts as one that hangs
IMAGES = 16  # of each class
ORDINARY = 65534  # the ID of an ordinary user, usually called nobody
# Folders below a place in which commands write.
FOLDERS = ("artifacts", "dist", "tmp", "cache")
_TRAIN = ("lenet", "--data", "images", "--limit", "160", "--test-limit", "100", "--epochs", "2")
_STARTS = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', '']))"
_TIMES = ("seconds", "started", "images_per_second")


# Environment of a command that counts its operations on files, or is killed at one of them.
COUNTING = {"PYTHONPATH": python_path(Path(__file__).parent / "killed_at")}


class AttackError(Exception):
    """A command that did not end as it should."""


class NotApplicableError(Exception):
    """An attack that a step does not meet, such as a full disk on which it writes nothing."""


@dataclass(frozen=True)
class Step:
    """A command that is interrupted.

    Attributes:
        words: The command's arguments.
        after: Name of the step in whose final state it starts; "" means an empty place.
        again: Arguments for running it after an interruption, each in its turn.
        module: What Python runs.
    """

    name: str
    words: tuple[str, ...]
    after: str
    again: tuple[tuple[str, ...], ...] = ()
    module: tuple[str, ...] = ("pipeline.cli",)


def _torchrun(*words: str) -> Step:
    module = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    module += ("-m", "pipeline.training")
    return Step("train in 2 processes", words, "data", (words, (*words, "--resume")), module)


_TRAINING = ("train", *_TRAIN, "--threads", "1")
STEPS = (
    Step("data", ("data", "--data", "images"), ""),
    Step("train", _TRAINING, "data", (_TRAINING, (*_TRAINING, "--resume"))),
    _torchrun(*_TRAIN),
    Step("retrain", (*_TRAINING, "--seed", "1", "--retrain"), "train"),
    Step("export", ("export", "lenet"), "train"),
    Step("export int8", ("export", "lenet", "--precision", "int8"), "export"),
    Step("verify graph", ("verify", "lenet"), "export"),
    Step("build", ("build", "lenet", "--engine", ENGINES), "verify graph"),
    Step("verify", ("verify", "lenet", "--engine", ENGINES), "build"),
    Step(
        "bench",
        ("bench", "lenet", "--engine", ENGINES, "--budget", "0.1", "--batch", "1"),
        "verify",
    ),
    Step("bundle", ("bundle", "lenet", "--engine", ENGINES), "bench"),
)
# Commands that only read, one of which runs after an interruption.
READING = (("report", "lenet"), ("runs", "lenet"), ("clean", "lenet", "--dry-run"))


@dataclass(frozen=True)
class User:
    """A user that runs commands: this process's, or an ordinary one if that is root."""

    name: str
    uid: int

    @property
    def command(self) -> tuple[str, ...]:
        """The program that runs a command as this user, with its arguments."""
        if self.uid == os.getuid():
            return ()
        ids = (f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups")
        return ("setpriv", *ids)

    def own(self, folder: Path) -> None:
        """Gives a folder and all in it to the user."""
        if self.uid != os.getuid():
            for path in (folder, *folder.rglob("*")):
                os.chown(path, self.uid, self.uid, follow_symlinks=False)


def users() -> list[User]:
    """Returns the users that commands can be run as."""
    known = [User(pwd.getpwuid(os.getuid()).pw_name, os.getuid())]
    ordinary = User("ordinary", ORDINARY)
    if os.getuid() or not shutil.which("setpriv"):
        print("without an ordinary user: this needs root and setpriv", flush=True)
    elif subprocess.call([*ordinary.command, sys.executable, "-c", _STARTS]):
        print(f"without an ordinary user, who cannot run {sys.executable}", flush=True)
    else:
        known.append(ordinary)
    return known


@dataclass(frozen=True)
class Attack:
    """One interruption.

    Attributes:
        group: What it is counted under: kind, step, signal or folder, and user.
        name: What tells it from the others of its group.
        run: Does it in a new folder; raises AttackError if it ends badly.
    """

    group: tuple[str, str, str, str]
    name: str
    run: Callable[[Path], None]


@dataclass
class Ended:
    """How a command ended."""

    code: int
    err: str


@dataclass
class Running:
    """A command that runs.

    Attributes:
        err: The file of what it prints to stderr. A pipe would stay open as long as any child.
    """

    process: subprocess.Popen[str]
    err: IO[str]


@dataclass(frozen=True)
class Place:
    """A folder for commands of one user, with its own home, cache and temporary folder."""

    path: Path
    user: User

    @property
    def root(self) -> Path:
        """The folder of the artifacts."""
        return self.path / "artifacts"

    def fill(self, images: Path) -> None:
        """Makes the folders that are missing."""
        for name in (*FOLDERS, "home"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        if not (self.path / "images").is_symlink():
            (self.path / "images").symlink_to(images)
        self.user.own(self.path)

    def start(
        self, words: tuple[str, ...], module: tuple[str, ...] = ("pipeline.cli",), **more: str
    ) -> Running:
        """Starts a command in a process group of its own.

        Args:
            more: Environment variables.
        """
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": python_path(),
            "HOME": str(self.path / "home"),
            "TMPDIR": str(self.path / "tmp"),
            "ASSAY_CACHE": str(self.path / "cache"),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            **more,
        }
        err = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - `end` closes it
        process = subprocess.Popen(
            [*self.user.command, sys.executable, "-m", *module, *words],
            cwd=self.path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=err,
            text=True,
            start_new_session=True,
        )
        return Running(process, err)

    def end(self, running: Running) -> Ended:
        """Waits for a command; AttackError if it hangs."""
        hangs = False
        with running.err:
            try:
                running.process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                hangs = True
                running.process.kill()
                running.process.wait()
            running.err.seek(0)
            err = running.err.read()
        if hangs:
            raise AttackError(f"no end within {SECONDS} s: {running.process.args}\n{err}")
        return Ended(running.process.returncode, err)

    def run(
        self, words: tuple[str, ...], module: tuple[str, ...] = ("pipeline.cli",), **more: str
    ) -> Ended:
        """Runs a command to its end."""
        return self.end(self.start(words, module, **more))

    def done(self, step: Step, number: int = 0) -> None:
        """Runs a step to its end; AttackError if it fails."""
        words = step.again[number % len(step.again)] if step.again else step.words
        ended = self.run(words, step.module)
        if ended.code:
            raise AttackError(f"{' '.join(words)} ended with {ended.code}:\n{ended.err}")

    def running(self) -> list[int]:
        """Returns the IDs of the processes that work in this place."""
        numbers = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if (entry / "cwd").readlink() == self.path:
                    numbers.append(int(entry.name))
            except OSError:  # it has ended, or is another user's
                continue
        return numbers

    def wait_until_idle(self) -> None:
        """Waits for child processes to end; AttackError if one goes on."""
        end = time.monotonic() + 10
        while running := self.running():
            if time.monotonic() > end:
                for number in running:
                    os.kill(number, signal.SIGKILL)
                raise AttackError(f"processes {running} go on")
            time.sleep(0.05)

    def leftovers(self) -> list[str]:
        """Returns the paths of files and folders that are neither artifacts nor caches."""
        kept = (".locks", ".resume", ".reference")
        paths = [
            str(path.relative_to(self.path))
            for name in ("artifacts", "dist", "cache")
            for path in (self.path / name).rglob(".*")
            if path.name not in kept
        ]
        return paths + [f"tmp/{path.name}" for path in (self.path / "tmp").glob("assay-*")]

    def artifacts(self) -> dict[str, str]:
        """Returns the digests of all recorded outputs, without times, and checks the records.

        Raises:
            AttackError: A record cannot be read, or an output is not what its record says.
        """
        digests = {}
        for path in sorted(self.root.rglob("*.json")):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise AttackError(f"{path} is not valid JSON: {error}") from error
            if "key" not in record or "runs" in path.parts:
                continue
            for label, entry in record["outputs"].items():
                output = self.path if label.startswith("dist/") else self.root
                content = output / label
                if not content.exists() or sha256_file(content) != entry["sha256"]:
                    raise AttackError(f"{content} is not the output in {path}")
                digests[label] = _timeless(content, entry["sha256"])
        return digests


def _timeless(path: Path, sha256: str) -> str:
    """Returns the digest of an artifact; of a measurement only that there is one."""
    if path.name == "measurements.json":
        return "measured"
    if path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=_without_times)
        return json.dumps(content, sort_keys=True)
    return sha256


def _without_times(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in _TIMES}


@dataclass
class Reference:
    """Uninterrupted runs of all steps as one user.

    Attributes:
        seconds: How long each step took.
        digests: Digests of the artifacts after each step.
        operations: How many operations on files of the artifacts each step makes.
        needs: Bytes that a step needs on the disk of each folder, once they are measured.
    """

    work: Path
    images: Path
    user: User
    seconds: dict[str, float] = field(default_factory=dict)
    digests: dict[str, Mapping[str, str]] = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)
    needs: dict[str, dict[str, int]] = field(default_factory=dict)

    def state(self, step: str) -> Path:
        """Returns the folder with the state after a step."""
        return self.work / "states" / self.user.name / (step or "empty")

    def make(self) -> None:
        """Runs all steps, and keeps the state after each."""
        Place(self.state(""), self.user).fill(self.images)
        for step in STEPS:
            place = self.place(step, self.state(step.name))
            clock = time.monotonic()
            count = place.path / "tmp" / "count"
            ended = place.run(step.words, step.module, **COUNTING, ASSAY_TEST_COUNT=str(count))
            if ended.code:
                raise AttackError(f"{step.name} ended with {ended.code}:\n{ended.err}")
            self.seconds[step.name] = time.monotonic() - clock
            self.operations[step.name] = int(count.read_text(encoding="ascii"))
            self.digests[step.name] = place.artifacts()
            shutil.rmtree(place.path / "tmp")
            (place.path / "tmp").mkdir()
            self.user.own(place.path / "tmp")

    def place(self, step: Step, path: Path) -> Place:
        """Makes a place in the state in which a step starts."""
        shutil.copytree(self.state(step.after), path, symlinks=True)
        place = Place(path, self.user)
        self.user.own(path)
        return place

    def compare(self, place: Place, step: Step) -> None:
        """Raises AttackError unless the artifacts are those of an uninterrupted run."""
        expected, actual = self.digests[step.name], place.artifacts()
        differing = [
            label for label in {*expected, *actual} if expected.get(label) != actual.get(label)
        ]
        if differing:
            raise AttackError(f"other artifacts than without an interruption: {sorted(differing)}")


def write_images(folder: Path) -> None:
    """Writes a folder of images with their classes, from the tests' data set."""
    import numpy as np
    from PIL import Image

    for part, source in (("train", "train"), ("test", "t10k")):
        packed = (FOLDER / f"{source}-images-idx3-ubyte.gz").read_bytes()
        pixels = np.frombuffer(gzip.decompress(packed), np.uint8, offset=16).reshape(-1, 28, 28)
        packed = (FOLDER / f"{source}-labels-idx1-ubyte.gz").read_bytes()
        labels = np.frombuffer(gzip.decompress(packed), np.uint8, offset=8)
        for label in range(10):
            of_class = folder / part / f"class{label}"
            of_class.mkdir(parents=True)
            for number, image in enumerate(pixels[labels == label][:IMAGES]):
                Image.fromarray(image).save(of_class / f"{number:02}.png")


def references(work: Path, executor: Executor) -> list[Reference]:
    """Returns the uninterrupted runs of each user."""
    images = work / "images"
    write_images(images)
    known = [Reference(work, images, user) for user in users()]
    for making in [executor.submit(reference.make) for reference in known]:
        making.result()
    return known
