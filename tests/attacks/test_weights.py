"""Hostile and unusual files of weights, as --weights."""

import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from engines.errors import DeployError
from pipeline.training import weights
from tests.conftest import Result


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def state() -> dict[str, torch.Tensor]:
    return network().state_dict()


def _quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8)


UNUSUAL: dict[str, Callable[[], torch.Tensor]] = {
    "sparse (COO)": lambda: torch.ones(2, 3).to_sparse(),
    "sparse (CSR)": lambda: torch.ones(2, 3).to_sparse_csr(),
    "meta": lambda: torch.ones(2, 3, device="meta"),
    "quantized": _quantized,
    "nested": lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(3)]),
}


@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_without_plain_numbers_is_refused(tmp_path: Path, kind: str) -> None:
    torch.save({**state(), "0.weight": UNUSUAL[kind]()}, tmp_path / "w.pt")
    with pytest.raises(DeployError, match=r"0\.weight is |no code in it was run"):
        weights.load(network(), tmp_path / "w.pt", "m")


CASTS = {
    "complex": (torch.complex64, False),
    "bool": (torch.bool, False),
    "int64": (torch.int64, False),
    "uint8": (torch.uint8, False),
    "fp8 e4m3": (torch.float8_e4m3fn, False),
    "fp8 e5m2": (torch.float8_e5m2, False),
    "fp64": (torch.float64, True),
    "fp16": (torch.float16, True),
    "bf16": (torch.bfloat16, True),
}


@pytest.mark.parametrize("kind", CASTS)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_cast_is_said_or_refused(
    tmp_path: Path, kind: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dtype, converted = CASTS[kind]
    tensors = {**state(), "0.weight": torch.ones(2, 3).to(dtype)}
    path = tmp_path / f"w.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(tensors, path)
    name = str(dtype).removeprefix("torch.")
    if converted:
        weights.load(network(), path, "m")
        assert (
            f"1 tensors of {path} are converted from {name} to float32" in capsys.readouterr().err
        )
    else:
        with pytest.raises(DeployError, match=f"0.weight is {name} instead of float32"):
            weights.load(network(), path, "m")


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        (torch.tensor(7, dtype=torch.int32), True),
        (torch.tensor(7.0), False),
        (torch.tensor(True), False),
        (torch.tensor(7 + 0j), False),
    ],
)
def test_a_count_takes_whole_numbers_only(
    tmp_path: Path, value: torch.Tensor, accepted: bool
) -> None:
    save_file({**state(), "1.num_batches_tracked": value}, tmp_path / "w.safetensors")
    if accepted:
        weights.load(network(), tmp_path / "w.safetensors", "m")
    else:
        with pytest.raises(DeployError, match="instead of int64"):
            weights.load(network(), tmp_path / "w.safetensors", "m")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_a_value_that_the_type_does_not_hold_is_refused(tmp_path: Path, value: float) -> None:
    tensors = {**state(), "0.bias": torch.tensor([value, 0], dtype=torch.float64)}
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(DeployError, match=r"have NaN or Inf, such as 0\.bias"):
        weights.load(network(), tmp_path / "w.safetensors", "m")


def safetensors(header: object, content: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + content


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


SAFETENSORS = {
    "a header of 2^63 bytes": safetensors({}, length=1 << 63),
    "a header of 3 GB": safetensors({}, length=3 << 30),
    "no header": b"",
    "half a length": b"\1\2\3",
    "a header that is no JSON": safetensors(b"{"),
    "a header that is not UTF-8": safetensors(b'{"\xff": 1}'),
    "a header that is a list": safetensors([]),
    "lists of 100,000 levels": safetensors(b'{"x":' + b"[" * 100_000),
    "an unknown type": safetensors(entry("F99"), bytes(4)),
    "a type without a name in torch": safetensors(entry("F6_E2M3", (4,), (0, 3)), bytes(3)),
    "fp4": safetensors(entry("F4", (2,), (0, 1)), bytes(1)),
    "a shape that overflows": safetensors(entry(shape=(1 << 62, 4)), bytes(4)),
    "a shape that is negative": safetensors(entry(shape=(-1,)), bytes(4)),
    "a shape beyond the content": safetensors(
        entry(shape=(1 << 40,), offsets=(0, 1 << 42)), bytes(4)
    ),
    "offsets that run backwards": safetensors(entry(offsets=(4, 0)), bytes(4)),
    "offsets that are text": safetensors(entry(offsets="0"), bytes(4)),
    "a hole": safetensors(entry(offsets=(4, 8)), bytes(8)),
    "more data": safetensors(entry(), bytes(400)),
    "a type twice": safetensors(
        b'{"x":{"dtype":"F32","dtype":"F64","shape":[1],"data_offsets":[0,4]}}', bytes(4)
    ),
    "half of a surrogate pair": safetensors(
        b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)
    ),
}


@pytest.mark.parametrize("case", SAFETENSORS)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_safetensors_file_that_is_not_valid_is_refused(
    tmp_path: Path, case: str, suffix: str
) -> None:
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(SAFETENSORS[case])
    with pytest.raises(DeployError, match=str(path)):
        weights.load(network(), path, "m")


class _Canary:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch canary",)


TORCH: dict[str, object] = {
    "code": {"0.weight": _Canary()},
    "a module": nn.Linear(3, 2),
    "a list": [torch.ones(1)],
    "numbers": {"0.weight": 3},
    "nothing": None,
    "one name twice": {**state(), "module.0.weight": torch.ones(2, 3)},
    "numbers as names": {0: torch.ones(1), "0": torch.ones(1)},
    "a wrapper in itself": {"state_dict": {"state_dict": {"model": 3}}},
}


@pytest.mark.parametrize("case", TORCH)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_torch_file_of_anything_else_is_refused(
    tmp_path: Path, case: str, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(TORCH[case], tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(DeployError, match=r"w\.pt"):
        weights.load(network(), tmp_path / "w.pt", "m")
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.pt"]


def test_weights_that_cannot_be_written_are_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="vanished"):
        weights.save(state(), tmp_path / "vanished" / "w.safetensors", None)


def test_a_torch_file_is_never_decompressed(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for info in plain.infolist():
            packed.writestr(info.filename, plain.read(info))
    with pytest.raises(DeployError, match=r"w\.pt is neither"):
        weights.read(tmp_path / "w.pt")


def test_a_name_with_an_escape_sequence_is_printed_escaped(
    tmp_path: Path, assay: Callable[..., Result]
) -> None:
    save_file({"\x1b]0;evil\x07": torch.ones(1)}, tmp_path / "w.safetensors")
    result = assay(
        "train", "edge", "--weights", tmp_path / "w.safetensors", "--root", tmp_path / "root"
    )
    assert result.code == 1
    assert "\x1b" not in result.err + result.out
    assert "\\x1b]0;evil" in result.err
