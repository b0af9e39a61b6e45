"""Whether `assay choose` after `assay sweep` names what an exhaustive sweep finds to be the best.

    PYTHONPATH=. python benchmarks/choices.py [--models A,B] [--batch 1,4,16] [--budget 30]
        [--root FOLDER] > benchmarks/results/choices.md

For LeNet, ResNet18 and a narrow VGG-11 with random weights, in fp32 and int8, with every engine
that is proved on this machine's CPU. First everything is measured to the end, then what others beat
drops out. Three bounds follow from the former: a median of twice the lowest, a throughput of four
fifths of the highest, and a p99 of four times the lowest; where no p99 is known, a median of ten
times the lowest. The choice holds if, by the exhaustive sweep, it may keep the bound and nothing
that surely keeps it is surely better. It is "unsure" if what is better may keep the bound by the
measurements that the choice is made from, and `assay choose` says so.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.roofline import MODELS, PRECISIONS, call, markdown, proved
from engines import hardware
from pipeline.report.sweep import named
from pipeline.report.units import duration

Point = dict[str, Any]


def swept(words: list[str]) -> tuple[list[Point], float]:
    """Returns what a sweep has measured, and its seconds."""
    start = time.perf_counter()
    answer = call(["sweep", *words, "--force"])
    if "error" in answer:
        sys.exit(answer["error"]["message"])
    points = answer["outcomes"][-1]["results"]["frontier"]["points"]
    return points, time.perf_counter() - start


def tail(point: Point) -> dict[str, float]:
    """Returns the p99 of a way to run the model; its ends are infinite if it is not known."""
    known: dict[str, float] = point["percentiles"].get("p99", {"low": 0.0, "high": float("inf")})
    return known


def bounds(every: list[Point]) -> list[tuple[list[str], Callable[[Point], tuple[bool, bool]]]]:
    """Returns options of `assay choose`, and whether a way keeps them surely, and perhaps."""
    quickest = min(point["latency"]["high"] for point in every)
    throughput = 0.8 * max(point["throughput"]["low"] for point in every)
    p99 = 4 * min(tail(point)["high"] for point in every)
    known = math.isfinite(p99)
    return [
        _latency(2 * quickest),
        (
            ["--min-throughput", f"{throughput:.0f}"],
            lambda p: (p["throughput"]["low"] >= throughput, p["throughput"]["high"] >= throughput),
        ),
        (
            ["--p99", f"{p99 * 1e6:.0f}us"],
            lambda p: (tail(p)["high"] <= p99, tail(p)["low"] <= p99),
        )
        if known
        else _latency(10 * quickest),
    ]


def _latency(bound: float) -> tuple[list[str], Callable[[Point], tuple[bool, bool]]]:
    return (
        ["--latency", f"{bound * 1e6:.0f}us"],
        lambda p: (p["latency"]["high"] <= bound, p["latency"]["low"] <= bound),
    )


def key(point: Point) -> tuple[Any, ...]:
    """Returns what names a way to run the model."""
    return tuple(point[n] for n in ("engine", "precision", "batch", "sessions", "threads"))


def _value(name: str, point: Point) -> float:
    return float(point[name]["value"])


def judged(model: str, words: list[str], every: list[Point]) -> list[list[str]]:
    """Returns a row for each bound."""
    by_key = {key(point): point for point in every}
    rows = []
    for option, keeps in bounds(every):
        able = [point for point in every if keeps(point)[0]]
        throughput = option[0] != "--min-throughput"
        # As `assay choose` does: the quickest that serves enough, or that which serves most.
        value = "throughput" if throughput else "latency"
        best = (max if throughput else min)(able, key=partial(_value, value))
        answer = call(["choose", *words, *option])
        chosen = answer.get("chosen")
        point = by_key[key(chosen)] if chosen else None
        holds = "no"
        if point is not None and keeps(point)[1]:
            better = {key(other) for other in able if _surely_better(other, point, value)}
            if not better:
                holds = "yes"
            elif answer["perhaps"] is not None and better <= _unsure(answer):
                holds = "unsure"
        rows.append(
            [
                model,
                " ".join(option),
                named(point) if point else "none",
                _text(point, value) if point else "",
                named(best),
                _text(best, value),
                holds,
            ]
        )
    return rows


def _unsure(answer: dict[str, Any]) -> set[tuple[Any, ...]]:
    """Returns the ways that may keep the bound, by the measurements of a choice."""
    entries = [entry for entry in answer["candidates"] if entry["status"] == "unsure"]
    return {key(entry["candidate"]) for entry in entries}


def _surely_better(best: Point, point: Point, value: str) -> bool:
    if value == "throughput":
        return bool(best[value]["low"] > point[value]["high"])
    return bool(best[value]["high"] < point[value]["low"])


def _text(point: Point, value: str) -> str:
    shown = duration if value == "latency" else "{:,.0f}".format
    low, high = (shown(point[value][end]) for end in ("low", "high"))
    return f"{low} to {high}"


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=lambda text: text.split(","), default=MODELS)
    parser.add_argument("--batch", default="1,4,16")
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of each sweep")
    parser.add_argument("--root", type=Path)
    asked = parser.parse_args()
    rows, times = [], []
    with tempfile.TemporaryDirectory() as folder:
        root = asked.root or Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        for model in asked.models:
            known = [proved(model, precision, root) for precision in PRECISIONS]
            (name, *_), *place = known[0][0], "--root", str(root)
            engines = ",".join(dict.fromkeys(e for _, passed in known for e in passed))
            words = [name, *place, "--precision", ",".join(PRECISIONS), "--engine", engines]
            words += ["--batch", asked.batch, "--budget", str(asked.budget), "--device", "cpu"]
            every, whole = swept([*words, "--exhaustive"])
            left, pruned = swept(words)
            kept = sum(not point["beaten_by"] for point in left)
            times.append([model, f"{len(every)}", f"{whole:.0f}", f"{pruned:.0f}", f"{kept}"])
            rows += judged(model, [name, *place], every)
            print(model, file=sys.stderr)
    print("# `assay choose` held against an exhaustive sweep\n")
    print(
        f"`{' '.join(['python benchmarks/choices.py', *sys.argv[1:]])}` on {hardware.cpu_model()},"
        f" {hardware.available_cpus()} CPUs. Intervals are those of the exhaustive sweep.\n"
    )
    columns = ["model", "bound", "chosen", "its interval", "best", "its interval", "holds"]
    print(markdown("", columns, rows))
    columns = ["model", ">ways", ">seconds, all to the end", ">seconds, dropping", ">left"]
    print(markdown("", columns, times))
    return 1 if any(row[-1] == "no" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
