"""Running a stage: key, lock, temporary folder, atomic publish, record."""

import dataclasses
import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from engines.errors import DeployError
from pipeline.workflow import leftovers, lock, runner, signals
from pipeline.workflow.artifacts import Artifact, Paths
from pipeline.workflow.runner import Store
from pipeline.workflow.stage import Stage, StageRuns, option

FIRST = Artifact("first file", "{name}/first.txt", "make", "{name}/make.json")
SECOND = Artifact("second file", "{name}/second.txt", "make", "{name}/make.json")
COPY = Artifact("copy", "{name}/copy.txt", "copy", "{name}/copy.json")


@dataclass(frozen=True)
class Params:
    name: str = option("a", text="Name.")
    text: str = option("hello", text="What is written.")
    hint: str = option("", text="Changes nothing.", key=False)


def write(_inputs: Paths, outputs: Paths, params: Params) -> None:
    outputs[FIRST].write_text(params.text)
    outputs[SECOND].write_text(params.text * 2)


def copy(inputs: Paths, outputs: Paths, _params: Params) -> None:
    outputs[COPY].write_bytes(inputs[FIRST].read_bytes())


def show(_made: StageRuns[Params]) -> None:
    pass


MAKE = Stage(
    name="make",
    help="",
    params=Params,
    inputs=lambda _: (),
    outputs=lambda _: (FIRST, SECOND),
    run=write,
    show=show,
)
COPYING = Stage(
    name="copy",
    help="",
    params=Params,
    inputs=lambda _: (FIRST,),
    outputs=lambda _: (COPY,),
    run=copy,
    show=show,
)


@pytest.fixture
def empty(tmp_path: Path) -> Store:
    return Store(tmp_path / "root", tmp_path / "dist")


def left_over(store: Store) -> list[str]:
    return [path.name for path in store.root.iterdir() if path.name.startswith(".tmp")]


def test_a_second_run_is_skipped(empty: Store) -> None:
    first = runner.run(MAKE, Params(), empty)
    second = runner.run(MAKE, Params(), empty)
    assert (first.skipped, second.skipped) == (False, True)
    assert second.record == first.record
    assert (empty.root / "a/second.txt").read_text() == "hellohello"
    assert left_over(empty) == []


def test_force_runs_again(empty: Store) -> None:
    runner.run(MAKE, Params(), empty)
    assert not runner.run(MAKE, Params(), dataclasses.replace(empty, force=True)).skipped


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda stage: stage, "text was hello, is now bye"),
        (lambda stage: dataclasses.replace(stage, facts=lambda _: {"gpu": "H100"}), "gpu is now"),
        (lambda stage: dataclasses.replace(stage, tools=("click",)), "click is now"),
        (lambda stage: dataclasses.replace(stage, revision=2), "makes other outputs"),
    ],
)
def test_a_changed_dependency_runs_the_stage_again(
    empty: Store, change: Callable[[Stage[Params]], Stage[Params]], reason: str
) -> None:
    runner.run(MAKE, Params(), empty)
    changed = change(MAKE)
    params = Params(text="bye") if changed is MAKE else Params()
    again = runner.run(changed, params, empty)
    assert not again.skipped
    assert reason in again.reason


def test_an_option_outside_the_key_does_not_run_the_stage_again(empty: Store) -> None:
    runner.run(MAKE, Params(), empty)
    assert runner.run(MAKE, Params(hint="other"), empty).skipped


def test_a_changed_or_missing_output_is_made_again(empty: Store) -> None:
    runner.run(MAKE, Params(), empty)
    path = empty.root / "a/first.txt"
    path.write_text("hellO")
    assert "has changed since it was made" in runner.run(MAKE, Params(), empty).reason
    assert path.read_text() == "hello"
    path.unlink()
    assert "is missing" in runner.run(MAKE, Params(), empty).reason
    assert path.read_text() == "hello"


def test_a_damaged_record_runs_the_stage_again(empty: Store) -> None:
    runner.run(MAKE, Params(), empty)
    (empty.root / "a/make.json").write_text("{")
    assert not runner.run(MAKE, Params(), empty).skipped


def test_a_missing_input_names_the_stage_to_run(empty: Store) -> None:
    with pytest.raises(DeployError, match="no first file here") as caught:
        runner.run(COPYING, Params(), empty)
    assert "assay make" in caught.value.hint
    assert not (empty.root / "a").exists()


def test_a_damaged_input_is_refused(empty: Store) -> None:
    runner.run(MAKE, Params(), empty)
    (empty.root / "a/first.txt").write_text("hellO")
    with pytest.raises(DeployError, match="is not the first file that was made: expected sha256"):
        runner.run(COPYING, Params(), empty)


def test_an_input_without_a_record_is_refused(empty: Store) -> None:
    runner.run(MAKE, Params(), empty)
    (empty.root / "a/make.json").unlink()
    with pytest.raises(DeployError, match="no record lists"):
        runner.run(COPYING, Params(), empty)


