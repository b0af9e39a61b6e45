"""Explains why an export failed: the line of the model, the cause, and what to change."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from engines.errors import DeployError
from exporters import native_output

_TORCH = str(Path(torch.__file__).parent) + os.sep
_RECURRENT = str(Path(torch.__file__).parent / "nn/modules/rnn.py")
_ROOT = Path(__file__).parents[1]
# Our own code; the models in pipeline/models are the user's.
_OURS = tuple(str(_ROOT / name) + os.sep for name in ("assay", "engines", "exporters", "pipeline"))
_MODELS = str(_ROOT / "pipeline/models") + os.sep
# They call models.
_CALLERS = {__file__, *(str(_ROOT / f"exporters/{name}.py") for name in ("module", "wide_run"))}
_PYTHON = sysconfig.get_paths()["stdlib"] + os.sep
# The name of the step that traces by TorchScript, in messages.
TORCHSCRIPT = "TorchScript"
# The torch module that decides on the sizes of axes; it logs its decisions at INFO.
_SHAPES = "torch.fx.experimental.symbolic_shapes"
_FIXED = re.compile(r"set_replacement (\S+) = (\d+)")
_PACKED = "PackedSequence"
_CAUSAL = "_detect_is_causal_mask"  # a function of torch.nn.modules.transformer
# A pattern in the messages of PyTorch and torch.export, the cause in words, and what to change.
_CAUSES = (
    (
        _PACKED,
        "it packs sequences, whose sizes depend on the values of a tensor",
        "leave out pack_padded_sequence: run the layer on padded sequences, and take the step at"
        " each length by torch.gather, or mask the rest",
    ),
    (
        _CAUSAL,
        "its Transformer layer looks at the values of a mask, to see if it is causal",
        "say so yourself: pass is_causal=False with the mask, to a decoder tgt_is_causal=False and"
        " memory_is_causal=False; the mask is applied as before",
    ),
    (
        r"data-dependent|\.item\(\)|_local_scalar_dense",
        "its control flow or a shape depends on the values of a tensor",
        "replace `if` and `int()` on tensors by torch.where, or by sizes taken from shapes",
    ),
    (
        r"index out of range|out of bounds",
        "an index, such as a token id, is beyond the end of a table",
        "give inputs whose integers the model's tables have, as example inputs of assay.Model or by"
        " --inputs FILE.npz",
    ),
    (
        r"\.numpy\(\)|numpy",
        "it leaves PyTorch for numpy",
        "use the torch function of the same name",
    ),
    (
        r"without overflow",
        "a constant is too large for the type of a tensor",
        "take it from the type, such as torch.finfo(x.dtype).min for a mask",
    ),
    (
        r"[Cc]omplex32|ComplexHalf",
        "its complex numbers are of half precision, which ONNX and most runtimes lack",
        "compute them in float32: call x.float() before torch.view_as_complex or torch.polar",
    ),
    (
        r"not implemented for '(Half|BFloat16)'|Unsupported dtype (Half|BFloat16)",
        "PyTorch cannot compute an operator in a half type",
        "compute it in float32: call x.float() before it, and y.to(x.dtype) on its result",
    ),
    (
        r"same dtype|same type|scalar type|dtypes match|dtype to match|match query dtype"
        r"|should be the same$",
        "tensors of different types meet",
        "give tensors made in forward the type of the others, as in torch.zeros(...,"
        " dtype=x.dtype), and leave out casts to a fixed type, such as x.half(); cast integers to"
        " the type of a weight",
    ),
    (
        r"Mismatch the shape|same reduction dim|size mismatch|must match|shape '",
        "shapes do not fit together",
        "run the model in PyTorch on a batch of two; that has to work first",
    ),
)


@dataclass
class Report:
    """What torch printed and logged while it exported.

    Attributes:
        text: What its Python code printed and logged.
        native: Returns what its native code printed.
        fixed: For each axis that was fixed: its size, the line of the model that fixed it, and
            whether a recurrent layer of PyTorch did.
    """

    text: io.StringIO
    fixed: list[tuple[int, str, bool]]
    native: Callable[[], str]

    @property
    def printed(self) -> str:
        """All that was printed and logged so far."""
        return self.text.getvalue() + self.native()


class _Recorder(logging.Handler):
    """Records what torch logs, and on which line of the model it fixes an axis."""

    def __init__(self, report: Report) -> None:
        super().__init__(logging.DEBUG)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        match = _FIXED.match(message)
        if match:
            stack = traceback.extract_stack()[:-1]  # the last is this function
            recurrent = any(frame.filename == _RECURRENT for frame in stack)
            self._report.fixed.append((int(match[2]), place(stack), recurrent))
        self._report.text.write(f"{message}\n")


@contextlib.contextmanager
def recorded() -> Iterator[Report]:
    """Captures what torch prints and logs, which would mix with the JSON on stdout."""
    with native_output.captured() as native:
        report = Report(io.StringIO(), [], native)
        with (
            _logs_to(report),
            contextlib.redirect_stdout(report.text),
            contextlib.redirect_stderr(report.text),
        ):
            yield report


@contextlib.contextmanager
def _logs_to(report: Report) -> Iterator[None]:
    """Sends torch's log to a report instead of the terminal."""
    root, shapes = logging.getLogger("torch"), logging.getLogger(_SHAPES)
    handlers, level, passed = root.handlers, shapes.level, root.propagate
    handler = _Recorder(report)
    root.handlers, root.propagate = [handler], False
    others, through = shapes.handlers, shapes.propagate
    shapes.handlers, shapes.propagate = [handler], False
    shapes.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers, root.propagate = handlers, passed
        shapes.handlers, shapes.propagate = others, through
        shapes.setLevel(level)


