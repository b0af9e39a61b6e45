"""The ONNX project's own backend tests, run through the Engine interface.

    PYTHONPATH=. python -m tests.engines.backend_suite [--update] ENGINE …

Runs every node test and prints, for each engine, how many pass and why the others do not.
`--update` writes the failures to tests/engines/expected/ENGINE.json, where tests expect them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import warnings
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.backend.test.loader import load_model_tests

import engines
from engines.contract import BuildOptions, Engine, OpenOptions
from engines.errors import DeployError

EXPECTED = Path(__file__).parent / "expected"
_LENGTH = 160
_IR = 13


def cases() -> list[Any]:
    """Returns the node tests, each with a model and its data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(load_model_tests(kind="node"))


def failure(engine: Engine, case: Any, folder: Path) -> str:
    """Returns why an engine fails a test, in a line; "" if it passes.

    Where the engine cannot be run here, building is all that is asked of it.
    """
    model = case.model
    kinds = {v.type.WhichOneof("value") for v in (*model.graph.input, *model.graph.output)}
    if kinds != {"tensor_type"}:
        return f"takes or gives {', '.join(sorted(map(str, kinds - {'tensor_type'})))}, no tensor"
    # The tests use the newest version of the format, which backends support only a year later.
    model.ir_version = min(model.ir_version, _IR)
    source, built = folder / "model.onnx", folder / "engine"
    source.write_bytes(model.SerializeToString())
    built.unlink(missing_ok=True)
    try:
        engine.build(source, built, BuildOptions(1, 1, 64))
        if engine.available().run:
            with closing(engine.open(built, OpenOptions(threads=1))) as session:
                for inputs, outputs in case.data_sets:
                    if why := _difference(session, inputs, outputs, case):
                        return why
    except DeployError as error:
        return _line(error.message, folder)
    except Exception as error:  # anything else is a failure of ours
        return _line(f"{type(error).__name__}: {error}", folder)
    return ""


def _difference(session: Any, inputs: Any, outputs: Any, case: Any) -> str:
    names = [spec.name for spec in session.inputs]
    if len(names) != len(inputs):
        return f"takes {len(names)} inputs where the test has {len(inputs)}"
    feeds = {name: _array(value) for name, value in zip(names, inputs, strict=True)}
    computed = [*session.run(feeds).values()]
    for got, wanted in zip(computed, map(_array, outputs), strict=True):
        if (got.shape, got.dtype) != (wanted.shape, wanted.dtype):
            return f"gives {got.dtype}{list(got.shape)} for {wanted.dtype}{list(wanted.shape)}"
        if wanted.dtype.kind == "O":
            if got.tolist() != wanted.tolist():
                return "gives other strings"
        elif not np.allclose(
            got.astype(np.float64) if got.dtype.kind != "c" else got,
            wanted.astype(np.float64) if wanted.dtype.kind != "c" else wanted,
            rtol=case.rtol,
            atol=case.atol,
            equal_nan=True,
        ):
            return "gives other numbers"
    return ""


def _array(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value)


def _line(text: str, folder: Path) -> str:
    """Returns the first line of a message, without what differs from run to run."""
    text = text.replace(str(folder), "").replace("\n", " ")
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from \S+ (failed:)?", "", text)
    # The place in the vendor's source: a file and a line, and perhaps a signature.
    text = re.sub(
        r"\S+\.(?:cc|cpp|h|hpp):\d+:?(?: [\w:<>& ]+::.*?\)(?: const)?(?= [A-Z]))?", "", text
    )
    return re.sub(r"\s+", " ", text)[:_LENGTH]


def run(name: str) -> dict[str, str]:
    """Returns the failures of an engine, by the name of the test."""
    engine = engines.get(name)
    results = {}
    with tempfile.TemporaryDirectory(prefix="suite-") as scratch:
        for case in cases():
            if why := failure(engine, case, Path(scratch)):
                results[case.name] = why
    return results


def main() -> None:
    """Runs the suite against the engines that are named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engines", nargs="+")
    parser.add_argument("--update", action="store_true")
    asked = parser.parse_args()
    for name in asked.engines:
        results, total = run(name), len(cases())
        print(f"{name}: {total - len(results)} of {total} pass")
        for why, count in Counter(
            re.sub(r"'[^']*'", "…", w)[:90] for w in results.values()
        ).most_common(40):
            print(f"  {count:4} {why}")
        if asked.update:
            EXPECTED.mkdir(exist_ok=True)
            path = EXPECTED / f"{name}.json"
            path.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
