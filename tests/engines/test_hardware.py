"""What the hardware module tells of systems that are not here."""

import mmap
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


def _touch(size: int) -> None:
    """Writes to `size` bytes of new pages and returns them to the system.

    Not a bytes object: the C library may take it from memory that it kept when it was freed.
    """
    with mmap.mmap(-1, size) as pages:
        for offset in range(0, size, mmap.PAGESIZE):
            pages[offset] = 1


def test_the_peak_of_the_memory_is_that_since_it_was_reset() -> None:
    size = 1 << 26
    _touch(size)
    if not hardware.reset_peak_memory():
        pytest.skip("this system does not reset the peak")
    before = hardware.peak_memory()
    assert before is not None
    assert before < hardware.resident_memory(os.getpid()) + size // 2
    _touch(size)
    after = hardware.peak_memory()
    assert after is not None
    assert after > before + size // 2
