"""Uninterrupted runs of all commands: the states in which others start, and what they must give."""

from __future__ import annotations

import gzip
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.attacks.fork_server import ForkServer
from tests.attacks.places import COUNTING, STEPS, AttackError, Place, Step, User, environment, users
from tests.subset import FOLDER

IMAGES = 16  # of each class


@dataclass
class Reference:
    """Uninterrupted runs of all steps as one user.

    Attributes:
        server: Starts its commands, if they need not be new interpreters.
        seconds: How long each step took in a new interpreter (True) and in a fork (False).
        digests: Digests of the artifacts after each step.
        operations: How many operations on files of the artifacts each step makes.
        needs: Bytes that a step needs on the disk of each folder, once they are measured.
        filled: Disks that a step ran on: step, folder and bytes.
    """

    work: Path
    images: Path
    user: User
    server: ForkServer
    seconds: dict[tuple[str, bool], float] = field(default_factory=dict)
    digests: dict[str, Mapping[str, str]] = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)
    needs: dict[str, dict[str, int]] = field(default_factory=dict)
    filled: set[tuple[str, str, int]] = field(default_factory=set)

    def state(self, step: str) -> Path:
        """Returns the folder with the state after a step."""
        return self.work / "states" / self.user.name / (step or "empty")

    def make(self) -> None:
        """Runs all steps in new interpreters and in forks, and keeps the state after each."""
        Place(self.state(""), self.user).fill(self.images)
        for step in STEPS:
            place, count = self._run(step, self.state(step.name), fresh=True)
            self.operations[step.name] = count
            self.digests[step.name] = place.artifacts()
            shutil.rmtree(place.path / "tmp")
            (place.path / "tmp").mkdir()
            self.user.own(place.path / "tmp")
            if step.distributed:
                continue
            place, count = self._run(step, self.work / f"forked-{self.user.name}", fresh=False)
            self.compare(place, step)
            if count != self.operations[step.name]:
                raise AttackError(f"{step.name}: {self.operations[step.name]} operations, {count}")
            shutil.rmtree(place.path)

    def _run(self, step: Step, path: Path, *, fresh: bool) -> tuple[Place, int]:
        """Runs a step in a new place; returns that, and the number of operations."""
        place = self.place(step, path)
        file = place.path / "tmp" / "count"
        clock = time.monotonic()
        ended = place.run(
            step.words, step.module, fresh=fresh, **COUNTING, ASSAY_TEST_COUNT=str(file)
        )
        if ended.code:
            raise AttackError(f"{step.name} ended with {ended.code}:\n{ended.err}")
        self.seconds[step.name, fresh] = time.monotonic() - clock
        return place, int(file.read_text(encoding="ascii"))

    def place(self, step: Step, path: Path) -> Place:
        """Makes a place in the state in which a step starts."""
        shutil.copytree(self.state(step.after), path, symlinks=True)
        place = Place(path, self.user, self.server)
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


@contextmanager
def references(work: Path, executor: Executor) -> Iterator[list[Reference]]:
    """Yields the uninterrupted runs of each user, whose servers end when the block does."""
    images = work / "images"
    write_images(images)
    with ExitStack() as servers:
        known = []
        for user in users():
            server = ForkServer(user.command, environment())
            servers.callback(server.close)
            known.append(Reference(work, images, user, server))
        for making in [executor.submit(reference.make) for reference in known]:
            making.result()
        yield known
