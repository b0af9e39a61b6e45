"""Golden files: their content, and damaged ones."""

from pathlib import Path

import numpy as np
import pytest

from engines.errors import DeployError
from pipeline.golden import file as goldens
from pipeline.golden.rows import edge_images
from pipeline.workflow.runner import Store


def test_golden_files_with_invalid_classes_are_refused(built: Store, tmp_path: Path) -> None:
    with np.load(built.root / "lenet/fp32/golden.npz") as archive:
        arrays = dict(archive)
    for key, value in (("labels", arrays["labels"].astype("U3")), ("noise/logits", 1j)):
        changed = value if isinstance(value, np.ndarray) else arrays[key] * value
        np.savez(tmp_path / "golden.npz", **{**arrays, key: changed})
        with pytest.raises(DeployError, match="is not a golden file"):
            goldens.load(tmp_path / "golden.npz")


def test_the_golden_file_has_real_images_and_edge_cases(built: Store) -> None:
    golden = goldens.load(built.root / "lenet/fp32/golden.npz")
    assert len(golden.labels) == 256
    assert golden.cases[256:] == tuple(edge_images((1, 28, 28)))
    assert golden.inputs["image"].shape == (262, 1, 28, 28)
    assert golden.reference["logits"].dtype == np.float64
    assert golden.native["logits"].dtype == np.float32
    assert golden.test_reference.shape == (300, 10)


@pytest.mark.parametrize("length", [0, 10, 5000])
def test_a_truncated_golden_file_is_an_error(built: Store, tmp_path: Path, length: int) -> None:
    from engines.errors import DeployError

    path = tmp_path / "golden.npz"
    path.write_bytes((built.root / "lenet/fp32/golden.npz").read_bytes()[:length])
    with pytest.raises(DeployError, match="is not a golden file"):
        goldens.load(path)


def test_no_damage_to_a_golden_file_is_a_bug(built: Store, tmp_path: Path) -> None:
    from engines.errors import DeployError

    content = (built.root / "lenet/fp32/golden.npz").read_bytes()
    generator = np.random.default_rng(0)
    path = tmp_path / "golden.npz"
    refused = 0
    for position in generator.integers(0, len(content), 100):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        try:
            goldens.load(path)
        except DeployError:
            refused += 1
    assert refused > 90  # the rest are times and flags that zip files carry
