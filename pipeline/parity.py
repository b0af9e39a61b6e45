"""The verdict: is an engine's error no larger than the model's own rounding noise?

With r the float64 PyTorch output, p PyTorch's output at the graph's precision and y the
engine's, the noise floor is the error of p against r. An engine passes if the error of y
against r is at most K times that floor, in the root mean square and in the maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from engines.base import Array, Outputs, Session, TensorSpec
from exporters import QUANTIZED
from pipeline import accuracy
from pipeline.audit import Audit
from pipeline.golden import EDGES, Golden

# An engine may add up in another order than PyTorch and so land further from float64. Over 11
# architectures ONNX Runtime's fp32 error was 0.3 to 1.9 times PyTorch's own, so 4 leaves a
# faithful export a factor of two, while planted faults were caught down to 3.1 times the floor.
K = 4.0

# The unit of rounding at each precision (the spacing of floats at 1).
_EPSILON = {"fp32": 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7, "int8": 2.0**-7}

Status = Literal["pass", "mismatch", "vacuous", "not run"]


@dataclass(frozen=True)
class OutputVerdict:
    """How far one output lies from float64, in the output's own unit.

    Attributes:
        rms: Root mean square of y - r, over all rows and batch sizes.
        rms_floor: The same of p - r.
        max: Largest |y - r|.
        max_floor: Largest |p - r|.
        scale: Root mean square of r.
        worst: The case on which the largest error happened.
        faults: What is wrong, in words; empty if nothing is.
        vacuous: The output proves nothing: it is the same for every input in float64 too.
        sqnr: Of a quantized graph: signal to quantization noise in dB, without edge cases.
    """

    name: str
    rms: float
    rms_floor: float
    max: float
    max_floor: float
    scale: float
    worst: str
    faults: tuple[str, ...] = ()
    vacuous: bool = False
    sqnr: float | None = None


@dataclass(frozen=True)
class Flips:
    """Test images to which float64 and the engine give different classes.

    Attributes:
        images: How many were classified.
        explained: Flips where float64's own top two lie closer than the error allowed.
        unexplained: The others; one of them is a mismatch.
        correct: How many the engine classified right; None if the classes are not known.
        reference_correct: How many float64 classified right.
        lost: How many float64 alone classified right.
    """

    images: int
    explained: int
    unexplained: int
    correct: int | None
    reference_correct: int | None
    lost: int | None = None

    @property
    def drop(self) -> accuracy.Drop | None:
        """The accuracy lost against float64; None if the classes are not known."""
        if self.correct is None or self.reference_correct is None or self.lost is None:
            return None
        gained = self.correct - (self.reference_correct - self.lost)
        return accuracy.drop(self.images, self.lost, gained)


@dataclass(frozen=True)
class Verdict:
    """Whether a graph or engine equals the PyTorch model, and by how much.

    Attributes:
        subject: What was judged, such as "graph" or "onnxruntime".
        k: The factor allowed over the noise floor.
        batches: The batch sizes that were run.
        audit: Of the weights, where the subject is an ONNX graph.
        reason: Why it was not run, or why it failed; empty on a pass.
    """

    subject: str
    status: Status
    precision: str
    k: float = K
    batches: tuple[int, ...] = ()
    outputs: tuple[OutputVerdict, ...] = ()
    flips: Flips | None = None
    audit: Audit | None = None
    reason: str = ""
    facts: dict[str, str] = field(default_factory=dict)


def batch_sizes(rows: int, limits: tuple[int, int] | None) -> tuple[int, ...]:
    """Returns the batch sizes to judge at: 1, 2, an odd one, and the largest there is."""
    low, high = limits or (1, rows)
    largest = max(low, min(high, rows))
    return tuple(size for size in sorted({1, 2, 7, largest}) if low <= size <= largest)


def noise_floor(reference: Array, native: Array, precision: str) -> tuple[float, float]:
    """Returns rms and maximum of p - r, neither below one unit of rounding at r's scale."""
    unit = _EPSILON[precision]
    error = native.astype(np.float64) - reference
    rms = max(_rms(error), unit * _rms(reference))
    return rms, max(float(np.abs(error).max()), unit * float(np.abs(reference).max()))


def _rms(array: Array) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))


def run_rows(session: Session, golden: Golden, size: int) -> tuple[Array, Outputs]:
    """Runs golden rows through a session in batches of `size`.

    All rows are run at large batches; at small ones enough rows to fill 16 batches, edge
    cases included, since the question there is whether the batch size matters at all.

    Returns:
        The row numbers that were run, and the outputs for them.
    """
    rows = len(golden.cases)
    wanted = np.arange(rows)
    if rows > 16 * size:
        wanted = np.concatenate([np.arange(8 * size), np.arange(rows - 8 * size, rows)])
    parts: dict[str, list[Array]] = {}
    for start in range(0, len(wanted), size):
        chunk = wanted[start : start + size]
        feeds = {name: np.ascontiguousarray(a[chunk]) for name, a in golden.inputs.items()}
        for name, array in _run_padded(session, feeds, len(chunk)).items():
            parts.setdefault(name, []).append(array)
    return wanted, {name: _join(arrays) for name, arrays in parts.items()}