def place(frames: Sequence[traceback.FrameSummary]) -> str:
    """Returns the innermost line of the model's own code, as text, or ""."""
    for frame in reversed(frames):
        if frame.filename in _CALLERS:
            break  # the frames further out are not the model's
        if _own(frame.filename):
            return f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line}"
    return ""


def _own(file: str) -> bool:
    """Whether a file may be the model's: not torch's, not Python's, not ours."""
    installed = "site-packages" in file or "dist-packages" in file
    if file.startswith(_PYTHON) and not installed:
        return False
    return file.startswith(_MODELS) or not file.startswith((_TORCH, *_OURS, "<"))


def failure(
    step: str,
    error: Exception,
    report: Report,
    names: Sequence[str] = (),
    axes: Mapping[str, Mapping[int, str]] = MappingProxyType({}),
) -> DeployError:
    """Returns an error that the user can act on; its report has torch's own output.

    Args:
        step: What failed, such as "torch.export".
        names: The names of the inputs, which torch only numbers.
        axes: By input, the names of its dynamic axes besides the batch.
    """
    message = str(error).strip()
    full = "".join(traceback.format_exception(error))
    text = f"{report.printed}\n{full}"
    where = place(traceback.extract_tb(error.__traceback__))
    if re.search(r"marked .* as dynamic but your code specialized", message):
        return _fixed_axis(step, message, report, text, names, axes)
    if known := cause_of(" ".join([*_marks(error), message])):
        cause, change = known
        return DeployError(
            f"{step} cannot trace the model: {cause}{at_line(where)} ({_first(message)})",
            change,
            report=text,
        )
    other = "dynamo" if step == TORCHSCRIPT else "torchscript"
    return DeployError(
        f"{step} cannot trace the model{at_line(where)}: {type(error).__name__}: {_first(message)}",
        f"run the model in PyTorch on a batch of two; if that works, try --exporter {other}",
        report=text,
    )


