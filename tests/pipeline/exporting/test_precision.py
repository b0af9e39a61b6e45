"""Half precisions: what they cannot hold is kept in fp32, or the verdict says so."""

from pathlib import Path

import pytest
import torch

from tests.range_faults import STEPS, Faulty, exported, judge, plain


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
