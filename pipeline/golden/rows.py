"""The golden inputs: real images or a user's own rows first, then cases that no data set has."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engines.contract import Array
from engines.errors import DeployError
from pipeline.golden import npz
from pipeline.golden.file import EXTREMES, IMAGE_EDGES, MADE_ROW
from pipeline.models import IMAGE

if TYPE_CHECKING:
    from torch import nn

    from pipeline.models import Model

# How many rows there are besides the edge cases, unless the user says otherwise.
WITH_DATA = 256
# Generated ones, without a data set. A large network takes a second for each in float64.
# With fewer, edge cases could set the usual scale of an output (`limits.USUAL_SCALE_QUANTILE`):
# some have outputs that are ten thousand times as large as those of usual images.
WITHOUT_DATA = 16


@dataclass(frozen=True)
class Rows:
    """Golden inputs.

    Attributes:
        inputs: By name, in the order of the arguments, `[rows, …]`.
        cases: A name for each row.
        labels: The classes of the first rows, `[images]`; empty if they are not known.
    """

    inputs: dict[str, Array]
    cases: tuple[str, ...]
    labels: Array


def of_test_set(images: Array, labels: Array, count: int = WITH_DATA) -> Rows:
    """Takes images spread over a test set, and adds edge cases.

    Args:
        count: How many images to take, if there are so many.
        images: uint8 `[count, channels, height, width]`.
        labels: Their classes, `[count]`.
    """
    chosen = np.linspace(0, len(images) - 1, min(count, len(images))).astype(np.int64)
    edges = edge_images(images.shape[1:])
    rows = np.concatenate([images[chosen], np.stack(list(edges.values()))])
    cases = tuple(f"test image {index}" for index in chosen) + tuple(edges)
    return Rows({IMAGE: rows}, cases, labels[chosen])


def without_test_set(
    model: Model, examples: Mapping[str, Array] | None, generated: int = WITHOUT_DATA
) -> Rows:
    """Takes a user's rows, or the model's own examples, and adds random rows and edge cases.

    Args:
        generated: How many random rows to add. Images that a user gives get edge cases alone.
        examples: Inputs by name, `[rows, …]`; None means the model's own.

    Raises:
        DeployError: There are no examples, or they do not fit the model.
    """
    inputs = _named(model, examples) if examples is not None else dict(model.inputs)
    _check_names(model, tuple(inputs))
    if not inputs and model.image is None:
        raise DeployError(
            "the model declares neither example inputs nor an image shape",
            "give --inputs FILE.npz with one array for each argument, or return an"
            " assay.Model with `inputs` from the factory, or images with --data FOLDER",
        )
    check_rows(inputs)
    count = len(next(iter(inputs.values()))) if inputs else 0
    parts = [(inputs, tuple(f"example {index}" for index in range(count)))] if inputs else []
    if model.image is not None:
        if examples is None:
            images = made_images(model.image, generated)
            names = tuple(f"made image {index}" for index in range(generated))
            parts.append(({IMAGE: images}, names))
        edges = edge_images(model.image)
        parts.append(({IMAGE: np.stack(list(edges.values()))}, tuple(edges)))
    else:
        names = tuple(f"{MADE_ROW} {index}" for index in range(generated))
        parts += [(made_like(inputs, generated), names), (extremes(inputs), EXTREMES)]
    joined = {
        name: np.ascontiguousarray(np.concatenate([part[name] for part, _ in parts]))
        for name in parts[0][0]
    }
    cases = tuple(name for _, names in parts for name in names)
    return Rows(joined, cases, np.zeros(0, np.int64))


def read(path: Path, option: str = "--inputs") -> dict[str, Array]:
    """Reads arrays by name from an .npz file that an option names.

    Raises:
        DeployError: The file cannot be read as .npz, or an array is not numeric.
    """
    try:
        arrays = npz.read(path)
    except ValueError as error:
        raise DeployError(
            f"{option} {path} cannot be read: {error}",
            "write it with numpy.savez(FILE, name=array, …), one array for each argument",
        ) from error
    except DeployError as error:
        raise DeployError(f"{option} {error.message}", error.hint) from error
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise DeployError(
                f"{option} {path}: {name} is {array.dtype}, not numbers",
                "give arrays of floats, integers or booleans",
            )
    return arrays


def _named(model: Model, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Returns arrays in the order of the arguments that they are named after.

    Raises:
        DeployError: A name is missing or unknown, or a shape or dtype is not the model's.
    """
    first = model.prepare if model.prepare is not None else model.network
    wanted = [IMAGE] if model.image is not None else list(model.inputs) or _arguments(first, arrays)
    if sorted(arrays) != sorted(wanted):
        raise DeployError(
            f"--inputs has {', '.join(arrays) or 'nothing'}, but the model takes"
            f" {', '.join(wanted)}",
            "give one array for each input, under its name",
        )
    ordered = {name: arrays[name] for name in wanted}
    examples = dict(model.inputs)
    if model.image is not None:
        examples.setdefault(IMAGE, np.zeros((1, *model.image), np.uint8))
    for name, example in examples.items():
        array = ordered[name]
        if (array.dtype, array.shape[1:]) != (example.dtype, example.shape[1:]):
            raise DeployError(
                f"--inputs: {name} is {array.dtype}{list(array.shape)}, but the model takes"
                f" {example.dtype}[rows, {', '.join(map(str, example.shape[1:]))}]"
            )
    return ordered


