"""Golden inputs: how many, and which."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from exporters import PRECISIONS
from pipeline.golden import file as goldens
from pipeline.golden import rows
from pipeline.stages import export
from pipeline.verification import limits, noise_floor
from tests.conftest import Result
from tests.unusual import graph_of

Assay = Callable[..., Result]


@pytest.mark.slow(1)
def test_large_examples_of_a_small_dtype_are_accepted(
    own: Callable[[str], str], assay: Assay
) -> None:
    name = own("large")
    result = assay("export", name)
    assert result.code == 0, result.err
    assert np.isfinite(goldens.load(graph_of(name).with_name("golden.npz")).inputs["x"]).all()
    assert assay("verify", name).code == 0


def test_the_number_of_golden_rows_is_chosen_and_recorded(
    own: Callable[[str], str], assay: Assay
) -> None:
    name = own("large")
    assert assay("export", name, "--golden-rows", 5).code == 0
    cases = goldens.load(graph_of(name).with_name("golden.npz")).cases
    assert sum(case.startswith(goldens.MADE_ROW) for case in cases) == 5
    again = assay("export", name, "--golden-rows", 5)
    assert "nothing changed, skipped" in again.err
    usual = assay("export", name)
    assert f"golden_rows was 5, is now {rows.WITHOUT_DATA}" in usual.err
    cases = goldens.load(graph_of(name).with_name("golden.npz")).cases
    assert sum(case.startswith(goldens.MADE_ROW) for case in cases) == rows.WITHOUT_DATA


def test_images_of_a_test_set_are_as_many_as_asked_for() -> None:
    images, labels = np.zeros((40, 1, 8, 8), np.uint8), np.arange(40)
    assert len(rows.of_test_set(images, labels, 7).labels) == 7
    assert len(rows.of_test_set(images, labels, 70).labels) == 40
    assert export.resolve(export.Params("lenet")).golden_rows == rows.WITH_DATA
    chosen = export.resolve(export.Params("torchvision:resnet18"))
    assert chosen.golden_rows == rows.WITHOUT_DATA


def test_edge_cases_do_not_set_the_usual_scale_of_an_output() -> None:
    usual, edges = np.ones((rows.WITHOUT_DATA, 4)), np.full((len(goldens.IMAGE_EDGES), 4), 1e4)
    outputs = np.concatenate([usual, edges])
    floor = noise_floor.floor(outputs, np.zeros((len(outputs), 2)), "fp32", least=0.0)
    unit = PRECISIONS["fp32"].unit
    assert floor.rms[0] == limits.LEAST_NOISE * unit


def test_golden_rows_and_inputs_exclude_each_other(tmp_path: Path, assay: Assay) -> None:
    np.savez(tmp_path / "inputs.npz", x=np.zeros((2, 3)))
    words = ("export", "torchvision:resnet18", "--inputs", tmp_path / "inputs.npz")
    result = assay(*words, "--golden-rows", 5, "--root", tmp_path)
    assert result.code == 2
    assert "--golden-rows does not apply to the rows of --inputs" in result.err
