"""How often `assay compare` finds a bundle slower than itself, and one that is slower by 5 %.

    PYTHONPATH=. python benchmarks/compare.py BUNDLE [--runs 20] > benchmarks/results/compare.md

The slower one is the same bundle whose session waits after each call for 5 % of the call's time.
With the default tolerance of 2 %, exit code 5 is right for it, and 0 for the bundle beside itself.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.method import Slowed
from engines import hardware
from pipeline.bundling import opening
from pipeline.cli import side_by_side

SLOWER = 0.05
_here = side_by_side.here


def slowed_here(part: float, pair: side_by_side.Pair) -> Any:
    """Does what `side_by_side.here` does, in its process, with B slower by a part."""
    fastest, again, opened = opening.fastest, opening.again, 0

    def slowed(session: Any) -> Any:
        # Both wait, since looking at the clock takes time, too.
        return Slowed(session, part if opened % 2 == 0 else 0.0)  # A comes first

    def slowed_fastest(*values: Any) -> Any:
        nonlocal opened
        opened += 1
        name, session = fastest(*values)
        return name, slowed(session)

    opening.fastest = slowed_fastest  # type: ignore[assignment]
    opening.again = lambda *values: slowed(again(*values))
    return _here(pair)


def exit_code(bundle: Path, part: float, words: list[str]) -> int:
    """Returns the exit code of comparing a bundle with itself, B being slower by a part."""
    from benchmarks import compare  # by the name that the other process knows
    from pipeline.cli.main import main as assay

    side_by_side.here = partial(compare.slowed_here, part)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return assay(["compare", str(bundle), str(bundle), "--trust", *words])


def main() -> int:
    """Prints the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--threads", default="1")
    asked = parser.parse_args()
    words = ["--engine", asked.engine, "--threads", asked.threads]
    load, start = os.getloadavg()[0], time.perf_counter()
    rows = {}
    for name, part in (("itself", 0.0), (f"{SLOWER:.0%} slower", SLOWER)):
        codes = collections.Counter(
            exit_code(asked.bundle, part, [*words, "--seed", f"{seed}"])
            for seed in range(asked.runs)
        )
        rows[name] = codes
        print(name, dict(codes), file=sys.stderr)
    seconds = (time.perf_counter() - start) / (2 * asked.runs)
    print(
        f"`assay compare BUNDLE BUNDLE {' '.join(words)}`, {asked.runs} times each, LeNet, on"
        f" {hardware.cpu_model()}, {hardware.available_cpus()} CPUs; load average {load:.1f}"
        f" before; {seconds:.1f} s a run.\n"
    )
    print("| beside | exit code 0 | exit code 5 | others |\n|---|--:|--:|--:|")
    for name, codes in rows.items():
        others = codes.total() - codes[0] - codes[5]
        print(f"| {name} | {codes[0]} | {codes[5]} | {others} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
