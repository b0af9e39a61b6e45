"""The cache of float64 outputs: valid for the same model and inputs only."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.contract import Array
from pipeline import models
from pipeline.golden import file as goldens
from pipeline.golden import reference
from pipeline.golden.reference_cache import ReferenceCache, key_of
from pipeline.workflow.runner import Store
from tests.conftest import Result

Assay = Callable[..., Result]


def never() -> dict[str, Array]:
    raise AssertionError


def keep(path: Path, key: str, **outputs: Array) -> None:
    cache = ReferenceCache(path, key)
    cache.outputs("golden", lambda: outputs)
    cache.save()


def test_cached_outputs_are_returned_without_computing(tmp_path: Path) -> None:
    path = tmp_path / "made/here.npz"
    cache = ReferenceCache(path, "one")
    wanted = {
        name: np.full((2, 3), index, np.float64)
        for index, name in enumerate(["x", "x.npy", "a/b", "file", "", "../q", "a\0b", "n" * 70000])
    }
    assert cache.outputs("golden", lambda: wanted) is wanted
    cache.outputs("test", lambda: {"x": np.array([7, 8])})
    cache.save()
    again = ReferenceCache(path, "one")
    kept_outputs = again.outputs("golden", never)
    assert list(kept_outputs) == list(wanted)
    assert all(np.array_equal(kept_outputs[name], wanted[name]) for name in wanted)
    assert again.outputs("test", never)["x"].tolist() == [7, 8]
    before = path.stat().st_mtime_ns
    again.save()
    assert path.stat().st_mtime_ns == before
    assert [entry for entry in tmp_path.rglob("*") if entry.is_file()] == [path]


def test_an_outdated_part_drops_the_whole_cache(tmp_path: Path) -> None:
    path = tmp_path / "kept.npz"
    cache = ReferenceCache(path, "one")
    cache.outputs("golden", lambda: {"a": np.zeros(2)})
    cache.outputs("test", lambda: {"a": np.zeros(3)})
    cache.save()
    cache = ReferenceCache(path, "one")
    ones = {"a": np.ones(2)}
    assert cache.outputs("golden", never, lambda kept: not kept["a"].any())["a"].tolist() == [0, 0]
    assert cache.outputs("golden", lambda: ones, lambda kept: bool(kept["a"].all())) is ones
    assert cache.outputs("test", lambda: ones) is ones


@pytest.mark.parametrize("damage", ["empty", "cut", "bit", "method", "folder", "foreign"])
def test_a_stale_or_damaged_cache_file_is_ignored(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "kept.npz"
    keep(path, "one", a=np.zeros(200))
    content = bytearray(path.read_bytes())
    if damage == "empty":
        content = bytearray()
    elif damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "bit":
        content[len(content) // 2] ^= 1
    elif damage == "method":  # of compression, in every header
        with zipfile.ZipFile(path) as archive:
            offsets = [entry.header_offset + 8 for entry in archive.infolist()]
        offsets.append(content.index(b"PK\x01\x02") + 10)
        for offset in offsets:
            content[offset] = 99
    elif damage == "foreign":
        np.savez(path, index=np.zeros(3, np.uint8))
        content = bytearray(path.read_bytes())
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes(content)
    fresh = ReferenceCache(path, "one").outputs("golden", lambda: {"a": np.ones(2)})
    assert fresh["a"].tolist() == [1, 1]


def test_another_key_is_another_model(tmp_path: Path) -> None:
    path = tmp_path / "kept.npz"
    keep(path, "one", a=np.zeros(2))
    other = ReferenceCache(path, "two").outputs("golden", lambda: {"a": np.full(2, 2.0)})
    assert other["a"].tolist() == [2, 2]


@pytest.mark.slow(2)
@pytest.mark.parametrize("place", ["folder", "file"])
def test_an_export_succeeds_if_the_cache_cannot_be_written(
    store: Store, assay: Assay, place: str
) -> None:
    kept = store.root / ".reference"
    for entry in kept.iterdir():
        entry.unlink()
    if place == "folder":
        (kept / "lenet.npz").mkdir()
    else:
        kept.rmdir()
        kept.write_text("")
    before = sorted(store.root.rglob("*"))
    result = assay("export", "lenet", "--root", store.root, "--force")
    assert result.code == 0, result.err
    assert f"float64 outputs not kept in {kept / 'lenet.npz'}" in result.err
    assert sorted(store.root.rglob("*")) == before


def test_the_key_depends_on_all_facts_and_every_number() -> None:
    rows = np.arange(6, dtype=np.uint8).reshape(2, 3)
    keys = [
        key_of({"torch": "1"}, [("image", rows)]),
        key_of({"torch": "2"}, [("image", rows)]),
        key_of({"torch": "1"}, [("images", rows)]),
        key_of({"torch": "1"}, [("image", rows.reshape(3, 2))]),
        key_of({"torch": "1"}, [("image", rows.view(np.int8))]),
        key_of({"torch": "1"}, [("image", rows[::-1])]),
        key_of({"torch": "1"}, []),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == key_of({"torch": "1"}, [("image", np.array(rows))])


@pytest.mark.slow(3)
def test_another_precision_reuses_the_float64_outputs(
    store: Store, assay: Assay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = []
    compute = reference.run_all

    def counted(served: object, inputs: list[torch.Tensor], *more: object) -> dict[str, Array]:
        if served.dtype == torch.float64:  # type: ignore[attr-defined]
            rows.append(len(inputs[0]))
        return compute(served, inputs, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(reference, "run_all", counted)
    result = assay("export", "lenet", "--precision", "fp16", "--root", store.root)
    assert result.code == 0, result.err
    assert set(rows) == {1}
    files = [goldens.load(store.root / f"lenet/{entry}/golden.npz") for entry in ("fp32", "fp16")]
    assert np.array_equal(*(entry.test_reference for entry in files))
    # Other weights are another model.
    torch.manual_seed(5)
    torch.save(models.get("lenet").build(None).network.state_dict(), tmp_path / "w.pt")
    rows.clear()
    weights = ("--weights", tmp_path / "w.pt", "--retrain")
    assert assay("train", "lenet", *weights, "--root", store.root).code == 0
    result = assay("export", "lenet", "--root", store.root)
    assert result.code == 0, result.err
    assert max(rows) > 1


SOURCE = """
import json
from pathlib import Path
import numpy as np
import torch
from torch import nn
from pipeline.models import Model

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.factor = json.loads(Path("factor.json").read_text())

    def forward(self, x):
        return {"y": self.linear(x) * self.factor}

def make():
    rows = np.random.default_rng(0).random((4, 8), np.float32)
    return Model(network=Scaled(), inputs={"x": rows})
"""


@pytest.mark.slow(4)
def test_a_changed_model_with_the_same_key_is_noticed(
    tmp_path: Path, assay: Assay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scaled_by_file.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    references = []
    for factor, words in ((1.0, ()), (1.0001, ("--force",)), (1.0001, ("--precision", "fp16"))):
        (tmp_path / "factor.json").write_text(json.dumps(factor))
        monkeypatch.setattr(models, "_SPECS", {})  # as in a new process
        result = assay("export", "scaled_by_file:make", *words, "--root", tmp_path / "made")
        assert result.code == 0, result.err
        precision = words[-1] if len(words) > 1 else "fp32"
        path = tmp_path / f"made/scaled_by_file-make/{precision}/golden.npz"
        references.append(goldens.load(path).reference["y"])
    assert references[1] == pytest.approx(references[0] * 1.0001, rel=1e-12)
    assert np.array_equal(references[2], references[1])