def test_an_outdated_input_is_refused(empty: Store) -> None:
    last = Artifact("last file", "{name}/last.txt", "last", "{name}/last.json")
    ending = dataclasses.replace(
        COPYING,
        name="last",
        inputs=lambda _: (COPY,),
        outputs=lambda _: (last,),
        run=lambda inputs, outputs, _: outputs[last].write_bytes(inputs[COPY].read_bytes()),
    )
    runner.run(MAKE, Params(), empty)
    runner.run(COPYING, Params(), empty)
    runner.run(ending, Params(), empty)
    runner.run(MAKE, Params(text="bye"), empty)
    with pytest.raises(DeployError, match=r"a/copy\.txt is out of date: it was made from another"):
        runner.run(ending, Params(), empty)


def test_a_failing_stage_keeps_the_old_outputs(empty: Store) -> None:
    runner.run(MAKE, Params(), empty)

    def fail(_inputs: Paths, outputs: Paths, _params: Params) -> None:
        outputs[FIRST].write_text("half")
        raise DeployError("no")

    failing = dataclasses.replace(MAKE, run=fail)
    with pytest.raises(DeployError, match="no"):
        runner.run(failing, Params(text="bye"), empty)
    assert (empty.root / "a/first.txt").read_text() == "hello"
    assert left_over(empty) == []
    assert runner.run(MAKE, Params(), empty).skipped


def test_an_interrupted_publish_ends_complete(
    empty: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "_state", dict(signals._state))
    replace = Path.replace

    def interrupt(self: Path, target: Path) -> Path:
        signals._handle(2, None)  # as if Ctrl-C came between two renames
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(signals.Interrupted):
        runner.run(MAKE, Params(), empty)
    monkeypatch.undo()
    assert runner.run(MAKE, Params(), empty).skipped


def test_an_input_that_changes_during_the_run_is_an_error(empty: Store) -> None:
    runner.run(MAKE, Params(), empty)

    def meddle(inputs: Paths, outputs: Paths, params: Params) -> None:
        copy(inputs, outputs, params)
        inputs[FIRST].write_text("hellO")

    meddling = dataclasses.replace(COPYING, run=meddle)
    with pytest.raises(DeployError, match="changed while a copy was reading it"):
        runner.run(meddling, Params(), empty)
    assert not (empty.root / "a/copy.txt").exists()


def test_a_missing_output_is_a_bug(empty: Store) -> None:
    lazy = dataclasses.replace(MAKE, run=lambda *_: None)
    with pytest.raises(RuntimeError, match=r"did not write a/first\.txt"):
        runner.run(lazy, Params(), empty)


def test_an_undeclared_artifact_cannot_be_written(empty: Store) -> None:
    sneaky = dataclasses.replace(MAKE, run=lambda _i, outputs, _p: outputs[COPY].touch())
    with pytest.raises(KeyError, match="does not declare copy"):
        runner.run(sneaky, Params(), empty)


def test_leftovers_of_a_killed_run_are_removed(empty: Store) -> None:
    own = empty.root / f"{leftovers.prefix(empty.root, 'a-make')}dead"
    own.mkdir(parents=True)
    other = empty.root / f"{leftovers.prefix(empty.root, 'a-makeshift')}alive"
    other.mkdir()
    runner.run(MAKE, Params(), empty)
    assert left_over(empty) == [other.name]


def hold(path: Path, ready: "multiprocessing.synchronize.Event", seconds: float) -> None:
    with lock.held(path, "test", 0):
        ready.set()
        import time

        time.sleep(seconds)


@pytest.mark.parametrize(("patience", "seconds"), [(0.2, 30.0), (30.0, 0.5)])
def test_a_second_process_waits_or_names_the_holder_of_the_lock(
    empty: Store, patience: float, seconds: float
) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    path = empty.root / ".locks/a-make"
    holder = context.Process(target=hold, args=(path, ready, seconds))
    holder.start()
    try:
        assert ready.wait(30)
        patient = dataclasses.replace(empty, wait=patience)
        if patience < seconds:
            with pytest.raises(DeployError, match=f"is being run by process {holder.pid}"):
                runner.run(MAKE, Params(), patient)
        else:
            assert not runner.run(MAKE, Params(), patient).skipped
    finally:
        holder.terminate()
        holder.join()


def test_the_record_has_parameters_inputs_and_outputs(empty: Store) -> None:
    runner.run(MAKE, Params(), empty)
    runner.run(COPYING, Params(), empty)
    document = json.loads((empty.root / "a/make.json").read_text())
    copied = json.loads((empty.root / "a/copy.json").read_text())
    assert document["params"] == {"name": "a", "text": "hello"}
    assert document["outputs"]["a/first.txt"]["bytes"] == len("hello")
    assert copied["inputs"] == {
        "a/first.txt": {
            "record": "a/make.json",
            "sha256": document["outputs"]["a/first.txt"]["sha256"],
        }
    }
    assert copied["outputs"]["a/copy.txt"]["sha256"] == copied["inputs"]["a/first.txt"]["sha256"]


def test_a_root_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "root").touch()
    with pytest.raises(DeployError, match="cannot write or read"):
        runner.run(MAKE, Params(), Store(tmp_path / "root", tmp_path / "dist"))


def test_outputs_are_on_the_disk_before_they_are_published(
    empty: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    real = os.fsync

    def note(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    runner.run(MAKE, Params(), empty)
    names = [Path(path).name for path in synced]
    assert names.index("first.txt") < names.index("a")
    assert any(name.startswith(".make.json") for name in names)
