"""Half precisions: what they cannot hold is kept in fp32, or the verdict says so."""

import copy
from contextlib import closing
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import engines
from engines.contract import OpenOptions
from exporters.module import Served
from exporters.onnx_graph import export_graph
from exporters.program import export_program
from pipeline.exporting import calibration
from pipeline.exporting.graphs import Exported, Source, export
from pipeline.exporting.precision import Cast, at_precision
from pipeline.golden import rows
from pipeline.golden.file import Golden
from pipeline.golden.reference import ExactModel, make_reference
from pipeline.golden.reference_cache import ReferenceCache
from pipeline.models import Model
from pipeline.verification import verdict
from pipeline.verification.graph_file import as_it_says
from tests.range_faults import STEPS, Faulty, loud_rows


def exported(network: nn.Module, precision: str, folder: Path, **inputs) -> tuple[Cast, Exported]:
    """Exports a network as the stage does."""
    model = Model(network=network.eval(), inputs=inputs or {"x": loud_rows()})
    golden_rows = rows.without_test_set(model, None)
    cast = at_precision(model, precision, golden_rows, traced=False)
    exact = ExactModel(model, ("output",))
    cache = ReferenceCache(folder / "cache", "key")
    reference = make_reference(
        model,
        cast.runs,
        exact,
        golden_rows,
        precision,
        None,
        cache,
        noise_runs=4,
        beyond=cast.beyond,
    )
    source = Source(cast.module, cast.program, reference, {}, None)
    return cast, export(source, lambda: calibration.made(model))


def judge(graph: onnx.ModelProto, golden: Golden) -> verdict.Verdict:
    with as_it_says(graph) as path:
        session = engines.get("onnxruntime").open(path, OpenOptions("cpu", optimize=False))
        with closing(session):
            return verdict.judge("graph", session, golden)


def plain(network: nn.Module, golden: Golden, dtype: torch.dtype) -> onnx.ModelProto:
    """Exports a network as it is after `.half()`."""
    served = Served(copy.deepcopy(network).to(dtype), None, dtype).eval()
    program = export_program(served, [torch.from_numpy(golden.inputs["x"][:2])], ["x"])
    return next(export_graph(program, golden.input_specs, golden.output_specs, {}).graphs)


@pytest.mark.parametrize("name", STEPS)
def test_what_fp16_cannot_hold_is_kept_in_fp32_and_a_graph_without_that_is_rejected(
    name: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = Faulty(name)
    cast, result = exported(network, "fp16", tmp_path)
    assert cast.kept
    assert all("test_precision" in str(v) or "range_faults.py" in str(v) for v in cast.kept)
    assert judge(result.graph, result.golden).status == "pass"
    assert judge(plain(network, result.golden, torch.float16), result.golden).status == "mismatch"


@pytest.mark.parametrize("name", ["square", "mask constant", "squares that vanish"])
def test_bf16_has_the_range_of_fp32(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    cast, result = exported(Faulty(name), "bf16", tmp_path)
    assert not cast.kept
    assert judge(result.graph, result.golden).status in ("pass", "vacuous")
