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
