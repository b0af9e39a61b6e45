"""What a quantized graph is calibrated on, and how well it does."""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engines.contract import Array, Feeds, OpenOptions, Outputs
from pipeline.golden import rows
from pipeline.models import IMAGE
from pipeline.verification import accuracy, limits
from pipeline.workflow.artifacts import GRAPH

if TYPE_CHECKING:
    import onnx

    from pipeline.models import Model

# Rows from which the ranges of activations are taken, and others by which a method is chosen.
CALIBRATE, SELECT = 128, 256
_BATCH = 32


@dataclass(frozen=True)
class Calibration:
    """Rows to quantize by. Never those that the graph is judged by afterwards.

    Attributes:
        rows: By input name: the ranges of activations are taken from them.
        selection: Others: the method that does best on them is chosen.
        labels: The classes of `selection`, `[rows]`; empty if they are not known.
        source: Where they come from, in words.
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
    wanted = min(CALIBRATE + SELECT, len(images))
    chosen = np.linspace(0, len(images) - 1, wanted).astype(np.int64)
    first = np.arange(wanted) % 3 == 0
    ranges, selection = chosen[first], chosen[~first]
    return Calibration(
        {IMAGE: images[ranges]},
        {IMAGE: images[selection]},
        labels[selection],
        f"{len(ranges)} training images",
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


def made(model: Model) -> Calibration:
    """Takes a model's own samples to train on, or rows made for it."""
    names = tuple(model.inputs)
    if model.samples is not None and len(names) == 1:
        return of_rows({names[0]: model.samples[0][: CALIBRATE + SELECT]}, "the model's samples")
    return of_rows(rows.made_rows(model, CALIBRATE, seed=1), "generated inputs")


def judge(graph: onnx.ModelProto, wanted: Outputs, calibration: Calibration) -> tuple[float, ...]:
    """Returns how good a quantized graph is, the most important first.

    That is whether its SQNR is enough for the verdict (1 or 0), since a model that is not trained
    well may gain accuracy by noise; its accuracy (0 to 1; 0 if classes are not known); and the
    least SQNR of an output, in dB.

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
    """Returns what a graph gives, each node computed as the ONNX standard says, unfused."""
    import engines
    from exporters.onnx_files import write

    parts: dict[str, list[Array]] = {}
    with tempfile.TemporaryDirectory(prefix="assay-") as folder:
        path = Path(folder) / GRAPH.name
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
