"""Any value of a graph, as an engine computes it, in bounded memory."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import onnx

import engines
from engines.base import Array, OpenOptions
from engines.errors import DeployError
from exporters import files
from pipeline import engine_proof

# Bytes of the engine's values to hold at a time; of a larger graph, it is run again for the next.
_BYTES = 256 << 20


class Windows:
    """The values of a graph as ONNX Runtime computes them, node by node as they stand.

    A part of them at a time, in the order in which they are asked for.
    """

    def __init__(
        self, model: onnx.ModelProto, feeds: Mapping[str, Array], sizes: Sequence[tuple[str, int]]
    ) -> None:
        self._model = model
        self._feeds = feeds
        self._sizes = list(sizes)
        self._held: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        """Returns a value, `[rows, ...]`."""
        if name not in self._held:
            window: list[str] = []
            size = 0
            while self._sizes and (not window or size + self._sizes[0][1] <= _BYTES):
                each, more = self._sizes.pop(0)
                window.append(each)
                size += more
            self._held = values_of(self._model, self._feeds, window)
        return self._held.pop(name)


def values_of(
    model: onnx.ModelProto, feeds: Mapping[str, Array], names: Sequence[str]
) -> dict[str, Array]:
    """Returns values of a graph as ONNX Runtime computes them, node by node as they stand."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    with tempfile.TemporaryDirectory(prefix="assay-") as folder:
        path = Path(folder) / "model.onnx"
        files.write(watched, path)
        options = OpenOptions("cpu", threads=1, optimize=False)
        try:
            with closing(engines.get(engine_proof.GRAPH_RUNNER).open(path, options)) as session:
                return session.run(feeds)
        except DeployError as error:  # of a file that the user does not know
            said = error.message.replace(str(path), "the graph, asked for its inner values")
            raise type(error)(said, error.hint) from error
