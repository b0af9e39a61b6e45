"""The verdict: faithful engines pass, and every planted fault is found and named."""

import copy
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.base import Array, Feeds, Outputs, TensorSpec
from pipeline import golden as goldens
from pipeline import noise, parity
from pipeline.audit import Weights
from pipeline.batches import rows_to_run, run_rows
from pipeline.golden import Golden
from pipeline.rows import edge_images
from pipeline.runner import Store
from tests.conftest import Result

ROWS, CLASSES = 40, 5
WEIGHT = np.random.default_rng(1).normal(size=(12, CLASSES)) / 255


def exact(image: Array) -> Array:
    return image.reshape(len(image), -1).astype(np.float64) @ WEIGHT


def rounded(image: Array) -> Array:
    return image.reshape(len(image), -1).astype(np.float32) @ WEIGHT.astype(np.float32)


@pytest.fixture
def golden() -> Golden:
    images = np.random.default_rng(0).integers(0, 256, (ROWS, 3, 2, 2), dtype=np.uint8)
    reference = exact(images)
    return Golden(
        inputs={"image": images},
        reference={"logits": reference},
        native={"logits": rounded(images)},
        noise={"logits": noise.measure(reference, [rounded(images), summed_backwards(images)])},
        cases=tuple(f"case {row}" for row in range(ROWS)),
        logits="logits",
        labels=reference.argmax(1).astype(np.uint8),
        test_reference=reference,
        test_labels=reference.argmax(1).astype(np.uint8),
        precision="fp32",
        weights=Weights({}),
    )


