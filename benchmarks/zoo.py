"""Exports and verifies every classification model of torchvision in every precision.

    PYTHONPATH=. python benchmarks/zoo.py [--quick] [--models A,B] [--precisions fp32,int8]
                                          [--memory GIB] [--seconds S] [--results FILE]

Weights are random (seeded), with the statistics of batch norms filled by a few batches, so that
nothing has to be downloaded. Each case runs `assay export` and `assay verify` in processes whose
time and peak memory are measured. Results are added to benchmarks/results/zoo.json and the table
zoo.md after each case, smallest models first, so that an interrupted sweep continues where it
stopped. A process that uses more than `--memory`, or takes longer than `--seconds`, is ended, and
the table gives the reason. `--quick` runs two small models and writes no file; it exits with 1 if
a case fails for another reason than a backend without the type.

Prints a table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from safetensors.torch import save_file

import engines
from benchmarks import peers
from engines import hardware
from engines.contract import OpenOptions
from exporters import PRECISIONS, onnx_files
from pipeline import models
from pipeline.golden import file as goldens
from pipeline.golden import rows
from pipeline.verification.graph_file import as_it_says
from pipeline.verification.weight_audit import Audit

RESULTS = Path(__file__).parent / "results" / "zoo.json"
QUICK = ("squeezenet1_1", "shufflenet_v2_x0_5")
GOLDEN, CALIBRATION = 1, 8  # images; edge cases are added to the golden ones


@dataclass
class Case:
    """The result of one model at one precision.

    Attributes:
        verdict: "pass", "mismatch", "vacuous", "not run"; "" if not exported.
        runner: "graph" if every node was judged in its own type; in older results, the engine
            that ran the graph.
        ratio: The rms error in units of the noise floor; None if it was not run.
        largest: The largest error of a row in units of that row's noise floor.
        audited: How many weights were found in the graph, of how many.
        nodes: Number of nodes by precision.
        seconds: Time of export and verify.
        allclose: Whether numpy.allclose(rtol=1e-3, atol=1e-5) accepts the graph's outputs against
            PyTorch's; None if it was not run.
        polygraphy: Whether Polygraphy's comparator accepts them, at its default tolerances.
        peak: The largest memory of a process, in MiB.
        reason: The first line of the error, if it does not pass.
    """

    model: str
    precision: str
    exported: bool = False
    verdict: str = ""
    runner: str = ""
    allclose: bool | None = None
    polygraphy: bool | None = None
    ratio: float | None = None
    largest: float | None = None
    audited: str = ""
    nodes: str = ""
    seconds: float = 0.0
    peak: int = 0
    reason: str = ""


def names() -> list[str]:
    """Returns torchvision's classification models, those with the fewest operations first."""
    module = torchvision.models
    all_models = torchvision.models.list_models(module=module)

    def cost(name: str) -> float:
        return float(module.get_model_weights(name).DEFAULT.meta["_ops"])

    return sorted(all_models, key=cost)


