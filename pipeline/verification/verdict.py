"""The verdict: is an engine's error no larger than the model's own rounding noise?

With r the float64 PyTorch output, p PyTorch's output at the graph's precision and y the
engine's, the noise floor of a row is the error of p against r on it (`noise_floor`). An
engine passes if the error of y against r, in units of each row's floor, is at most
`limits.MAX_RMS_IN_FLOORS` as root mean square over the rows, and at most
`limits.MAX_ERROR_IN_FLOORS` on any one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from engines.contract import Array, Outputs, Session, TensorSpec
from exporters import PRECISIONS
from pipeline.golden import noise
from pipeline.golden.file import Reference
from pipeline.verification import accuracy, limits, noise_floor
from pipeline.verification.batches import Calls, batch_sizes, run_rows
from pipeline.verification.flips import Flips, count_flips, flip_faults
from pipeline.verification.noise_floor import in_floors
from pipeline.verification.vacuous import is_constant, why_vacuous
from pipeline.verification.weight_audit import Audit

# The fact of a verdict that names the types in which the engine's products compute.
COMPUTED_IN = "computed in"

Status = Literal["pass", "mismatch", "vacuous", "not run", "crashed", "failed"]


@dataclass(frozen=True)
class OutputVerdict:
    """How far one output lies from float64.

    Attributes:
        rms: Root mean square of y - r, over all rows and batch sizes, in the output's own unit.
        rms_ratio: Root mean square over the rows of their errors in units of their floors, at
            the batch size where it is largest.
        max: Largest |y - r|, in the output's own unit.
        max_ratio: The largest error of any row in units of its floor.
        scale: Root mean square of r.
        worst: The case with the largest error in units of its floor.
        faults: What is wrong, in words; empty if nothing is.
        size: The sizes of the inputs, where the output is compared at several; else "".
        vacuous: Why comparing the output proves nothing, in words; empty if it proves something.
        constant: It is the same for every input: it has to match, but alone it proves nothing.
        incomparable: How many golden rows rounding alone moves too far to compare.
        overflowing: How many of these overflow at the precision, in some of the runs that measure
            the noise.
        sqnr: Signal to quantization noise ratio in dB, without edge cases; None unless the graph
            is quantized.
    """

    name: str
    rms: float
    rms_ratio: float
    max: float
    max_ratio: float
    scale: float
    worst: str
    faults: tuple[str, ...] = ()
    size: str = ""
    vacuous: str = ""
    constant: bool = False
    incomparable: int = 0
    overflowing: int = 0
    sqnr: float | None = None

    @property
    def label(self) -> str:
        """Its name, and the size at which it is compared."""
        return f"{self.name} at {self.size}" if self.size else self.name


@dataclass(frozen=True)
class Verdict:
    """Whether a graph or engine equals the PyTorch model, and by how much.

    Attributes:
        subject: What was judged, such as "graph" or "onnxruntime".
        k: `limits.MAX_RMS_IN_FLOORS` and `limits.MAX_ERROR_IN_FLOORS` at the time.
        batches: The batch sizes that were run.
        audit: The weight audit; None unless the subject is an ONNX graph.
        reason: Why it was not run, crashed or failed; empty on a pass.
        facts: The engine's fingerprint and the device it ran on.
        max_drop: The accuracy that quantization might cost, as a fraction of the images.
    """

    subject: str
    status: Status
    precision: str
    k: tuple[float, float] = field(
        default_factory=lambda: (limits.MAX_RMS_IN_FLOORS, limits.MAX_ERROR_IN_FLOORS)
    )
    batches: tuple[int, ...] = ()
    outputs: tuple[OutputVerdict, ...] = ()
    flips: Flips | None = None
    audit: Audit | None = None
    reason: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    max_drop: float | None = None


def _rms(array: Array) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))


def judge(
    subject: str,
    session: Session,
    golden: Reference,
    test: dict[str, Array] | None = None,
    *,
    sizes: tuple[int, ...] = (),
) -> Verdict:
    """Judges a session against a reference.

    Args:
        session: The engine or graph.
        test: The inputs of the whole test set, by name. Without them top-1 is compared on
            the golden file's own images.
        sizes: The batch sizes to run the golden rows at; by default those of `batch_sizes`.
    """
    faults = signature_faults(session.inputs, session.outputs, golden)
    if not golden.batched:
        session = Calls(session)
    sizes = sizes or batch_sizes(len(golden.cases), session.batch)
    outputs: tuple[OutputVerdict, ...] = ()
    flips = None
    if not faults:
        runs = [run_rows(session, golden, size) for size in sizes]
        outputs = _judge_outputs(golden, runs, golden.size if golden.others else "")
        for other in golden.others:
            at = batch_sizes(len(other.cases), session.batch)
            outputs += _judge_outputs(other, [run_rows(session, other, n) for n in at], other.size)
        faults = [f"{output.label}: {fault}" for output in outputs for fault in output.faults]
        if not faults and golden.logits:
            flips = count_flips(session, golden, sizes[-1], test, runs[-1])
        if not faults and PRECISIONS[golden.precision].quantized:
            faults = _quantization_faults(outputs, flips, golden.max_drop)
        elif flips is not None:
            faults = flip_faults(flips)
    status: Status = "mismatch" if faults else "pass"
    vacuous = [output for output in outputs if output.vacuous]
    # A constant output beside others was compared, and it matches.
    if len(vacuous) < len(outputs):
        vacuous = [output for output in vacuous if not output.constant]
    unproved = [f"{output.label} {output.vacuous}" for output in vacuous]
    if test is not None and PRECISIONS[golden.precision].quantized:
        lost = None if flips is None else flips.drop
        unproved += (
            []
            if flips is None or lost is None
            else accuracy.doubts(flips.images, lost, golden.max_drop)
        )
    if not faults and unproved:
        status = "vacuous"
        faults = unproved
    return Verdict(
        subject=subject,
        status=status,
        precision=golden.precision,
        batches=sizes,
        outputs=outputs,
        flips=flips,
        reason="; ".join(faults),
        max_drop=golden.max_drop if PRECISIONS[golden.precision].quantized else None,
    )


def judge_rows(golden: Reference, rows: Array, outputs: Outputs) -> tuple[OutputVerdict, ...]:
    """Judges the outputs of some golden rows alone, as a server answers them.

    Args:
        rows: The indices of the rows, `[count]`; enough of them that their mean is one of many.
        outputs: By name, `[count, …]`.
    """
    return _judge_outputs(golden, [(rows, outputs)], "")


def signature_faults(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], golden: Reference
) -> list[str]:
    """Returns how inputs and outputs differ from the golden file's, in words.

    An axis may be dynamic that has one size in the golden file.
    """
    sides = (
        ("inputs", inputs, golden.input_specs),
        ("outputs", outputs, golden.output_specs),
    )
    return [
        f"{side} are {', '.join(map(str, specs))}; expected {', '.join(map(str, wanted))}"
        for side, specs, wanted in sides
        if len(specs) != len(wanted)
        or not all(any(spec.accepts(other) for spec in specs) for other in wanted)
    ]


def _judge_outputs(
    golden: Reference, runs: Sequence[tuple[Array, Outputs]], size: str
) -> tuple[OutputVerdict, ...]:
    return tuple(replace(_judge_output(name, golden, runs), size=size) for name in golden.reference)


def _judge_output(
    name: str, golden: Reference, runs: Sequence[tuple[Array, Outputs]]
) -> OutputVerdict:
    wanted = golden.native[name].dtype.name
    reference = golden.reference[name]
    floor = noise_floor.floor(reference, golden.noise[name], golden.precision)
    faults: list[str] = []
    errors: list[Array] = []
    rms_ratio, max_ratio, worst = 0.0, 0.0, ""
    for rows, outputs in runs:
        actual, expected = outputs[name], reference[rows]
        if actual.shape != expected.shape or actual.dtype.name != wanted:
            faults.append(
                f"gives {actual.dtype.name}{list(actual.shape)} where"
                f" {wanted}{list(expected.shape)} was expected"
            )
            continue
        bad = ~np.isfinite(noise.by_row(actual)).all(axis=1)
        if bad.any():
            case = golden.cases[rows[int(bad.argmax())]]
            faults.append(f"has NaN or Inf in {int(bad.sum())} of {len(rows)} rows, as on {case}")
            continue
        if is_constant(actual) and not is_constant(expected):
            faults.append("does not depend on the input")
        error = noise.difference(actual, expected)
        errors.append(error)
        judged = floor.comparable[rows]
        if not judged.any():
            continue
        rms_by_row = np.sqrt(np.mean(np.square(error), axis=1))
        rms_ratio = max(rms_ratio, _rms(in_floors(rms_by_row, floor.rms[rows])[judged]))
        largest = in_floors(np.abs(error).max(axis=1), floor.max[rows]) * judged
        if largest.max() >= max_ratio:
            max_ratio, worst = float(largest.max()), golden.cases[rows[int(largest.argmax())]]
    if max_ratio >= noise_floor.UNBOUNDED:
        faults.append(f"differs where rounding changes nothing, as on {worst}")
    else:
        if rms_ratio > limits.MAX_RMS_IN_FLOORS:
            faults.append(
                f"rms error is {rms_ratio:.1f} times the noise floor,"
                f" {limits.MAX_RMS_IN_FLOORS:g} allowed"
            )
        if max_ratio > limits.MAX_ERROR_IN_FLOORS:
            faults.append(
                f"largest error is {max_ratio:.1f} times the noise floor,"
                f" {limits.MAX_ERROR_IN_FLOORS:g} allowed (on {worst})"
            )
    quantized = PRECISIONS[golden.precision].quantized
    overflowing = noise.overflowed(golden.noise[name])
    every = np.concatenate([error.ravel() for error in errors]) if errors else np.zeros(1)
    return OutputVerdict(
        name=name,
        rms=_rms(every),
        rms_ratio=rms_ratio,
        max=float(np.abs(every).max()),
        max_ratio=max_ratio,
        scale=_rms(reference.astype(np.float64)),
        worst=worst,
        faults=tuple(dict.fromkeys(faults)),
        vacuous=why_vacuous(reference, floor.comparable, overflowing, golden),
        constant=is_constant(reference),
        incomparable=int((~floor.comparable).sum()),
        overflowing=int((~floor.comparable & overflowing).sum()),
        sqnr=_sqnr(name, golden, runs) if quantized and not faults else None,
    )


def _sqnr(name: str, golden: Reference, runs: Sequence[tuple[Array, Outputs]]) -> float | None:
    """Returns the signal to noise ratio in dB; None if only edge cases ran."""
    if not any(golden.common[rows].any() for rows, _ in runs):
        return None
    signal, noise = [], []
    for rows, outputs in runs:
        common = golden.common[rows]
        reference = golden.reference[name][rows][common]
        signal.append(reference.ravel())
        noise.append((outputs[name][common].astype(np.float64) - reference).ravel())
    return accuracy.sqnr(_rms(np.concatenate(signal)), _rms(np.concatenate(noise)))


def _quantization_faults(
    outputs: Sequence[OutputVerdict], flips: Flips | None, max_drop: float
) -> list[str]:
    faults = [
        f"{output.label}: signal to quantization noise is {output.sqnr:.1f} dB,"
        f" at least {limits.MIN_SQNR:g} wanted"
        for output in outputs
        if output.sqnr is not None and output.sqnr < limits.MIN_SQNR and not output.vacuous
    ]
    lost = None if flips is None else flips.drop
    return faults + ([] if lost is None else accuracy.faults(lost, max_drop))


def not_run(subject: str, precision: str, reason: str) -> Verdict:
    """Returns the verdict on an engine that this machine cannot run."""
    return Verdict(subject=subject, status="not run", precision=precision, reason=reason)


def from_json(content: dict[str, Any]) -> Verdict:
    """Restores a verdict from the JSON form of `dataclasses.asdict`."""
    outputs = tuple(
        OutputVerdict(**{**output, "faults": tuple(output["faults"])})
        for output in content["outputs"]
    )
    flips = None if content["flips"] is None else Flips(**content["flips"])
    audit = None
    if content["audit"] is not None:
        entries: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content["audit"].items()
        }
        audit = Audit(**entries)
    parts = {"outputs": outputs, "flips": flips, "audit": audit}
    parts |= {name: tuple(content[name]) for name in ("batches", "k")}
    return Verdict(**{**content, **parts})


def with_audit(verdict: Verdict, audit: Audit) -> Verdict:
    """Returns the verdict with an audit added: a fault in the audit makes it a mismatch."""
    if not audit.fault:
        return replace(verdict, audit=audit)
    reason = f"{verdict.reason}; {audit.fault}" if verdict.reason else audit.fault
    return replace(verdict, audit=audit, status="mismatch", reason=reason)
