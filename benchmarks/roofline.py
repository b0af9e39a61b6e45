"""How near engines come to what this machine can do: LeNet, ResNet18 and a narrow VGG-11.

    PYTHONPATH=. python benchmarks/roofline.py [--models A,B] [--precisions A,B] [--batch 1,8,64]
        [--engines A,B] [--budget 3] [--root FOLDER] > benchmarks/results/roofline.md

Weights are random and images generated, since speed does not depend on them. Each case runs `assay
export`, `build`, `verify` and `profile`, for the engines that run on this machine's CPU, or those
of --engines. With --root, artifacts of an earlier run are used again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import engines
from benchmarks.gpu_report import CALIBRATION, GOLDEN, factory
from pipeline.golden import rows
from pipeline.report import profile as report
from pipeline.report.bench import BUSY, UNSETTLED

MODELS = ("lenet", "resnet18", "vgg11-slim")
PRECISIONS = ("fp32", "int8")

lenet, resnet18, vgg11_slim = map(factory, MODELS)


def call(words: list[str]) -> dict[str, Any]:
    """Runs a command in this process; returns its JSON document."""
    from pipeline.cli.main import main as assay

    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = assay([*words, "--json"])
    document: dict[str, Any] = json.loads(out.getvalue())
    if code and "error" not in document:
        document["error"] = {"message": f"exit code {code}"}
    return document


def proved(
    model: str, precision: str, root: Path, names: Sequence[str] = (), golden: int = GOLDEN
) -> tuple[list[str], list[str]]:
    """Exports, builds and verifies a model for this machine's CPU.

    Args:
        names: The engines to build; all without.
        golden: Rows of the golden file, besides the edge cases; as many are proved at once.

    Returns:
        The words that name model, precision and root in a command, and the engines that passed.
    """
    name = model.replace("-", "_")
    shape = globals()[name]().image
    for what, count in {"golden": golden, "calibration": CALIBRATION}.items():
        images = rows.made_images(shape, count, seed=count)
        np.savez(root / f"{model}-{what}.npz", image=images)
    words = [f"benchmarks.roofline:{name}", "--precision", precision, "--root", str(root)]
    export = ["export", *words, "--inputs", str(root / f"{model}-golden.npz")]
    if precision == "int8":
        export += ["--calibration", str(root / f"{model}-calibration.npz")]
    answer = call(export)
    if "error" in answer:
        sys.exit(f"{model} {precision}: {answer['error']['message']}")
    passed = []
    for engine in names or engines.names():
        if "cpu" not in engines.get(engine).devices or not engines.get(engine).available().run:
            continue
        steps = [[stage, *words, "--engine", engine] for stage in ("build", "verify")]
        if all("error" not in call(step) for step in steps):
            passed.append(engine)
    return words, passed


def profile(model: str, precision: str, root: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Returns the profile of a model's engines at a precision."""
    words, passed = proved(model, precision, root, asked.engines)
    more = ["--batch", asked.batch, "--budget", str(asked.budget), "--engine", ",".join(passed)]
    answer = call(["profile", *words, *more, "--device", "cpu"])
    results: dict[str, Any] = answer["outcomes"][-1]["results"]["costs"]
    return results


def markdown(title: str, columns: list[str], table: list[list[str]]) -> str:
    """Returns a table, with what was not known left out."""
    kept = [index for index in range(len(columns)) if any(row[index] for row in table)]
    lines = [f"**{title}**", ""] if title else []
    marks = ["--:" if columns[index].startswith(">") else "---" for index in kept]
    for cells in ([columns[index].lstrip(">") for index in kept], marks):
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {' | '.join(row[index] for index in kept)} |" for row in table]
    return "\n".join(lines) + "\n"


def others(profiles: Iterable[dict[str, Any]]) -> float:
    """Returns the largest part of the CPUs that other processes took during a measurement."""
    return max(
        load["others"] or 0.0
        for document in profiles
        for entry in document["engines"]
        for load in entry.get("loads", ())
    )


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=lambda text: text.split(","), default=MODELS)
    parser.add_argument("--precisions", type=lambda text: text.split(","), default=PRECISIONS)
    parser.add_argument("--engines", type=lambda text: text.split(","), default=())
    parser.add_argument("--batch", default="1,8,64")
    parser.add_argument("--budget", type=float, default=3.0, help="seconds an engine and batch")
    parser.add_argument("--root", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = asked.root or Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        profiles = {
            (model, precision): profile(model, precision, root, asked)
            for model in asked.models
            for precision in asked.precisions
        }
    machine = next(iter(profiles.values()))["machine"]
    print("# How near engines come to what the machine can do\n")
    print(
        f"`python benchmarks/roofline.py` on {machine['cpu']}, {machine['threads']} threads of"
        f" {machine['cpus']} CPUs. [What the columns mean](../../docs/stages.md#what-engines-cost)."
        f" Meanwhile, other processes took up to {others(profiles.values()):.0%} of the CPUs;"
        f" results that they disturbed are marked {BUSY} or {UNSETTLED}."
    )
    print("\n## The fastest engine\n")
    best = [row for key, document in profiles.items() for row in report.best(*key, document)]
    print(markdown("", report.BEST, best))
    for (model, precision), document in profiles.items():
        print(f"## {model}, {precision}\n")
        for table in (report.roofline, report.costs, report.cold_start):
            print(markdown(*table(document)))
        for sentence in (*report.peaks(document), *report.losses(document)):
            print(f"- {sentence}")
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
