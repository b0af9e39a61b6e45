"""Half precisions: what they cannot hold is kept in fp32, or the verdict says so."""

from pathlib import Path

import pytest
import torch

from engines.errors import DeployError
from pipeline.exporting import calibration
from pipeline.exporting.graphs import Source, export
from pipeline.exporting.precision import at_precision
from pipeline.golden import rows
from pipeline.models import Model
from tests.range_faults import Faulty, exported, judge, loud_rows, plain

# benchmarks/ranges.py takes all of them.
SOME = ("square", "epsilon that vanishes", "mask constant", "cumulative sum", "squares that vanish")


@pytest.mark.parametrize("name", SOME)
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


def test_torchscript_which_keeps_nothing_in_fp32_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Model(network=Faulty("square").eval(), inputs={"x": loud_rows()})
    golden_rows = rows.without_test_set(model, None)
    with pytest.raises(DeployError, match=r"fp16 cannot hold: mul of .*range_faults.py:\d+ in"):
        at_precision(model, "fp16", golden_rows, traced=True)
    # Of a module that torch.export cannot trace, the graph is looked at.
    _, result = exported(Faulty("square"), "fp16", tmp_path)
    cast = at_precision(model, "fp16", golden_rows, traced=False)
    source = Source(cast.module, None, result.golden, {}, None)
    with pytest.raises(DeployError, match=r"fp16 cannot hold: Mul .* reaches"):
        export(source, lambda: calibration.of_model(model))
