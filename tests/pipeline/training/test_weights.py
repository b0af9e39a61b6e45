"""Files of weights that a user gives."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from engines.errors import DeployError
from pipeline.training import weights
from tests.conftest import Result

Assay = Callable[..., Result]


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_from_a_torch_file(tmp_path: Path, wrap: str | None, prefix: str) -> None:
    state = {prefix + name: value for name, value in linear(1).state_dict().items()}
    torch.save(state if wrap is None else {wrap: state, "epoch": 3}, tmp_path / "w.pt")
    net = linear()
    weights.load(net, tmp_path / "w.pt", "linear")
    assert torch.equal(net.weight, linear(1).weight)


def test_a_module_gets_the_version_of_its_state(tmp_path: Path) -> None:
    from pipeline import models

    network = models.get("torchvision:mnasnet0_5").build(None).network
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    weights.load(network, tmp_path / "weights.safetensors", "mnasnet0_5")


def test_a_weights_file_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"weight": Evil()}, tmp_path / "w.pt")
    with pytest.raises(DeployError, match="neither a safetensors file nor a torch file"):
        weights.load(linear(), tmp_path / "w.pt", "linear")
    assert not (tmp_path / "ran").exists()


def test_nan_and_infinite_weights_are_refused(tmp_path: Path) -> None:
    state = linear().state_dict()
    state["bias"][0] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(DeployError, match="1 tensors have NaN or Inf, such as bias"):
        weights.load(linear(), tmp_path / "w.safetensors", "linear")


@pytest.mark.parametrize("content", [b"", b"{}", b"\0" * 100, b"PK\x03\x04", b"\x80\x04K\x05."])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_file_without_weights_is_refused(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DeployError, match=r"w\.(pt|safetensors)"):
        weights.load(linear(), tmp_path / name, "linear")


def test_all_mismatches_are_counted_and_the_first_named(tmp_path: Path, assay: Assay) -> None:
    state = {f"{index}.weight": torch.zeros(1) for index in range(20, 30)}
    save_file({**state, "0.weight": torch.zeros(6, 1, 3, 3)}, tmp_path / "w.safetensors")
    assert assay("data", "--root", tmp_path).code == 0
    words = ("--weights", tmp_path / "w.safetensors", "--root", tmp_path)
    result = assay("train", "lenet", *words)
    assert result.code == 1
    assert "20 of 20 tensors do not fit" in result.err
    assert "0.bias is missing" in result.err
    assert "and 15 more" in result.err
    assert not (tmp_path / "lenet/checkpoint.safetensors").exists()


@pytest.mark.slow(2)
def test_given_weights_are_used_unchanged(tmp_path: Path, assay: Assay) -> None:
    from pipeline import models

    torch.manual_seed(5)
    state = models.get("lenet").build(None).network.state_dict()
    torch.save(state, tmp_path / "w.pt")
    where = ("--root", tmp_path)
    assert assay("data", *where).code == 0
    result = assay("export", "lenet", "--weights", tmp_path / "w.pt", *where)
    assert result.code == 0, result.err
    assert "with the weights given" in result.out
    kept = weights.read(tmp_path / "lenet/checkpoint.safetensors")
    assert all(torch.equal(kept[name], state[name]) for name in state)
    training = json.loads((tmp_path / "lenet/training.json").read_text())
    assert training["epochs"] == 0
    assert training["curve"] == []
    # A later export without the option keeps them.
    again = assay("export", "lenet", *where)
    assert "train" not in again.err


class Tied(nn.Module):
    """Two layers that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


STATE = net(1).state_dict()
OTHER = net(2).state_dict()


def under(prefix: str, state: dict[str, torch.Tensor] = STATE) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


