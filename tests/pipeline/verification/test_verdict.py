"""The verdict: faithful engines pass, and every planted fault is found and named."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from engines.contract import Array, Feeds, Outputs, TensorSpec
from engines.errors import ParityError
from pipeline.golden import file as goldens
from pipeline.golden import noise
from pipeline.golden.file import Golden, Weights
from pipeline.report.verify import ratio_text
from pipeline.verification import noise_floor
from pipeline.verification.acceptance import require_pass
from pipeline.verification.batches import rows_to_run, run_rows
from pipeline.verification.flips import Flips
from pipeline.verification.limits import MAX_ERROR_IN_FLOORS, MAX_RMS_IN_FLOORS
from pipeline.verification.verdict import from_json, judge
from pipeline.workflow.runner import Store
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
        max_drop=0.01,
        weights=Weights({}),
    )


@dataclass
class Computed:
    """A session whose outputs a function computes, to plant faults in."""

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
    verdict = judge("engine", Computed(function), golden)
    assert (verdict.status, verdict.reason) == ("pass", "")
    assert verdict.flips == Flips(ROWS, 0, 0, ROWS, ROWS, lost=0)


def test_a_verdict_runs_batches_of_1_2_an_odd_number_and_all(golden: Golden) -> None:
    session = Computed()
    verdict = judge("engine", session, golden)
    assert verdict.batches == (1, 2, 7, ROWS)
    assert set(verdict.batches) <= set(session.sizes)


def test_a_verdict_runs_only_batches_an_engine_accepts(golden: Golden) -> None:
    session = Computed(batch=(2, 8))
    verdict = judge("engine", session, golden)
    assert verdict.batches == (2, 7, 8)
    assert max(session.sizes) == 8


@pytest.mark.parametrize("limits", [(8, 16), (100, 200)])
def test_the_last_batch_is_padded_to_the_smallest_accepted(
    golden: Golden, limits: tuple[int, int]
) -> None:
    session = Computed(batch=limits)
    assert judge("engine", session, golden).status == "pass"
    assert min(session.sizes) >= limits[0]


def test_the_floor_is_pytorchs_own_error_row_by_row(golden: Golden) -> None:
    reference = golden.reference["logits"]
    random = np.random.default_rng(0)
    runs = [reference + random.normal(scale=1e-3, size=reference.shape) for _ in range(3)]
    floor = noise_floor.floor(reference, noise.measure(reference, runs), "fp32")
    errors = np.stack(runs) - reference
    for row in range(ROWS):
        assert floor.rms[row] == pytest.approx(np.sqrt((errors[:, row] ** 2).mean()))
        assert floor.max[row] == pytest.approx(np.abs(errors[:, row]).max())


def off_by(golden: Golden, factor: float, row: int | None) -> Callable[[Array], Array]:
    """Plants errors of `factor` floors: on one row of its maximum, or else of the rms."""
    reference = golden.reference["logits"]
    floor = noise_floor.floor(reference, golden.noise["logits"], golden.precision)
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
        (None, 0.98 * MAX_RMS_IN_FLOORS, "pass"),
        (None, 1.02 * MAX_RMS_IN_FLOORS, "mismatch"),
        (0, 0.98 * MAX_ERROR_IN_FLOORS, "pass"),
        (0, 1.02 * MAX_ERROR_IN_FLOORS, "mismatch"),
        (ROWS - 1, 0.98 * MAX_ERROR_IN_FLOORS, "pass"),
        (ROWS - 1, 1.02 * MAX_ERROR_IN_FLOORS, "mismatch"),
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
        yardstick[:, 0] = (
            yardstick[:, 1] * 10
        )  # so that the error of one row does not show in the rms
    exactly = dataclasses.replace(golden, native={"logits": noisy}, noise={"logits": yardstick})
    outputs = (TensorSpec("logits", "float64", (None, CLASSES)),)
    session = Computed(off_by(exactly, factor, row), outputs=outputs)
    assert judge("engine", session, exactly).status == status


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

    verdict = judge("engine", Computed(wrong_on_another), louder)
    assert verdict.status == "mismatch"
    assert verdict.outputs[0].worst == "case 6"


def test_a_row_that_rounding_moves_too_far_is_skipped_and_reported(golden: Golden) -> None:
    yardstick = golden.noise["logits"].copy()
    yardstick[5] *= 1e6  # as for an untrained network on a black image
    wild = dataclasses.replace(golden, noise={"logits": yardstick})

    def wrong(image: Array) -> Array:
        logits = rounded(image)
        logits[(image == golden.inputs["image"][5]).all(axis=(1, 2, 3))] += np.float32(1)
        return logits

    verdict = judge("engine", Computed(wrong), wild)
    assert verdict.status == "pass"
    assert verdict.outputs[0].incomparable == 1
    assert judge("engine", Computed(wrong), golden).status == "mismatch"
    infinite = dataclasses.replace(golden, noise={"logits": golden.noise["logits"] * 1e6})
    verdict = judge("engine", Computed(), infinite)
    assert verdict.status == "vacuous"
    assert "by rounding alone, on every input" in verdict.reason


def test_verify_prints_samples_per_second(store: Store, assay: Callable[..., Result]) -> None:
    folder = store.root / "lenet/fp32"
    golden = goldens.load(folder / "golden.npz")
    for words, tested in (((), len(golden.test_labels)), (("--file", folder / "model.onnx"), 0)):
        result = assay("verify", "lenet", "--root", store.root, "--force", *words)
        assert result.code == 0, result.err
        (line_said,) = (line for line in result.err.splitlines() if "a second" in line)
        assert f"verify graph: {rows_to_run(golden, None, tested):,} samples, " in line_said


@pytest.mark.parametrize("limits", [None, (1, 2)])
@pytest.mark.parametrize("tested", [0, 25])
@pytest.mark.parametrize("labelled", [0, 30])
def test_rows_to_run_counts_the_rows_that_a_verdict_runs(
    golden: Golden, limits: tuple[int, int] | None, tested: int, labelled: int
) -> None:
    session = Computed(batch=limits)
    more = dataclasses.replace(
        golden,
        labels=golden.labels[:labelled],
        test_reference=golden.test_reference[:tested],
        test_labels=golden.test_labels[:tested],
    )
    test = {"image": golden.inputs["image"][:tested]} if tested else None
    verdict = judge("engine", session, more, test)
    assert verdict.status == "pass"
    assert verdict.flips is not None
    assert verdict.flips.images == (tested or labelled or ROWS)
    assert verdict.flips.correct == ((tested or labelled) or None)
    assert sum(session.sizes) == rows_to_run(more, limits, tested)


@pytest.mark.parametrize("size", [1, 2])
def test_edge_cases_run_at_small_batches_too(golden: Golden, size: int) -> None:
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
    verdict = judge("engine", Computed(function), golden)
    assert verdict.status == "mismatch"
    assert words in verdict.reason


def test_a_number_that_rounding_never_changes_is_named_with_its_row(golden: Golden) -> None:
    golden.noise["logits"][:] = 0
    whole = golden.reference["logits"].round().astype(np.int64)
    golden.reference["logits"], golden.native["logits"] = whole, whole
    row = int(np.abs(whole - whole[0]).any(axis=1).argmax())

    def off_by_one(image: Array) -> Array:
        return (exact(image).round() + (image == golden.inputs["image"][row]).all()).astype(
            np.int64
        )

    session = Computed(off_by_one, outputs=(TensorSpec("logits", "int64", (None, CLASSES)),))
    verdict = judge("engine", session, golden, sizes=(1,))
    assert verdict.reason == (f"logits: differs where rounding changes nothing, as on case {row}")
    assert ratio_text(verdict.outputs[0].max_ratio) == "inf"


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
    verdict = judge("engine", Computed(**changed), golden)
    assert verdict.status == "mismatch"
    assert "expected" in verdict.reason


def test_a_constant_output_is_vacuous(golden: Golden) -> None:
    def constant(image: Array) -> Array:
        return np.ones((len(image), CLASSES), np.float32)

    still = dataclasses.replace(
        golden,
        reference={"logits": np.ones((ROWS, CLASSES))},
        native={"logits": np.ones((ROWS, CLASSES), np.float32)},
        noise={"logits": np.zeros((ROWS, 2))},
        test_reference=np.ones((ROWS, CLASSES)),
    )
    assert judge("engine", Computed(constant), still).status == "vacuous"


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
    verdict = judge("engine", Computed(swapped), wide, {"image": images[::-1]})
    assert verdict.flips is not None
    assert verdict.flips.unexplained == ROWS
    assert verdict.status == "mismatch"
    assert "wider than rounding can explain" in verdict.reason

    close = wide.test_reference.copy()
    rows = np.arange(ROWS)
    close[rows, ranked[::-1][:, -1]] = close[rows, ranked[::-1][:, -2]] + margin
    narrow = dataclasses.replace(wide, test_reference=close)
    verdict = judge("engine", Computed(swapped), narrow, {"image": images[::-1]})
    assert verdict.flips == Flips(ROWS, ROWS, 0, 0, ROWS, lost=ROWS)
    assert verdict.status == "pass"


def test_a_verdict_round_trips_through_json(golden: Golden) -> None:
    verdict = judge("engine", Computed(), golden)
    assert from_json(json.loads(json.dumps(dataclasses.asdict(verdict)))) == verdict


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


def test_a_quantized_graph_is_not_proved_on_a_few_images(golden: Golden) -> None:
    quantized = dataclasses.replace(golden, precision="int8")
    test = {"image": golden.inputs["image"]}
    few = judge("engine", Computed(), quantized, test)
    assert few.status == "vacuous"
    assert f"{ROWS} test images are too few to tell: accuracy falls by 0.00 pp (-" in few.reason
    with pytest.raises(ParityError) as caught:
        require_pass([few], "m")
    assert "--max-drop" in caught.value.hint
    # Without a test set, as on a target, the noise alone is judged.
    assert judge("engine", Computed(), quantized).status == "pass"
    loose = dataclasses.replace(quantized, max_drop=1.0)
    assert judge("engine", Computed(), loose, test).status == "pass"
    assert judge("engine", Computed(), golden, test).status == "pass"


def test_an_error_names_a_few_of_many_reasons(golden: Golden) -> None:
    verdict = judge("engine", Computed(), golden)
    reasons = [f"fault {number}" for number in range(9)]
    many = dataclasses.replace(verdict, status="mismatch", reason="; ".join(reasons))
    with pytest.raises(ParityError) as caught:
        require_pass([many], "m")
    assert caught.value.message.endswith("fault 2; fault 3; 4 more; fault 8")