@dataclass
class Computed:
    """A session whose outputs a function computes: the place to plant a fault."""

    function: Callable[[Array], Array] = rounded
    inputs: tuple[TensorSpec, ...] = (TensorSpec("image", "uint8", (None, 3, 2, 2)),)
    outputs: tuple[TensorSpec, ...] = (TensorSpec("logits", "float32", (None, CLASSES)),)
    device: str = "cpu"
    batch: tuple[int, int] | None = None
    stream: int | None = None
    sizes: list[int] = field(default_factory=list)

    def run(self, feeds: Feeds) -> Outputs:
        self.sizes.append(len(feeds["image"]))
        return {"logits": self.function(feeds["image"])}

    def bind(self, feeds: Feeds) -> None:
        raise NotImplementedError

    def launch(self) -> None:
        raise NotImplementedError

    def synchronize(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def summed_backwards(image: Array) -> Array:
    """Computes the same in float32, in another order."""
    flat = image.reshape(len(image), -1)[:, ::-1].astype(np.float32)
    return flat @ WEIGHT[::-1].astype(np.float32)


@pytest.mark.parametrize("function", [rounded, summed_backwards])
def test_a_faithful_engine_passes(golden: Golden, function: Callable[[Array], Array]) -> None:
    verdict = parity.judge("engine", Computed(function), golden)
    assert (verdict.status, verdict.reason) == ("pass", "")
    assert verdict.flips == parity.Flips(ROWS, 0, 0, ROWS, ROWS, lost=0)


def test_it_runs_batches_of_1_2_an_odd_number_and_all(golden: Golden) -> None:
    session = Computed()
    verdict = parity.judge("engine", session, golden)
    assert verdict.batches == (1, 2, 7, ROWS)
    assert set(verdict.batches) <= set(session.sizes)


def test_it_keeps_to_the_batches_an_engine_accepts(golden: Golden) -> None:
    session = Computed(batch=(2, 8))
    verdict = parity.judge("engine", session, golden)
    assert verdict.batches == (2, 7, 8)
    assert max(session.sizes) == 8


@pytest.mark.parametrize("limits", [(8, 16), (100, 200)])
def test_a_smallest_batch_above_what_is_left_is_filled_up(
    golden: Golden, limits: tuple[int, int]
) -> None:
    session = Computed(batch=limits)
    assert parity.judge("engine", session, golden).status == "pass"
    assert min(session.sizes) >= limits[0]


def test_the_floor_is_pytorchs_own_error_row_by_row(golden: Golden) -> None:
    reference = golden.reference["logits"]
    random = np.random.default_rng(0)
    runs = [reference + random.normal(scale=1e-3, size=reference.shape) for _ in range(3)]
    floor = noise.floor(reference, noise.measure(reference, runs), "fp32")
    errors = np.stack(runs) - reference
    for row in range(ROWS):
        assert floor.rms[row] == pytest.approx(np.sqrt((errors[:, row] ** 2).mean()))
        assert floor.max[row] == pytest.approx(np.abs(errors[:, row]).max())


def test_the_floor_is_never_below_one_unit_of_rounding_at_the_rows_scale() -> None:
    reference = np.array([[1.0, -3.0], [100.0, -300.0], [0.0, 0.0]])
    found = noise.floor(reference, np.zeros((3, 2)), "fp32")
    assert found.rms[:2] == pytest.approx(2**-23 * np.sqrt(5) * np.array([1, 100]))
    assert found.max[:2] == pytest.approx(2**-23 * 3 * np.array([1, 100]))
    assert found.rms[2] > 0
    assert found.max[2] > 0


def off_by(golden: Golden, factor: float, row: int | None) -> Callable[[Array], Array]:
    """Errors of `factor` times a floor: of the maximum's on one row, or else of the rms's."""
    reference = golden.reference["logits"]
    floor = noise.floor(reference, golden.noise["logits"], golden.precision)
    signs = np.where(np.indices(reference.shape).sum(axis=0) % 2, 1.0, -1.0)

    def function(image: Array) -> Array:
        rows = [int((golden.inputs["image"] == one).all(axis=(1, 2, 3)).argmax()) for one in image]
        if row is None:
            return (reference + signs * floor.rms[:, None] * factor)[rows]
        exact_but_one = reference.copy()
        exact_but_one[row, 0] += floor.max[row] * factor
        return exact_but_one[rows]

    return function


@pytest.mark.parametrize(
    ("row", "factor", "status"),
    [
        (None, 0.98 * parity.K, "pass"),
        (None, 1.02 * parity.K, "mismatch"),
        (0, 0.98 * parity.K_MAX, "pass"),
        (0, 1.02 * parity.K_MAX, "mismatch"),
        (ROWS - 1, 0.98 * parity.K_MAX, "pass"),
        (ROWS - 1, 1.02 * parity.K_MAX, "mismatch"),
    ],
)
def test_the_limits_in_rms_and_on_one_row(
    golden: Golden, row: int | None, factor: float, status: str
) -> None:
    # In float64, so that the planted error is the only one.
    reference = golden.reference["logits"]
    random = np.random.default_rng(2)
    scales = 10.0 ** random.integers(-9, -5, (ROWS, 1))  # noisy and quiet rows
    noisy = reference + scales * random.normal(size=reference.shape)
    yardstick = noise.measure(reference, [noisy])
    if row is not None:
        yardstick[:, 0] = yardstick[:, 1] * 10  # so that one row's error is none in the rms
    exactly = dataclasses.replace(golden, native={"logits": noisy}, noise={"logits": yardstick})
    outputs = (TensorSpec("logits", "float64", (None, CLASSES)),)
    session = Computed(off_by(exactly, factor, row), outputs=outputs)
    assert parity.judge("engine", session, exactly).status == status


def test_a_noisy_row_hides_no_fault_in_a_quiet_one(golden: Golden) -> None:
    yardstick = golden.noise["logits"].copy()
    yardstick[5] *= 100
    louder = dataclasses.replace(golden, noise={"logits": yardstick})

    def wrong_on_another(image: Array) -> Array:
        logits = rounded(image)
        row = golden.inputs["image"][6]
        logits[(image == row).all(axis=(1, 2, 3)), 0] += np.float32(
            20 * golden.noise["logits"][6, 1]
        )
        return logits

    verdict = parity.judge("engine", Computed(wrong_on_another), louder)
    assert verdict.status == "mismatch"
    assert verdict.outputs[0].worst == "case 6"


def test_a_row_that_rounding_moves_too_far_is_not_compared_and_said_so(golden: Golden) -> None:
    yardstick = golden.noise["logits"].copy()
    yardstick[5] *= 1e6  # as an untrained network's on a black image
    wild = dataclasses.replace(golden, noise={"logits": yardstick})

    def wrong(image: Array) -> Array:
        logits = rounded(image)
        logits[(image == golden.inputs["image"][5]).all(axis=(1, 2, 3))] += np.float32(1)
        return logits

    verdict = parity.judge("engine", Computed(wrong), wild)
    assert verdict.status == "pass"
    assert verdict.outputs[0].incomparable == 1
    assert parity.judge("engine", Computed(wrong), golden).status == "mismatch"
    infinite = dataclasses.replace(golden, noise={"logits": golden.noise["logits"] * 1e6})
    verdict = parity.judge("engine", Computed(), infinite)
    assert verdict.status == "vacuous"
    assert "by rounding alone, on every input" in verdict.reason


def test_verifying_says_how_many_samples_it_runs_a_second(
    store: Store, assay: Callable[..., Result]
) -> None:
    folder = store.root / "lenet/fp32"
    golden = goldens.load(folder / "golden.npz")
    for words, tested in (((), len(golden.test_labels)), (("--file", folder / "model.onnx"), 0)):
        result = assay("verify", "lenet", "--root", store.root, "--force", *words)
        assert result.code == 0, result.err
        (said,) = (line for line in result.err.splitlines() if "a second" in line)
        assert f"verify graph: {rows_to_run(golden, None, tested):,} samples, " in said


def test_a_row_that_overflows_when_rounded_otherwise_is_not_compared() -> None:
    reference = np.ones((3, 4))
    other = reference.copy()
    other[1, 2], other[2, 0] = np.inf, np.nan
    found = noise.measure(reference, [reference + 1e-7, other])
    floor = noise.floor(reference, found, "fp32")
    assert floor.comparable.tolist() == [True, False, False]
    assert np.isfinite(found).all()


def test_sums_are_also_made_one_by_one_as_engines_make_them() -> None:
    import torch

    from pipeline import rounding

    grey = torch.full((2, 3, 150, 150), 0.3712)
    mixed = torch.rand(2, 3, 150, 150, generator=torch.Generator().manual_seed(0))
    for images, least, most in ((grey, 100, 10_000), (mixed, 0.5, 100)):
        for reduce in (
            lambda x: x.mean((2, 3)),
            lambda x: x.sum((-1, -2), keepdim=True),
            lambda x: torch.nn.functional.adaptive_avg_pool2d(x, 1),
            lambda x: x.mean((0, 2, 3)),
        ):
            exact = reduce(images.double())
            with torch.inference_mode(), rounding.approximate(0):
                found = reduce(images)
            assert found.shape == exact.shape
            assert found.dtype == torch.float32
            units = (found - exact).abs().max() / exact.abs().max() * 2**23
            assert least < units < most
    whole = torch.arange(24.0).reshape(2, 3, 4)
    with rounding.approximate(0):
        assert torch.equal(whole.mean(1), whole.double().mean(1).float())
        assert torch.equal(
            whole.sum((0, 2), keepdim=True), whole.double().sum((0, 2), True).float()
        )


def test_runs_with_moved_weights_measure_what_rounding_does() -> None:
    """Where one run is right by chance, the others are not."""
    import torch
    from torch import nn

    from exporters.served import Served
    from pipeline.models import Model
    from pipeline.reference import make_golden
    from pipeline.rows import Rows

    torch.manual_seed(0)
    network = nn.Linear(4, 3).eval()
    served = Served(network, None).eval()
    image = np.zeros((8, 4), np.float32)
    image[:, 0] = 1.0  # a single product, and a sum of two: nearly nothing to round
    model = Model(network=network, inputs={"x": image})
    cases = tuple(f"row {index}" for index in range(8))
    found = make_golden(
        model, served, ("y",), Rows({"x": image}, cases, np.zeros(0, np.int64)), "fp32", None
    )
    alone = noise.measure(found.reference["y"], [found.native["y"]])
    assert (found.noise["y"][:, 0] > alone[:, 0]).all()
    unit = 2.0**-23 * np.abs(found.reference["y"]).max()
    assert (found.noise["y"][:, 1] < 3 * unit).all()


def test_an_approximated_function_may_be_off_by_a_unit_of_its_range() -> None:
    """Far out, a sigmoid is next to nothing, and its approximations have no right digit there."""
    import torch
    from torch import nn

    from exporters.served import Served
    from pipeline.rounding import at_random

    x = torch.full((1, 4), -12.0)
    for module, size in ((nn.Sigmoid(), 1.0), (nn.SiLU(), 12.0), (nn.SiLU(inplace=True), 12.0)):
        served = Served(module, None)
        with torch.inference_mode():
            (exact,) = served(x.clone())
            errors = []
            for seed in range(8):
                with at_random(served, seed) as rounded_at_random:
                    (made,) = rounded_at_random(x.clone())
                errors += (made - exact).ravel().tolist()
        assert {round(error / (size * 2**-23), 1) for error in errors} == {-1.0, 1.0}
    with at_random(Served(nn.ReLU(), None), 0) as exactly, torch.inference_mode():
        assert (exactly(x)[0] == 0).all()


def test_products_of_float16_are_as_exact_as_pytorchs_own() -> None:
    import torch
    from torch import nn

    from exporters.served import Served
    from pipeline.reference import run_all

    torch.manual_seed(0)
    for module, shape in (
        (nn.Conv2d(16, 8, 3, padding=1), (4, 16, 9, 9)),
        (nn.Conv2d(16, 16, 3, groups=16), (4, 16, 9, 9)),
        (nn.Linear(300, 40), (6, 300)),
    ):
        half, x = Served(module.half(), None, torch.float16), torch.randn(shape).half()
        with torch.inference_mode():
            (own,) = half(x)
            exact = copy.deepcopy(module).double()(x.double())
        found = torch.from_numpy(run_all(half, [x], ("y",))["y"])
        assert torch.equal(found, found.half().float())
        errors = [(made.double() - exact).pow(2).mean().sqrt().item() for made in (own, found)]
        assert errors[1] == pytest.approx(errors[0], rel=0.05)
        # What is computed in float32 and not rounded would be a thousand times as exact.
        assert errors[1] > 1e-5


@pytest.mark.parametrize("size", [1, 2])
def test_the_edge_cases_at_the_end_are_run_at_small_batches_too(golden: Golden, size: int) -> None:
    many = {
        part: {name: np.concatenate([array] * 3) for name, array in getattr(golden, part).items()}
        for part in ("inputs", "reference", "native", "noise")
    }
    longer = dataclasses.replace(golden, cases=golden.cases * 3, **many)
    rows, outputs = run_rows(Computed(), longer, size)
    assert {0, 3 * ROWS - 1, 3 * ROWS - 6} <= set(rows.tolist())
    assert len(outputs["logits"]) == len(rows)
    everything, _ = run_rows(Computed(), longer, 3 * ROWS)
    assert everything.tolist() == list(range(3 * ROWS))


def one_weight_off(image: Array) -> Array:
    weight = WEIGHT.astype(np.float32)
    weight[0, 0] *= 1.01
    return image.reshape(len(image), -1).astype(np.float32) @ weight


def at_batch(size: int) -> Callable[[Array], Array]:
    return lambda image: rounded(image) + np.float32(len(image) == size)


def nan_on_bright(image: Array) -> Array:
    logits = rounded(image)
    logits[image[:, 0, 0, 0] > 200, 1] = np.nan
    return logits


FAULTS: dict[str, tuple[Callable[[Array], Array], str]] = {
    "one weight off by a hundredth": (one_weight_off, "times the noise floor"),
    "a scale off by a thousandth": (
        lambda image: rounded(image) * np.float32(1.001),
        "times the noise floor",
    ),
    "swapped classes": (
        lambda image: rounded(image)[:, [1, 0, 2, 3, 4]],
        "times the noise floor",
    ),
    "wrong on one row only": (
        lambda image: rounded(image) + (image[:, 0, 0, :1] == 137).astype(np.float32) * 1e-3,
        "largest error",
    ),
    "wrong at batch 1 only": (at_batch(1), "times the noise floor"),
    "wrong at odd batches only": (at_batch(7), "times the noise floor"),
    "NaN on some inputs": (nan_on_bright, "NaN or Inf"),
    "infinite": (lambda image: rounded(image) + np.float32(np.inf), "NaN or Inf"),
    "the same for every input": (
        lambda image: np.ones((len(image), CLASSES), np.float32),
        "does not depend on the input",
    ),
    "all zero": (
        lambda image: np.zeros((len(image), CLASSES), np.float32),
        "does not depend on the input",
    ),
    "half precision": (
        lambda image: rounded(image).astype(np.float16).astype(np.float32),
        "times the noise floor",
    ),
    "another shape": (lambda image: rounded(image)[:, :3], "where float32[16, 5] was expected"),
    "another dtype": (lambda image: rounded(image).astype(np.float64), "gives float64"),
    "a batch too many": (
        lambda image: np.concatenate([rounded(image)] * 2),
        "where float32[16, 5] was expected",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_named(golden: Golden, fault: str) -> None:
    golden.inputs["image"][3, 0, 0, 0] = 137  # the row that "wrong on one row only" means
    golden.reference["logits"][:] = exact(golden.inputs["image"])
    golden.native["logits"][:] = rounded(golden.inputs["image"])
    runs = [compute(golden.inputs["image"]) for compute in (rounded, summed_backwards)]
    golden.noise["logits"][:] = noise.measure(golden.reference["logits"], runs)
    function, words = FAULTS[fault]
    verdict = parity.judge("engine", Computed(function), golden)
    assert verdict.status == "mismatch"
    assert words in verdict.reason


@pytest.mark.parametrize(
    "changed",
    [
        {"outputs": (TensorSpec("logit", "float32", (None, CLASSES)),)},
        {"outputs": (TensorSpec("logits", "float16", (None, CLASSES)),)},
        {"outputs": (TensorSpec("logits", "float32", (8, CLASSES)),)},
        {"inputs": (TensorSpec("picture", "uint8", (None, 3, 2, 2)),)},
        {"inputs": (TensorSpec("image", "uint8", (1, 3, 2, 2)),)},
    ],
)
def test_another_signature_is_a_mismatch(golden: Golden, changed: dict[str, object]) -> None:
    verdict = parity.judge("engine", Computed(**changed), golden)
    assert verdict.status == "mismatch"
    assert "expected" in verdict.reason


def test_a_model_whose_output_is_constant_proves_nothing(golden: Golden) -> None:
    def constant(image: Array) -> Array:
        return np.ones((len(image), CLASSES), np.float32)

    still = dataclasses.replace(
        golden,
        reference={"logits": np.ones((ROWS, CLASSES))},
        native={"logits": np.ones((ROWS, CLASSES), np.float32)},
        noise={"logits": np.zeros((ROWS, 2))},
        test_reference=np.ones((ROWS, CLASSES)),
    )
    assert parity.judge("engine", Computed(constant), still).status == "vacuous"


def test_a_flip_within_rounding_is_explained_and_a_wider_one_is_not(golden: Golden) -> None:
    """The golden rows are right; on the test set the two best classes change places."""
    images = golden.inputs["image"]
    ranked = golden.reference["logits"].argsort(axis=1)
    margin = 1e-9

    def swapped(image: Array) -> Array:
        logits = rounded(image)
        if np.array_equal(image, images[::-1]):
            rows = np.arange(len(image))
            first, second = ranked[::-1][:, -1], ranked[::-1][:, -2]
            logits[rows, first], logits[rows, second] = logits[rows, second], logits[rows, first]
        return logits

    wide = dataclasses.replace(
        golden, test_reference=golden.reference["logits"][::-1], test_labels=golden.labels[::-1]
    )
    verdict = parity.judge("engine", Computed(swapped), wide, {"image": images[::-1]})
    assert verdict.flips is not None
    assert verdict.flips.unexplained == ROWS
    assert verdict.status == "mismatch"
    assert "wider than rounding can explain" in verdict.reason

    close = wide.test_reference.copy()
    rows = np.arange(ROWS)
    close[rows, ranked[::-1][:, -1]] = close[rows, ranked[::-1][:, -2]] + margin
    narrow = dataclasses.replace(wide, test_reference=close)
    verdict = parity.judge("engine", Computed(swapped), narrow, {"image": images[::-1]})
    assert verdict.flips == parity.Flips(ROWS, ROWS, 0, 0, ROWS, lost=ROWS)
    assert verdict.status == "pass"


def test_a_verdict_survives_its_json_form(golden: Golden) -> None:
    verdict = parity.judge("engine", Computed(), golden)
    assert parity.from_json(json.loads(json.dumps(dataclasses.asdict(verdict)))) == verdict


def test_the_golden_file_has_real_images_and_edge_cases(built: Store) -> None:
    found = goldens.load(built.root / "lenet/fp32/golden.npz")
    assert len(found.labels) == 256
    assert found.cases[256:] == tuple(edge_images((1, 28, 28)))
    assert found.inputs["image"].shape == (262, 1, 28, 28)
    assert found.reference["logits"].dtype == np.float64
    assert found.native["logits"].dtype == np.float32
    assert found.test_reference.shape == (300, 10)


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


@pytest.mark.parametrize(
    "change",
    [
        {"cases": ()},
        {"cases": ("a",)},
        {"precision": "fp17"},
        {"native": {}},
        {"labels": np.array(3)},
        {"labels": np.zeros(1000)},
        {"test_labels": np.zeros(3)},
        {"test_reference": np.full((ROWS, CLASSES), np.nan)},
        {"reference": {"logits": np.zeros((3, CLASSES))}},
        {"reference": {"logits": np.full((ROWS, CLASSES), "x")}},
        {"native": {"logits": np.full((ROWS, CLASSES), np.inf)}},
        {"noise": {}},
        {"noise": {"logits": np.zeros((ROWS, 1))}},
        {"noise": {"logits": np.full((ROWS, 2), -1.0)}},
        {"noise": {"logits": np.full((ROWS, 2), np.nan)}},
    ],
)
def test_a_golden_file_whose_parts_do_not_fit_is_refused(
    golden: Golden, tmp_path: Path, change: dict[str, object]
) -> None:
    from engines.errors import DeployError

    path = tmp_path / "golden.npz"
    golden.save(path)
    assert goldens.load(path).cases == golden.cases
    dataclasses.replace(golden, **change).save(path)
    with pytest.raises(DeployError, match="is not a golden file"):
        goldens.load(path)


def test_a_renamed_or_spare_weight_does_not_fool_the_audit(built: Store, tmp_path: Path) -> None:
    from pipeline.audit import audit

    weights = goldens.load(built.root / "lenet/fp32/golden.npz").weights
    model = onnx.load(built.root / "lenet/fp32/model.onnx")
    (tensor,) = [each for each in model.graph.initializer if each.name == "network.0.weight"]
    values = onnx.numpy_helper.to_array(tensor).copy()
    path = tmp_path / "graph.onnx"
    for node in model.graph.node:
        node.input[:] = ["w" if name == tensor.name else name for name in node.input]

    model.graph.initializer.append(onnx.numpy_helper.from_array(values, "w"))
    onnx.save(model, path)
    assert audit(path, weights).identical == 10  # another name, the same values

    values.reshape(-1)[0] *= np.float32(1.001)
    model.graph.initializer[-1].CopyFrom(onnx.numpy_helper.from_array(values, "w"))
    onnx.save(model, path)
    found = audit(path, weights)  # the right one is still there, but no node reads it
    assert (found.identical, found.missing) == (9, ("network.0.weight",))
    assert found.unexplained == ("w float32[6, 1, 5, 5], 600 bytes",)

    # read now, but by a node that no output depends on
    model.graph.node.append(onnx.helper.make_node("Identity", [tensor.name], ["dead"]))
    onnx.save(model, path)
    assert audit(path, weights).identical == 9


def test_a_renamed_and_changed_weight_is_a_mismatch(
    store: Store, assay: Callable[..., Result]
) -> None:
    """By its outputs it passes, and under its name nothing is wrong."""
    model = onnx.load(store.root / "lenet/fp32/model.onnx")
    (tensor,) = [each for each in model.graph.initializer if each.name == "network.3.weight"]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[7] *= np.float32(1 + 1e-6)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, "w"))
    for node in model.graph.node:
        node.input[:] = ["w" if name == "network.3.weight" else name for name in node.input]
    path = store.root / "renamed.onnx"
    onnx.save(model, path)
    result = assay("verify", "lenet", "--root", store.root, "--file", path)
    assert result.code == 3
    assert "weights that are not in the graph: network.3.weight" in result.err
    assert "that nothing explains: w float32[16, 6, 5, 5], 9,600 bytes" in result.err
    assert "9 of 10" in result.out


def altered(store: Store, name: str, index: int, factor: float) -> Path:
    model = onnx.load(store.root / "lenet/fp32/model.onnx")
    (tensor,) = [each for each in model.graph.initializer if each.name == name]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[index] *= np.float32(factor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    path = store.root / "altered.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("index", [0, 7, 77, 149])
def test_one_convolution_weight_off_by_a_thousandth_exits_3(
    store: Store, assay: Callable[..., Result], index: int
) -> None:
    path = altered(store, "network.0.weight", index, 1.001)
    result = assay("verify", "lenet", "--root", store.root, "--file", path)
    assert result.code == 3
    assert "mismatch" in result.out
    assert "network.0.weight" in result.err
    assert f"`assay verify MODEL --file {path} --bisect`" in result.err


def test_a_mismatch_is_told_to_programs_too(store: Store, assay: Callable[..., Result]) -> None:
    path = altered(store, "network.0.weight", 7, 2.0)
    words = ("verify", "lenet", "--root", store.root, "--file", path, "--json")
    found = json.loads(assay(*words).out)
    assert found["error"]["exit_code"] == 3
    (verdict,) = found["verdicts"]
    assert (verdict["status"], verdict["outputs"][0]["name"]) == ("mismatch", "logits")
    assert verdict["outputs"][0]["max_ratio"] > parity.K_MAX
    found = json.loads(assay(*words, "--bisect").out)
    assert found["error"]["exit_code"] == 3
    assert found["first"]["operator"] == "Conv"


def test_the_smallest_change_of_a_weight_is_found(
    store: Store, assay: Callable[..., Result]
) -> None:
    path = altered(store, "network.3.weight", 5, 1 + 2**-23)
    result = assay("verify", "lenet", "--root", store.root, "--file", path)
    assert result.code == 3
    assert "weights that are not the checkpoint's: network.3.weight" in result.err


def test_the_graph_itself_passes_as_a_file_too(store: Store, assay: Callable[..., Result]) -> None:
    folder = store.root / "lenet/fp32"
    before = sorted(store.root.rglob("*"))
    words = ["--file", folder / "model.onnx", "--golden", folder / "golden.npz", "--json"]
    result = assay("verify", "lenet", "--root", store.root / "elsewhere", *words)
    assert result.code == 0
    found = json.loads(result.out)
    assert found["status"] == "pass"
    assert found["audit"].pop("identical") == 10
    assert not any(found["audit"].values())
    assert sorted(store.root.rglob("*")) == before


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "onnxruntime/engine"])
def test_a_flipped_bit_in_an_artifact_is_a_digest_error(
    store: Store, assay: Callable[..., Result], name: str
) -> None:
    path = store.root / "lenet/fp32" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    engine = "onnxruntime" if name.startswith("onnx") else "graph"
    result = assay("verify", "lenet", "--root", store.root, "--engine", engine)
    assert result.code == 1
    assert f"{path} is not the" in result.err
    assert "expected sha256" in result.err


