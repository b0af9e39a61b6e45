"""An environment with a few of the installed distributions: what a deployment target has."""

import re
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from tests.subset import ROOT


def environment(folder: Path, *extras: str) -> Path:
    """Makes a virtual environment with what `pip install '.[EXTRAS]'` would install.

    The distributions are linked from this environment instead of being fetched.

    Returns:
        Its Python.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    here = Path(sysconfig.get_path("purelib"))
    for name in _needed("assay", extras):
        for file in metadata.files(name) or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(here / top)
    (site / "assay.pth").write_text(str(ROOT))
    return folder / "bin/python"


def _needed(name: str, extras: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    for text in metadata.requires(name) or ():
        wanted = Requirement(text)
        chosen = [{"extra": extra} for extra in extras or ("",)]
        if wanted.marker is None or any(wanted.marker.evaluate(each) for each in chosen):
            other = re.sub(r"[-_.]+", "-", wanted.name).lower()
            found |= {other} | _needed(other, tuple(wanted.extras))
    return found