def _run_padded(session: Session, feeds: dict[str, Array], count: int) -> Outputs:
    """Runs a batch, with its last row repeated if the session wants more rows than `count`."""
    low = session.batch[0] if session.batch else 1
    if count >= low:
        return session.run(feeds)
    rows = np.minimum(np.arange(low), count - 1)
    outputs = session.run({name: np.ascontiguousarray(a[rows]) for name, a in feeds.items()})
    return {name: array[:count] for name, array in outputs.items()}


def _join(arrays: Sequence[Array]) -> Array:
    """Concatenates along the batch, or stacks what cannot be: the shape check then says so."""
    try:
        return np.concatenate(arrays)
    except ValueError:
        return np.empty((0,), arrays[0].dtype)


def judge(
    subject: str,
    session: Session,
    golden: Golden,
    test: dict[str, Array] | None = None,
) -> Verdict:
    """Judges a session against a golden file.

    Args:
        test: The inputs of the whole test set, by name. Without them top-1 is compared on
            the golden file's own images.
    """
    sizes = batch_sizes(len(golden.cases), session.batch)
    faults = _signature_faults(session, golden)
    wanted = golden.output_specs
    outputs: tuple[OutputVerdict, ...] = ()
    flips = None
    if not faults:
        runs = [run_rows(session, golden, size) for size in sizes]
        outputs = tuple(_judge_output(spec, golden, runs) for spec in wanted)
        faults = [f"{output.name}: {fault}" for output in outputs for fault in output.faults]
        if not faults and golden.logits:
            (output,) = (each for each in outputs if each.name == golden.logits)
            flips = _count_flips(session, golden, output, sizes[-1], test)
        if not faults and golden.precision == QUANTIZED:
            faults = _quantization_faults(outputs, flips)
        elif flips is not None:
            faults = _flip_faults(flips)
    status: Status = "mismatch" if faults else "pass"
    if not faults and any(output.vacuous for output in outputs):
        status = "vacuous"
        faults = ["an output is the same for every input, so comparing it proves nothing"]
    return Verdict(
        subject=subject,
        status=status,
        precision=golden.precision,
        batches=sizes,
        outputs=outputs,
        flips=flips,
        reason="; ".join(faults),
    )


def _signature_faults(session: Session, golden: Golden) -> list[str]:
    sides = (
        ("inputs", session.inputs, golden.input_specs),
        ("outputs", session.outputs, golden.output_specs),
    )
    return [
        f"{side} are {', '.join(map(str, found))}; expected {', '.join(map(str, wanted))}"
        for side, found, wanted in sides
        if set(found) != set(wanted)
    ]


def _judge_output(
    spec: TensorSpec, golden: Golden, runs: Sequence[tuple[Array, Outputs]]
) -> OutputVerdict:
    reference, native = golden.reference[spec.name], golden.native[spec.name]
    rms_floor, max_floor = noise_floor(reference, native, golden.precision)
    faults: list[str] = []
    errors, worst, worst_case = [], 0.0, ""
    for rows, outputs in runs:
        actual, expected = outputs[spec.name], reference[rows]
        if actual.shape != expected.shape or actual.dtype.name != spec.dtype:
            faults.append(
                f"gives {actual.dtype.name}{list(actual.shape)} where"
                f" {spec.dtype}{list(expected.shape)} was expected"
            )
            continue
        bad = ~np.isfinite(actual).reshape(len(rows), -1).all(axis=1)
        if bad.any():
            case = golden.cases[rows[int(bad.argmax())]]
            faults.append(f"has NaN or Inf in {int(bad.sum())} of {len(rows)} rows, as on {case}")
            continue
        if _constant(actual) and not _constant(expected):
            faults.append("does not depend on the input")
        error = actual.astype(np.float64) - expected
        errors.append(error)
        each = np.abs(error).reshape(len(rows), -1).max(axis=1)
        if each.max() >= worst:
            worst, worst_case = float(each.max()), golden.cases[rows[int(each.argmax())]]
    rms = _rms(np.concatenate([error.ravel() for error in errors])) if errors else 0.0
    if errors and rms > K * rms_floor:
        faults.append(f"rms error is {rms / rms_floor:.1f} times the noise floor, {K:g} allowed")
    if errors and worst > K * max_floor:
        faults.append(
            f"largest error is {worst / max_floor:.1f} times the noise floor, {K:g} allowed"
            f" (on {worst_case})"
        )
    return OutputVerdict(
        name=spec.name,
        rms=rms,
        rms_floor=rms_floor,
        max=worst,
        max_floor=max_floor,
        scale=_rms(reference),
        worst=worst_case,
        faults=tuple(dict.fromkeys(faults)),
        vacuous=_constant(reference),
        sqnr=_sqnr(spec, golden, runs) if golden.precision == QUANTIZED and not faults else None,
    )


