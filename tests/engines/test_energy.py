"""Counters of energy."""

from pathlib import Path

import pytest

from engines import energy, hardware
from engines.errors import NotAvailableError


def package(folder: Path, name: str, microjoules: int, end: int = 1_000_000) -> Path:
    path = folder / name
    path.mkdir(exist_ok=True)
    (path / "max_energy_range_uj").write_text(f"{end}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path


def test_the_energy_is_that_of_all_packages_and_no_part_counts_twice(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0", "intel-rapl"):
        package(tmp_path, name, 100_000)
    joules = energy.meter("cpu", tmp_path)
    assert joules() == 0
    for name in ("intel-rapl:0", "intel-rapl:0:0"):
        package(tmp_path, name, 400_000)
    assert joules() == pytest.approx(0.3)


def test_a_counter_that_begins_anew_goes_on(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", 900_000)
    joules = energy.meter("cpu", tmp_path)
    package(tmp_path, "intel-rapl:0", 200_000)
    assert joules() == pytest.approx(0.3)


def test_a_machine_without_a_counter_is_not_available(tmp_path: Path) -> None:
    with pytest.raises(NotAvailableError, match="lists no counter of energy"):
        energy.meter("cpu", tmp_path)


def test_a_counter_that_cannot_be_read_is_not_available(tmp_path: Path) -> None:
    (package(tmp_path, "intel-rapl:0", 1) / "energy_uj").unlink()
    with pytest.raises(NotAvailableError, match=r"cannot be read: .*energy_uj"):
        energy.meter("cpu", tmp_path)


@pytest.mark.skipif(bool(hardware.gpus()), reason="this machine has a GPU")
def test_a_gpu_that_is_not_here_has_no_counter() -> None:
    with pytest.raises(NotAvailableError, match="cannot be read"):
        energy.meter("cuda:0")