def test_a_mismatch_stays_a_mismatch_when_nothing_is_run_again(
    store: Store, assay: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "K", 0.01)  # no engine is that exact
    words = ("verify", "lenet", "--root", store.root)
    assert assay(*words, "--force").code == 3
    again = assay(*words)
    assert again.code == 3
    assert "nothing changed, skipped" in again.err
    assert "times the noise floor" in again.err
    assert assay("bundle", "lenet", "--root", store.root, "--dist", store.dist).code == 3


def test_an_engine_that_cannot_run_here_is_never_a_pass(
    store: Store, assay: Callable[..., Result]
) -> None:
    from engines import machine

    if machine.gpus():
        pytest.skip("this machine has a GPU")
    result = assay("verify", "lenet", "--root", store.root, "--engine", "tensorrt_rtx")
    assert result.code == 4
    assert "was not run on this machine" in result.err
    verdict = json.loads((store.root / "lenet/fp32/tensorrt_rtx/verdict.json").read_text())
    assert verdict["status"] == "not run"
    assert "no NVIDIA GPU" in verdict["reason"]


def test_a_row_that_seems_quiet_is_not_taken_for_as_quiet_as_that() -> None:
    reference = np.ones((5, 4))
    measured = np.tile([4e-6, 8e-6], (5, 1))
    measured[0] = [2e-6, 4e-6]  # half of what is usual
    measured[1] = [2e-7, 4e-7]  # so little that it is no chance
    measured[2] = [4e-5, 8e-5]  # more than is usual is what it is
    floor = noise.floor(reference, measured, "fp32")
    assert floor.rms == pytest.approx([np.sqrt(10) * 1e-6, 4e-7, 4e-5, 4e-6, 4e-6])
    assert floor.max == pytest.approx(2 * floor.rms)
    # The usual noise is at the scale of the row.
    assert noise.floor(100 * reference, 100 * measured, "fp32").rms == pytest.approx(
        100 * floor.rms
    )
    # Rows that cannot be compared say nothing of what is usual.
    measured[2:4] = 1.0
    assert noise.floor(reference, measured, "fp32").rms[4] == pytest.approx(4e-6)
