"""A few mutations of the fuzzer, and a proof that it finds what it looks for."""

from pathlib import Path

import pytest

from pipeline.workflow.runner import Store
from tests.attacks import fuzz


@pytest.mark.slow(7)
def test_mutated_files_are_read_or_refused(built: Store, tmp_path: Path) -> None:
    count, failures = fuzz.run(built, tmp_path, seed=1, count=36)
    assert count == 36
    assert not failures


@pytest.mark.slow(4)
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise KeyError", "KeyError"),
        ("held = bytearray(1 << 30)", "MiB"),
        ("import os; os.abort()", "ended with -6"),
    ],
)
def test_a_fault_of_a_reader_is_reported(
    built: Store, tmp_path: Path, fault: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python imports this module at the start of the child.
    (tmp_path / "sitecustomize.py").write_text(
        "import pipeline.golden.rows\n"
        f"def read(path):\n    {fault}\n"
        "pipeline.golden.rows.read = read\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    count, (failure,) = fuzz.run(built, tmp_path, count=1, names=["inputs"])
    assert count == 1
    assert failure.startswith("mutation 0 of inputs")
    assert words in failure