def _marks(error: Exception) -> list[str]:
    """Returns what an error comes from, where its message does not mention that."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    packed = any(frame.f_locals.get("batch_sizes") is not None for frame in frames)
    causal = any(frame.f_code.co_name == _CAUSAL for frame in frames)
    return [_PACKED] * packed + [_CAUSAL] * causal


def cause_of(message: str) -> tuple[str, str] | None:
    """Returns the cause of an error of PyTorch in words, and what to change, if it is known."""
    for pattern, cause, change in _CAUSES:
        if re.search(pattern, message):
            return cause, change
    return None


def _fixed_axis(
    step: str,
    message: str,
    report: Report,
    text: str,
    names: Sequence[str],
    axis_names: Mapping[str, Mapping[int, str]],
) -> DeployError:
    axes = re.findall(r"L\['(\w+)'\](?:\[(\d+)\])?\.size\(\)\[(\d+)\]", message)
    size = re.search(r"constant \((\d+)\)", message)
    number = size[1] if size else "a number"
    axes_by_name = [(names[int(i)] if i and names else name, axis) for name, i, axis in axes]
    known = {
        (name, axis): axis_names.get(name, {}).get(int(axis), "") for name, axis in axes_by_name
    }
    named = " and ".join(
        f"axis {axis} of {name}" + (f" ({label})" if label else "")
        for (name, axis), label in known.items()
    )
    fixing = [entry for entry in report.fixed if not size or str(entry[0]) == number]
    lines = [line for _, line, _ in fixing if line]
    if axes and all(axis != "0" for _, _, axis in axes):
        if any(recurrent for _, _, recurrent in fixing):
            return DeployError(
                f"the model fixes {named}, which Model.dynamic names, to {number}"
                f"{at_line(lines[0] if lines else '')}: {step} unrolls a recurrent layer, one copy"
                " for each step",
                "give --exporter torchscript, which keeps an LSTM, GRU or RNN of any length, or"
                f" leave {' and '.join(filter(None, known.values())) or 'the axis'} out of"
                " Model.dynamic and pad sequences to one length",
                report=text,
            )
        return DeployError(
            f"the model fixes {named}, which Model.dynamic names, to {number}, the size it was"
            f" traced with{at_line(lines[0] if lines else '')}",
            f"{step} needs the size from the tensor (x.shape[1]) in every place, and equal sizes of"
            " inputs that are combined as axes of one name; or leave the axis out of Model.dynamic",
            report=text,
        )
    return DeployError(
        f"the model fixes its batch ({named or 'axis 0'}) to {number}, the size it was traced"
        f" with{at_line(lines[0] if lines else '')}",
        f"{step} needs a dynamic batch size: take it from the tensor (x.shape[0], x.flatten(1))"
        " or write -1, and do not compare it with a number",
        report=text,
    )


def untranslated(error: Exception, report: Report, program: Any) -> DeployError:
    """Returns the error for a program that cannot be translated to ONNX."""
    full = "".join(traceback.format_exception(error))
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", full)
    text = f"{report.printed}\n{full}"
    if missing is None:
        cause: BaseException = error
        while cause.__cause__ is not None:  # the exporter wraps the original error several times
            cause = cause.__cause__
        named = re.search(r"translating node %(\w+)", full)
        at = [line_of(n) for n in program.graph.nodes if named and n.name == named[1]]
        known = cause_of(str(cause))
        return DeployError(
            f"torch.onnx cannot translate the model{at_line(at[0] if at else '')}:"
            f" {type(cause).__name__}: {_first(str(cause))}",
            known[1] if known else "replace what the message names, or try --exporter torchscript",
            report=text,
        )
    name = missing[1].partition(".")[2]
    lines = [
        line_of(node)
        for node in program.graph.nodes
        if name in str(node.target) and node.meta.get("stack_trace")
    ]
    return DeployError(
        f"ONNX has no operator for {missing[1]}{at_line(lines[0] if lines else '')}",
        "compute it from other operators, or outside the model",
        report=text,
    )


def line_of(node: Any) -> str:
    """Returns the line of the model at which a node of a program was traced, or ""."""
    trace = node.meta.get("stack_trace") or ""
    frames = re.findall(r'File "(.+)", line (\d+), in (\w+)\n\s*(.*)', trace)
    for file, line, name, code in reversed(frames):
        if _own(file):
            return f"{file}:{line} in {name}: {code.strip()}"
    return ""


def module_of(node: Any) -> str:
    """Returns the module that a node of a program comes from, as `network.layer1: Conv2d`."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path, kind = list(stack.values())[-1]
    name = (kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2]
    return f"{path}: {name}" if path else name


def at_line(line: str) -> str:
    """Returns a line of the model as the end of a phrase."""
    return f", at {shortened(line)}" if line else ""


def shortened(line: str) -> str:
    """Returns a line with its path relative to the working directory, if it is inside."""
    file, colon, rest = line.partition(":")
    try:
        return f"{Path(file).relative_to(Path.cwd())}{colon}{rest}"
    except ValueError:
        return line


def _first(message: str) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", message)  # colours
    return next((line.strip() for line in plain.splitlines() if line.strip()), "no message")


def guarded(
    step: str,
    run: Callable[[], Any],
    names: Sequence[str] = (),
    axes: Mapping[str, Mapping[int, str]] = MappingProxyType({}),
) -> Any:
    """Runs a step of torch's exporter and explains its errors.

    Raises:
        DeployError: The step failed. The error has the line of the model, the cause, and torch's
            own output.
    """
    with recorded() as report, warnings.catch_warnings():
        # Of every recurrent layer, whose weights torch.export itself replaces while it traces.
        warnings.filterwarnings("ignore", "The tensor attribute", UserWarning)
        try:
            return run()
        except DeployError:
            raise
        except Exception as error:  # torch raises many types, some of them private
            explained = failure(step, error, report, names, axes)
            cause = error
    raise explained from cause
