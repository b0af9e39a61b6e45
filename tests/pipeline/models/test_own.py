"""The user's own models, with their weights and inputs."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from pipeline import models
from pipeline.golden import file as goldens
from tests import traces
from tests.conftest import Process, Result
from tests.subset import stages

Assay = Callable[..., Result]

SOURCE = """
import numpy as np
import torch
from torch import nn

from pipeline.models import Model


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 8)
        self.linear = nn.Linear(16, 8)

    def forward(self, image, token):
        a, b = self.linear(image.flatten(1)), self.table(token).mean(1)
        return a + b, (a - b).relu()


class Named(Two):
    def forward(self, image, token):
        first, second = super().forward(image, token)
        return {"sum": first, "rest": second}


def two():
    return Two()


instance = Two()


def beyond():
    inputs = {"image": np.zeros((3, 4, 4), np.float32), "token": np.full((3, 5), 50)}
    return Model(network=Two(), inputs=inputs)


def spec():
    random = np.random.default_rng(0)
    inputs = {
        "image": random.random((3, 4, 4), np.float32),
        "token": random.integers(0, 50, (3, 5)),
    }
    return Model(network=Named(), inputs=inputs)


class Square(nn.Module):
    def forward(self, x):
        return x * x * x


def cube():
    return Model(network=Square(), inputs={"x": torch.linspace(-3, 4, 24).reshape(4, 6)})


class Scale(nn.Module):
    def forward(self, image):
        return image.float().mean((2, 3)) / 255


def classifier():
    image = np.random.default_rng(0).integers(0, 256, (4, 1, 28, 28), np.uint8)
    return Model(
        network=nn.Linear(1, 10), prepare=Scale(), inputs={"image": image},
        dataset="fashion-mnist",
    )


def gray():
    return Model(network=nn.Flatten(), image=(1, 4, 4))


class Reduced(nn.Module):
    def forward(self, image):
        return image.float().sum()


class Texts(nn.Module):
    def forward(self, image):
        return {"text": "hello"}


class Single(nn.Module):
    def forward(self, image):
        x = image.to(torch.float32).flatten(1) / 7 + torch.arange(16, dtype=torch.float32)
        return (x @ torch.ones(16, 2)).float()