def prepare(name: str, folder: Path) -> None:
    """Writes weights, golden inputs and calibration data of a model."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    model = models.get(f"torchvision:{name}").build(None)
    network = model.network
    norms = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.detach().any():
            # A head of zeros has the same output for every input: nothing could be compared.
            torch.nn.init.normal_(parameter, std=0.02)
    shape = model.image or (3, 224, 224)
    if norms and model.prepare is not None:
        network.train()
        with torch.no_grad():
            for batch in rows.made_images(shape, 8, seed=2).reshape(2, 4, *shape):
                network(model.prepare(torch.from_numpy(batch)))
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(state, folder / "weights.safetensors")
    np.savez(folder / "golden.npz", image=rows.made_images(shape, GOLDEN, seed=3))
    np.savez(folder / "calibration.npz", image=rows.made_images(shape, CALIBRATION, seed=4))


def command(words: list[str], limit: float, seconds: float) -> tuple[dict[str, Any], int, str]:
    """Runs a command; returns its JSON document, its peak memory in MiB, and why it was ended."""
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    peak, ended, done = 0, "", threading.Event()

    def watch() -> None:
        nonlocal peak, ended
        start = time.monotonic()
        while not done.wait(0.1):
            with contextlib.suppress(OSError, IndexError):
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
                peak = max(peak, int(status.partition("VmHWM:")[2].split()[0]) // 1024)
                tasks = Path(f"/proc/{process.pid}/task/{process.pid}/children")
                family = [process.pid, *map(int, tasks.read_text(encoding="ascii").split())]
                peak = max(peak, sum(map(hardware.resident_memory, family)) >> 20)
            if peak > limit:
                ended = f"takes more than {limit / 1024:g} GiB of memory"
            elif time.monotonic() - start > seconds:
                ended = f"takes more than {seconds:.0f} s"
            if ended:
                os.killpg(process.pid, signal.SIGKILL)
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, _ = process.communicate()
    done.set()
    watcher.join()
    if process.returncode < 0 and not ended:
        name = signal.Signals(-process.returncode).name
        ended = f"ended by {name} at {peak / 1024:.1f} GiB; the machine may be out of memory"
    document: dict[str, Any] = {}
    with contextlib.suppress(json.JSONDecodeError):
        document = json.loads(out)
    return document, peak, ended


def measure(name: str, precision: str, folder: Path, limit: float, seconds: float) -> Case:
    """Exports and verifies one case in the store of a folder.

    Args:
        folder: Has the files of `prepare`; artifacts are written below it.
        limit: Memory that a process may use, in MiB.
        seconds: Time that a process may take.
    """
    case = Case(name, precision)
    start = time.monotonic()
    where = ["--root", str(folder / "artifacts"), "--json"]
    words = [sys.executable, "-m", "pipeline.cli"]
    model = [f"torchvision:{name}", "--precision", precision]
    more = ["--weights", str(folder / "weights.safetensors")]
    more += ["--inputs", str(folder / "golden.npz")]
    if PRECISIONS[precision].quantized:
        more += ["--calibration", str(folder / "calibration.npz")]
    export, case.peak, ended = command([*words, "export", *model, *more, *where], limit, seconds)
    if "outcomes" in export:
        case.exported = True
        described = export["outcomes"][-1]["results"]["graph"]
        case.nodes = ", ".join(f"{n} {kind}" for kind, n in described["precisions"].items())
        folder = folder / f"artifacts/torchvision-{name}/{precision}"
        case.runner = "graph"
        export, peak, ended = command([*words, "verify", *model, *where], limit, seconds)
        case.peak = max(case.peak, peak)
        verdict_path = folder / "verdict.json"
        if verdict_path.exists():
            read_verdict(case, json.loads(verdict_path.read_text(encoding="utf-8")))
        if case.verdict and not PRECISIONS[precision].quantized:
            ask_peers(case, folder)
    case.seconds = round(time.monotonic() - start, 1)
    if ended or (not case.reason and "error" in export):
        case.reason = ended or export["error"]["message"]
    case.reason = case.reason.splitlines()[0][:300] if case.reason else ""
    return case


def read_verdict(case: Case, verdict: dict[str, Any]) -> None:
    """Fills in the results of a verdict."""
    case.verdict, case.reason = verdict["status"], verdict["reason"]
    if verdict["outputs"]:
        case.ratio = max(o["rms_ratio"] for o in verdict["outputs"])
        case.largest = max(o["max_ratio"] for o in verdict["outputs"])
    if audit := verdict["audit"]:
        case.audited = str(Audit(**audit))


def ask_peers(case: Case, folder: Path) -> None:
    """Fills in the results of the comparisons by fixed tolerances."""
    golden = goldens.load(folder / "golden.npz")
    options = OpenOptions("cpu", threads=2, optimize=False)
    size = min(4, len(golden.cases))
    parts = []
    with (
        as_it_says(onnx_files.read(folder / "model.onnx")) as path,
        closing(engines.get("onnxruntime").open(path, options)) as session,
    ):
        for start in range(0, len(golden.cases), size):
            feeds = {
                k: np.ascontiguousarray(v[start : start + size]) for k, v in golden.inputs.items()
            }
            parts.append(session.run(feeds))
    for output, wanted in golden.native.items():
        outputs = np.concatenate([part[output] for part in parts])
        case.allclose = case.allclose is not False and peers.allclose(outputs, wanted)
        with contextlib.suppress(ImportError):
            case.polygraphy = case.polygraphy is not False and peers.polygraphy(outputs, wanted)


def table(cases: list[Case]) -> str:
    """Returns the cases as a Markdown table."""
    head = (
        "model",
        "precision",
        "verdict",
        "rms x floor",
        "max x floor",
        "allclose",
        "Polygraphy",
        "weights",
        "run by",
        "nodes",
        "s",
        "MiB",
        "reason",
    )
    lines = [head, tuple("---" for _ in head)]
    for case in cases:
        ratios = ["" if part is None else f"{part:.2f}" for part in (case.ratio, case.largest)]
        verdict = case.verdict or "not exported"
        measured = (f"{case.seconds:.0f}", f"{case.peak:,}")
        others = (_said(case.allclose), _said(case.polygraphy))
        cells = (*ratios, *others, case.audited, case.runner, case.nodes, *measured, case.reason)
        lines.append((case.model, case.precision, verdict, *cells))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _said(same: bool | None) -> str:
    return "" if same is None else "same" if same else "differs"


def page(cases: list[Case]) -> str:
    """Returns the results page: an explanation, counts, and the table."""
    lines = [
        "# torchvision's classification models, exported and verified",
        "",
        f"torch {torch.__version__}, torchvision {torchvision.__version__}. Random weights, with"
        " filled batch-norm statistics; verified in ONNX Runtime on a CPU. Rows that are run by"
        " `graph` judge every node in its own type; other rows are from before that was done, and"
        " ran the graph in the types that the named engine chose. `allclose` and"
        " `Polygraphy` are the results of numpy.allclose(rtol=1e-3, atol=1e-5) and of"
        " Polygraphy's comparator at its defaults for the same outputs, compared with PyTorch's at"
        " the same precision: if the verdict is a pass, `differs` is a false alarm."
        " `benchmarks/zoo.py` makes this table.",
        "",
    ]
    total = len(names())
    for precision in PRECISIONS:
        known = sum(case.precision == precision for case in cases)
        counts = Counter(c.verdict or "not exported" for c in cases if c.precision == precision)
        summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
        so_far = " so far" if known < total else ""
        lines.append(f"- {precision}, {known} of {total} models{so_far}: {summary or 'none'}")
        passed = [c for c in cases if (c.precision, c.verdict) == (precision, "pass")]
        for peer in ("allclose", "polygraphy"):
            asked = [getattr(c, peer) for c in passed if getattr(c, peer) is not None]
            if asked:
                lines.append(f"  - of {len(asked)} that pass, {peer} rejects {asked.count(False)}")
    return "\n".join([*lines, "", table(cases)])


def main() -> int:
    """Measures the requested cases that are not in the results yet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--models", type=lambda text: text.split(","))
    parser.add_argument("--precisions", type=lambda text: text.split(","), default=[*PRECISIONS])
    parser.add_argument("--memory", type=float, default=18.0)
    parser.add_argument("--seconds", type=float, default=1200.0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    wanted = asked.models or (list(QUICK) if asked.quick else names())
    known: list[Case] = []
    if asked.results.exists() and not asked.quick:
        known = [Case(**entry) for entry in json.loads(asked.results.read_text())["cases"]]
    done = {(case.model, case.precision) for case in known}
    cases: list[Case] = []
    for name in wanted:
        missing = [p for p in asked.precisions if (name, p) not in done]
        if not missing:
            continue
        with tempfile.TemporaryDirectory(prefix="zoo-") as scratch:
            folder = Path(scratch)
            prepare(name, folder)
            for precision in missing:
                case = measure(name, precision, folder, asked.memory * 1024, asked.seconds)
                cases.append(case)
                print(table([case]).splitlines()[-1], file=sys.stderr, flush=True)
                if not asked.quick:
                    write([*known, *cases], asked.results)
    print(table([*known, *cases]))
    return int(any(case.verdict not in ("pass", "not run") for case in cases)) if asked.quick else 0


def write(cases: list[Case], path: Path) -> None:
    """Replaces the results file and the table atomically, the smallest models first."""
    order = {name: place for place, name in enumerate(names())}
    # Results of models that this torchvision does not have are kept.
    cases = sorted(
        cases,
        key=lambda case: (
            order.get(case.model, len(order)),
            list(PRECISIONS).index(case.precision),
        ),
    )
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    content = {**versions, "cases": [asdict(case) for case in cases]}
    for suffix, text in ((".json", json.dumps(content, indent=1)), (".md", page(cases))):
        part = path.with_suffix(".part")
        part.write_text(f"{text}\n", encoding="utf-8")
        part.replace(path.with_suffix(suffix))


if __name__ == "__main__":
    sys.exit(main())
