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
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from exporters import PRECISIONS

_Model = TypeVar("_Model")
# The folder of the records that were made where the bundle was.
ROOT = ""
# The file that is in each folder of a bundle that is a Triton model repository.
REPOSITORY_MARKER = "assay-triton.json"
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


def repositories(names: Iterable[str]) -> list[str]:
    """Returns the folders that are Triton model repositories, from the paths of all members."""
    suffix = f"/{REPOSITORY_MARKER}"
    return [name.removesuffix(suffix) for name in names if name.endswith(suffix)]


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
