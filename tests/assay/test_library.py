"""assay as a library: the whole chain from Python, and inference without PyTorch."""

import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import assay
import engines
from engines.checks import choose_device
from pipeline.golden import file as goldens
from pipeline.workflow.runner import Store
from tests.subset import ROOT

MODEL = textwrap.dedent(
    """
    import numpy as np
    import torch
    from torch import nn
    from assay import Model

    def make():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
        rows = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
        return Model(network=network, inputs={"x": rows})
    """
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mine.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow(3)
@pytest.mark.usefixtures("folder")
def test_the_whole_chain_for_a_model_in_a_file(capfd: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    run = assay.run(
        "mine.py:make",
        engine=["onnxruntime", "pytorch"],
        batch=[1],
        budget=0.1,
        progress=lines.append,
    )
    assert capfd.readouterr() == ("", "")
    assert any("onnxruntime" in line for line in lines)
    assert run.verification["onnxruntime"].status == "pass"
    assert set(run.build.engines) == {"onnxruntime", "pytorch"}
    assert run.bench is not None
    assert {entry["name"] for entry in run.bench.results} == {"onnxruntime", "pytorch"}
    assert not run.training.skipped
    assert assay.train("mine.py:make").skipped  # nothing has changed
    checked = assay.check(run.bundle)
    assert checked.verification["graph"].status == "pass"
    with assay.load(run.bundle) as predictor:
        assert predictor.engine in run.build.engines
        rows = np.zeros((2, 6), np.float32)
        by_place, by_name = predictor.predict(rows), predictor.predict(x=rows)
        assert np.array_equal(by_place, by_name)
        assert by_place.shape == (2, 3)


def test_a_models_file_has_one_relative_name(folder: Path) -> None:
    exported = assay.export(f"{folder}/mine.py:make")
    assert exported.graph == Path("artifacts/mine.py-make/fp32/model.onnx")
    assert str(folder) not in (exported.graph.with_name("export.json")).read_text()


def test_a_users_module_may_have_the_name_of_one_of_ours(folder: Path) -> None:
    (folder / "pipeline.py").write_text(MODEL)
    exported = assay.export("pipeline.py:make")
    assert exported.description["opset"] >= 18


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: assay.train("gone.py:make"), assay.UsageError, "gone.py does not exist"),
        (lambda: assay.train("mine.py:gone"), assay.UsageError, "mine.py has no 'gone'"),
        (lambda: assay.export("mine.py:make", precision="fp99"), assay.UsageError, "fp99"),
        (lambda: assay.load("gone.tar.zst"), assay.DeployError, "gone.tar.zst does not exist"),
        (lambda: assay.verify("mine.py:make"), assay.DeployError, "no graph here"),
    ],
)
def test_errors_have_a_message(call: object, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        call()  # type: ignore[operator]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: assay.train(None), "model None is of type NoneType"),
        (lambda: assay.train(3), "model 3 is of type int"),
        (lambda: assay.train("mine.py:make", epochs="3"), "epochs '3' is of type str"),
        (lambda: assay.train("mine.py:make", seed=None), "seed None is of type NoneType"),
        (lambda: assay.train("mine.py:make", root=3), "root 3 is not a path"),
        (lambda: assay.export("mine.py:make", precision=["fp16"]), "is a list"),
        (lambda: assay.export("mine.py:make", opset=20.0), "opset 20.0 is of type float"),
        (lambda: assay.build("mine.py:make", engine=None), "engine is None"),
        (lambda: assay.build("mine.py:make", engine=[]), "engine is empty"),
        (lambda: assay.build("mine.py:make", engine=["all", "pytorch"]), "mixes all and names"),
        (lambda: assay.bench("mine.py:make", engine="graph"), "unknown engine 'graph'"),
        (lambda: assay.bench("mine.py:make", batch=[1.5]), "batch 1.5 is of type float"),
        (lambda: assay.choose("mine.py:make"), "choose needs a bound"),
        (lambda: assay.choose("mine.py:make", p99=0.005), "p99 0.005 is not a text"),
        (lambda: assay.choose(5, p99="5ms"), "model 5 is not a text"),
        (lambda: assay.choose("mine.py:make", memory="some"), "'some' is not a size"),
        (lambda: assay.choose("mine.py:make", max_drop=101), "max_drop 101 is out of range"),
        (lambda: assay.choose("mine.py:make", min_throughput=True), "True is not a number"),
        (lambda: assay.choose("mine.py:make", min_throughput=0), "min_throughput 0 is out of"),
        (lambda: assay.check_server("a", "here"), "'here' is not the address of a server"),
        (lambda: assay.check_server("a", 5), "url 5 is not a text"),
        (lambda: assay.check_server("a", "http://a:1", wait=float("nan")), "wait nan is out of"),
        (lambda: assay.check_server("a", "http://a:1", timeout="2"), "timeout '2' is not a number"),
        (lambda: assay.check(None), "bundle None is not a path"),
        (lambda: assay.check("a", threads=0), "threads 0 is out of range"),
        (lambda: assay.check("a", threads=10**9), "is out of range"),
        (lambda: assay.check("a", threads=1.5), "threads 1.5 is not whole"),
        (lambda: assay.check("a", max_size="64"), "max_size '64' is not a number"),
        (lambda: assay.check("a", device=3), "device 3 is not a text"),
        (lambda: assay.check("a", precision=["fp32"]), "precision ['fp32'] is not a text"),
        (lambda: assay.run("mine.py:make", precision=["fp32", "fp16"]), "is a list"),
        (lambda: assay.load(3), "bundle 3 is not a path"),
        (lambda: assay.load("a", threads=0), "threads 0"),
        (lambda: assay.load("a", threads=1_000_000), "threads 1000000"),
    ],
)
def test_a_value_of_another_type_is_wrong_usage(call: object, words: str) -> None:
    with pytest.raises(assay.UsageError, match=re.escape(words)):
        call()  # type: ignore[operator]


