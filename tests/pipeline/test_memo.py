"""What is kept of the float64 runs: taken for the same model and inputs, and for no others."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import models, reference
from pipeline.memo import Memo, key_of
from pipeline.runner import Store
from tests.conftest import Result

Assay = Callable[..., Result]


def test_what_is_kept_is_given_again_and_not_computed(tmp_path: Path) -> None:
    path = tmp_path / "made/here.npz"
    wanted = {"a": np.arange(6.0).reshape(2, 3), "b/c": np.array([7, 8])}
    assert Memo(path, "one").outputs("golden", lambda: wanted) is wanted
    Memo(path, "one").outputs("test", lambda: {"a": np.zeros(2)})

    def never() -> dict[str, np.ndarray]:
        raise AssertionError

    again = Memo(path, "one")
    found = again.outputs("golden", never)
    assert list(found) == ["a", "b/c"]
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert again.outputs("test", never)["a"].shape == (2,)
    assert [*tmp_path.rglob("*.npz*")] == [path]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", None])
def test_another_key_or_a_damaged_file_is_as_good_as_none(
    tmp_path: Path, damage: bytes | None
) -> None:
    path = tmp_path / "kept.npz"
    Memo(path, "one").outputs("golden", lambda: {"a": np.zeros(2)})
    content = bytearray(path.read_bytes())
    if damage is not None:
        path.write_bytes(damage)
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    found = Memo(path, "one").outputs("golden", lambda: {"a": np.ones(2)})
    assert found["a"].tolist() == [1, 1]
    other = Memo(path, "two").outputs("golden", lambda: {"a": np.full(2, 2.0)})
    assert other["a"].tolist() == [2, 2]


def test_the_key_depends_on_all_that_is_said_and_on_every_number() -> None:
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


def test_another_precision_is_exported_without_running_the_model_in_float64_again(
    store: Store, assay: Assay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def never() -> None:
        raise RuntimeError("run in float64")

    monkeypatch.setattr(reference, "in_float64", never)
    result = assay("export", "lenet", "--precision", "fp16", "--root", store.root)
    assert result.code == 0, result.err
    goldens = [np.load(store.root / f"lenet/{each}/golden.npz") for each in ("fp32", "fp16")]
    assert np.array_equal(*(each["test_reference"] for each in goldens))
    # Other weights are another model.
    torch.manual_seed(5)
    torch.save(models.get("lenet").build(None).network.state_dict(), tmp_path / "w.pt")
    result = assay("export", "lenet", "--weights", tmp_path / "w.pt", "--root", store.root)
    assert result.code == 1
    assert "run in float64" in result.err
