"""Who notices what leaves the range of a half type: the verdict, numpy.allclose and Polygraphy.

    pip install --no-deps polygraphy   (its comparator is run, not imitated)
    PYTHONPATH=. python benchmarks/ranges.py

Each module of tests/range_faults.py is exported twice at a precision: by assay, which keeps in fp32
what the type cannot hold, and as it is after `.half()` or `.bfloat16()`. Both graphs are judged by
the verdict. The second one is also judged as other tools do it: ONNX Runtime's outputs against
PyTorch's own at that precision, by fixed tolerances. What a graph does is known from a run in the
types that it says: "material" means that a row is off by more than 8 times its noise floor.

Writes benchmarks/results/ranges.md, and prints it.
"""

from __future__ import annotations

import tempfile
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import torch

import engines
from benchmarks import peers
from benchmarks.parity import MATERIAL
from engines.contract import Array, OpenOptions
from exporters import REDUCED, cast, onnx_files
from exporters.module import Served
from pipeline.golden.file import Golden
from pipeline.verification.graph_file import as_it_says
from tests.range_faults import STEPS, Faulty, exported, judge, plain

RESULTS = Path(__file__).parent / "results" / "ranges.md"
_COLUMNS = (
    "module",
    "precision",
    "kept in fp32",
    "assay's graph",
    "plain graph",
    "its error / floor",
    "verdict",
    "allclose",
    "Polygraphy",
)


def outputs_of(path: Path, golden: Golden) -> Array:
    """Returns ONNX Runtime's output of a graph for the golden inputs, `[rows, 8]`."""
    options = OpenOptions("cpu", threads=1, optimize=False)
    with closing(engines.get("onnxruntime").open(path, options)) as session:
        return session.run(golden.inputs)["output"]


def measure(name: str, precision: str, folder: Path) -> tuple[str, ...]:
    """Returns a row of the table."""
    torch.manual_seed(0)
    network, dtype = Faulty(name), cast.dtype_of(precision)
    kept, result = exported(network, precision, folder)
    golden = result.golden
    graph = plain(network, golden, dtype)
    verdict = judge(graph, golden)
    largest = max((output.max_ratio for output in verdict.outputs), default=0.0)
    broken = "NaN or Inf" in verdict.reason
    effect = "material" if broken or largest > MATERIAL else "none"
    return (
        name,
        precision,
        str(len(kept.kept)),
        judge(result.graph, golden).status,
        effect,
        "NaN or Inf" if broken else f"{largest:.2g}",
        verdict.status,
        *_peers(network, graph, golden, dtype, folder),
    )


def _peers(
    network: Faulty, graph: onnx.ModelProto, golden: Golden, dtype: torch.dtype, folder: Path
) -> tuple[str, str]:
    """Returns what allclose and Polygraphy make of ONNX Runtime's outputs beside PyTorch's."""
    served = Served(cast.cast_to_precision(network, _name(dtype)), None, dtype).eval()
    with torch.inference_mode():
        wanted = served(torch.from_numpy(golden.inputs["x"]))[0].numpy()
    path = folder / "plain.onnx"
    onnx_files.write(graph, path)
    if dtype == torch.bfloat16:  # ONNX Runtime's CPU provider has few kernels for it
        with as_it_says(graph) as typed:
            outputs = outputs_of(typed, golden)
    else:
        outputs = outputs_of(path, golden)
    words = ("accepts", "rejects")
    with np.errstate(all="ignore"):
        return (
            words[not peers.allclose(outputs, wanted)],
            words[not peers.polygraphy(outputs, wanted)],
        )


def _name(dtype: torch.dtype) -> str:
    return next(name for name in REDUCED if cast.dtype_of(name) == dtype)


def main() -> None:
    """Measures, writes the table and prints it."""
    warnings.simplefilter("ignore")
    lines = [_COLUMNS, tuple("---" for _ in _COLUMNS)]
    with tempfile.TemporaryDirectory() as folder:
        lines += [measure(n, p, Path(folder)) for p in REDUCED for n in STEPS]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    RESULTS.write_text(f"# What leaves the range of a half type\n\n{table}\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
