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
