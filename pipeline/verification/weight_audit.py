"""The weight audit: is every parameter of the checkpoint in the graph, bit for bit?

A single changed weight can move the outputs by less than their rounding noise, so that no
comparison of outputs can show it. Comparing the weights themselves does.

The digests in the golden file are those of the exported graph's tensors. In a graph that another
tool made, a tensor may have another digest and still be right. Such tensors are compared with the
parameters' values, which are in the exported program.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from engines.checks import import_vendor
from engines.contract import Array
from engines.errors import DeployError
from exporters import onnx_files, weight_match
from exporters.weight_match import tensors_of
from pipeline.golden.file import Weights
from pipeline.verification import limits
from pipeline.workflow import records
from pipeline.workflow.artifacts import GOLDEN, PROGRAM
from pipeline.workflow.digests import sha256_file

_NAMED = 5  # how many names a message lists


@dataclass(frozen=True)
class Audit:
    """The comparison of a graph's weights with the checkpoint's parameters.

    Attributes:
        identical: How many parameters are in the graph bit for bit: themselves, or the weight and
            bias that a batch norm was folded into (`exporters.weight_match`).
        changed: Parameters that are in the graph with other values.
        missing: Parameters that are not in the graph, under any name.
        unaudited: Parameters that the audit could not follow into the graph: it may hold something
            that was computed from them.
        unexplained: Tensors of the graph that are neither a parameter nor a constant it was
            exported with, each with its dtype, shape and size.
        note: Why parameters are unaudited; "" if no tensor of the graph holds them in a form that
            is known.
    """

    identical: int
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unaudited: tuple[str, ...] = ()
    unexplained: tuple[str, ...] = ()
    note: str = ""

    @property
    def fault(self) -> str:
        """What is wrong, in words; "" if nothing is."""
        faults = []
        if self.changed:
            faults.append(f"weights that are not the checkpoint's: {_listed(self.changed)}")
        if self.missing:
            faults.append(f"weights that are not in the graph: {_listed(self.missing)}")
            if self.unexplained:
                faults.append(f"unexplained tensors: {_listed(self.unexplained)}")
        return "; ".join(faults)

    @property
    def gap(self) -> str:
        """What was not audited, and why, in words; "" if everything was."""
        if not self.unaudited:
            return ""
        why = self.note or "no tensor of the graph holds them in a form that the audit knows"
        total = str(self).rpartition(" ")[2]
        return (
            f"{len(self.unaudited)} of {total} weights were not audited:"
            f" {_listed(self.unaudited)} ({why})"
        )

    def __str__(self) -> str:
        parts = (self.changed, self.missing, self.unaudited)
        return f"{self.identical} of {self.identical + sum(map(len, parts))}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def digest(array: Array) -> str:
    """Returns the SHA-256 of an array's dtype, shape and values."""
    head = f"{array.dtype.name}{list(array.shape)}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def weights_of(weight_map: Mapping[str, Array], model: onnx.ModelProto) -> Weights:
    """Returns the expected weights of a graph, for its golden file.

    Args:
        weight_map: By the name of each parameter, the tensor that carries it
            (`exporters.weight_map`).
    """
    digests = {name: digest(array) for name, array in weight_map.items()}
    held = {digest(array) for array in tensors_of(model).values()}
    carried = {name: value for name, value in digests.items() if value in held}
    return Weights(
        carried,
        tuple(sorted(digests.keys() - carried.keys())),
        tuple(sorted(held - set(carried.values()))),
    )


def audit(graph: Path, weights: Weights) -> Audit:
    """Compares a graph's tensors with its expected weights.

    Raises:
        DeployError: The file is not an ONNX graph.
    """
    return audit_model(onnx_files.read(graph), weights, graph)


def audit_model(
    model: onnx.ModelProto,
    weights: Weights,
    graph: Path,
    program: Callable[[], Path] | None = None,
) -> Audit:
    """Does the same as `audit`, for a model that was read from the file `graph`.

    Args:
        program: Returns the path of the exported program, or raises DeployError. It is for a graph
            that may be another tool's; without it, every tensor has to have its digest.
    """
    try:
        arrays = tensors_of(model)
        digests = {name: digest(array) for name, array in arrays.items()}
    except Exception as error:  # protobuf, onnx and numpy each raise their own
        raise DeployError(f"{graph} is not an ONNX graph: {error}", "export it again") from error
    exported = _by_digests(arrays, digests, weights)
    if program is None or not (exported.fault or _has_unknown(arrays, digests, weights)):
        return exported
    try:
        expected = _expectations(program())
    except DeployError as error:
        # A graph of ours has metadata, and its tensors have their digests.
        if any(entry.key.startswith("assay.") for entry in model.metadata_props):
            return exported
        return _unconfirmed(arrays, digests, weights, error.message)
    return _by_values(arrays, expected)


