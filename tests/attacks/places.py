"""Commands that are interrupted, the folders in which they run, and their users."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.workflow.digests import sha256_file
from tests.attacks.fork_server import Forked, ForkServer
from tests.subset import python_path

ENGINES = "onnxruntime,openvino"
SECONDS = 180  # after which a command counts as one that hangs, even on a busy machine
# Every how many turns the interrupted command is a new interpreter, whose imports take most of its
# time. It shares no factor with the numbers of users, signals and commands that take turns.
FRESH_EVERY = 7
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
        heavy: It imports torch in a worker of its own, so it is interrupted only in the turns that
            take a new interpreter.
    """

    name: str
    words: tuple[str, ...]
    after: str
    again: tuple[tuple[str, ...], ...] = ()
    module: tuple[str, ...] = ("pipeline.cli",)
    heavy: bool = False

    @property
    def distributed(self) -> bool:
        """Whether torchrun starts it, always in new interpreters."""
        return self.module[0].startswith("torch")


def _torchrun(*words: str) -> Step:
    module = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    module += ("-m", "pipeline.training")
    return Step("train in 2 processes", words, "data", (words, (*words, "--resume")), module)


_TRAINING = ("train", *_TRAIN, "--threads", "1")
_BENCH = ("bench", "lenet", "--budget", "0.1", "--batch", "1", "--engine")
_LOAD = ("load", "lenet", "--duration", "0.1", "--concurrency", "2", "--engine")
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
    Step("bench", (*_BENCH, ENGINES), "verify"),
    Step("load", (*_LOAD, ENGINES), "verify"),
    Step("profile", ("profile", *_BENCH[1:], ENGINES), "verify"),
    Step("build pytorch", ("build", "lenet", "--engine", "pytorch"), "verify graph", heavy=True),
    Step("verify pytorch", ("verify", "lenet", "--engine", "pytorch"), "build pytorch", heavy=True),
    Step("bench pytorch", (*_BENCH, "pytorch"), "verify pytorch", heavy=True),
    Step("bundle", ("bundle", "lenet", "--engine", ENGINES), "bench"),
)


def is_fresh(turn: int) -> bool:
    """Whether the interrupted command of a turn is a new interpreter."""
    return turn % FRESH_EVERY == 0


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

    process: subprocess.Popen[str] | Forked
    err: IO[str]

    def send_signal(self, number: int) -> None:
        """Sends a signal as a terminal or a user does: SIGINT to all processes of the command."""
        if number != signal.SIGINT:
            self.process.send_signal(number)
        elif self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)


def environment() -> dict[str, str]:
    """Returns the environment that all commands have, wherever they run."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": python_path(),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


@dataclass(frozen=True)
class Place:
    """A folder for commands of one user, with its own home, cache and temporary folder.

    Attributes:
        server: Starts commands; None means that all are new interpreters.
    """

    path: Path
    user: User
    server: ForkServer | None = None

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
        self,
        words: tuple[str, ...],
        module: tuple[str, ...] = ("pipeline.cli",),
        *,
        fresh: bool = False,
        **more: str,
    ) -> Running:
        """Starts a command in a process group of its own.

        Args:
            fresh: Start a new interpreter; otherwise the server forks one, if it can.
            more: Environment variables.
        """
        variables = {
            **environment(),
            "HOME": str(self.path / "home"),
            "TMPDIR": str(self.path / "tmp"),
            "ASSAY_CACHE": str(self.path / "cache"),
            **more,
        }
        err = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - `end` closes it
        if self.server is not None and len(module) == 1 and not fresh:
            forked = self.server.start(*module, words, self.path, variables, err.fileno())
            return Running(forked, err)
        process = subprocess.Popen(
            [*self.user.command, sys.executable, "-m", *module, *words],
            cwd=self.path,
            env=variables,
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
        self,
        words: tuple[str, ...],
        module: tuple[str, ...] = ("pipeline.cli",),
        *,
        fresh: bool = False,
        **more: str,
    ) -> Ended:
        """Runs a command to its end."""
        return self.end(self.start(words, module, fresh=fresh, **more))

    def done(self, step: Step, number: int = 0, *, fresh: bool = False) -> None:
        """Runs a step to its end; AttackError if it fails."""
        words = step.again[number % len(step.again)] if step.again else step.words
        ended = self.run(words, step.module, fresh=fresh)
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
    if path.name in ("measurements.json", "costs.json", "served.json"):
        return "measured"
    if path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=_without_times)
        return json.dumps(content, sort_keys=True)
    return sha256


def _without_times(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in _TIMES}
