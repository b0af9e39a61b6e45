"""A few interruptions of each kind, and a proof that bad ends are noticed."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.workflow.digests import sha256_file
from tests.attacks import interruptions
from tests.attacks.places import STEPS, AttackError, Ended, Place, User


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path, User("this user", os.getuid()))
    place.fill(tmp_path)
    return place


@pytest.fixture
def work() -> Iterator[Path]:
    """A folder that an ordinary user can reach, unlike pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="assay-interruptions-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_interrupted_stages_can_be_run_again(work: Path) -> None:
    pattern = "signal|disk (train|build)|gone train|fifo"
    counts, failures = interruptions.run(work, moments=3, levels=2, pattern=pattern)
    assert not failures
    assert counts.total() > 3 * len(STEPS)


@pytest.mark.parametrize(
    ("code", "err"),
    [(1, "error: interrupted"), (0, "Traceback\n  pipeline/x.py"), (130, "Traceback\n  pipeline")],
)
def test_a_bad_end_is_noticed(code: int, err: str) -> None:
    with pytest.raises(AttackError):
        interruptions.check_ended(Ended(code, err), signal.SIGINT, STEPS[0])


@pytest.mark.parametrize("code", [0, 130, -signal.SIGINT])
def test_a_good_end_is_accepted(code: int) -> None:
    interruptions.check_ended(Ended(code, "error: interrupted"), signal.SIGINT, STEPS[0])


@pytest.mark.parametrize(
    "name", ["artifacts/.tmp-lenet", "dist/.tmp-x", "tmp/assay-tmp-x", "artifacts/a/.b.json.1.part"]
)
def test_leftovers_are_noticed(place: Place, name: str) -> None:
    path = place.path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    assert place.leftovers() == [name]


def test_an_output_that_is_not_the_recorded_one_is_noticed(place: Place) -> None:
    output = place.root / "lenet" / "engine"
    output.parent.mkdir()
    output.write_text("whole")
    record = {"key": "", "outputs": {"lenet/engine": {"sha256": sha256_file(output)}}}
    (place.root / "lenet" / "build.json").write_text(json.dumps(record))
    assert list(place.artifacts()) == ["lenet/engine"]
    output.write_text("half")
    with pytest.raises(AttackError, match="is not the output"):
        place.artifacts()


def test_a_process_that_goes_on_is_noticed(place: Place) -> None:
    with subprocess.Popen(["sleep", "30"], cwd=place.path) as process:
        assert place.running() == [process.pid]
        process.kill()