LAYOUTS: dict[str, object] = {
    "the names as they are": STATE,
    "DataParallel": under("module."),
    "torch.compile": under("_orig_mod."),
    "both": under("module._orig_mod."),
    "compiled inside": {
        f"{name[:2]}_orig_mod.{name[2:]}": tensor for name, tensor in STATE.items()
    },
    "an attribute of a wrapper": under("net."),
    "Lightning": {
        "epoch": 3,
        "state_dict": {**under("model."), "loss.weight": torch.ones(2)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(4, 3)}}}],
    },
    "a training script": {"model_state_dict": STATE, "optimizer": {"param_groups": [{"lr": 0.1}]}},
    "a model and its exact average": {"model": STATE, "step": torch.tensor(4)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_found_by_their_names(
    tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(LAYOUTS[layout], tmp_path / "w.ckpt")
    network = net()
    weights.load(network, tmp_path / "w.ckpt", "net")
    assert all(torch.equal(network.state_dict()[name], STATE[name]) for name in STATE)
    renamed = layout in ("an attribute of a wrapper", "Lightning", "a training script")
    assert ("took the 9 tensors under" in capsys.readouterr().err) >= renamed


def test_a_network_in_a_wrapper_takes_names_without_its_prefix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrapped = nn.Module()
    wrapped.backbone = net()
    save_file(STATE, tmp_path / "w.safetensors")
    weights.load(wrapped, tmp_path / "w.safetensors", "net")
    assert torch.equal(wrapped.backbone[0].weight, STATE["0.weight"])
    assert "put 'backbone.' before the names" in capsys.readouterr().err


def test_of_several_models_in_a_file_the_user_chooses(tmp_path: Path) -> None:
    torch.save({"model": STATE, "model_ema": OTHER}, tmp_path / "w.pt")
    with pytest.raises(DeployError, match=r"2 times, under model, model_ema") as caught:
        weights.load(net(), tmp_path / "w.pt", "net")
    assert "--weights-key model" in caught.value.hint
    network = net()
    weights.load(network, tmp_path / "w.pt", "net", "model_ema")
    assert torch.equal(network[0].weight, OTHER["0.weight"])
    with pytest.raises(DeployError, match="no tensors under 'ema'"):
        weights.load(net(), tmp_path / "w.pt", "net", "ema")


def test_tied_weights_may_be_stored_once(tmp_path: Path) -> None:
    state = {name: torch.rand(tensor.shape) for name, tensor in Tied().state_dict().items()}
    del state["second.weight"]
    save_file(state, tmp_path / "w.safetensors")
    network = Tied()
    weights.load(network, tmp_path / "w.safetensors", "tied")
    assert torch.equal(network.second.weight, state["first.weight"])


def test_tied_weights_that_differ_are_refused(tmp_path: Path) -> None:
    state = {name: torch.rand(tensor.shape) for name, tensor in Tied().state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(DeployError, match=r"first\.weight and second\.weight differ"):
        weights.load(Tied(), tmp_path / "w.safetensors", "tied")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_network_may_have_a_module_of_that_name(tmp_path: Path, prefix: str) -> None:
    network, other = (nn.ModuleDict({"module": net(), "head": nn.Linear(2, 2)}) for _ in range(2))
    state = network.state_dict()
    save_file({f"{prefix}{name}": tensor for name, tensor in state.items()}, tmp_path / "w")
    weights.load(other, tmp_path / "w", "net")
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("kept", ["first.weight", "second.weight"])
def test_tied_weights_may_be_stored_once_under_a_prefix(tmp_path: Path, kept: str) -> None:
    shapes = {name: tensor.shape for name, tensor in Tied().state_dict().items()}
    state = {f"model.{n}": torch.rand(s) for n, s in shapes.items() if n in (kept, "second.bias")}
    save_file(state, tmp_path / "w.safetensors")
    network = Tied()
    weights.load(network, tmp_path / "w.safetensors", "tied", None if kept > "g" else "model.")
    assert torch.equal(network.second.weight, state[f"model.{kept}"])


def test_a_mismatch_lists_what_the_file_holds(tmp_path: Path) -> None:
    save_file({"encoder.weight": torch.ones(5, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(DeployError, match=r"It holds 1 tensors: encoder\.weight \[5, 2\]"):
        weights.load(net(), tmp_path / "w.safetensors", "net")


def test_the_class_that_is_not_loaded_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "path": tmp_path}, tmp_path / "w.ckpt")
    with pytest.raises(DeployError, match=r"it holds a pathlib\.PosixPath"):
        weights.load(net(), tmp_path / "w.ckpt", "net")


@pytest.mark.slow(2)
def test_a_key_is_an_option_of_train_and_export(tmp_path: Path, assay: Assay) -> None:
    from pipeline import models

    state = models.get("lenet").build(None).network.state_dict()
    half = {name: tensor * 0.5 for name, tensor in state.items()}
    torch.save({"model": state, "ema": half}, tmp_path / "w.pt")
    where = ("lenet", "--root", tmp_path, "--weights", tmp_path / "w.pt", "--test-limit", 10)
    assert assay("data", "--root", tmp_path).code == 0
    assert assay("train", *where).code == 1
    assert assay("train", *where, "--weights-key", "ema").code == 0
    kept = weights.read(tmp_path / "lenet/checkpoint.safetensors")
    assert all(torch.equal(kept[name], half[name]) for name in half)
    assert assay("export", "lenet", "--root", tmp_path, "--weights-key", "ema").code == 2


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = linear()


@pytest.mark.parametrize("network", [linear, Wrapped])
@pytest.mark.parametrize(
    "place", ["", "state_dict", "state_dict.module", "a.b.c.d.e", "module.net"]
)
def test_weights_are_found_however_deep_and_wrapped(
    tmp_path: Path, network: Callable[[], nn.Module], place: str
) -> None:
    content: dict[str, object] = {**linear(1).state_dict(), "epoch": 3}
    for part in filter(None, place.split(".")[::-1]):
        content = {part: content}
    content["itself"] = content
    torch.save(content, tmp_path / "w.pt")
    loaded = network()
    weights.load(loaded, tmp_path / "w.pt", "linear")
    assert torch.equal(next(loaded.parameters()), linear(1).weight)
