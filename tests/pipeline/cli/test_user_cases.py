"""What users bring and type, one command after the other, with the outcome of each."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from torch import nn

import assay as library
from tests import foreign
from tests.conftest import Process

SOURCE = """
import torch
from torch import nn

import assay


class CNN(nn.Module):
    def __init__(self, classes=2):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


class Dictionary(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        y = self.layer(x)
        return {"parts": [y, {"sum": y.sum(1)}]}


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 4, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0][:, -1]


class Broken(nn.Module):
    def forward(self, x):
        return x @ torch.ones(5, 5)


def cnn():
    return CNN()


def ten():
    return CNN(10)


def turned():
    return assay.Model(network=CNN(), image=(3, 20, 20), labels=("dog", "cat"), prepare=Scaled())


def others():
    return assay.Model(network=CNN(), image=(3, 20, 20), labels=("cat", "horse"), prepare=Scaled())


class Scaled(nn.Module):
    def forward(self, image):
        return image.float() / 255


def plain():
    return assay.Model(network=nn.Linear(6, 4), inputs={"input": torch.randn(8, 6)})


def dictionary():
    return assay.Model(network=Dictionary(), inputs={"x": torch.randn(8, 6)})


def sequence():
    return assay.Model(network=Sequence(), inputs={"x": torch.randn(8, 5, 6)})


def broken():
    return assay.Model(network=Broken(), inputs={"x": torch.randn(8, 6)})


def sized():
    axes = {2: ("height", 16, 40), 3: ("width", 16, 40)}
    return assay.Model(network=CNN(), inputs={"x": torch.rand(4, 3, 20, 24)}, dynamic={"x": axes})
