"""The edge detector: the whole chain for a model that is not a classifier."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline import models
from pipeline.golden import file as goldens
from tests.bundles import opened
from tests.conftest import Result
from tests.subset import stages

Assay = Callable[..., Result]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline.cli import stage_runs
    from pipeline.workflow.runner import Store

    folder = tmp_path_factory.mktemp("edge")
    store = Store(folder / "artifacts", folder / "dist")
    stage_runs.run_all({"model": "edge", "batch": (1,), "budget": 0.1}, store)
    return folder


def test_ten_steps_learn_nearly_plus_one_and_minus_one(folder: Path) -> None:
    weight = load_file(folder / "artifacts/edge/checkpoint.safetensors")["weight"].ravel()
    # Dive into Deep Learning, 7.2, prints about [0.98, -0.98], depending on the initial weights.
    assert np.abs(weight - [0.98, -0.98]).max() < 0.05
    training = json.loads((folder / "artifacts/edge/training.json").read_text())
    losses = [entry["loss"] for entry in training["curve"]]
    assert len(losses) == 10
    assert losses == sorted(losses, reverse=True)


def test_ten_steps_match_the_books_loop(folder: Path) -> None:
    # The book's loop, written out: the gradient of a sum of squares.
    import torch

    model = models.get("edge").build(None)
    torch.manual_seed(0)
    weight = models.get("edge").build(None).network.weight.detach().numpy().ravel()
    image = model.samples[0][0, 0] / 255.0
    target = model.samples[1][0, 0]
    assert set(np.unique(target)) == {-1, 0, 1}
    for _ in range(10):
        error = weight[0] * image[:, :-1] + weight[1] * image[:, 1:] - target
        gradient = 2 * np.array([(error * image[:, :-1]).sum(), (error * image[:, 1:]).sum()])
        weight = weight - 0.03 * gradient
    trained = load_file(folder / "artifacts/edge/checkpoint.safetensors")["weight"].ravel()
    assert np.allclose(trained, weight, atol=1e-5)


def test_the_golden_file_has_no_classes(folder: Path) -> None:
    golden = goldens.load(folder / "artifacts/edge/fp32/golden.npz")
    assert golden.logits == ""
    assert golden.native["edges"].shape[1:] == (1, 6, 7)
    assert len(golden.labels) == len(golden.test_labels) == 0
    assert golden.cases[0] == "example 0"
    assert np.array_equal(golden.inputs["image"][0], models.get("edge").build(None).samples[0][0])


def test_every_verdict_is_a_pass_without_flips(folder: Path) -> None:
    paths = sorted(folder.rglob("verdict.json"))
    verdicts = [json.loads(path.read_text()) for path in paths]
    ran = [verdict for verdict in verdicts if verdict["status"] != "not run"]
    assert len(ran) >= 3
    assert all(verdict["status"] == "pass" and verdict["flips"] is None for verdict in ran)


def test_the_bundle_passes_and_lists_no_classes(folder: Path, assay: Assay) -> None:
    bundle = folder / "dist/edge-fp32.tar.zst"
    assert assay("check", "--trust", bundle).code == 0
    with opened(bundle) as archive:
        readme = archive.extractfile("edge-fp32/README.md").read().decode()
    assert "after 10 epochs" in readme
    assert "classes" not in readme


def test_the_report_and_a_second_run(folder: Path, assay: Assay) -> None:
    where = ("--root", folder / "artifacts", "--dist", folder / "dist")
    result = assay("run", "edge", *where, "--batch", "1", "--budget", "0.1")
    assert result.code == 0
    assert (
        result.err.splitlines()[-1] == f"{stages(data=False)} stages, {stages(data=False)} skipped"
    )
    report = assay("report", "edge", *where)
    assert "edge: loss 0.04334 after 10 epochs" in report.out
