"""The axes of a model's inputs, besides the batch, that may have several sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from engines.errors import DeployError
from pipeline.models import Model

_FORM = 'write {"image": {2: ("height", 64, 512)}}: by input and axis, a name and two sizes'


@dataclasses.dataclass(frozen=True)
class Range:
    """The sizes of an axis.

    Attributes:
        axis: Counted from 0, the batch.
        name: Axes of one name have equal sizes.
        low: The least size.
        high: The largest size.
    """

    axis: int
    name: str
    low: int
    high: int


def ranges(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[Range, ...]]:
    """Returns the dynamic axes of a model by input.

    Args:
        shapes: By input, the usual shape with the batch.

    Raises:
        DeployError: `Model.dynamic` is malformed, or does not fit the inputs.
    """
    known: dict[str, tuple[Range, ...]] = {}
    by_name: dict[str, tuple[tuple[int, int, int], str]] = {}
    if not isinstance(model.dynamic, Mapping):
        raise DeployError(f"Model.dynamic is a {type(model.dynamic).__name__}", _FORM)
    for name, axes in model.dynamic.items():
        if name not in shapes:
            raise DeployError(
                f"Model.dynamic names the input {name!r}, but the model takes {', '.join(shapes)}",
                _FORM,
            )
        if not isinstance(axes, Mapping):
            raise DeployError(f"Model.dynamic has {axes!r} for {name!r}", _FORM)
        parts = [_range(name, axis, entry) for axis, entry in axes.items()]
        known[name] = tuple(sorted(parts, key=lambda part: part.axis))
        for part in known[name]:
            shape = shapes[name]
            if not 1 <= part.axis < len(shape):
                raise DeployError(
                    f"Model.dynamic: axis {part.axis} of {name!r}, whose axes are 0, the batch, to"
                    f" {len(shape) - 1}",
                    "the batch is always dynamic; name another axis",
                )
            usual = shape[part.axis]
            sizes = (part.low, usual, part.high)
            if not part.low <= usual <= part.high:
                raise DeployError(
                    f"Model.dynamic: {part.name} is {part.low} to {part.high}, but the example of"
                    f" {name!r} has {usual}",
                    "give an example of a usual size, between the two",
                )
            other, place = by_name.setdefault(part.name, (sizes, f"axis {part.axis} of {name!r}"))
            if other != sizes:
                raise DeployError(
                    f"Model.dynamic: {part.name!r} is {part.low} to {part.high}, usually {usual},"
                    f" as axis {part.axis} of {name!r}, but {other[0]} to {other[2]}, usually"
                    f" {other[1]}, as {place}",
                    "axes of one name have the same sizes; give others another name",
                )
    return known


def _range(name: str, axis: Any, entry: Any) -> Range:
    fits = (
        type(axis) is int
        and isinstance(entry, tuple | list)
        and [type(part) for part in entry] == [str, int, int]
    )
    if not fits or not str(entry[0]).isidentifier() or min(entry[1:]) < 1:
        raise DeployError(f"Model.dynamic has {axis!r}: {entry!r} for {name!r}", _FORM)
    if entry[1] > entry[2]:
        raise DeployError(
            f"Model.dynamic: {entry[0]}, axis {axis} of {name!r}, is {entry[1]} to {entry[2]}, but"
            " the least size comes first",
            f'write {axis}: ("{entry[0]}", {entry[2]}, {entry[1]})',
        )
    return Range(axis, *entry)


def other_shapes(
    model: Model, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Returns the shapes of the least and of the largest size, where these are not the usual ones.

    Args:
        shapes: By input, the usual shape with the batch.
    """
    others = {}
    known = ranges(model, shapes)
    for word in ("least", "largest"):
        other = {}
        for name, shape in shapes.items():
            sizes = {p.axis: p.low if word == "least" else p.high for p in known.get(name, ())}
            other[name] = tuple(sizes.get(axis, size) for axis, size in enumerate(shape))
        if other != dict(shapes):
            others[word] = other
    return others
