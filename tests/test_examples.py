"""The programs in examples/ run and classify an image as the model does."""

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import engines
from engines.contract import OpenOptions
from pipeline.golden import file as goldens
from pipeline.serving import own_server
from pipeline.workflow.runner import Store
from tests.bundles import FOLDER, bundle_of, opened
from tests.servers import free_ports
from tests.subset import ROOT

NAMES = {"onnxruntime_client.py", "triton_client.py"}
GOLDEN = "lenet/fp32/golden.npz"


def run(name: str, *words: object) -> str:
    """Returns what an example prints."""
    command = [sys.executable, ROOT / "examples" / name, *words]
    ran = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, timeout=100
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture
def folder(built: Store, tmp_path: Path) -> Path:
    """The unpacked bundle."""
    with opened(bundle_of(built)) as files:
        files.extractall(tmp_path)  # our own, and some Python 3.11 have no filters
    return tmp_path / FOLDER


def images(folder: Path) -> list[tuple[Path, str]]:
    """Writes golden images of several classes; returns their paths and labels."""
    golden = goldens.load(folder / GOLDEN)
    labels = json.loads((folder / "manifest.json").read_text())["labels"]
    classes = golden.native["logits"].argmax(axis=1)
    rows = [int(np.flatnonzero(classes == number)[0]) for number in np.unique(classes)[:3]]
    written = []
    for row in rows:
        path = folder / f"{row}.png"
        Image.fromarray(golden.inputs["image"][row, 0]).save(path)
        written.append((path, labels[classes[row]]))
    return written


def test_every_example_is_run() -> None:
    assert {path.name for path in (ROOT / "examples").iterdir() if path.is_file()} == NAMES


def test_the_example_of_onnxruntime_classifies(folder: Path) -> None:
    for path, label in images(folder):
        first, last = run("onnxruntime_client.py", folder, path).splitlines()
        assert first == "before the graph: nothing; in it: uint8 image / 255"
        assert last == label


@pytest.mark.parametrize("name", sorted(NAMES))
def test_an_example_says_how_it_is_called(name: str) -> None:
    command = [sys.executable, ROOT / "examples" / name]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert ran.returncode == 1
    assert f"    python {name} lenet-fp32" in ran.stderr


def test_the_example_of_triton_classifies(folder: Path) -> None:
    pytest.importorskip("tritonclient")
    (port,) = free_ports(1)
    engine = engines.get("onnxruntime")
    path = folder / "lenet/fp32/onnxruntime/engine.onnx"
    with (
        closing(engine.open(path, OpenOptions())) as session,
        own_server.running("127.0.0.1", port, "lenet", session),
    ):
        for image, label in images(folder):
            text = run("triton_client.py", folder, f"127.0.0.1:{port}", image)
            assert text.splitlines()[-1] == label
