"""The command lines that hints name, built from the parameters of the failed command."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engines.errors import DeployError
from pipeline.workflow import chain
from pipeline.workflow.artifacts import DIST, FOLDER_PREFIX, ROOT, Artifact
from pipeline.workflow.stage import Option, options

# In a hint, a command stands between backquotes.
_COMMAND = re.compile(rf"`(assay (?:{'|'.join((*chain.STAGES, 'run', 'report'))})\b[^`]*)`")
# The parameters that say which artifacts a stage makes or takes; all others say how.
_WHICH = ("model", "data", "precision", "engine")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the artifacts of a command lie.

    Attributes:
        root: The folder below which artifacts lie.
        dist: The folder below which bundles lie.
        images: The folder of the user's that became a data set, if one was named.
    """

    root: Path = ROOT
    dist: Path = DIST
    images: Path | None = None


def command(stage: str, params: Mapping[str, Any]) -> str:
    """Returns the command that runs a stage with some parameters; defaults are left out."""
    words = ["assay", stage]
    if stage not in chain.STAGES:  # the record of another version
        return " ".join([*words, shlex.quote(str(params.get("model", "MODEL")))])
    for option in options(chain.stage(stage).params):
        value = params.get(option.name)
        if value is None or (value == option.default and not option.required):
            continue
        words += _words(option, value)
    return " ".join(words)


def _words(option: Option, value: Any) -> list[str]:
    flag = option.flag
    if option.type is bool:
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, list | tuple):
        if not value:
            return []
        value = ",".join(map(str, value))
    word = shlex.quote(str(value))
    return [word] if option.required else [flag, word]


def making(artifact: Artifact, params: Mapping[str, Any]) -> str:
    """Returns the command that makes an artifact.

    Args:
        artifact: With its fields filled in.
        params: Of the stage that needs it: the data set, where it was named.
    """
    values = dict(artifact.values)
    if "dataset" in values:
        values["data"] = values.pop("dataset")
    elif params.get("data") is not None:
        values["data"] = params["data"]
    return again(artifact.stage, values)


def again(stage: str, params: Mapping[str, Any]) -> str:
    """Returns the command that runs a stage as its record says it was run.

    Parameters that the stage itself would fill in like that are left out.
    """
    if stage not in chain.STAGES:
        return command(stage, params)
    chosen = chain.stage(stage)
    fields = {option.name: option for option in options(chosen.params)}
    known = {
        name: tuple(value) if fields[name].many else value
        for name, value in params.items()
        if name in fields
    }
    which = {name: value for name, value in known.items() if name in _WHICH}
    try:
        named = {name: value for name, value in which.items() if name != "data"}
        filled_in = dataclasses.asdict(chosen.resolve(chosen.params(**named)))
        if filled_in.get("data") == which.get("data"):
            which.pop("data", None)
        filled_in = dataclasses.asdict(chosen.resolve(chosen.params(**which)))
    except (DeployError, TypeError):
        filled_in = {}
    how = {
        name: value
        for name, value in known.items()
        if name not in _WHICH and filled_in.get(name, fields[name].default) != value
    }
    return command(stage, {**which, **how})


def complete(hint: str, place: Place) -> str:
    """Returns a hint whose commands say where the artifacts lie, if that is not the default."""

    def located(match: re.Match[str]) -> str:
        words = match[1]
        stage = words.split()[1]
        if place.root != ROOT and " --root " not in words:
            words += f" --root {shlex.quote(str(place.root))}"
        if place.dist != DIST and stage in ("bundle", "run", "report") and " --dist " not in words:
            words += f" --dist {shlex.quote(str(place.dist))}"
        if stage == "data" and f"--data {FOLDER_PREFIX}" in words:
            words = re.sub(rf"--data {FOLDER_PREFIX}(\S+)", _folder(place), words)
        return f"`{words}`"

    return _COMMAND.sub(located, hint)


def _folder(place: Place) -> Any:
    """Returns what to put for the name of a data set that is a folder: the folder's path."""

    def path(match: re.Match[str]) -> str:
        known = place.images
        return f"--data {shlex.quote(str(known))}" if known else f"--data PATH/TO/{match[1]}"

    return path


@contextmanager
def completed(place: Place) -> Iterator[None]:
    """Completes the hint of an error that leaves the block."""
    try:
        yield
    except DeployError as error:
        error.hint = complete(error.hint, place)
        raise