def _sqnr(spec: TensorSpec, golden: Golden, runs: Sequence[tuple[Array, Outputs]]) -> float:
    signal, noise = [], []
    for rows, outputs in runs:
        common = np.array([golden.cases[row] not in EDGES for row in rows])
        reference = golden.reference[spec.name][rows][common]
        signal.append(reference.ravel())
        noise.append((outputs[spec.name][common].astype(np.float64) - reference).ravel())
    return accuracy.sqnr(_rms(np.concatenate(signal)), _rms(np.concatenate(noise)))


def _constant(array: Array) -> bool:
    return bool((array == array[:1]).all())


def _count_flips(
    session: Session,
    golden: Golden,
    output: OutputVerdict,
    size: int,
    test: dict[str, Array] | None,
) -> Flips:
    labels: Array | None
    if test is not None:
        inputs, reference, labels = test, golden.test_reference, golden.test_labels
    elif len(golden.labels):
        inputs = {key: array[: len(golden.labels)] for key, array in golden.inputs.items()}
        reference, labels = golden.reference[output.name][: len(golden.labels)], golden.labels
    else:
        inputs, reference, labels = golden.inputs, golden.reference[output.name], None
    images, parts = len(reference), []
    for start in range(0, images, size):
        feeds = {key: array[start : start + size] for key, array in inputs.items()}
        parts.append(_run_padded(session, feeds, min(size, images - start))[output.name])
    chosen = np.concatenate(parts).argmax(axis=1)
    ranked = np.sort(reference, axis=1)
    margin = ranked[:, -1] - ranked[:, -2]
    best = reference.argmax(axis=1)
    flipped = chosen != best
    # Each of the two logits may be off by what the verdict allows.
    close = margin < 2 * K * output.max_floor
    return Flips(
        images=images,
        explained=int((flipped & close).sum()),
        unexplained=int((flipped & ~close).sum()),
        correct=None if labels is None else int((chosen == labels).sum()),
        reference_correct=None if labels is None else int((best == labels).sum()),
        lost=None if labels is None else int(((best == labels) & (chosen != labels)).sum()),
    )


def _flip_faults(flips: Flips) -> list[str]:
    if not flips.unexplained:
        return []
    return [
        f"{flips.unexplained} of {flips.images} test images change class where float64's margin"
        " is wider than rounding can explain"
    ]


def _quantization_faults(outputs: Sequence[OutputVerdict], flips: Flips | None) -> list[str]:
    faults = [
        f"{output.name}: signal to quantization noise is {output.sqnr:.1f} dB,"
        f" at least {accuracy.MIN_SQNR:g} wanted"
        for output in outputs
        if output.sqnr is not None and output.sqnr < accuracy.MIN_SQNR and not output.vacuous
    ]
    lost = None if flips is None else flips.drop
    if lost is not None and lost.value > accuracy.MAX_DROP:
        faults.append(
            f"accuracy falls by {lost}, {100 * accuracy.MAX_DROP:g} pp allowed; calibrate on"
            " images like those to be served"
        )
    return faults


def not_run(subject: str, precision: str, reason: str) -> Verdict:
    """Returns the verdict on an engine that this machine cannot run: none."""
    return Verdict(subject=subject, status="not run", precision=precision, reason=reason)


def from_json(content: dict[str, Any]) -> Verdict:
    """Returns the verdict that `dataclasses.asdict` took apart."""
    outputs = tuple(
        OutputVerdict(**{**output, "faults": tuple(output["faults"])})
        for output in content["outputs"]
    )
    flips = None if content["flips"] is None else Flips(**content["flips"])
    audit = None
    if content["audit"] is not None:
        found = content["audit"]
        audit = Audit(found["identical"], tuple(found["changed"]), tuple(found["unaudited"]))
    batches = tuple(content["batches"])
    parts = {"outputs": outputs, "flips": flips, "audit": audit, "batches": batches}
    return Verdict(**{**content, **parts})


def with_audit(verdict: Verdict, audit: Audit) -> Verdict:
    """Returns the verdict with the audit's word added: a changed weight is a mismatch."""
    if not audit.changed:
        return replace(verdict, audit=audit)
    fault = f"weights that are not the checkpoint's: {', '.join(audit.changed)}"
    reason = f"{verdict.reason}; {fault}" if verdict.reason else fault
    return replace(verdict, audit=audit, status="mismatch", reason=reason)