class Stubborn(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.ones(16, 2)

    def forward(self, image):
        return image.float().flatten(1) @ self.weight


class Broken(nn.Module):
    def forward(self, image):
        raise ValueError("wrong shape")


def raises():
    raise ValueError("no such luck")


def number():
    return 5


value = 5
reduced = lambda: Model(network=Reduced(), image=(1, 4, 4))
texts = lambda: Model(network=Texts(), image=(1, 4, 4))
single = lambda: Model(network=Single(), image=(1, 4, 4))
class Random(nn.Module):
    def forward(self, image):
        return image.float().flatten(1) + torch.randn(16)


class Mixed(nn.Module):
    def forward(self, image):
        x = image.float().flatten(1)
        return x - x.mean(0)


class Skipping(nn.Module):
    def forward(self, x, scale=2.0, mask=None):
        return x * scale if mask is None else x * scale * mask


row = np.random.default_rng(0).random((3, 4), np.float32)
random = lambda: Model(network=Random(), image=(1, 4, 4))
mixed = lambda: Model(network=Mixed(), image=(1, 4, 4))
skipping = lambda: Model(network=Skipping(), inputs={"x": row, "mask": row})
swapped = lambda: Model(network=Two(), inputs={
    "token": np.zeros((3, 5), np.int64), "image": np.zeros((3, 4, 4), np.float32)})
words = lambda: Model(network=Skipping(), inputs={"x": ["a", "b"]})
tensors = lambda: Model(network=Skipping(), inputs={"x": torch.from_numpy(row)})
greedy = lambda argument: None
stubborn = lambda: Model(network=Stubborn(), image=(1, 4, 4))
broken = lambda: Model(network=Broken(), image=(1, 4, 4))
misnamed = lambda: Model(network=nn.Flatten(), image=(1, 4, 4), outputs=("a", "b"))
rows = lambda: Model(network=Two(), inputs={
    "image": np.zeros((3, 4, 4), np.float32), "token": np.zeros((2, 5), np.int64)})
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # A unique name, since Python imports a module only once.
    name = f"own_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def named(folder: Path, factory: str) -> str:
    (path,) = folder.glob("own_*.py")
    return f"{path.stem}:{factory}"


def artifacts(folder: Path, name: str) -> Path:
    return folder / "artifacts" / name.replace(":", "-")


@pytest.mark.slow(2)
def test_two_inputs_two_outputs_from_a_bare_module(folder: Path, assay: Assay) -> None:
    name = named(folder, "two")
    random = np.random.default_rng(0)
    np.savez(
        folder / "inputs.npz",
        token=random.integers(0, 50, (3, 5)),
        image=random.random((3, 4, 4), np.float32),
    )
    assert assay("export", name, "--inputs", "inputs.npz").code == 0
    assert assay("verify", name).code == 0
    golden = goldens.load(artifacts(folder, name) / "fp32/golden.npz")
    assert [spec.name for spec in golden.input_specs] == ["image", "token"]
    assert [spec.dtype for spec in golden.input_specs] == ["float32", "int64"]
    assert [spec.name for spec in golden.output_specs] == ["output_0", "output_1"]
    generated = golden.inputs["token"][3:-3]
    assert len(generated) == 16
    assert golden.cases[-3:] == goldens.EXTREMES
    assert golden.common.tolist() == [True] * 19 + [False] * 3
    images, tokens = golden.inputs["image"], golden.inputs["token"]
    assert not images[-3].any()
    assert np.allclose(images[-2], images[0] / 1000)
    assert np.allclose(images[-1], images[0] * 1000)
    assert [set(row.ravel()) for row in tokens[[-3, -1]]] == [
        {tokens[:3].min()},
        {tokens[:3].max()},
    ]
    assert set(generated.ravel()) <= set(range(golden.inputs["token"][:3].max() + 1))


@pytest.mark.slow(2)
def test_an_extreme_row_that_overflows_is_left_out_and_reported(folder: Path, assay: Assay) -> None:
    name = named(folder, "cube")
    for precision, left in (("fp32", 0), ("fp16", 2)):
        result = assay("export", name, "--precision", precision)
        assert result.code == 0, result.err
        assert ("since fp16 cannot hold their values:" in result.err) == bool(left)
        golden = goldens.load(artifacts(folder, name) / precision / "golden.npz")
        assert golden.cases[-1] == goldens.EXTREMES[-1 - left]
        assert assay("verify", name, "--precision", precision).code == 0
    assert "kept in fp32" not in result.err


@pytest.mark.slow(2)
def test_the_whole_chain_of_a_spec_with_named_outputs(folder: Path, assay: Assay) -> None:
    name = named(folder, "spec")
    result = assay("run", name, "--batch", "1", "--budget", "0.1", "--json")
    assert result.code == 0, result.err
    verdicts = json.loads(result.out)["summary"]["verdicts"]
    assert [entry["name"] for entry in verdicts["graph"]["outputs"]] == ["sum", "rest"]
    assert verdicts["onnxruntime"]["status"] == verdicts["pytorch"]["status"] == "pass"
    bundle = folder / "dist" / f"{name.replace(':', '-')}-fp32.tar.zst"
    assert assay("check", "--trust", bundle).code == 0
    again = assay("run", name, "--batch", "1", "--budget", "0.1")
    assert (
        again.err.splitlines()[-1] == f"{stages(data=False)} stages, {stages(data=False)} skipped"
    )


@pytest.mark.slow(1)
def test_a_classifier_with_its_own_preprocessing_is_trained(folder: Path, assay: Assay) -> None:
    name = named(folder, "classifier")
    assert assay("data").code == 0
    assert assay("train", name, "--epochs", 1, "--device", "cpu").code == 0
    assert assay("export", name).code == 0
    assert assay("verify", name).code == 0
    verdict = json.loads((artifacts(folder, name) / "fp32/verdict.json").read_text())
    assert verdict["flips"]["images"] == 300


@pytest.mark.long
def test_mobilenet_of_torchvision_passes_with_every_weight_audited(
    tmp_path: Path, assay: Assay
) -> None:
    where, name = ("--root", tmp_path), "torchvision:mobilenet_v3_small"
    assert assay("export", name, *where).code == 0
    assert assay("verify", name, *where).code == 0
    folder = tmp_path / "torchvision-mobilenet_v3_small"
    assert json.loads((folder / "training.json").read_text())["epochs"] == 0
    verdict = json.loads((folder / "fp32/verdict.json").read_text())
    assert not any(value for key, value in verdict["audit"].items() if key != "identical")
    assert verdict["flips"]["correct"] is None
    assert verdict["flips"]["images"] == 38


@pytest.mark.slow(14)
def test_a_changed_source_exports_again_and_verify_needs_no_source(
    folder: Path, process: Callable[..., Process]
) -> None:
    name = named(folder, "gray")
    run = process("export", name, cwd=folder).run
    assert run().code == 0
    assert "export: nothing changed, skipped" in run().err
    (path,) = folder.glob("own_*.py")
    path.write_text(path.read_text() + "\n# a word more\n")
    assert "running again: model_source was" in run().err
    path.unlink()  # verify does not need the source
    assert process("verify", name, cwd=folder).run().code == 0


@pytest.mark.parametrize(
    ("factory", "code", "message"),
    [
        ("nope", 2, "has no 'nope'"),
        ("value", 2, "'value' is int, not a function"),
        ("instance", 2, "'instance' is a Two that is made already"),
        ("beyond", 1, "give inputs whose integers the model's tables have"),
        ("raises", 1, "raised ValueError: no such luck"),
        ("number", 1, "returned int, not a model"),
        ("two", 1, "declares neither example inputs nor an image shape"),
        ("reduced", 1, "its first axis is not the batch"),
        ("texts", 1, "the model's output 'text' is a str, not a tensor"),
        ("random", 1, "output 'output' differs between two runs on the same inputs"),
        ("mixed", 1, "output 'output' of a row depends on the other rows of its batch"),
        ("skipping", 1, "inputs are x, mask, but the arguments of Skipping.forward are x, scale"),
        (
            "swapped",
            1,
            "token, image, but the arguments of Two.forward are image, token",
        ),
        ("words", 1, "input 'x' is <U1[2], not rows of numbers"),
        ("greedy", 1, "the factory is called without arguments"),
        ("stubborn", 1, "cannot be run on its inputs in float64"),
        ("broken", 1, 'raise ValueError("wrong shape"): ValueError: wrong shape'),
        ("misnamed", 1, "the model has 1 outputs, but 2 names: a, b"),
        ("rows", 1, "different numbers of rows, or none: image 3, token 2"),
    ],
)
def test_a_failing_factory_is_an_error_with_its_reason(
    folder: Path, assay: Assay, factory: str, code: int, message: str
) -> None:
    result = assay("export", named(folder, factory))
    assert result.code == code, result.err
    assert message in result.err
    assert "bug" not in result.err
    assert not list(folder.rglob("*.onnx"))


@pytest.mark.slow(1)
def test_a_model_that_casts_to_float32_has_a_float64_reference(folder: Path, assay: Assay) -> None:
    name = named(folder, "single")
    assert assay("export", name).code == 0
    golden = goldens.load(artifacts(folder, name) / "fp32/golden.npz")
    rows = golden.inputs["image"].reshape(-1, 16).astype(np.float64) / 7 + np.arange(16)
    assert golden.reference["output"].dtype == np.float64
    assert np.allclose(golden.reference["output"][:, 0], rows.sum(1), rtol=1e-14, atol=0)
    assert golden.native["output"].dtype == np.float32


@pytest.mark.slow(1)
def test_an_output_without_values_is_refused(folder: Path, assay: Assay) -> None:
    text = """
import numpy as np, torch
from assay import Model

class Cut(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x)[:, 4:]

def make():
    return Model(network=Cut(4, 4), inputs={"x": np.ones((8, 4), np.float32)})
"""
    (folder / "cut.py").write_text(text)
    result = assay("export", "cut.py:make")
    assert result.code == 1
    assert "an output has no values: its shape is [batch, 0]" in result.err


def test_examples_may_be_tensors(folder: Path, assay: Assay) -> None:
    assert assay("export", named(folder, "tensors")).code == 0


@pytest.mark.long
def test_a_changed_module_in_the_factorys_folder_exports_again(
    folder: Path, process: Callable[..., Process]
) -> None:
    (folder / "beside.py").write_text("FACTOR = 2.0\n")
    (folder / "mine.py").write_text(
        "import beside\nfrom torch import nn\nfrom pipeline.models import Model\n"
        "class Net(nn.Module):\n"
        "    def forward(self, image): return image.float().flatten(1) * beside.FACTOR\n"
        "def make(): return Model(network=Net(), image=(1, 2, 2))\n"
    )
    run = process("export", "mine:make", cwd=folder).run
    assert run().code == 0
    (folder / "beside.py").write_text("FACTOR = 3.0\n")
    assert "running again: model_source was" in run().err


@pytest.mark.slow(3)
def test_nothing_in_a_bundle_tells_of_this_machine(folder: Path, assay: Assay) -> None:
    name = named(folder, "spec")
    assert assay("run", name, "--batch", "1", "--budget", "0.05").code == 0
    bundle = folder / "dist" / f"{name.replace(':', '-')}-fp32.tar.zst"
    assert not traces.leaks_in_bundle(bundle, {str(folder), "/usr/lib", *traces.of_this_process()})


def test_a_missing_or_broken_module_is_an_error(folder: Path, assay: Assay) -> None:
    result = assay("export", "nowhere.models:make")
    assert result.code == 2
    assert "module 'nowhere' is neither in" in result.err
    (folder / "faulty_module.py").write_text("import nowhere_to_be_found\n")
    result = assay("export", "faulty_module:make")
    assert result.code == 1
    assert "importing faulty_module raised ModuleNotFoundError" in result.err
    assert "faulty_module.py:1" in result.err


INPUTS = {"image": np.zeros((2, 4, 4), np.float32), "token": np.zeros((2, 5), np.int64)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"token": None}, "--inputs has image, but the model takes image, token"),
        ({"extra": np.zeros(2)}, "but the model takes image, token"),
        ({"image": np.zeros((2, 5, 4), np.float32)}, "image is float32[2, 5, 4], but the model"),
        ({"token": np.zeros((2, 5), np.int32)}, "token is int32[2, 5], but the model takes int64"),
        ({"token": np.zeros((3, 5), np.int64)}, "image 2, token 3"),
        ({"image": np.full((2, 4, 4), np.nan, np.float32)}, "input image has NaN or Inf"),
        ({"image": np.array(["a", "b"])}, "image is <U1, not numbers"),
    ],
)
def test_inputs_that_do_not_fit(
    folder: Path, assay: Assay, changed: dict[str, np.ndarray | None], message: str
) -> None:
    arrays = {name: array for name, array in {**INPUTS, **changed}.items() if array is not None}
    np.savez(folder / "inputs.npz", **arrays)
    result = assay("export", named(folder, "spec"), "--inputs", "inputs.npz")
    assert result.code == 1
    assert message in result.err


