"""The model card: Hugging Face's library reads it, and its figures are the measured ones."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from pipeline.report.units import duration
from pipeline.workflow.runner import Store
from tests.conftest import Result

Assay = Callable[..., Result]


def test_a_card_has_the_measured_figures(built: Store, tmp_path: Path, assay: Assay) -> None:
    out = tmp_path / "README.md"
    place = ("--root", built.root, "--dist", built.dist)
    result = assay("card", "lenet", "--out", out, "--license", "mit", *place)
    assert result.code == 0, result.err
    card = ModelCard.load(out)
    assert card.data.license == "mit"
    assert card.data.library_name == "onnx"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.datasets == ["fashion-mnist"]
    values = {(entry.metric_type, entry.metric_name): entry for entry in card.data.eval_results}
    training = json.loads((built.root / "lenet/training.json").read_text())
    accuracies = [entry.metric_value for (kind, _), entry in values.items() if kind == "accuracy"]
    assert training["test_accuracy"] in accuracies
    measured = json.loads((built.root / "lenet/fp32/measurements.json").read_text())
    whole = [entry for entry in measured["results"] if entry["boundary"] == "end to end"]
    known = [entry["seconds"] for entry in whole]
    # With a budget this short, few are known.
    known += [entry["percentiles"]["p99"] for entry in whole if "p99" in entry["percentiles"]]
    latencies = {e.metric_value for e in card.data.eval_results if "latency" in e.metric_type}
    assert latencies == {interval["value"] for interval in known}
    assert latencies
    for interval in known:
        assert f"{duration(interval['low'])} to {duration(interval['high'])}" in card.text
    assert measured["machine"]["cpu"] in card.text
    assert all(entry.dataset_name == "fashion-mnist" for entry in card.data.eval_results)


def test_without_a_file_it_goes_to_standard_output(built: Store, assay: Assay) -> None:
    result = assay("card", "lenet", "--root", built.root, "--dist", built.dist)
    assert result.code == 0
    assert ModelCard(result.out).data.model_name == "lenet"


def test_a_model_without_results_has_no_card(tmp_path: Path, assay: Assay) -> None:
    result = assay("card", "lenet", "--root", tmp_path, "--dist", tmp_path)
    assert result.code == 1
    assert "assay run lenet" in result.err
    assert assay("card", "lenet", "--precision", "fp23").code == 2


def test_without_the_library_the_hint_installs_it(
    built: Store, assay: Assay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    result = assay("card", "lenet", "--root", built.root, "--dist", built.dist)
    assert result.code == 4
    assert "pip install huggingface_hub" in result.err