def program_beside(golden: Path) -> Path:
    """Returns the path of the program that was exported together with a golden file.

    Raises:
        DeployError: The golden file has no program beside it, or no record that shows that both
            are of one export.
    """
    record = records.load(golden.with_name(Path(GOLDEN.record).name))
    program = golden.with_name(PROGRAM.name)
    outputs = {} if record is None else {Path(n).name: o for n, o in record.outputs.items()}
    for path, artifact in ((golden, GOLDEN), (program, PROGRAM)):
        known = outputs.get(artifact.name, {}).get("sha256")
        if known is None or not path.is_file() or sha256_file(path) != known:
            raise DeployError(
                f"there is no exported program of the same export beside {golden}",
                "export the model again",
            )
    return program


def _by_digests(arrays: Mapping[str, Array], digests: Mapping[str, str], weights: Weights) -> Audit:
    """Audits a graph of ours."""
    values, carried = set(digests.values()), weights.carried
    changed = sorted(name for name in carried if name in digests and digests[name] != carried[name])
    identical = [n for n, value in carried.items() if value in values and n not in changed]
    missing = set(carried) - set(identical) - set(changed)
    known = {*carried.values(), *weights.constants}
    return Audit(
        identical=len(identical),
        changed=tuple(changed),
        missing=tuple(sorted(missing)),
        unaudited=tuple(sorted(weights.uncarried)),
        unexplained=tuple(
            _described(name, array) for name, array in arrays.items() if digests[name] not in known
        ),
    )


def _has_unknown(arrays: Mapping[str, Array], digests: Mapping[str, str], weights: Weights) -> bool:
    """Whether a tensor of numbers is none of those that were exported.

    It may stand for a parameter that has no digest, such as a bias of zeros that was left out.
    """
    known = {*weights.carried.values(), *weights.constants}
    return any(
        array.size > 1 and array.dtype.kind not in "biu" and digests[name] not in known
        for name, array in arrays.items()
    )


def _doubtful(arrays: Mapping[str, Array], digests: Mapping[str, str], weights: Weights) -> bool:
    """Whether a tensor may be that of a weight whose digest another weight's tensor has, too."""
    known = {*weights.carried.values(), *weights.constants}
    uses = Counter(weights.carried.values())
    shared = {arrays[name].shape for name, value in digests.items() if uses[value] > 1}
    return any(arrays[name].shape in shared for name in arrays if digests[name] not in known)


def _expectations(program: Path) -> weight_match.Expectations:
    import_vendor("torch", "pip install torch")
    from exporters.program import read_program
    from exporters.weight_map import expectations

    return expectations(read_program(program))


def _unconfirmed(
    arrays: Mapping[str, Array], digests: Mapping[str, str], weights: Weights, why: str
) -> Audit:
    """Audits a graph from elsewhere without the parameters' values."""
    values = set(digests.values())
    values |= {digest(form) for array in arrays.values() for form in weight_match.forms(array)}
    found = {name for name, value in weights.carried.items() if value in values}
    if _doubtful(arrays, digests, weights):
        uses = Counter(weights.carried.values())
        found = {name for name in found if uses[weights.carried[name]] == 1}
    rest = {*weights.carried, *weights.uncarried} - found
    return Audit(len(found), unaudited=tuple(sorted(rest)), note=why)


def _by_values(arrays: Mapping[str, Array], expected: weight_match.Expectations) -> Audit:
    """Audits a graph from elsewhere."""
    found = weight_match.match(expected, arrays, limits.WEIGHT_ROUNDINGS)
    changed = weight_match.changed(expected, arrays, found)
    confirmed = found.carriers.keys() - changed.keys()
    rest = expected.parameters.keys() - expected.omissible - confirmed - changed.keys()
    return Audit(
        len(confirmed),
        changed=tuple(
            name if tensor == name else f"{name} (tensor {tensor})"
            for name, tensor in sorted(changed.items())
        ),
        unaudited=tuple(sorted(rest)),
        unexplained=tuple(
            _described(name, arrays[name])
            for name in sorted(weight_match.unexplained(expected, arrays, found))
        ),
    )


def _described(name: str, array: Array) -> str:
    return f"{name} {array.dtype}{list(array.shape)}, {array.nbytes:,} bytes"