def _check_names(model: Model, names: tuple[str, ...]) -> None:
    """Raises DeployError unless the inputs are the first arguments, in their order.

    Inputs are passed by position, so another order would be another computation. A single input
    may have any name.
    """
    first = model.prepare if model.prepare is not None else model.network
    parameters = inspect.signature(first.forward).parameters.values()
    known = tuple(parameter.name for parameter in parameters)
    variadic = any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters)
    if not (variadic or len(names) <= 1 or names == known[: len(names)]):
        raise DeployError(
            f"the inputs are {', '.join(names)}, but the arguments of"
            f" {type(first).__name__}.forward are {', '.join(known)}",
            "name each input after its argument, in their order, and leave none out in between",
        )


def _arguments(module: nn.Module, examples: Mapping[str, Array]) -> list[str]:
    """Returns the names of forward's arguments without a default, and of those in `examples`."""
    parameters = inspect.signature(module.forward).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        return list(examples)
    return [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty or parameter.name in examples
    ]


def check_rows(inputs: Mapping[str, Array]) -> None:
    """Raises DeployError unless the inputs are finite and have the same number of rows."""
    counts = {name: len(array) if array.ndim else 0 for name, array in inputs.items()}
    if inputs and (len(set(counts.values())) != 1 or 0 in counts.values()):
        sizes = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DeployError(
            f"the inputs have different numbers of rows, or none: {sizes}",
            "the first axis of every input is the batch",
        )
    for name, array in inputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DeployError(f"input {name} has NaN or Inf", "remove those rows")


def made_like(
    inputs: Mapping[str, Array],
    count: int,
    seed: int = 0,
    sizes: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, Array]:
    """Returns random rows with the examples' mean and deviation.

    Integers stay within the range of the examples: an index outside it might be invalid.

    Args:
        sizes: The shapes of a row, if not those of the examples.
    """
    random = np.random.default_rng(seed)
    columns = {}
    for name, array in inputs.items():
        shape = (count, *(array.shape[1:] if sizes is None else sizes[name]))
        values: Array
        if array.dtype.kind == "f":
            wide = array.astype(np.float64)  # its own type may not hold the sums
            scale = float(np.abs(wide).max()) or 1.0
            mean, deviation = (wide / scale).mean() * scale, (wide / scale).std() * scale
            values = random.normal(mean, deviation or 1.0, shape)
        elif array.dtype.kind == "b":
            values = random.integers(0, 2, shape)
        else:
            values = random.integers(array.min(), array.max(), shape, array.dtype, endpoint=True)
        columns[name] = values.astype(array.dtype)
    return columns


def extremes(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Returns one row for each case of EXTREMES, by input name."""
    columns = {}
    for name, array in inputs.items():
        first, last = array[:1], np.zeros_like(array[:1])
        if array.dtype.kind == "f":
            with np.errstate(over="ignore"):
                candidates = [last, first / 1000, first * 1000]
            rows = [np.nan_to_num(candidate.astype(array.dtype)) for candidate in candidates]
        elif array.dtype.kind == "b":
            rows = [last, ~first, ~last]
        else:
            rows = [np.full_like(first, array.min()), first, np.full_like(first, array.max())]
        columns[name] = np.concatenate(rows)
    return columns


def made_rows(model: Model, count: int, seed: int) -> dict[str, Array]:
    """Returns random inputs of a model, `[count, …]`, by name."""
    if model.image is not None:
        return {IMAGE: made_images(model.image, count, seed)}
    return made_like(model.inputs, count, seed)


def made_images(shape: tuple[int, int, int], count: int, seed: int = 0) -> Array:
    """Returns uint8 images `[count, *shape]`, coarse and fine noise mixed, as in photographs.

    To a network, all images of white noise alone would look the same.
    """
    random = np.random.default_rng(seed)
    channels, height, width = shape
    total = np.zeros((count, *shape))
    for cells in (2, 4, 8, 16, 32):
        rows, columns = min(cells, height), min(cells, width)
        coarse = random.uniform(-1, 1, (count, channels, rows, columns)) / cells**0.5
        up = np.arange(height) * rows // height
        across = np.arange(width) * columns // width
        total += coarse[:, :, up][:, :, :, across]
    low, high = total.min(axis=(1, 2, 3)), total.max(axis=(1, 2, 3))
    spread = (high - low)[:, None, None, None]
    scaled: Array = (total - low[:, None, None, None]) / spread * 255
    return scaled.round().astype(np.uint8)


def edge_images(shape: tuple[int, ...], seed: int = 0) -> dict[str, Array]:
    """Returns uint8 images of `shape` that no test set has, by the name of the case."""
    _, height, width = shape
    single = np.zeros(shape, np.uint8)
    single[:, height // 2, width // 2] = 255
    rows, columns = np.indices((height, width))
    checkerboard = np.broadcast_to(((rows + columns) % 2 * 255).astype(np.uint8), shape)
    ramp = np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8), shape)
    noise = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    black, white = np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)
    return dict(zip(IMAGE_EDGES, (black, white, single, checkerboard, ramp, noise), strict=True))
