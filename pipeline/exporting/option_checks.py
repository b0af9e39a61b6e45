"""Checks that the options of an export suit each other, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from engines.errors import UsageError
from exporters import PRECISIONS, QUANTIZED
from pipeline.verification import limits

_TORCHSCRIPT_OPSET = 20  # the last one that TorchScript's exporter knows


class ExportOptions(Protocol):
    """Options of the stage `export`; see its `Params`."""

    @property
    def model(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def exporter(self) -> str: ...
    @property
    def opset(self) -> int | None: ...
    @property
    def calibration(self) -> Path | None: ...
    @property
    def max_drop(self) -> float: ...
    @property
    def calibrate_on_noise(self) -> bool: ...


def check_opset(params: ExportOptions) -> None:
    """Raises UsageError if the precision or the exporter does not have the opset."""
    if params.opset is None:
        return
    least = PRECISIONS[params.precision].opset or params.opset
    if params.opset < least:
        raise UsageError(
            f"--precision {params.precision} needs --opset {least} or later, not {params.opset}",
            "give a later --opset, or leave it out",
        )
    if params.exporter == "torchscript" and params.opset > _TORCHSCRIPT_OPSET:
        raise UsageError(
            f"--exporter torchscript writes --opset {_TORCHSCRIPT_OPSET} at most, not"
            f" {params.opset}",
            "give an earlier --opset, or leave it out",
        )


def check_quantization(params: ExportOptions, *, has_data: bool) -> None:
    """Checks the options of quantization.

    Generated inputs are used for calibration if, and only if, there are no others.

    Raises:
        UsageError: An option does not fit the model or the other options.
    """
    quantized = PRECISIONS[params.precision].quantized
    others = has_data or params.calibration is not None
    if quantized and not others and not params.calibrate_on_noise:
        raise UsageError(
            f"{params.precision} needs usual inputs to calibrate on, but {params.model} has no"
            " data",
            "give --calibration FILE.npz with an array of real rows for each input;"
            " --calibrate-on-noise takes generated ones",
        )
    if not quantized and params.max_drop != 100 * limits.MAX_DROP:
        raise UsageError(
            f"--max-drop is for {' and '.join(QUANTIZED)}, not for {params.precision}",
            "leave it out",
        )
    if params.calibrate_on_noise and (others or not quantized):
        why = "there are real inputs" if quantized else f"{params.precision} is not calibrated"
        raise UsageError(f"--calibrate-on-noise does not apply: {why}", "leave it out")
