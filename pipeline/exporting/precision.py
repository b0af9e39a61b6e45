"""A model at a precision: cast, traced, and with what the precision cannot hold left in fp32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from engines.errors import DeployError
from exporters import cast, ranges
from exporters.module import Served, batch_for
from exporters.program import export_program
from exporters.type_mismatches import check_types
from exporters.wide_run import HALF_TYPES, WideRun
from pipeline.golden.file import EXTREMES
from pipeline.workflow import console, phases

if TYPE_CHECKING:
    from exporters.ranges import OutOfRange
    from pipeline.golden.rounding import AtPrecision
    from pipeline.golden.rows import Rows
    from pipeline.models import Model
    from pipeline.models.dynamic_axes import Range

_NAMED = 5  # how many values are printed of those kept in fp32


@dataclass(frozen=True)
class Cast:
    """A model at a precision.

    Attributes:
        module: The module at the precision.
        runs: What to run for the noise floor: the program with the precision's digits and the
            range of float32, or the module itself where nothing is rounded to a half type.
        program: Its torch.export program; None means that TorchScript has to trace the module.
        kept: Values that stay in fp32, since the precision cannot hold them.
        beyond: The edge cases, by number, that have values which the precision cannot hold.
    """

    module: Served
    runs: AtPrecision
    program: Any = None
    kept: tuple[OutOfRange, ...] = ()
    beyond: tuple[int, ...] = ()


def at_precision(
    model: Model,
    precision: str,
    rows: Rows,
    *,
    traced: bool,
    axes: Mapping[str, Sequence[Range]] = MappingProxyType({}),
) -> Cast:
    """Casts a model to a precision and keeps in fp32 what that cannot hold.

    Args:
        model: In fp32.
        rows: The golden inputs.
        axes: The dynamic axes of the inputs, besides the batch.
        traced: The module is for TorchScript, which keeps nothing in fp32.

    Raises:
        DeployError: torch.export cannot trace the model, or it mixes the precision with another;
            or the precision cannot hold its values, and TorchScript is to trace it.
    """
    dtype = cast.dtype_of(precision)
    module = Served(cast.cast_to_precision(model.network.eval(), precision), model.prepare, dtype)
    module.eval()
    if traced and dtype not in HALF_TYPES:
        return Cast(module, module)
    inputs = [torch.from_numpy(array) for array in rows.inputs.values()]
    phases.start("tracing the model")
    try:
        dynamic = {
            n: {part.axis: (part.name, part.low, part.high) for part in p} for n, p in axes.items()
        }
        examples = [tensor[:2] for tensor in inputs]
        program = export_program(module, examples, [*rows.inputs], dynamic)
    except DeployError:
        if not traced:
            raise
        return Cast(module, module)  # its range is judged by the graph
    if dtype not in HALF_TYPES:
        return Cast(module, module, program)
    check_types(program, dtype)
    extreme = np.isin(rows.cases, EXTREMES)  # of a thousandfold input, every layer may overflow
    usual = [tensor[~extreme] for tensor in inputs]
    size = batch_for(module.pixels, usual)

    def run(watched: Callable[..., object]) -> None:
        for start in range(0, len(usual[0]), size):
            watched(*(tensor[start : start + size].clone() for tensor in usual))

    phases.start(f"what {precision} cannot hold")
    originals = Served(model.network, model.prepare).state_dict()
    if traced and (lost := ranges.find(program, dtype, originals, run)):
        raise DeployError(
            f"--exporter torchscript keeps nothing in fp32, and {precision} cannot hold: {lost[0]}",
            "leave --exporter out, or export in a precision with the range of fp32",
        )
    program, kept = cast.keep_in_range(program, precision, originals, run)
    wide = WideRun(program, dtype, module.pixels)
    beyond = ranges.unfit_rows(wide, inputs, map(int, np.flatnonzero(extreme)))
    nodes = {value.node for value in kept}
    causes = [value for value in kept if not nodes.intersection(value.node.all_input_nodes)]
    for value in causes[:_NAMED]:
        console.say(f"export: kept in fp32: {value}")
    if len(kept) > len(causes[:_NAMED]):
        more = len(kept) - len(causes[:_NAMED])
        console.say(f"export: kept in fp32: {more} more values, most of them computed from these")
    return Cast(module, wide, None if traced else program, kept, beyond)
