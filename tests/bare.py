"""A virtual environment with a few distributions, like that of a deployment target."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from tests.subset import ROOT


def environment(folder: Path, *extras: str) -> Path:
    """Makes a virtual environment with the distributions that `pip install '.[EXTRAS]'` installs.

    Links the distributions from this environment instead of downloading them.

    Returns:
        Path of the environment's Python.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # Read from the file: not every machine that runs the tests has this project installed.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"]]
    for extra in extras:
        texts += project["optional-dependencies"][extra]
    for name in _needed(texts, extras):
        distribution = metadata.distribution(name)
        for file in distribution.files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(str(distribution.locate_file(top)))
    (site / "assay.pth").write_text(str(ROOT))
    return folder / "bin/python"


def _needed(texts: list[str], extras: tuple[str, ...]) -> set[str]:
    """Returns the names of the distributions that requirements need, with their dependencies."""
    names: set[str] = set()
    for text in texts:
        wanted = Requirement(text)
        chosen = [{"extra": extra} for extra in extras or ("",)]
        if wanted.marker is None or any(wanted.marker.evaluate(extra) for extra in chosen):
            name = re.sub(r"[-_.]+", "-", wanted.name).lower()
            names |= {name} | _needed(metadata.requires(name) or [], tuple(wanted.extras))
    return names
