"""The programs in examples/ run and classify an image as the model does."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
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
CPP = "onnxruntime_client.cpp"
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
    assert {path.name for path in (ROOT / "examples").iterdir() if path.is_file()} == {*NAMES, CPP}


def test_the_example_of_onnxruntime_classifies(folder: Path) -> None:
    for path, label in images(folder):
        first, last = run("onnxruntime_client.py", folder, path).splitlines()
        assert first == "before the graph: nothing; in it: uint8 image / 255"
        assert last == label


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of the C++ example, compiled with the options that it names."""
    import onnxruntime

    headers, folder = Path(os.environ["ASSAY_HEADERS"]), tmp_path_factory.mktemp("cpp")
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(library)
    shutil.copytree(headers / "include", folder / "include")
    program = folder / "client"
    command = [
        *("g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-I", folder / "include"),
        *("-isystem", headers / "debian/usr/include", ROOT / "examples" / CPP),
        *("-L", folder, "-lonnxruntime", "-o", program),
    ]
    subprocess.run(command, check=True, timeout=200)
    return ["env", f"LD_LIBRARY_PATH={folder}", str(program)]


@pytest.mark.cpp
def test_the_example_in_cpp_classifies(folder: Path, client: list[str]) -> None:
    def classify(*words: object) -> subprocess.CompletedProcess[str]:
        command = [*client, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)

    def other(models: object) -> Path:
        place = folder / f"other{models}"
        place.mkdir()
        manifest = json.loads((folder / "manifest.json").read_text())
        (place / "manifest.json").write_text(json.dumps({**manifest, "models": models}))
        return place

    for path, label in images(folder):
        ran = classify(folder, path)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.splitlines() == [
            "before the graph: nothing; in it: uint8 image / 255",
            label,
        ]
    Image.new("RGB", (32, 20)).save(folder / "large.png")
    for words, problem in (
        ((folder, folder / "large.png"), "large.png has 32x20 pixels; resize it to 28x28"),
        ((folder, folder / "manifest.json"), "manifest.json: "),
        ((folder / "lenet", path), "lenet/manifest.json cannot be read"),
        ((other({}), path), "manifest.json names no model"),
        ((other([]), path), "manifest.json names no model"),
        ((other("abc"), path), "error: "),
        ((folder,), "usage: "),
    ):
        ran = classify(*words)
        assert ran.returncode == 1
        assert problem in ran.stderr


@pytest.mark.cpp
def test_the_example_in_cpp_takes_colours_and_any_size(
    folder: Path, client: list[str], tmp_path: Path
) -> None:
    """The logits of this graph are the sums of the three colours."""
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (uint8[n, 3, h, w] image)'
        " => (float[n, 3] logits) <int64[2] axes = {2, 3}>"
        "{ values = Cast<to = 1>(image) logits = ReduceSum<keepdims = 0>(values, axes) }"
    )
    onnx.save(graph, tmp_path / "model.onnx")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["models"] = {"fp32": {"graph": "model.onnx"}}
    manifest["labels"] = ["red", "green", "blue"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    picture = Image.new("RGB", (40, 30), "blue")
    picture.putpixel((3, 20), (255, 0, 0))
    picture.save(tmp_path / "blue.png")
    command = [*client, str(tmp_path), str(tmp_path / "blue.png")]
    assert subprocess.check_output(command, text=True).splitlines()[-1] == "blue"
    # Other inputs than images.
    for inputs in ("uint8[n, 4294967296, 1, 1] image", "seq(uint8[n, 3, h, w]) image"):
        graph = onnx.parser.parse_model(
            f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => (int64 logits)'
            + (
                "{ logits = SequenceLength(image) }"
                if "seq" in inputs
                else "{ logits = Size(image) }"
            )
        )
        onnx.save(graph, tmp_path / "model.onnx")
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 1
        assert "takes no images of one or three channels" in ran.stderr


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
