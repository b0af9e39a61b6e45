"""The basis of the verdict's limits: errors of faithful graphs, and of graphs with faults.

    PYTHONPATH=. python benchmarks/calibration.py

Reads what benchmarks/zoo.py and benchmarks/parity.py have measured (results/zoo.json,
results/parity.json), draws both on one axis, in units of the model's own rounding noise, and
writes results/calibration.md and results/calibration.svg. MAX_RMS_IN_FLOORS and MAX_ERROR_IN_FLOORS
of pipeline/verification/limits.py have to lie between the two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.verification import limits

RESULTS = Path(__file__).parent / "results"
PEERS = ("allclose", "polygraphy")


def read(name: str) -> dict[str, Any]:
    """Returns the results that a script wrote to `results/`."""
    content: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return content


def faithful(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the exports that were compared, without quantized ones, which other limits judge."""
    return [c for c in cases if c["ratio"] is not None and c["precision"] != "int8"]


def clean_table(cases: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a row for each precision: errors of faithful graphs, and how many are rejected."""
    lines = [
        "| precision | run by | graphs | rms x floor: median, largest | max x floor: median,"
        " largest | assay rejects | cannot tell | numpy.allclose rejects | Polygraphy rejects |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for precision in dict.fromkeys(case["precision"] for case in cases):
        some = [case for case in cases if case["precision"] == precision]
        ratios, largest = (np.array([c[key] for c in some]) for key in ("ratio", "largest"))
        verdicts = [case["verdict"] for case in some]
        asked = {peer: [c[peer] for c in some if c[peer] is not None] for peer in PEERS}
        rejected = [f"{v.count(False)} of {len(v)}" if v else "not asked" for v in asked.values()]
        lines.append(
            f"| {precision} | {', '.join(sorted({c['runner'] for c in some}))} | {len(some)}"
            f" | {np.median(ratios):.2f}, {ratios.max():.2f}"
            f" | {np.median(largest):.2f}, {largest.max():.2f}"
            f" | {verdicts.count('mismatch')} | {verdicts.count('vacuous')}"
            f" | {' | '.join(rejected)} |"
        )
    return lines


def fault_table(counts: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a row for each effect: how many faults there are, and how many each judge catches."""
    judges = ("numeric", "audit", *PEERS)
    lines = [
        "| effect of the fault | faults | outputs | audit | numpy.allclose | Polygraphy |",
        "|---|---|---|---|---|---|",
    ]
    for effect in ("material", "rounding", "none", "broken", "weight"):
        some = [count for count in counts if count["effect"] == effect]
        caught = [
            str(sum(c[judge] for c in some)) if all(judge in c for c in some) else ""
            for judge in judges
        ]
        lines.append(f"| {effect} | {sum(c['faults'] for c in some)} | {' | '.join(caught)} |")
    return lines


def draw(clean: Sequence[dict[str, Any]], faults: Sequence[dict[str, Any]], path: Path) -> None:
    """Plots the distributions of both errors, in units of the noise floor."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    bins = np.logspace(-2, 8, 61).tolist()
    for precision in dict.fromkeys(case["precision"] for case in clean):
        values = [case["largest"] for case in clean if case["precision"] == precision]
        label = f"faithful graphs, {precision} ({len(values)})"
        axes.hist(np.clip(values, bins[0], bins[-1]), bins, alpha=0.6, label=label)
    moved = [case["moved"] for case in faults if case["moved"]]
    label = f"planted faults, in float64 ({len(moved)})"
    axes.hist(np.clip(moved, bins[0], bins[-1]), bins, alpha=0.6, color="tab:red", label=label)
    axes.axvline(limits.MAX_ERROR_IN_FLOORS, color="black", linewidth=1)
    axes.text(
        limits.MAX_ERROR_IN_FLOORS * 1.1,
        axes.get_ylim()[1] * 0.93,
        f"allowed: {limits.MAX_ERROR_IN_FLOORS:g}",
    )
    axes.set_xscale("log")
    axes.set_xlabel("largest error of a row, in units of its rounding noise")
    axes.set_ylabel("cases")
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Writes the page and the plot, and prints the page."""
    clean = faithful(read("zoo.json")["cases"])
    planted = read("parity.json")
    lines = [
        "# What the verdict's limits rest on",
        "",
        f"A graph or engine passes if its error is at most {limits.MAX_RMS_IN_FLOORS:g} times the"
        " noise floor in the root mean square over the rows, and at most"
        f" {limits.MAX_ERROR_IN_FLOORS:g} times on any one row.",
        "",
        "![distributions](calibration.svg)",
        "",
        "## Faithful exports of torchvision's models: whoever rejects one gives a false alarm",
        "",
        *clean_table(clean),
        "",
        "`cannot tell`: rounding alone moves every row of these untrained networks too far. Case by"
        " case: zoo.md.",
        "",
        "## Faults planted into trained graphs",
        "",
        *fault_table(planted["counts"]),
        "",
        "`material`: in float64 it moves an output by more than 8 times the noise floor."
        " `rounding`: by less. `none`: not at all. `broken`: the graph cannot be run."
        " `weight`: any of them that changes weights, however little. Case by case: parity.json.",
    ]
    (RESULTS / "calibration.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw(clean, planted["cases"], RESULTS / "calibration.svg")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
