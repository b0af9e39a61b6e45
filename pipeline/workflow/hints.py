"""Command lines for hints, built from the parameters of the failed command."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engines.errors import DeployError
from pipeline.workflow import chain
from pipeline.workflow.artifacts import DIST, FOLDER_PREFIX, ROOT, Artifact
from pipeline.workflow.stage import Option, options

# Hints put commands between backquotes.
_COMMAND = re.compile(rf"`(assay (?:{'|'.join((*chain.STAGES, 'run', 'report'))})\b[^`]*)`")
# The parameters that select the artifacts of a stage; all others say how they are made.
_SELECTING = ("model", "data", "precision", "engine")


@dataclasses.dataclass(frozen=True)
class Place:
    """The folders of a command.

    Attributes:
        root: Folder of the artifacts.
        dist: Folder of the bundles.
        images: The image folder given as the data set, if any.
    """

    root: Path = ROOT
    dist: Path = DIST
    images: Path | None = None


def command(stage: str, params: Mapping[str, Any], explicit: Collection[str] = frozenset()) -> str:
    """Returns the command that runs a stage with some parameters.

    Args:
        explicit: Names of options to include even if they have their default value.
    """
    words = ["assay", stage]
    if stage not in chain.STAGES:  # from a record of another version
        return " ".join([*words, shlex.quote(str(params.get("model", "MODEL")))])
    for option in options(chain.stage(stage).params):
        value = params.get(option.name)
        is_default = value == option.default and not option.required
        if value is None or (is_default and option.name not in explicit):
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
        artifact: The artifact, with its fields filled in.
        params: Parameters of the stage that needs it; only the data set is used.
    """
    values = dict(artifact.values)
    if "dataset" in values:
        values["data"] = values.pop("dataset")
    elif params.get("data") is not None:
        values["data"] = params["data"]
    return again(artifact.stage, values)


def again(stage: str, params: Mapping[str, Any]) -> str:
    """Returns the command that runs a stage with the parameters of its record.

    Omits parameters whose value is the one that the stage fills in by default.
    """
    if stage not in chain.STAGES:
        return command(stage, params)
    chosen = chain.stage(stage)
    fields = {option.name: option for option in options(chosen.params)}
    known = {
        name: _items(value) if fields[name].many else value
        for name, value in params.items()
        if name in fields
    }
    selecting = {name: value for name, value in known.items() if name in _SELECTING}
    try:
        without_data = {name: value for name, value in selecting.items() if name != "data"}
        filled_in = dataclasses.asdict(chosen.resolve(chosen.params(**without_data)))
        if filled_in.get("data") == selecting.get("data"):
            selecting.pop("data", None)
        filled_in = dataclasses.asdict(chosen.resolve(chosen.params(**selecting)))
    except (DeployError, TypeError):
        filled_in = {}
    others = {
        name: value
        for name, value in known.items()
        if name not in _SELECTING and filled_in.get(name, fields[name].default) != value
    }
    return command(stage, {**selecting, **others})


def _items(value: Any) -> tuple[Any, ...]:
    """Returns the items of a list, or of a text in which a path has them joined by a plus."""
    return tuple(value.split("+") if isinstance(value, str) else value)


def complete(hint: str, place: Place) -> str:
    """Returns a hint with the folders added to its commands, unless they are the defaults."""

    def with_folders(match: re.Match[str]) -> str:
        words = match[1]
        stage = words.split()[1]
        if place.root != ROOT and " --root " not in words:
            words += f" --root {shlex.quote(str(place.root))}"
        if place.dist != DIST and stage in ("bundle", "run", "report") and " --dist " not in words:
            words += f" --dist {shlex.quote(str(place.dist))}"
        if stage == "data" and f"--data {FOLDER_PREFIX}" in words:
            words = re.sub(rf"--data {FOLDER_PREFIX}(\S+?)-[0-9a-f]{{6}}\b", _folder(place), words)
        return f"`{words}`"

    return _COMMAND.sub(with_folders, hint)


def _folder(place: Place) -> Any:
    """Returns a replacement that puts the image folder's path for the data set's name."""

    def path(match: re.Match[str]) -> str:
        folder = place.images
        return f"--data {shlex.quote(str(folder))}" if folder else f"--data PATH/TO/{match[1]}"

    return path


@contextmanager
def completed(place: Place) -> Iterator[None]:
    """Adds the folders to the hint of a DeployError that leaves the block."""
    try:
        yield
    except DeployError as error:
        error.hint = complete(error.hint, place)
        raise
