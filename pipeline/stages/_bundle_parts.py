"""What stage bundle reads of each engine, and the figures of its bill of materials."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
from pipeline.workflow.digests import read_json

if TYPE_CHECKING:
    from pipeline.bundling.measured import Figure


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