"""


class Case(NamedTuple):
    """A command, its exit code, and words of what it prints."""

    command: str
    code: int
    words: tuple[str, ...] = ()


RUN = "--engine onnxruntime --budget 0.05 --batch 1"
CASES = (
    # Folders of images.
    Case("data --data pets", 0, ("cat", "dog", "8")),
    Case("data --data nowhere", 2, ("nowhere",)),
    Case("data --data mixed", 1, ("notes",)),
    Case("data --data deep16", 1, ("16",)),
    Case("data --data other/pets", 0, ("cat", "dog")),
    # A module without a wrapper, from two files to a bundle.
    Case(f"run my.py:cnn --data pets --epochs 1 {RUN}", 0, ("bundle:",)),
    Case("train my.py:turned --data pets --epochs 1", 0, ("accuracy",)),
    Case("train my.py:others --data pets --epochs 1", 1, ("horse",)),
    Case("train my.py:ten --data pets --epochs 1", 1, ("--replace-head",)),
    Case("train my.py:ten --data pets --epochs 1 --replace-head --freeze", 0, ("accuracy",)),
    Case("train my.py:cnn --data pets --epochs 2", 2, ("--retrain",)),
    # Names.
    Case("train resnet50", 2, ("torchvision:resnet50",)),
    Case("export my.py", 2, ("my.py:cnn",)),
    Case("export my.py:plane", 2, ("did you mean 'plain'",)),
    Case("export det.onnx", 2, ("onnx:det.onnx",)),
    Case("export my.py:plain --precision fp61", 2, ("did you mean 'fp16'",)),
    Case("verify my.py:plain --engine onnxruntim", 2, ("did you mean 'onnxruntime'",)),
    # Weights.
    Case("export my.py:plain --weights module.pt", 0),
    Case("export my.py:plain --weights two.pt --weights-key model", 2, ("--retrain",)),
    Case("train my.py:plain --weights two.pt --retrain", 1, ("--weights-key", "model_ema")),
    Case("train my.py:plain --weights two.pt --weights-key model_ema --retrain", 0),
    Case("train my.py:plain --weights other.pt --retrain", 1, ("weight",)),
    # Quantization.
    Case("export my.py:plain --precision int8", 2, ("--calibration FILE.npz",)),
    Case("export my.py:plain --precision int8 --calibrate-on-noise", 0),
    Case("export my.py:plain --precision int8 --calibration names.npz", 1, ("input",)),
    # Modules.
    Case("export my.py:dictionary", 0),
    Case("verify my.py:dictionary", 0, ("parts_0", "parts_1_sum")),
    Case("export my.py:broken", 1, ("my.py:", "return x @ torch.ones(5, 5)")),
    Case("export my.py:sequence", 0),
    Case("verify my.py:sequence", 0, ("pass",)),
    Case("export my.py:sized", 0),
    Case("verify my.py:sized", 0, ("at 3x40x40",)),
    # Options that are not used, or contradict each other.
    Case("build my.py:plain --engine onnxruntime --refit", 2, ("--refit does not apply",)),
    Case(f"bench my.py:cnn {RUN} --threads 2 --affinity 0", 2, ("--threads", "--affinity")),
    Case("verify my.py:plain --device cuda:7", 2, ("cuda:7", "CPU")),
    Case("verify my.py:cnn --engine onnxruntime --device cuda", 4, ("cuda",)),
    Case("export my.py:plain --shape input=1x6", 2, ("--shape is for an ONNX file",)),
    # ONNX files.
    Case("inspect det.onnx", 0, ("images: float32[batch, 3, height, width]",)),
    Case("export onnx:det.onnx", 2, ("--shape images=1x3xSIZExSIZE",)),
    Case(f"run onnx:det.onnx --shape images=1x3x16:24:32x24 {RUN}", 0, ("bundle:",)),
    Case("diff det.onnx other.onnx --shape images=1x3x16x16", 3, ("not proved equal",)),
    Case("reduce det.onnx --shape images=1x3x16x16", 1, ("does not fail",)),
    Case("train onnx:det.onnx", 2, ("is an ONNX graph",)),
    Case("check nothing.tar.zst", 1, ("nothing.tar.zst",)),
)


def write_images(folder: Path) -> None:
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 4)):
        for number, name in enumerate(("cat", "dog")):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 100, (20, 20, 3), np.uint8)
                pixels[..., number] += 100
                Image.fromarray(pixels).save(folder / part / name / f"{index}.png")


def write_weights() -> None:
    state = nn.Linear(6, 4).state_dict()
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, "module.pt")
    torch.save({"model": state, "model_ema": nn.Linear(6, 4).state_dict()}, "two.pt")
    torch.save(nn.Linear(7, 4).state_dict(), "other.pt")
    np.savez("names.npz", other=np.zeros((8, 6), np.float32))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the commands name."""
    monkeypatch.chdir(tmp_path)
    Path("my.py").write_text(SOURCE)
    for name in ("pets", "other/pets", "mixed"):
        write_images(Path(name))
    Path("mixed/notes").mkdir()
    (Path("mixed/notes") / "a.png").write_bytes(Path("pets/train/cat/0.png").read_bytes())
    shutil.copytree("pets", "deep16")
    deep = np.full((20, 20), 40_000, np.uint16)
    Image.fromarray(deep).save("deep16/train/cat/0.png")
    write_weights()
    changed = onnx.load(foreign.detector(Path("det.onnx")))
    weight = next(tensor for tensor in changed.graph.initializer if tensor.name == "w3")
    values = numpy_helper.to_array(weight) * np.float32(1.01)
    weight.CopyFrom(numpy_helper.from_array(values, "w3"))
    onnx.save(changed, "other.onnx")
    return tmp_path


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_commands_of_users_have_the_right_outcome(
    process: Callable[..., Process], folder: Path
) -> None:
    wrong = []
    for case in CASES:
        result = process(*shlex.split(case.command), cwd=folder).run()
        printed = result.out + result.err
        missing = [word for word in case.words if word not in printed]
        if result.code != case.code or missing or "Traceback" in printed:
            wrong.append(
                f"assay {case.command}: exit code {result.code}, not {case.code}, without"
                f" {missing}:\n{result.err[-800:]}"
            )
    assert not wrong, "\n\n".join(wrong)
    with library.load(next(Path("dist").glob("my.py-cnn-fp32*"))) as model:
        image = np.asarray(Image.open("pets/test/dog/0.png")).transpose(2, 0, 1)[np.newaxis]
        assert model.classify(np.ascontiguousarray(image))[0] in ("cat", "dog")
    names = {path.name for path in Path("artifacts/data").glob("folder-pets-*")}
    assert len(names) == 2  # two folders of one name are two data sets
