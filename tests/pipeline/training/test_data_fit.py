"""A user's network and images: classes, last layer, preprocessing, fine-tuning."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from engines.errors import DeployError
from pipeline import models
from pipeline.data import idx, imagefolder
from pipeline.data.registry import Contents
from pipeline.training import data_fit, optimization
from tests.bundles import members
from tests.conftest import Result

Assay = Callable[..., Result]

NETWORKS = '''
import torch
from torch import nn

import assay


class Colours(nn.Module):
    """Gives the classes blue, red, green for an image whose middle has that colour."""

    def __init__(self, classes=3):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3, classes)

    def forward(self, x):
        assert x.is_floating_point()
        return self.fc(self.pool(x).flatten(1))


def plain():
    return Colours()


def large():
    return Colours(7)


def labelled():
    network = Colours()
    with torch.no_grad():
        network.fc.weight.copy_(torch.tensor([[0.0, 0, 9], [9, 0, 0], [0, 9, 0]]))
        network.fc.bias.zero_()
    return assay.Model(network=network, labels=("blue", "red", "green"))


def other_labels():
    return assay.Model(network=Colours(), labels=("cat", "dog", "fish"))


def other_size():
    return assay.Model(network=Colours(), image=(3, 16, 16))


def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(5, 3))


def gray():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def maps():
    return nn.Conv2d(3, 3, 1)


def named():
    return assay.Model(network=Colours(), prepare=nn.Identity())
'''
COLOURS = {"blue": (0, 0, 250), "green": (0, 250, 0), "red": (250, 0, 0)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "networks.py").write_text(NETWORKS)
    random = np.random.default_rng(0)
    for label, colour in COLOURS.items():
        (tmp_path / "shots" / label).mkdir(parents=True)
        for number in range(10):
            noise = random.integers(0, 6, (8, 8, 3))
            image = Image.fromarray((np.array(colour) * 0.95 + noise).clip(0, 255).astype(np.uint8))
            image.save(tmp_path / "shots" / label / f"{number}.png")
    return tmp_path / "shots"


def train(assay: Assay, name: str, folder: Path, *words: object) -> Result:
    if not list(Path("artifacts/data").glob("folder-*")):
        assert assay("data", "--data", folder).code == 0
    return assay("train", f"networks.py:{name}", "--data", folder, "--batch-size", 8, *words)


def training(name: str) -> dict[str, object]:
    (path,) = Path("artifacts").glob(f"networks.py-{name}/training.json")
    return json.loads(path.read_text())


@pytest.mark.slow(15)
def test_a_network_and_a_folder_of_images_become_a_bundle(folder: Path, assay: Assay) -> None:
    words = ("--epochs", 20, "--lr", 1, "--batch-size", 8, "--batch", 1, "--budget", 0.05)
    chosen = ("--engine", "onnxruntime,openvino")
    normal = ("--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25")
    result = assay("run", "networks.py:plain", "--data", folder, *words, *chosen, *normal)
    assert result.code == 0, result.err
    assert training("plain")["test_accuracy"] == 1.0
    (graph,) = Path("artifacts").glob("networks.py-plain/fp32/model.onnx")
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert "minus [0.5, 0.5, 0.5]" in metadata["assay.preprocessing"]
    labels = json.loads(metadata["assay.labels"])
    for label in COLOURS:
        pixels = np.asarray(Image.open(folder / label / "0.png")).transpose(2, 0, 1)[None]
        (logits,) = session.run(None, {"image": pixels})
        assert labels[logits.argmax()] == label
    (bundle,) = Path("dist").iterdir()
    assert assay("check", "--trust", bundle).code == 0


def test_labels_in_another_order_are_matched_by_name(folder: Path, assay: Assay) -> None:
    result = train(assay, "labelled", folder, "--epochs", 0)
    assert result.code == 0, result.err
    # Its weights are right for its own order; in the order of the folders they would be wrong.
    assert training("labelled")["test_accuracy"] == 1.0
    result = assay("export", "networks.py:labelled")
    assert result.code == 0, result.err
    verdict = assay("verify", "networks.py:labelled", "--json")
    assert verdict.code == 0
    (graph,) = Path("artifacts").glob("networks.py-labelled/fp32/model.onnx")
    entries = {entry.key: entry.value for entry in onnx.load(graph).metadata_props}
    assert json.loads(entries["assay.labels"]) == ["blue", "red", "green"]


def test_training_uses_the_models_order_of_classes(folder: Path, assay: Assay) -> None:
    assert train(assay, "labelled", folder, "--epochs", 3, "--lr", 0.1).code == 0
    trained = training("labelled")
    assert trained["curve"][0]["accuracy"] == 1.0
    assert trained["classes"] == ["blue", "red", "green"]
    assert trained["confusion"] == [[2, 0, 0], [0, 2, 0], [0, 0, 2]]


def test_a_module_is_summarised_as_it_was_trained(folder: Path, assay: Assay) -> None:
    assert assay("summary", "networks.py:plain").code == 1  # its input is not known
    assert train(assay, "plain", folder, "--epochs", 0).code == 0
    result = assay("summary", "networks.py:plain", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["inputs"] == [[1, 3, 8, 8]]


REFUSED = {
    "other_labels": "has the labels cat, dog, fish, but the classes of the data set are blue",
    "large": "gives 7 classes, but the data set has 3",
    "other_size": "takes images 3x16x16, but those of the data set are 3x8x8",
    "flat": "cannot be run on its inputs of 3x8x8",
    "gray": "takes 1 channel and the images have 3: give its first layer 3 input channels",
    "maps": "gives [2, 3, 8, 8] for two images",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_does_not_fit_the_images_is_refused(
    folder: Path, assay: Assay, name: str
) -> None:
    result = train(assay, name, folder, "--epochs", 1)
    assert result.code == 1
    assert REFUSED[name] in result.err
    assert "bug in assay" not in result.err
    assert not list(Path("artifacts").glob("networks.py*/checkpoint.safetensors"))


WRONG_OPTIONS = {
    ("plain", "--mean", "0.5"): "--mean has 1 values and --std 0",
    ("plain", "--mean", "0.5,0.5,0.5"): "--mean has 3 values and --std 0",
    ("plain", "--mean", "0.5,0.5,5", "--std", "1,1,1"): "--mean 5.0 is out of range",
    ("named", "--bgr"): "has a preprocessing of its own",
    ("large", "--replace-head", "--epochs", "0"): "which has to be trained",
    ("plain", "--optimizer", "adam"): "did you mean 'adamw'",
    ("plain", "--optimizer", "adamw", "--momentum", "0.9"): "--momentum is for sgd",
    ("plain", "--weights-key", "ema"): "--weights-key is for --weights",
    ("plain", "--epochs", "0", "--augment", "trivial"): "--augment is for training",
}


@pytest.mark.parametrize("words", WRONG_OPTIONS)
def test_options_that_do_not_fit_are_refused(
    folder: Path, assay: Assay, words: tuple[str, ...]
) -> None:
    name, *options = words
    result = train(assay, name, folder, "--epochs", 1, *options)
    assert result.code == 2
    assert WRONG_OPTIONS[words] in result.err


@pytest.mark.usefixtures("folder")
def test_weights_without_epochs_are_not_trained(assay: Assay) -> None:
    save_file({"a": torch.ones(1)}, "w.safetensors")
    result = assay("train", "networks.py:plain", "--weights", "w.safetensors", "--freeze")
    assert result.code == 2
    assert "--freeze is for training" in result.err


@pytest.mark.usefixtures("folder")
def test_options_for_images_need_a_data_set(assay: Assay) -> None:
    result = assay("train", "networks.py:plain", "--bgr")
    assert result.code == 2
    assert "--bgr and --replace-head do not apply" in result.err


@pytest.mark.parametrize("name", ["large", "other_labels"])
def test_a_new_head_has_the_classes_of_the_data(folder: Path, assay: Assay, name: str) -> None:
    result = train(assay, name, folder, "--epochs", 30, "--lr", 1, "--replace-head")
    assert result.code == 0, result.err
    assert training(name)["test_accuracy"] == 1.0
    assert training(name)["classes"] == [*COLOURS]
    assert assay("export", f"networks.py:{name}").code == 0
    assert assay("verify", f"networks.py:{name}").code == 0


@pytest.mark.slow(10)
def test_a_library_model_with_its_weights_gets_a_new_head(folder: Path, assay: Assay) -> None:
    name = "torchvision:squeezenet1_1"
    published = models.get(name).build(None)
    weights = Path("weights.safetensors")
    save_file(published.network.state_dict(), weights)
    assert assay("data", "--data", folder).code == 0
    words = ("--data", folder, "--weights", weights, "--batch-size", 8)
    result = assay("train", name, *words, "--epochs", 1)
    assert result.code == 1  # the file has 1,000 classes
    assert "--replace-head trains a new last layer" in result.err
    words = (*words, "--replace-head", "--freeze", "--epochs", 1)
    result = assay("train", name, *words)
    assert result.code == 0, result.err
    trained = load_file("artifacts/torchvision-squeezenet1_1/checkpoint.safetensors")
    before = load_file(weights)
    assert trained["classifier.1.weight"].shape == (3, 512, 1, 1)
    kept = [key for key in before if not key.startswith("classifier")]
    assert kept
    assert all(before[key].equal(trained[key]) for key in kept)


@pytest.mark.slow(4)
def test_a_bundle_says_what_is_done_to_images_before_the_graph(folder: Path, assay: Assay) -> None:
    words = ("--image-size", 4, "--epochs", 1, "--batch-size", 8)
    chosen = ("--engine", "onnxruntime", "--batch", 1, "--budget", 0.05)
    result = assay("run", "networks.py:plain", "--data", folder, *words, *chosen)
    assert result.code == 0, result.err
    (bundle,) = Path("dist").iterdir()
    (readme,) = (c.decode() for n, c in members(bundle).items() if n.endswith("/README.md"))
    assert "- before that, each image: the shorter side resized to 4 (Pillow" in readme
    assert "# your images: batch, channel (red, green, blue), row, column" in readme


def test_channels_are_turned_around_for_a_network_that_takes_bgr(
    folder: Path, assay: Assay
) -> None:
    assert train(assay, "labelled", folder, "--epochs", 0, "--bgr").code == 0
    # Red and blue are swapped; green stays.
    assert training("labelled")["confusion"] == [[0, 2, 0], [2, 0, 0], [0, 0, 2]]


@pytest.mark.parametrize(
    "words",
    [
        ("--optimizer", "adamw", "--weight-decay", 0.01),
        ("--momentum", 0.9, "--schedule", "cosine"),
        ("--augment", "flip-crop"),
        ("--augment", "trivial"),
    ],
)
def test_each_way_of_training_learns_and_is_repeatable(
    folder: Path, assay: Assay, words: tuple[object, ...]
) -> None:
    words = ("--epochs", 6, "--lr", 0.3, "--seed", 1, *words)
    assert train(assay, "plain", folder, *words).code == 0
    (path,) = Path("artifacts").glob("networks.py-plain/checkpoint.safetensors")
    first, curve = path.read_bytes(), training("plain")["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"]
    path.unlink()
    assert train(assay, "plain", folder, *words).code == 0
    assert path.read_bytes() == first


def test_classes_are_renumbered_by_name() -> None:
    contents = Contents((3, 8, 8), ("a", "b", "c"))
    model = models.Model(network=None, labels=("c", "a", "b"))
    assert data_fit.targets(np.array([0, 1, 2, 2]), contents, model).tolist() == [1, 2, 0, 0]
    assert data_fit.targets(np.array([2, 0]), None, model).tolist() == [2, 0]


IMAGES = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)


def test_a_network_without_a_last_layer_cannot_get_a_new_head() -> None:
    model = models.Model(network=nn.Sequential(nn.Conv2d(3, 4, 3)), prepare=Scaled())
    with pytest.raises(DeployError, match="no linear layer or 1x1 convolution"):
        data_fit.last_layer("m", model, 4, IMAGES)


class Scaled(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.float() / 255


class Unordered(nn.Module):
    """Its last layer is made first, and has two names; another one is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.body = nn.Linear(48, 4)
        self.unused = nn.Linear(4, 4)
        self.classifier = self.head

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.body(image.flatten(1)).relu())


def test_the_last_layer_is_the_last_to_run() -> None:
    network = Unordered()
    model = models.Model(network=network, prepare=Scaled())
    assert data_fit.last_layer("m", model, 4, IMAGES) is network.head
    data_fit.replace_head("m", model, 4, 7, IMAGES)
    assert network.head is network.classifier
    assert network.head.out_features == 7
    assert network.body.out_features == network.unused.out_features == 4
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())


def test_frozen_batch_norm_without_weights_keeps_its_statistics() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Dropout(), nn.Linear(4, 2)
    )
    optimization.set_training(network)
    assert network[1].training
    optimization.freeze(network, network[3])
    optimization.set_training(network, frozen=True)
    assert [module.training for module in network] == [False, False, True, True]


def test_the_decoded_images_are_those_of_the_folder(folder: Path, assay: Assay) -> None:
    assert assay("data", "--data", folder).code == 0
    labels = idx.read_labels(
        Path("artifacts/data") / imagefolder.name_of(folder) / "train-labels.idx"
    )
    assert np.bincount(labels).tolist() == [8, 8, 8]
