"""Chooses the rows to calibrate a quantized graph on, and scores the graph."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engines import temporary
from engines.contract import Array, Feeds, OpenOptions, Outputs
from engines.errors import DeployError
from pipeline.golden import rows
from pipeline.models import IMAGE
from pipeline.verification import accuracy, limits
from pipeline.workflow import console
from pipeline.workflow.artifacts import GRAPH

if TYPE_CHECKING:
    import onnx

    from pipeline.models import Model

# How many rows give the ranges of activations, and how many others select the method.
CALIBRATION_ROWS, SELECTION_ROWS = 128, 256
_BATCH = 32


@dataclass(frozen=True)
class Calibration:
    """Rows to quantize by. The graph is judged by other rows afterwards.

    Attributes:
        rows: By input name, `[rows, …]`: they give the ranges of activations.
        selection: Other rows, by input name: the calibration method that does best on them is
            chosen.
        labels: The classes of `selection`, `[rows]`; empty if they are not known.
        source: Where the rows come from, for messages.
    """

    rows: Feeds
    selection: Feeds
    labels: Array
    source: str


def of_training_set(images: Array, labels: Array) -> Calibration:
    """Takes images spread over a training set.

    Args:
        images: uint8 `[count, channels, height, width]`.
        labels: Their classes, `[count]`.
    """
    wanted = min(CALIBRATION_ROWS + SELECTION_ROWS, len(images))
    chosen = np.linspace(0, len(images) - 1, wanted).astype(np.int64)
    first = np.arange(wanted) % 3 == 0
    ranges, selection = chosen[first], chosen[~first]
    return Calibration(
        {IMAGE: images[ranges]},
        {IMAGE: images[selection]},
        labels[selection],
        "training images",
    )


def of_rows(feeds: Feeds, source: str) -> Calibration:
    """Takes rows whose classes are not known, `[rows, …]`; every third for the selection."""
    count = len(next(iter(feeds.values()))) if feeds else 0
    chosen = np.arange(count) % 3 == 0 if count > 2 else np.ones(count, bool)  # noqa: PLR2004
    ranges = {name: array[~chosen] if count > 2 else array for name, array in feeds.items()}  # noqa: PLR2004
    return Calibration(
        ranges,
        {name: array[chosen] for name, array in feeds.items()},
        np.zeros(0, np.int64),
        source,
    )


def of_model(model: Model) -> Calibration:
    """Takes a model's own training samples, or else generated rows."""
    names = tuple(model.inputs)
    if model.samples is not None and len(names) == 1:
        return of_rows(
            {names[0]: model.samples[0][: CALIBRATION_ROWS + SELECTION_ROWS]}, "the model's samples"
        )
    return of_rows(rows.made_rows(model, CALIBRATION_ROWS, seed=1), "generated inputs")


def with_finite_outputs(
    graph: onnx.ModelProto, calibration: Calibration
) -> tuple[Calibration, Outputs]:
    """Leaves out the rows on which an output is NaN or Inf: they have no ranges and no error.

    A generated attention mask, for example, may leave no position to attend to.

    Args:
        graph: In float.

    Returns:
        The calibration, and the outputs of `graph` for its selection.

    Raises:
        DeployError: No row is left.
    """
    kept: list[Feeds] = []
    outputs: Outputs = {}
    labels = calibration.labels
    for feeds in (calibration.rows, calibration.selection):
        outputs = run(graph, feeds)
        finite = np.ones(len(next(iter(outputs.values()))), bool)
        for array in outputs.values():
            finite &= np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        if not finite.any():
            raise DeployError(
                f"an output is NaN or Inf on every row of {calibration.source}",
                "give usual inputs by --calibration FILE.npz",
            )
        kept.append({name: array[finite] for name, array in feeds.items()})
        outputs = {name: array[finite] for name, array in outputs.items()}
        if feeds is calibration.selection and len(labels):
            labels = labels[finite]
    rows, selection = kept
    left_out = len(next(iter(calibration.rows.values()))) - len(next(iter(rows.values())))
    if left_out:
        console.say(f"export: {left_out} calibration rows left out: NaN or Inf in their outputs")
    return Calibration(rows, selection, labels, calibration.source), outputs


def judge(graph: onnx.ModelProto, wanted: Outputs, calibration: Calibration) -> tuple[float, ...]:
    """Returns the scores of a quantized graph, the most important first.

    They are 1 if its SQNR suffices for the verdict and 0 if not, since noise may raise the
    accuracy of a poorly trained model; its accuracy (0 to 1; 0 if the classes are not known); and
    the least SQNR of an output, in dB.

    Args:
        wanted: The float graph's outputs for the selection.
    """
    outputs = run(graph, calibration.selection)
    correct = 0.0
    if len(calibration.labels):
        first = next(iter(outputs.values()))
        correct = float((first.argmax(1) == calibration.labels).mean())
    ratios = []
    for name, array in wanted.items():
        exact = array.astype(np.float64)
        error = outputs[name].astype(np.float64) - exact
        ratios.append(accuracy.sqnr(*(float(np.sqrt(np.mean(x**2))) for x in (exact, error))))
    return float(min(ratios) >= limits.MIN_SQNR), correct, min(ratios)


def run(graph: onnx.ModelProto, feeds: Feeds) -> Outputs:
    """Returns the outputs of a graph, each node computed unfused, as the ONNX standard says."""
    import engines
    from exporters.onnx_files import write

    parts: dict[str, list[Array]] = {}
    with temporary.folder() as folder:
        path = folder / GRAPH.name
        write(graph, path)
        options = OpenOptions("cpu", threads=1, optimize=False)
        with closing(engines.get("onnxruntime").open(path, options)) as session:
            for start in range(0, len(next(iter(feeds.values()))), _BATCH):
                batch = {
                    name: np.ascontiguousarray(array[start : start + _BATCH])
                    for name, array in feeds.items()
                }
                for name, array in session.run(batch).items():
                    parts.setdefault(name, []).append(array)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}
