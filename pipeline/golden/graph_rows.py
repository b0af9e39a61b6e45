"""Golden inputs of an ONNX graph: the user's rows, generated ones, and rows of several sizes."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from engines.contract import Array, TensorSpec
from engines.errors import DeployError, UsageError, suggestion
from pipeline.golden import rows as golden_rows
from pipeline.golden.file import EXTREMES, MADE_ROW
from pipeline.golden.graph_ranges import SizedRows

# The least, the usual and the largest size of each axis.
Shape = tuple[tuple[int, int, int], ...]
# Generated rows of the usual size, and of each other.
MADE, _MADE_OTHER = 8, 4
_IMAGE_AXES = 4
_CHANNELS = (1, 3, 4)
_LARGEST_SIZE = 2**31


def parse(words: Sequence[str]) -> dict[str, Shape]:
    """Returns shapes by input from words such as "images=1x3x320x320".

    A size may be a range, as in "images=1x3x320:640:960x640": the least, the usual, the largest.

    Raises:
        UsageError: A word has another form.
    """
    shapes = {}
    start = ""
    for part in words:
        word = f"{start}{part}"
        start = f"{word}," if "=" not in word else ""
        if start and part is not words[-1]:
            continue  # the name has a comma
        name, _, text = word.rpartition("=")
        try:
            parts = [[*map(int, axis.split(":"))] for axis in text.split("x")] if text else []
        except ValueError:
            parts = [[]]
        axes = [part * 3 if len(part) == 1 else part for part in parts]
        for index, axis in enumerate(axes):
            if len(axis) != 3 or not all(1 <= size < _LARGEST_SIZE for size in axis):  # noqa: PLR2004
                raise UsageError(
                    f"--shape {word!r} is not the name and shape of an input",
                    "write NAME=1x3x320x320; a size may be a range, LEAST:USUAL:LARGEST, as in"
                    " NAME=1x3x320:640:960x320:640:960",
                )
            if not axis[0] <= axis[1] <= axis[2]:
                least, usual, largest = sorted(axis)
                raise UsageError(
                    f"--shape {word!r}: axis {index} of {name or 'the input'} is"
                    f" {':'.join(map(str, axis))}, but a range is LEAST:USUAL:LARGEST",
                    f"write {least}:{usual}:{largest}",
                )
        if not name:
            raise UsageError(f"--shape {word!r} names no input", "write NAME=1x3x320x320")
        shapes[name] = tuple((axis[0], axis[1], axis[2]) for axis in axes)
    return shapes


def rows(
    specs: Sequence[TensorSpec],
    shapes: Mapping[str, Shape],
    file: Path | None,
    count: int = MADE,
    *,
    batched: bool,
) -> tuple[SizedRows, ...]:
    """Returns rows of the usual size, and of the least and the largest where they differ.

    Args:
        specs: The inputs of the graph.
        shapes: By input, the sizes of its axes.
        file: An .npz file with rows, `[rows, …]`; without a batch axis also one run, `[…]`.
        count: Generated rows of the usual size.
        batched: The first axis of all inputs is the batch; a row has the other axes.

    Raises:
        UsageError: An input is unknown, a shape does not fit, or a size is not given.
        DeployError: The file cannot be used.
    """
    for spec in specs:
        if 0 in spec.shape:
            raise DeployError(
                f"input {spec} holds nothing, since an axis has size 0",
                "judge a graph whose inputs hold numbers",
            )
    _check_shapes(specs, shapes)
    from_file = {} if file is None else _read(specs, file, batched=batched)
    _check_sized(specs, shapes.keys() | from_file.keys(), 1 if batched else 0)
    sizes = {
        spec.name: _sizes(spec, shapes.get(spec.name), from_file.get(spec.name), batched=batched)
        for spec in specs
    }
    usual = {name: tuple(size for _, size, _ in axes) for name, axes in sizes.items()}
    examples = from_file or {
        spec.name: made(spec, usual[spec.name], count, seed=0) for spec in specs
    }
    known = len(next(iter(examples.values()))) if examples else 0
    prefix = "example" if from_file else MADE_ROW
    cases = [f"{prefix} {index}" for index in range(known)]
    parts = [examples]
    if from_file:
        parts.append(golden_rows.made_like(examples, count, seed=0))
        cases += [f"{MADE_ROW} {index}" for index in range(count)]
    parts.append(golden_rows.extremes(examples))
    joined = {
        spec.name: np.ascontiguousarray(np.concatenate([part[spec.name] for part in parts]))
        for spec in specs
    }
    sized = [SizedRows(joined, (*cases, *EXTREMES))]
    for end, word in ((0, "least"), (2, "largest")):
        other = {name: tuple(axis[end] for axis in axes) for name, axes in sizes.items()}
        if other != usual:
            arrays = {
                spec.name: made(spec, other[spec.name], _MADE_OTHER, seed=end + 1, like=examples)
                for spec in specs
            }
            names = tuple(f"{MADE_ROW} of the {word} size {n}" for n in range(_MADE_OTHER))
            sized.append(SizedRows(arrays, names))
    return tuple(sized)


def _check_shapes(specs: Sequence[TensorSpec], shapes: Mapping[str, Shape]) -> None:
    known = {spec.name: spec for spec in specs}
    for name, axes in shapes.items():
        if name not in known:
            raise UsageError(
                f"--shape: the graph has no input {name!r}", suggestion(name, [*known])
            )
        fixed = known[name].shape
        fits = len(axes) == len(fixed) and all(
            size is None or axis == (size,) * 3 for size, axis in zip(fixed, axes, strict=True)
        )
        if not fits:
            raise UsageError(
                f"--shape {name}={_written(axes)} does not fit {known[name]}",
                "give a size for each axis, those of the graph where it has them",
            )


def _check_sized(specs: Sequence[TensorSpec], known: Collection[str], first: int) -> None:
    """Raises UsageError, with all sizes to give, if the size of an axis is not known.

    Args:
        known: The inputs whose sizes are.
        first: The number of the first axis of a row.
    """
    missing = [spec for spec in specs if spec.name not in known and None in spec.shape[first:]]
    if not missing:
        return
    words = [
        f"{spec.name}="
        + "x".join(
            str(size or 1 if axis < first or size else "SIZE")
            for axis, size in enumerate(spec.shape)
        )
        for spec in missing
    ]
    many = len(missing) > 1
    raise UsageError(
        f"{'inputs' if many else 'input'} {', '.join(map(str, missing))}"
        f" {'have' if many else 'has'} axes of any size",
        f"say which: --shape {shlex.quote(','.join(words))}, where a SIZE is a number or a range"
        " LEAST:USUAL:LARGEST; or give --inputs FILE.npz",
    )


def _written(axes: Shape) -> str:
    return "x".join(
        str(low) if low == high else f"{low}:{usual}:{high}" for low, usual, high in axes
    )


def _sizes(spec: TensorSpec, shape: Shape | None, example: Array | None, *, batched: bool) -> Shape:
    """Returns the sizes of the axes of a row."""
    first = 1 if batched else 0
    if shape is not None:
        if example is not None and example.shape[1:] != tuple(axis[1] for axis in shape[first:]):
            raise UsageError(
                f"--inputs has {spec.name} of {list(example.shape[1:])}, but --shape says"
                f" {_written(shape[first:])}",
                "give inputs of the usual size",
            )
        return shape[first:]
    if example is not None:
        return tuple((size, size, size) for size in example.shape[1:])
    return tuple((size or 1,) * 3 for size in spec.shape[first:])


def _read(specs: Sequence[TensorSpec], file: Path, *, batched: bool) -> dict[str, Array]:
    """Returns the rows of a file by input, `[rows, …]`."""
    arrays = golden_rows.read(file)
    if sorted(arrays) != sorted(spec.name for spec in specs):
        raise DeployError(
            f"--inputs has {', '.join(arrays) or 'nothing'}, but the graph takes"
            f" {', '.join(spec.name for spec in specs)}",
            "give one array for each input, under its name",
        )
    ordered = {}
    for spec in specs:
        array = arrays[spec.name]
        row = spec.shape[1:] if batched else spec.shape
        if not batched and array.ndim == len(row):
            array = array[np.newaxis]  # the inputs of one run
        fits = array.ndim == len(row) + 1 and all(
            size in (None, actual) for size, actual in zip(row, array.shape[1:], strict=True)
        )
        if array.dtype.name != spec.dtype or not fits:
            raise DeployError(
                f"--inputs: {spec.name} is {arrays[spec.name].dtype}"
                f"{list(arrays[spec.name].shape)}, but the graph takes {spec}",
                "give rows of the dtype and shape that the graph takes",
            )
        ordered[spec.name] = array
    golden_rows.check_rows(ordered)
    return ordered


def made(
    spec: TensorSpec,
    size: Sequence[int],
    count: int,
    seed: int,
    like: Mapping[str, Array] | None = None,
) -> Array:
    """Returns random rows `[count, *size]` of an input.

    Bytes and floats that look like images, with 1, 3 or 4 channels first, are coarse and fine
    noise, floats from 0 to 1. Other floats are normally distributed, and integers are 0 or 1: an
    index into a table may not be larger. With `like`, values have the mean and deviation, or the
    range, of those rows.
    """
    if like is not None and (spec.name in like) and np.dtype(spec.dtype).kind != "f":
        known = like[spec.name]
        low, high = int(known.min()), int(known.max())
    else:
        low, high = 0, 1
    random = np.random.default_rng([seed, *spec.name.encode()])
    shape = (count, *size)
    kind = np.dtype(spec.dtype).kind
    if len(size) in (_IMAGE_AXES - 1, _IMAGE_AXES):
        channels, height, width = size[-3:]
        if channels in _CHANNELS and height * width > 1 and (kind == "f" or spec.dtype == "uint8"):
            several = count * math.prod(size[:-3])
            images = golden_rows.made_images((channels, height, width), several, seed)
            scaled = images if kind != "f" else images.astype(np.float64) / 255
            return scaled.reshape(shape).astype(spec.dtype)
    if kind != "f":
        return random.integers(low, high, shape, endpoint=True).astype(spec.dtype)
    if like is not None and spec.name in like:
        example = like[spec.name].astype(np.float64)
        return random.normal(example.mean(), example.std() or 1.0, shape).astype(spec.dtype)
    return random.standard_normal(shape).astype(spec.dtype)