def test_an_invalid_file_of_inputs_is_an_error(folder: Path, assay: Assay) -> None:
    (folder / "inputs.npz").write_bytes(b"PK\x03\x04 and no more")
    for path, message in (
        ("inputs.npz", "cannot be read"),
        ("gone.npz", "gone.npz does not exist"),
    ):
        result = assay("export", named(folder, "spec"), "--inputs", path)
        assert result.code == 1
        assert message in result.err


def test_a_model_without_data_cannot_be_trained(tmp_path: Path, assay: Assay) -> None:
    words = ("--epochs", 1, "--root", tmp_path)
    result = assay("train", "torchvision:mobilenet_v3_small", *words)
    assert result.code == 2
    assert "it has no data set" in result.err
    assert "--data" in result.err


COUNTING = """
from pathlib import Path
import numpy as np
import torch
from torch import nn
from pipeline.models import Model

def make():
    with open("calls", "a") as file:
        file.write("x")
    samples = np.ones((8, 3), np.float32), np.ones((8, 2), np.float32)
    return Model(network=nn.Linear(3, 2), inputs={"x": samples[0]}, samples=samples)
"""


@pytest.mark.slow(2)
@pytest.mark.parametrize("seed", ["0", "5"])
def test_a_command_calls_a_factory_once(
    tmp_path: Path, assay: Assay, monkeypatch: pytest.MonkeyPatch, seed: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "counting.py").write_text(COUNTING)
    model, calls = "counting.py:make", tmp_path / "calls"
    train = ("train", model, "--epochs", 0, "--seed", seed)
    weights = []
    commands = (train, ("export", model), ("verify", model), ("summary", model))
    for words in (*commands, (*train, "--force")):
        monkeypatch.setattr(models, "_SPECS", {})  # as in a new process
        result = assay(*words)
        assert result.code == 0, result.err
        assert not calls.exists() or calls.read_text() == "x", words
        calls.unlink(missing_ok=True)
        if words[0] == "train":
            (checkpoint,) = Path("artifacts").glob("*/checkpoint.safetensors")
            weights.append(checkpoint.read_bytes())
    assert weights[0] == weights[1]
    torch.manual_seed(int(seed))
    expected = nn.Linear(3, 2).weight.detach().numpy()
    assert np.array_equal(load_file(checkpoint)["weight"], expected)
    # In one process, a second training starts from the beginning, too.
    assert assay(*train, "--force").code == 0
    assert checkpoint.read_bytes() == weights[0]
