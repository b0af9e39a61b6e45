"""Finding what a file tells of the machine that made it, also inside archives."""

import getpass
import gzip
import io
import socket
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from engines.cache import cache_folder
from tests.subset import ROOT

_SHORTEST = 5  # characters; a shorter name is found by chance, or in words such as "root"


def of_this_process() -> set[str]:
    """Returns texts that no file for others may hold: folders, the login and the host's name."""
    folders = {ROOT, Path.cwd(), Path.home(), cache_folder(), Path(tempfile.gettempdir())}
    folders |= {Path(sys.prefix), Path(sys.base_prefix)}
    names = {getpass.getuser(), socket.gethostname()} - {"localhost"}
    named = {name for name in names if len(name) >= _SHORTEST}
    return {*map(str, folders), *named, "site-packages"}


def leaks_in(content: bytes, traces: set[str], name: str) -> Iterator[str]:
    """Yields each trace and the file that holds it, also in zip archives and gzip files."""
    for trace in sorted(traces):
        if trace.encode() in content or trace.encode("utf-16-le") in content:
            yield f"{trace} in {name}"
    if content.startswith(b"\x1f\x8b"):
        yield from leaks_in(gzip.decompress(content), traces, f"{name}, unpacked")
    elif content.startswith(b"PK\3\4"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for entry in archive.namelist():
                yield from leaks_in(archive.read(entry), traces, f"{name}: {entry}")


def leaks_in_bundle(bundle: Path, traces: set[str]) -> list[str]:
    """Returns what `leaks_in` yields for the members of a bundle and their names."""
    from tests.bundles import members

    leaks = []
    for name, content in members(bundle).items():
        leaks += [f"{trace} in the name {name}" for trace in traces if trace in name]
        leaks += leaks_in(content, traces, name)
    return leaks
