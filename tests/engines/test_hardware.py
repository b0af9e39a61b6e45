"""What the hardware module tells of systems that are not here."""

import os

import pytest

from engines import hardware


def test_memory_is_known_where_the_system_counts_all_pages_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As on macOS.
    real = os.sysconf
    names = {name: number for name, number in os.sysconf_names.items() if "AVPHYS" not in name}

    def sysconf(name: str) -> int:
        if name not in names:
            raise ValueError("unrecognized configuration name")
        return real(name)

    monkeypatch.setattr(os, "sysconf_names", names)
    monkeypatch.setattr(os, "sysconf", sysconf)
    assert hardware.free_memory() > 0


def test_the_peak_of_the_memory_is_that_since_it_was_reset() -> None:
    size = 1 << 26
    b"x" * size  # freed at once
    if not hardware.reset_peak_memory():
        pytest.skip("this system does not reset the peak")
    before = hardware.peak_memory()
    assert before is not None
    assert before < hardware.resident_memory(os.getpid()) + size // 2
    b"x" * size
    after = hardware.peak_memory()
    assert after is not None
    assert after > before + size // 2
