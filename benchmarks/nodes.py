"""The ONNX project's node tests that each engine passes, by operator.

    PYTHONPATH=. python benchmarks/nodes.py > benchmarks/results/nodes.md

Reads the expected failures of each engine (tests/engines/expected/ENGINE.json), which
`python -m tests.engines.backend_suite --update ENGINE …` writes and `make test-engines` checks.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict

import onnx

import engines
from tests.engines import backend_suite

_LENGTH = 110


def operator(model: onnx.ModelProto) -> str:
    """Returns the operator of a model's node, or "several nodes"."""
    kinds = {node.op_type for node in model.graph.node}
    return kinds.pop() if len(model.graph.node) == 1 else "several nodes"


def main() -> int:
    """Prints the table."""
    failures = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(backend_suite.EXPECTED.glob("*.json"))
    }
    tests = defaultdict(list)
    for case in backend_suite.cases():
        tests[operator(case.model)].append(case.name)
    total = sum(map(len, tests.values()))
    runs = {name: engines.get(name).available().run for name in failures}
    print("# The ONNX project's node tests\n")
    print(
        f"{total} tests of onnx {onnx.__version__}, run through the engines' interface. An engine"
        " that cannot run on the machine only has to build the model.\n"
    )
    for name, failed in failures.items():
        word = "passed" if runs[name] else "built (not run: no GPU)"
        print(f"- {name}, {engines.get(name).available().reason}: {total - len(failed)} {word}")
    head = ["operator", "tests", *failures]
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for kind, names in sorted(tests.items()):
        good = [sum(name not in failed for name in names) for failed in failures.values()]
        print(f"| {kind} | {len(names)} | {' | '.join(map(str, good))} |")
    for name, failed in failures.items():
        print(f"\n## Why tests fail in {name}\n")
        for why, count in Counter(reason[:_LENGTH] for reason in failed.values()).most_common():
            print(f"- {count}: {why.replace('|', '/')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
