"""The file of a graph as the verdict runs it: each node in the type that the graph gives it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from engines import temporary
from engines.errors import DeployError
from exporters import onnx_files, typed_graph
from pipeline.workflow.artifacts import GRAPH


@contextmanager
def as_it_says(model: onnx.ModelProto, path: Path | None = None) -> Iterator[Path]:
    """Writes a graph in a form in which each node computes in the type that the graph gives it.

    That is the graph itself where it has no half types, and where a subgraph has them: those are
    left to the runtime.

    Args:
        path: The file that the graph was read from, if it was.

    Yields:
        That file, or another one that is gone when the context ends.
    """
    if typed_graph.can_round(model) and typed_graph.half_values(model):
        model = typed_graph.as_typed(model)
    elif path is not None:
        yield path
        return
    with temporary.folder() as folder:
        file = folder / GRAPH.name
        onnx_files.write(model, file)
        try:
            yield file
        except DeployError as error:
            raise type(error)(error.message.replace(str(file), str(path)), error.hint) from error
