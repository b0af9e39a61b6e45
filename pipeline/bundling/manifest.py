"""What the manifest of a bundle says of its files, besides the list of its members.

    models    by precision: the paths of the graph, of its external data if it has any, and of the
              golden file; inputs and outputs in words; and the engines, by name, with the list
              of their builds if there were several
    chains    the paths of the records, by the folder below which the paths in them lie
    content   a digest of the files that `models` names: of what the bundle does

A name of an engine may end in "@" and a target, since a bundle may hold one for each GPU.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from exporters import PRECISIONS

# What `assay bundle` writes about an engine.
_VERDICTS = ("pass", "not run")
_INSTALL = re.compile(r"pip install [\w\[\]'\".,=<>~! -]+", re.ASCII)
_Model = TypeVar("_Model")
# The folder of the records that were made where the bundle was.
ROOT = ""
# The folder of what people attach, such as the model's licence.
DOCUMENTS = "documents"


def backend(name: str) -> str:
    """Returns the backend of an engine in a bundle: its name without the target."""
    return name.partition("@")[0]


def in_order(models: Mapping[str, _Model]) -> dict[str, _Model]:
    """Returns models by precision in the order of the precisions' table, unknown ones last."""
    known = [name for name in PRECISIONS if name in models]
    return {name: models[name] for name in dict.fromkeys((*known, *models))}


def files(model: Mapping[str, Any]) -> Iterator[str]:
    """Yields the paths of the graph, the golden file and the engines at one precision.

    Args:
        model: One of the manifest's `models`.
    """
    yield model["graph"]
    if "data" in model:
        yield model["data"]
    yield model["golden"]
    for engine in model["engines"].values():
        yield engine["path"]


def named(model: Mapping[str, Any]) -> Iterator[str]:
    """Yields the paths of all members that one of the manifest's `models` names."""
    yield from files(model)
    for engine in model["engines"].values():
        if "builds" in engine:
            yield engine["builds"]


def check_fields(manifest: Mapping[str, Any]) -> None:
    """Checks the fields that people and programs read: others may have made the bundle.

    Raises:
        KeyError: A field is missing.
        TypeError: A field has another type.
        ValueError: It has a value that we do not write.
    """
    texts = ("model", "dataset", "training", "preprocessing", "before", "content", "assay")
    for field in texts:
        _text(manifest[field], field)
    for label in _list(manifest["labels"], "labels"):
        _text(label, "a label")
    for prefix, paths in _filled(manifest["chains"], "chains").items():
        _list(paths, "the records of a chain")
        if prefix != ROOT and not prefix.endswith("/"):
            raise ValueError(f"{prefix!r} is not a folder")
    for model in _filled(manifest["models"], "models").values():
        for side in ("inputs", "outputs"):
            for spec in _list(model[side], side):
                _text(spec, side)
        for name, entry in model["engines"].items():
            _check_engine(name, entry)


def _check_engine(name: str, entry: Mapping[str, Any]) -> None:
    if entry["verdict"] not in _VERDICTS:
        raise ValueError(f"the verdict of {name} is {entry['verdict']!r:.40}")
    if type(entry.get("max_drop", 0.0)) not in (int, float):
        raise TypeError(f"max_drop of {name} is not a number")
    if not isinstance(entry["built_with"], dict):
        raise TypeError(f"built_with of {name} is not an object")
    for key, value in entry["built_with"].items():
        _text(value, f"built_with {key}")
    if "smaller_runtime" in entry and not _INSTALL.fullmatch(entry["smaller_runtime"]):
        raise ValueError(f"smaller_runtime of {name} is not how to install a package")


def _text(value: Any, name: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} is not text")


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{name} is not a list")
    return value


def _filled(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise TypeError(f"{name} is not an object with entries")
    return value


def documents(names: Iterable[str]) -> list[str]:
    """Returns the paths of attached files, from the paths of all members."""
    return [name for name in names if f"/{name}".rpartition("/")[0].endswith(f"/{DOCUMENTS}")]


def content_digest(facts: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    """Returns the SHA-256 of what `sha256sum` prints for the files that `models` names, sorted.

    Neither records nor measurements are part of it, which tell times: whoever makes the same
    graphs, golden files and engines again gets the same digest.

    Args:
        facts: The manifest, or what it will be.
        digests: SHA-256 by path.
    """
    paths = sorted({path for model in facts["models"].values() for path in files(model)})
    lines = "".join(f"{digests[path]}  {path}\n" for path in paths)
    return hashlib.sha256(lines.encode()).hexdigest()
