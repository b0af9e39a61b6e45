"""What constant sizes in a graph change: nodes, bytes, and the time on CPUs.

Exports transformers of torchvision, at a small size, with sizes computed in the graph, as torch
writes them, and with constant ones, as assay does. Both graphs run interleaved, on one thread.

    PYTHONPATH=. python benchmarks/sizes.py > benchmarks/results/sizes.md
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import torch
import torchvision
from torch import nn
from torchvision.models import swin_transformer as swin

import engines
from engines import hardware
from engines.contract import BuildOptions, OpenOptions, TensorSpec
from exporters import constant_sizes, onnx_files, onnx_graph
from exporters.module import Served
from exporters.program import export_program
from pipeline.benchmarking import clock, intervals

_SHAPE = (3, 64, 64)
_WINDOWS = ([4, 4], 96, [2, 2], [3, 6], [4, 4])
MODELS: dict[str, Callable[[], nn.Module]] = {
    "VisionTransformer": lambda: torchvision.models.VisionTransformer(64, 8, 4, 4, 128, 256),
    "SwinTransformer": lambda: swin.SwinTransformer(*_WINDOWS),
    "SwinTransformer V2": lambda: swin.SwinTransformer(
        *_WINDOWS, block=swin.SwinTransformerBlockV2, downsample_layer=swin.PatchMergingV2
    ),
    "MaxVit": lambda: torchvision.models.MaxVit((64, 64), 16, 4, [32, 64], [1, 1], 32, 0.2),
}
ENGINES = ("onnxruntime", "openvino")
BATCHES = (1, 8)
_SECONDS = 6.0  # for each comparison


def graph(model: nn.Module, *, computed: bool) -> onnx.ModelProto:
    """Exports a model, with computed or constant sizes."""
    inputs = (TensorSpec("image", "float32", (None, *_SHAPE)),)
    outputs = (TensorSpec("logits", "float32", (None, 1000)),)
    program = export_program(Served(model, None).eval(), [torch.zeros(2, *_SHAPE)])
    with mock.patch.multiple(
        onnx_graph,
        make_sizes_constant=(lambda _: None) if computed else constant_sizes.make_sizes_constant,
        _translatable=(lambda same: same) if computed else onnx_graph._translatable,
    ):
        return next(onnx_graph.export_graph(program, inputs, outputs, {}).graphs)


def ratio(engine: str, paths: dict[str, Path], batch: int) -> intervals.Interval:
    """Returns the time with computed sizes as a multiple of that with constant ones."""
    images = np.random.default_rng(0).normal(size=(batch, *_SHAPE)).astype(np.float32)
    options = OpenOptions(device="cpu", threads=1)
    candidates = []
    for name, path in paths.items():
        built = path.with_name(f"{name}.{engine}")
        engines.get(engine).build(path, built, BuildOptions())
        session = engines.get(engine).open(built, options)
        candidates.append(clock.Candidate(name, session, {"image": images}))
    timings = clock.measure(candidates, budget=_SECONDS, seed=0)
    (chosen,) = (t for t in timings if t.name == "constant" and t.boundary == "end to end")
    return chosen.ratio


def main() -> int:
    """Prints the table."""
    print("# Constant sizes\n")
    print(
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, {hardware.cpu_model()},"
        f" one thread, images of {_SHAPE[1]}x{_SHAPE[2]}. The last columns are the end-to-end time"
        " of the graph that computes its sizes over that of the one with constants: above 1, the"
        " constants are faster. Where no `Shape` node was left, both graphs are the same, and the"
        " row shows what the machine's noise is.\n"
    )
    head = ["model", "nodes", "`Shape` nodes", "KiB"]
    head += [f"{name}, batch {batch}" for name in ENGINES for batch in BATCHES]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name, make in MODELS.items():
        torch.manual_seed(0)
        model = make().eval()
        with tempfile.TemporaryDirectory(prefix="assay-") as folder:
            graphs = {
                kind: graph(model, computed=kind == "computed") for kind in ("computed", "constant")
            }
            paths = {kind: Path(folder) / f"{kind}.onnx" for kind in graphs}
            for kind, path in paths.items():
                onnx_files.write(graphs[kind], path)
            shapes = [sum(n.op_type == "Shape" for n in g.graph.node) for g in graphs.values()]
            cells = [
                " → ".join(str(len(g.graph.node)) for g in graphs.values()),
                " → ".join(map(str, shapes)),
                " → ".join(f"{g.ByteSize() / 1024:,.1f}" for g in graphs.values()),
            ]
            for engine in ENGINES:
                for batch in BATCHES:
                    interval = ratio(engine, paths, batch)
                    cells.append(
                        f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"
                    )
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
