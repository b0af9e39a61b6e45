"""A few of the names of `tests.attacks.names`, and a proof that it finds what it looks for."""

from pathlib import Path

import pytest

from pipeline.workflow import console
from tests.attacks import names


@pytest.mark.slow(2)
def test_odd_names_are_printed_escaped(tmp_path: Path) -> None:
    assert not list(names.attack(300, 1, tmp_path))


@pytest.mark.slow(1)
def test_a_name_that_is_printed_as_it_is_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_plain", str)
    reports = list(names.attack(300, 1, tmp_path))
    assert any("error: forged" in report for report in reports)
    assert any("u202e" in report for report in reports)
