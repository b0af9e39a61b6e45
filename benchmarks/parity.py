"""How well the verdict tells faults from rounding, compared with numpy.allclose and Polygraphy.

    assay run MODEL …            (first, for each model, with the same --root)
    pip install polygraphy       (its own comparator is run)
    PYTHONPATH=. python benchmarks/parity.py [--root artifacts] [--places 2] lenet …

Plants every kind of fault of tests/faults.py at several places of each model's fp32 graph. ONNX
Runtime runs the changed graph on the golden inputs. Its outputs are judged by the verdict (numeric
part and audit separately), by `numpy.allclose`, and by Polygraphy's comparator with its default
tolerances; the last two compare with PyTorch's own fp32 outputs, which is how they are used. ONNX's
reference implementation runs the changed graph in float64 on some rows, which tells the fault's
effect:

- material: it moves an output by more than 8 times the row's noise floor; must be caught;
- none: it moves no output by more than a thousandth of the floor; the numeric verdict must pass;
- rounding: in between, where outputs alone cannot tell.

Graphs without a fault must pass. For false alarms on torchvision's models, see zoo.md.

Prints a JSON document, and a table to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

import engines
from benchmarks import peers
from engines.contract import Array, OpenOptions
from pipeline.golden import file as goldens
from pipeline.golden.file import Golden
from pipeline.golden.noise import by_row
from pipeline.verification import engine_proof, limits, noise_floor, verdict
from pipeline.verification.weight_audit import audit
from tests.faults import FAULTS

MATERIAL, NOTHING = 8.0, 1e-3
_HALF = 3  # how many common rows, and how many edge cases, the float64 run has


@dataclass
class Case:
    """The result of one planted fault.

    Attributes:
        moved: How far it moves an output in float64, in units of the row's floor; None if the
            graph cannot be run.
        effect: "material", "rounding", "none", or "broken" if the graph cannot be run.
        numeric: The verdict on the outputs caught it.
        audit: The audit of the weights caught it.
        allclose: numpy.allclose(rtol=1e-3, atol=1e-5) caught it.
        polygraphy: Polygraphy's comparator caught it.
    """

    model: str
    fault: str
    place: int
    weight: bool
    moved: float | None
    effect: str
    numeric: bool
    audit: bool
    allclose: bool
    polygraphy: bool


def in_float64(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy of a graph with float64 in place of float32 everywhere."""
    exact = onnx.ModelProto()
    exact.CopyFrom(model)
    del exact.graph.value_info[:]

    def widen(tensor: onnx.TensorProto) -> None:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            value = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))

    for tensor in exact.graph.initializer:
        widen(tensor)
    for node in exact.graph.node:
        for entry in node.attribute:
            if node.op_type == "Cast" and entry.name == "to" and entry.i == onnx.TensorProto.FLOAT:
                entry.i = onnx.TensorProto.DOUBLE
            if entry.HasField("t"):
                widen(entry.t)
    for value in (*exact.graph.input, *exact.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    return exact


def some_rows(golden: Golden) -> Array:
    """Returns the indices of a few common rows and edge cases, int64 `[count]`."""
    common = golden.common
    return np.concatenate([np.flatnonzero(common)[:_HALF], np.flatnonzero(~common)[:_HALF]])


def float64_outputs(model: onnx.ModelProto, golden: Golden) -> Array:
    """Returns the graph's first output for `some_rows`, computed in float64."""
    rows = some_rows(golden)
    feeds = {name: array[rows] for name, array in golden.inputs.items()}
    outputs: Any = ReferenceEvaluator(in_float64(model)).run(None, feeds)
    return np.asarray(outputs[0])


def plant_all(name: str, root: Path, places: int, say: Callable[[Case], None]) -> list[Case]:
    """Judges every planted fault of a model."""
    folder = root / name / "fp32"
    golden = goldens.load(folder / "golden.npz")
    clean = onnx.load(folder / "model.onnx")
    exact = float64_outputs(clean, golden)
    output = next(iter(golden.native))
    floor = noise_floor.floor(golden.reference[output], golden.noise[output], "fp32")
    scale = floor.max[some_rows(golden)]
    cases = []
    for fault in FAULTS:
        seen: set[bytes] = set()
        for place in range(places):
            planted = fault.plant(clean, place)
            if planted is None:
                continue
            content = planted[0].SerializeToString(deterministic=True)
            if content in seen:
                continue  # every place has been used
            seen.add(content)
            model = planted[0]
            case = Case(name, fault.name, place, fault.weight, None, "broken", *[True] * 4)
            try:
                moved = np.abs(by_row(float64_outputs(model, golden) - exact)).max(axis=1) / scale
                case.moved = float(moved.max())
                case.effect = "rounding"
                if case.moved > MATERIAL:
                    case.effect = "material"
                elif case.moved < NOTHING:
                    case.effect = "none"
                judge(model, golden, output, case)
            except Exception as error:  # it cannot be run, which every tool notices
                if case.effect != "broken":
                    raise
                del error
            cases.append(case)
            say(case)
    return cases


def judge(model: onnx.ModelProto, golden: Golden, output: str, case: Case) -> None:
    """Fills in which judges catch a fault."""
    with tempfile.TemporaryDirectory(prefix="parity-") as scratch:
        path = Path(scratch) / "model.onnx"
        onnx.save(model, path)
        options = OpenOptions("cpu", threads=1, optimize=False)
        with closing(engines.get(engine_proof.GRAPH_RUNNER).open(path, options)) as session:
            case.numeric = verdict.judge("graph", session, golden).status == "mismatch"
            outputs = session.run(golden.inputs)[output]
        case.audit = bool(audit(path, golden.weights).fault)
    wanted = golden.native[output]
    case.allclose = not peers.allclose(outputs, wanted)
    case.polygraphy = not peers.polygraphy(outputs, wanted)


def clean_runs(name: str, root: Path) -> dict[str, Any]:
    """Judges a model's graph without a fault; a judge that catches something is wrong."""
    folder = root / name / "fp32"
    golden = goldens.load(folder / "golden.npz")
    case = Case(name, "", 0, False, 0.0, "none", *[False] * 4)
    judge(onnx.load(folder / "model.onnx"), golden, next(iter(golden.native)), case)
    return asdict(case)


def counts(cases: list[Case]) -> list[dict[str, Any]]:
    """Returns how many faults of each effect each judge catches."""
    lines = []
    for name in dict.fromkeys(case.model for case in cases):
        for effect in ("broken", "material", "rounding", "none"):
            some = [case for case in cases if (case.model, case.effect) == (name, effect)]
            tools = ("numeric", "audit", "allclose", "polygraphy")
            caught = {tool: sum(getattr(case, tool) for case in some) for tool in tools}
            lines.append({"model": name, "effect": effect, "faults": len(some), **caught})
        weights = [case for case in cases if case.model == name and case.weight]
        audit = sum(case.audit for case in weights)
        lines.append({"model": name, "effect": "weight", "faults": len(weights), "audit": audit})
    return lines


def main() -> None:
    """Judges all faults and prints the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+")
    parser.add_argument("--root", type=Path, default=Path("artifacts"))
    parser.add_argument("--places", type=int, default=2)
    asked = parser.parse_args()

    def say(case: Case) -> None:
        print(json.dumps(asdict(case)), file=sys.stderr, flush=True)

    cases = [c for name in asked.models for c in plant_all(name, asked.root, asked.places, say)]
    document = {
        "k": [limits.MAX_RMS_IN_FLOORS, limits.MAX_ERROR_IN_FLOORS],
        "clean": [clean_runs(name, asked.root) for name in asked.models],
        "counts": counts(cases),
        "cases": [asdict(case) for case in cases],
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
