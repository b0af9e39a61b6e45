"""The options of stage export, and what they may not be together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import UsageError
from exporters import PRECISIONS, QUANTIZED
from pipeline import models
from pipeline.exporting import option_checks
from pipeline.stages import data_option, model_option, precision_option
from pipeline.verification import limits
from pipeline.workflow.digests import require_file
from pipeline.workflow.stage import OptionRole, option

if TYPE_CHECKING:
    from pipeline.workflow.records import Record

EXPORTERS = ("dynamo", "torchscript")


@dataclass(frozen=True)
class Params:
    """Options of the stage."""

    model: str = model_option()
    precision: str = precision_option()
    exporter: str = option(
        EXPORTERS[0],
        text="dynamo is torch.export; torchscript is for models that it cannot trace.",
        names=lambda: [*EXPORTERS],
    )
    opset: int | None = option(
        None, text="ONNX opset, 18 to 23 [the exporter's own].", low=18, high=23
    )
    shape: tuple[str, ...] = option(
        (),
        text="Sizes of the inputs of an ONNX file, as in images=1x3x320x320; a size may be a range,"
        " LEAST:USUAL:LARGEST.",
    )
    data: str | None = data_option(None, as_trained=True)
    inputs: Path | None = option(
        None,
        text=".npz file of golden inputs, an array for each input [test images].",
        key=False,
    )
    golden_rows: int | None = option(
        None,
        text="Golden inputs besides the edge cases [256 test images; 16 generated ones without a"
        " data set].",
        low=2,
        high=100_000,
    )
    calibration: Path | None = option(
        None,
        text=f".npz file of inputs to calibrate on, for {', '.join(QUANTIZED)} [training images].",
        key=False,
        role=OptionRole(quantized=True),
    )
    max_drop: float = option(
        100 * limits.MAX_DROP,
        text="Accuracy that quantization may cost, in percentage points.",
        low=0,
        high=100,
        role=OptionRole(quantized=True),
    )
    calibrate_on_noise: bool = option(
        False,
        text="Calibrate a model without data on generated inputs. Their ranges may be far from"
        " those of real ones.",
        role=OptionRole(quantized=True),
    )


@dataclass(frozen=True)
class CommandOptions:
    """Options that only the command has."""

    weights: Path | None = option(
        None, text="Take the model's weights from this safetensors or torch file first."
    )
    weights_key: str | None = option(
        None,
        text="Take the tensors of --weights whose names begin with this, such as model_ema.",
        role=OptionRole(requires=("weights",), requires_hint="name the file with --weights"),
    )


def inherit(params: Params, explicit: frozenset[str], record: Record) -> Params:
    """Completes the sizes of an ONNX file's inputs by those of the last export.

    The rows of `--inputs` have sizes of their own.
    """
    if {"shape", "inputs"} & explicit:
        return params
    return dataclasses.replace(params, shape=tuple(record.params.get("shape", ())))


def resolve(params: Params) -> Params:
    """Fills in the model's own data set and the number of rows; checks files and options."""
    for path in (params.inputs, params.calibration):
        if path is not None:
            require_file(path, "give the path of an .npz file")
    if params.calibration is not None and not PRECISIONS[params.precision].quantized:
        raise UsageError(
            f"--calibration is for {' and '.join(QUANTIZED)}, not for {params.precision}",
            f"leave it out, or give --precision {QUANTIZED[0]}",
        )
    option_checks.check_opset(params)
    spec = models.get(params.model)
    _check_graph_options(params)
    option_checks.check_quantization(params, has_data=bool(params.data) or spec.trainable)
    data = params.data or spec.dataset
    return dataclasses.replace(params, data=data, golden_rows=_golden_rows(params, data))


def _golden_rows(params: Params, data: str | None) -> int | None:
    """Returns the number of golden rows; None if they are those of `--inputs`."""
    from pipeline.golden import rows

    if params.inputs is None:
        if models.graph_file(params.model) is not None:
            return params.golden_rows
        return params.golden_rows or (rows.WITHOUT_DATA if data is None else rows.WITH_DATA)
    if params.golden_rows is None or models.graph_file(params.model) is not None:
        return params.golden_rows
    raise UsageError(
        "--golden-rows does not apply to the rows of --inputs", "leave out one of the two options"
    )


def _check_graph_options(params: Params) -> None:
    """Raises UsageError for options that do not fit a model that is an ONNX file, or is none."""
    if models.graph_file(params.model) is None:
        if params.shape:
            raise UsageError(
                "--shape is for an ONNX file, onnx:FILE",
                "a PyTorch model says which axes are dynamic: assay.Model(dynamic=...)",
            )
        return
    from pipeline.golden import graph_rows

    graph_rows.parse(params.shape)
    for name, given in (
        ("exporter", params.exporter != EXPORTERS[0]),
        ("opset", params.opset is not None),
        ("data", params.data is not None),
    ):
        if given:
            raise UsageError(f"--{name} does not apply to an ONNX file", "leave it out")