@pytest.mark.slow(2)
def test_a_list_option_takes_one_value_and_a_path_option_a_string(folder: Path) -> None:
    assay.export(folder / "mine.py:make")
    np.savez(folder / "rows.npz", x=np.ones((4, 6), np.float32))
    exported = assay.export("mine.py:make", inputs="rows.npz")
    assert exported.graph == Path("artifacts/mine.py-make/fp32/model.onnx")
    assay.build("mine.py:make", engine="onnxruntime")
    assay.verify("mine.py:make", engine="onnxruntime")
    measured = assay.bench("mine.py:make", engine="onnxruntime", batch=2, budget=0.1)
    assert {entry["batch"] for entry in measured.results} == {2}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def make(:\n", "at broken.py:1"),
        ("def make():\n    raise SystemExit(3)\n", "raised SystemExit: 3"),
        ("raise SystemExit(3)\n", "raised SystemExit: 3"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_an_error_with_its_line(
    folder: Path, source: str, words: str
) -> None:
    (folder / "broken.py").write_text(source)
    with pytest.raises(assay.DeployError) as caught:
        assay.export("broken.py:make")
    assert words in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.slow(3)
def test_what_a_sweep_has_measured_is_chosen_from(store: Store) -> None:
    words = {"engine": "onnxruntime", "batch": [1, 2], "concurrency": 1, "threads": 1}
    raced = assay.sweep("lenet", root=store.root, budget=0.2, **words)
    assert {point["batch"] for point in raced.points} == {1, 2}
    assert raced.file.is_file()
    lines: list[str] = []
    chosen = assay.choose("lenet", min_throughput=1, root=store.root, progress=lines.append)
    best = min(
        (point for point in raced.points if not point["beaten_by"]),
        key=lambda point: float(point["latency"]["value"]),
    )
    assert (chosen.engine, chosen.precision) == ("onnxruntime", "fp32")
    assert (chosen.batch, chosen.seconds) == (best["batch"], best["latency"]["value"])
    assert chosen.candidates[0]["status"] == "yes"
    with pytest.raises(assay.NotMetError, match="none of the") as refused:
        assay.choose("lenet", min_throughput=10**12, root=store.root)
    assert refused.value.details["chosen"] is None
    assert "sweep" in refused.value.hint


@pytest.mark.usefixtures("folder")
def test_an_unknown_option_is_named() -> None:
    with pytest.raises(assay.UsageError, match="precison"):
        assay.export("mine.py:make", precison="fp16")


def test_a_bundle_predicts_without_torch(built: Store) -> None:
    script = textwrap.dedent(
        f"""
        import sys

        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("torch", "torchvision", "onnxscript"):
                    raise ImportError(f"{{name}} is blocked")

        sys.meta_path.insert(0, Blocked())
        import numpy as np
        import assay
        predictor = assay.load({str(built.dist / "lenet-fp32.tar.zst")!r}, engine="onnxruntime")
        images = np.zeros((2, 1, 28, 28), np.uint8)
        print(predictor.predict(images).shape, predictor.classify(images), len(predictor.labels))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(2, 10) ['")
    assert done.stdout.rstrip().endswith(" 10")


def test_predictions_match_the_model(built: Store) -> None:
    golden = goldens.load(built.root / "lenet/fp32/golden.npz")
    images = golden.inputs["image"][:8]
    with assay.load(built.dist / "lenet-fp32.tar.zst") as predictor:
        assert predictor.device == choose_device(engines.get(predictor.engine), "auto")
        logits = predictor.predict(images)
        np.testing.assert_allclose(logits, golden.reference["logits"][:8], atol=1e-3)
        with pytest.raises(assay.DeployError, match="given both by position and by name"):
            predictor.predict(images, image=images)
        with pytest.raises(assay.DeployError, match="is a list, not a numpy array"):
            predictor.predict([[1]])
        with pytest.raises(assay.DeployError, match="dtype float32"):
            predictor.predict(images.astype(np.float32))
    with pytest.raises(assay.DeployError, match="closed"):
        predictor.predict(images)


def test_importing_assay_imports_no_large_library() -> None:
    heavy = ("torch", "onnx", "onnxruntime", "rich")
    code = f"import sys, assay; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"
