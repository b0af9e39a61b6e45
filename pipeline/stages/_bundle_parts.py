"""What stage bundle reads of each engine, what is attached, and the figures of its bill."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.errors import UsageError
from pipeline import models
from pipeline.workflow.artifacts import (
    ENGINE,
    ENGINE_LAYERS,
    ENGINE_VERDICT,
    GRAPH_SUBJECT,
    GRAPH_VERDICT,
    MEASUREMENTS,
    TRAINING,
    Artifact,
    Paths,
)
from pipeline.workflow.digests import read_json, require_file

if TYPE_CHECKING:
    from pipeline.bundling.measured import Figure


# Names that every file system takes.
_NAME = re.compile(r"[\w+-][\w.+ -]{0,99}(?<![. ])")


def check_document(path: str) -> None:
    """Raises DeployError or UsageError unless a path is that of a file that can be attached."""
    from pipeline.bundling import repositories

    require_file(Path(path), "give the paths of files, separated by commas")
    name = Path(path).name
    if not _NAME.fullmatch(name) or name in repositories.RESERVED:
        raise UsageError(
            f"{path!r} cannot be attached by this name",
            "give it a name of up to 100 letters, digits, spaces, dots, + and -",
        )


def documents(paths: Sequence[str]) -> dict[str, Path]:
    """Returns attached files by their path in the bundle, sorted.

    Raises:
        UsageError: Two of them have the same name.
    """
    from pipeline.bundling.manifest import DOCUMENTS

    files: dict[str, Path] = {}
    for path in map(Path, paths):
        # As a file system does that ignores case.
        if twin := next((name for name in files if name.casefold() == path.name.casefold()), ""):
            raise UsageError(
                f"{path} and {files[twin]} have the same name in the bundle", "rename one of them"
            )
        files[path.name] = path
    return {f"{DOCUMENTS}/{name}": file for name, file in sorted(files.items())}


def engine_parts(precisions: Sequence[str], precision: str, name: str) -> list[Artifact]:
    """Returns an engine, its layers and its verdict.

    With several precisions, an engine need not be built in every one.
    """
    return [
        dataclasses.replace(
            artifact.at(engine=name, precision=precision), optional=len(precisions) > 1
        )
        for artifact in (ENGINE, ENGINE_LAYERS, ENGINE_VERDICT)
    ]


def figures(inputs: Paths, params: Any, proved: Mapping[str, Mapping[str, Any]]) -> list[Figure]:
    """Returns what was measured, for the bill of materials.

    Args:
        params: Of the stage.
        proved: What the manifest says of each engine, by precision and name.
    """
    from pipeline.bundling import measured

    is_graph = models.graph_file(params.model) is not None
    known = measured.collect(None if is_graph else read_json(inputs[TRAINING]), {}, None)
    for precision, entries in proved.items():
        verdicts = {GRAPH_SUBJECT: read_json(inputs[GRAPH_VERDICT.at(precision=precision)])}
        for name in entries:
            _, _, judged = engine_parts(params.precision, precision, name)
            verdicts[name] = read_json(inputs[judged])
        file = MEASUREMENTS.at(precision=precision)
        measurements = read_json(inputs[file]) if params.measurements else None
        known += [
            dataclasses.replace(figure, where=f"{precision}: {figure.where}")
            for figure in measured.collect(None, verdicts, measurements)
        ]
    return known
