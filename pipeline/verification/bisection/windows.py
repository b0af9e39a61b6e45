"""Computes any value of a graph with an engine, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import onnx

import engines
from engines import temporary
from engines.checks import choose_device
from engines.contract import Array, BuildOptions, OpenOptions
from engines.errors import DeployError, NotAvailableError, UsageError
from exporters import onnx_files, typed_graph
from pipeline.verification import engine_proof
from pipeline.workflow.artifacts import GRAPH, GRAPH_SUBJECT

# Bytes of values to hold at a time. A graph with more is run once for each window of values.
_BYTES = 256 << 20
_IN_FLOAT = "_in_float"  # suffix of a bfloat16 value that was cast to float32


@dataclass(frozen=True)
class Prober:
    """Computes values of a graph.

    Attributes:
        subject: "graph" to run the graph unoptimised in ONNX Runtime, or the name of an engine
            that is built from the graph.
        device: As for `engines.contract.OpenOptions`.
    """

    subject: str = GRAPH_SUBJECT
    device: str = "auto"

    def check(self) -> None:
        """Raises UsageError or NotAvailableError unless values can be computed here."""
        engine = engines.get(engine_proof.runner(self.subject))
        if engine.source != "graph":
            raise UsageError(
                f"engine {self.subject!r} runs the PyTorch program itself: it has no graph to"
                " follow",
                "bisect another engine, or the graph",
            )
        state = engine.available()
        if not state.run:
            raise NotAvailableError(
                f"engine {self.subject!r} cannot be run here: {state.reason}", state.install
            )
        choose_device(engine, self.device)

    def values(
        self, model: onnx.ModelProto, feeds: Mapping[str, Array], names: Sequence[str]
    ) -> dict[str, Array]:
        """Returns values of a graph by name, `[rows, ...]` each.

        They become outputs of the graph, so an engine can no longer fuse the operators between
        them.
        """
        as_it_is = self.subject == GRAPH_SUBJECT
        if as_it_is and typed_graph.can_round(model) and typed_graph.half_values(model):
            watched = typed_graph.as_typed(model)
        else:
            watched = onnx.ModelProto()
            watched.CopyFrom(model)
        del watched.graph.output[:]
        outputs = {name: self._output(watched, name) for name in names}
        with temporary.folder() as folder:
            path, built = folder / GRAPH.name, folder / "engine"
            onnx_files.write(watched, path)
            engine = engines.get(engine_proof.runner(self.subject))
            device = "cpu" if as_it_is else choose_device(engine, self.device)
            options = OpenOptions(device, threads=1, optimize=not as_it_is)
            try:
                if as_it_is:
                    built = path
                else:
                    rows = len(next(iter(feeds.values())))
                    engine.build(path, built, BuildOptions(1, rows, rows))
                with closing(engine.open(built, options)) as session:
                    results = session.run(feeds)
            except DeployError as error:  # it names temporary files
                reason = error.message
                for file in (path, built):
                    reason = reason.replace(str(file), "the graph with inner values as outputs")
                raise type(error)(reason, error.hint) from error
        return {name: results[output] for name, output in outputs.items()}

    def _output(self, watched: onnx.ModelProto, name: str) -> str:
        """Makes a value an output, and returns the output's name.

        In a bfloat16 graph it is cast to float32, since numpy has no bfloat16.
        """
        if not _has_bfloat16(watched):
            watched.graph.output.append(onnx.ValueInfoProto(name=name))
            return name
        cast = onnx.helper.make_node("Cast", [name], [name + _IN_FLOAT], to=onnx.TensorProto.FLOAT)
        watched.graph.node.append(cast)
        watched.graph.output.append(onnx.ValueInfoProto(name=cast.output[0]))
        return str(cast.output[0])


def _has_bfloat16(model: onnx.ModelProto) -> bool:
    kind = onnx.TensorProto.BFLOAT16
    return any(tensor.data_type == kind for tensor in model.graph.initializer)


class Windows:
    """The values of a graph in the order of the program, a window of them at a time."""

    def __init__(
        self,
        prober: Prober,
        model: onnx.ModelProto,
        feeds: Mapping[str, Array],
        sizes: Sequence[tuple[str, int]],
    ) -> None:
        self._prober = prober
        self._model = model
        self._feeds = feeds
        self._sizes = list(sizes)
        self._held: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        """Returns a value, `[rows, ...]`, once: it is dropped from memory."""
        if name not in self._held:
            window: list[str] = []
            size = 0
            while self._sizes and (not window or size + self._sizes[0][1] <= _BYTES):
                next_name, next_size = self._sizes.pop(0)
                window.append(next_name)
                size += next_size
            self._held = self._prober.values(self._model, self._feeds, window)
        return self._held.pop(name)
