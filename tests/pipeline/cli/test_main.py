"""The command line: exit codes, messages, JSON and interruptions."""

import ast
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

import engines
from engines import hardware
from pipeline.bundling import archive
from pipeline.cli import main, stage_runs
from pipeline.workflow import chain
from pipeline.workflow.artifacts import ENGINE
from pipeline.workflow.runner import Store
from pipeline.workflow.stage import options
from tests import bare
from tests.bundles import bundle_of
from tests.conftest import Process, Result, need_engine
from tests.subset import ROOT, python_path, stages

Assay = Callable[..., Result]


def where(store: Store) -> tuple[object, ...]:
    return ("--root", store.root, "--dist", store.dist)


def test_a_file_of_models_is_named_with_its_function(tmp_path: Path, assay: Assay) -> None:
    path = tmp_path / "nets.py"
    path.write_text("import torch\n\ndef helper(x):\n    pass\n\ndef build():\n    pass\n")
    assert f"{path}:build" in assay("run", path).err
    assert f"--data {tmp_path}" in assay("run", tmp_path).err


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (("run", "le"), ["lenet"]),
        (("build", "lenet", "--engine", "onnxruntime,open"), ["onnxruntime,openvino"]),
        (("bench", "lenet", "--engine", "al"), ["all"]),
        (("export", "lenet", "--precision", "fp"), ["fp32", "fp16", "fp8"]),
        (("doc",), ["doctor"]),
    ],
)
def test_a_shell_completes_names(words: tuple[str, ...], completed: list[str]) -> None:
    *before, last = words
    complete = ShellComplete(main.cli, {}, "assay", "_ASSAY_COMPLETE")
    assert [item.value for item in complete.get_completions(before, last)] == completed


def test_the_help_of_run_lists_options_by_stage(assay: Assay) -> None:
    text = assay("run", "--help").out
    sections = [line[:-1] for line in text.splitlines() if re.fullmatch(r"[A-Z][a-z ]+:", line)]
    assert sections == ["Several stages", *(s.capitalize() for s in STAGES), "All commands"]
    for stage in chain.RUN:
        for option in options(chain.stage(stage).params):
            if option.role.in_run and not option.required:
                assert text.count(f"  {option.flag} ") == 1, option.flag
    assert "[default: fp32]" in text


STAGES = ("data", "train", "export", "build", "bench", "bundle")  # verify has none of its own


@pytest.mark.parametrize(
    "command", ["run", "verify", "bench", "load", "profile", "loadgen", "compare"]
)
def test_more_threads_than_cpus_are_refused_before_anything_runs(
    command: str, assay: Assay
) -> None:
    cpus = hardware.available_cpus()
    subject = ("a.zip", "b.zip") if command == "compare" else ("lenet", "--engine", "onnxruntime")
    result = assay(command, *subject, "--threads", cpus + 1)
    assert result.code == 2
    expected = f"--threads {cpus + 1} is more than the CPUs that this process may use: {cpus}"
    assert expected in result.err
    assert f"give at most {cpus}" in result.err
    assert "running" not in result.err


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("trian", "lenet"), "unknown command 'trian'", "did you mean 'train'?"),
        (("train", "lenett"), "unknown model 'lenett'", "did you mean 'lenet'?"),
        (("run", "alexnet"), "unknown model 'alexnet'", "did you mean 'torchvision:alexnet'?"),
        (("run", "resnet50"), "unknown model", "'torchvision:resnet50' or 'timm:resnet50'"),
        (("run", "nolibrary"), "unknown model 'nolibrary'", "torchvision:NAME"),
        (("run", "gone.py"), "unknown model 'gone.py'", "gone.py does not exist"),
        (("run", "g.onnx"), "unknown model 'g.onnx'", "`assay verify MODEL --file g.onnx`"),
        (("run", "w.safetensors"), "unknown model", "--weights w.safetensors"),
        (("train", "lenet", "--data", "no/photos"), "no folder of that name", "a folder of images"),
        (("train", "lenet", "--data", __file__), "is not a folder", "give a folder of images"),
        (("build", "lenet", "--engine", "tensort"), "unknown engine 'tensort'", "'tensorrt'"),
        (("bench", "lenet", "--engine", "pytorch,x"), "unknown engine 'x'", "available: "),
        (("export", "lenet", "--precision", "fp31"), "unknown precision 'fp31'", "'fp32'"),
        (("report", "lenet", "--precision", "fp32,fp16"), "'fp32,fp16'", "one at a time"),
        (("data", "--data", "fashion"), "unknown data set 'fashion'", "'fashion-mnist'"),
        (("bench", "lenet", "--batch", "1,x"), "--batch '1,x' is not a list of int", "commas"),
        (("bench", "lenet", "--batch", "0"), "--batch 0 is out of range", "from 1 to 65536"),
        (("bench", "lenet", "--batch", ""), "--batch is empty", "at least one"),
        (("bench", "lenet", "--budget", "inf"), "--budget inf is out", "above 0"),
        (
            ("bench", "lenet", "--threads", "2", "--affinity", "0"),
            "--threads 2 and --affinity 0 contradict",
            "leave --threads out",
        ),
        (
            ("bench", "lenet", "--cuda-graph", "--device", "cpu"),
            "--cuda-graph and --device cpu",
            "leave out",
        ),
        (("bench", "lenet", "--against", "fp32"), "--precision fp32 are the same", "other"),
        (("verify", "lenet", "--device", "cuda"), "not apply to --engine graph", "--device out"),
        (
            ("export", "lenet", "--precision", "bf16", "--opset", "20"),
            "--precision bf16 needs --opset 22 or later, not 20",
            "leave it out",
        ),
        (
            ("export", "lenet", "--exporter", "torchscript", "--opset", "21"),
            "--exporter torchscript writes --opset 20 at most",
            "earlier",
        ),
        (("train", "lenet", "--std", "1e-42"), "exceed the range of fp16", "0.229"),
        (("build", "lenet", "--workspace", "99999999999"), "--workspace", "from 1 to 1048576"),
        (("build", "lenet", "--batch-opt", "8", "--batch-max", "4"), "rising order", "--batch-min"),
        (("build", "lenet", "--engine", "onnxruntime", "--refit"), "not apply to", "tensorrt"),
        (
            ("build", "lenet", "--engine", "openvino,pytorch", "--workspace", "8"),
            "--workspace",
            "it",
        ),
        (("train",), "Missing argument", "assay train --help"),
        (("train", "lenet", "--epochs", "many"), "'many' is not a valid integer", "--help"),
        (("verify", "lenet", "--golden", "x"), "--golden without --file", "name the file"),
        (("build", "lenet", "--engine", ","), "--engine is empty", "at least one"),
        (("build", "lenet", "--engine", "all,pytorch"), "mixes all and names", "give all or names"),
        (("build", "lenet", "--target-sm", "x"), "--target-sm 'x' is not a list of int", "commas"),
        (("report", "lenet", "--precision", "x"), "unknown precision 'x'", "fp32"),
        (("report", "lenett"), "unknown model", "did you mean"),
    ],
)
def test_wrong_usage_exits_2_with_a_hint(
    store: Store, assay: Assay, words: tuple[str, ...], message: str, hint: str
) -> None:
    rest = ("--root", store.root) if len(words) > 1 and words[0] != "trian" else ()
    result = assay(*words, *rest)
    assert result.code == 2
    assert message in result.err
    assert hint in result.err.splitlines()[-1]
    assert result.out == ""


@pytest.mark.parametrize(
    ("command", "missing", "again"),
    [
        ("train", "training images", "assay data --root"),
        ("export", "checkpoint", "assay train lenet"),
        ("verify", "graph", "assay export lenet"),
        ("build", "graph", "assay export lenet"),
    ],
)
def test_a_missing_input_names_the_stage_to_run(
    tmp_path: Path, assay: Assay, command: str, missing: str, again: str
) -> None:
    more = ("--engine", "onnxruntime") if command == "build" else ()
    result = assay(command, "lenet", "--root", tmp_path / "empty", *more)
    assert result.code == 1
    assert f"no {missing}" in result.err
    assert f"run `{again}" in result.err


@pytest.mark.parametrize("command", ["bench", "bundle"])
def test_without_an_engine_the_build_stage_is_named(
    tmp_path: Path, assay: Assay, command: str
) -> None:
    result = assay(command, "lenet", "--root", tmp_path / "empty")
    assert result.code == 1
    assert "assay build" in result.err


def test_a_missing_engine_exits_4_with_the_pip_command(store: Store, assay: Assay) -> None:
    if engines.get("tensorrt").available().build:
        pytest.skip("this machine has TensorRT")
    result = assay("build", "lenet", *where(store), "--engine", "tensorrt")
    assert result.code == 4
    assert "hint: pip install 'tensorrt-cu13>=10.14'" in result.err


@pytest.mark.parametrize("name", ["train", "export"])
def test_without_torch_the_stages_that_need_it_exit_4(
    store: Store, assay: Assay, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    again = "--retrain" if name == "train" else "--force"
    result = assay(name, "lenet", *where(store), again)
    assert result.code == 4
    assert "torch cannot be imported" in result.err
    assert "hint: pip install torch" in result.err


@pytest.mark.slow(2)
def test_without_torch_the_other_engines_are_verified(store: Store, tmp_path: Path) -> None:
    names = ["onnxruntime", "openvino"]
    here = [name for name in names if engines.get(name).available().run]
    python = bare.environment(tmp_path / "venv", *here)

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        command = [python, "-m", "pipeline.cli", *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    missing = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    assert b"ModuleNotFoundError" in missing.stderr
    bundle = store.dist / "lenet-fp32.tar.zst"
    checked = call("check", "--trust", bundle)
    assert checked.returncode == 0, checked.stderr
    assert "pytorch: not run: torch is not installed" in checked.stdout
    archive.extract(bundle, tmp_path / "lenet-fp32")
    (golden,) = tmp_path.glob("lenet-fp32/**/golden.npz")
    for engine in ("graph", *names):
        if engine != "graph":
            need_engine(engine)
        name = "model.onnx" if engine == "graph" else f"{engine}/{ENGINE.at(engine=engine).name}"
        (file,) = tmp_path.glob(f"lenet-fp32/**/{name}")
        words = ("verify", "lenet", "--engine", engine, "--file", file, "--golden", golden)
        result = call(*words)
        assert result.returncode == 0, result.stderr
        assert re.search(rf"{engine} +pass", result.stdout)


def test_a_second_run_skips_every_stage(store: Store, assay: Assay) -> None:
    result = assay("run", "lenet", *where(store), "--batch", "1,4", "--budget", "0.1")
    assert result.code == 0
    lines = result.err.splitlines()
    assert sum(line.endswith("nothing changed, skipped") for line in lines) == stages()
    assert lines[-1] == f"{stages()} stages, {stages()} skipped"
    assert "test accuracy 73.78% after 10 epochs" in result.out
    assert f"bundle: {store.dist}/lenet-fp32.tar.zst" in result.out


@pytest.mark.slow(3)
def test_a_changed_option_runs_only_the_stages_that_depend_on_it(
    store: Store, assay: Assay
) -> None:
    words = ("--batch", "1,4", "--budget", "0.2", "--json")
    result = assay("run", "lenet", *where(store), *words)
    ran = [entry["stage"] for entry in json.loads(result.out)["outcomes"] if not entry["skipped"]]
    assert ran == ["bench", "bundle"]


@pytest.mark.parametrize(
    "content", ["[]", "{}", "null", "5", "[" * 100_000, '{"schema": 1}', "\xff", ""]
)
@pytest.mark.parametrize("name", ["export.json", "verify.json"])
def test_an_invalid_record_is_an_error(store: Store, assay: Assay, content: str, name: str) -> None:
    (store.root / "lenet/fp32" / name).write_text(content)
    result = assay("verify", "lenet", *where(store))
    assert result.code == (1 if name == "export.json" else 0)  # verify makes its own record again
    assert "Traceback" not in result.err


@pytest.mark.parametrize("field", ["stage", "params", "inputs", "outputs", "facts", "key"])
@pytest.mark.parametrize("value", [None, 5, [1]])
def test_a_record_with_a_field_of_another_type_is_refused(
    store: Store, assay: Assay, field: str, value: object
) -> None:
    path = store.root / "lenet/fp32/export.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    result = assay("verify", "lenet", *where(store))
    assert result.code == 1
    assert "export.json is damaged" in result.err


@pytest.mark.parametrize("content", ["[]", "{}", '{"status": 5}', "nonsense"])
def test_a_report_leaves_out_changed_files(store: Store, assay: Assay, content: str) -> None:
    (store.root / "lenet/fp32/onnxruntime/verdict.json").write_text(content)
    result = assay("report", "lenet", *where(store), "--json")
    assert result.code == 0
    document = json.loads(result.out)
    assert set(document["verdicts"]) >= {"graph", "pytorch"}
    assert "onnxruntime" not in document["verdicts"]
    assert "is not the verdict that was made" in document["notes"][0]
    assert "left out" in result.err


def test_after_training_again_a_report_names_outdated_files(store: Store, assay: Assay) -> None:
    assert assay("train", "lenet", *where(store), "--retrain", "--epochs", 1, "--seed", 5).code == 0
    document = json.loads(assay("report", "lenet", *where(store), "--json").out)
    assert (document["verdicts"], document["measurements"], document["bundle"]) == ({}, None, None)
    assert document["training"]["seed"] == 5
    assert all(
        "made from another lenet/checkpoint.safetensors" in note for note in document["notes"]
    )
    assert any("lenet-fp32.tar.zst" in note and "left out" in note for note in document["notes"])


def test_a_bundle_with_older_measurements_is_named(store: Store, assay: Assay) -> None:
    words = ("--engine", "onnxruntime", "--batch", "1", "--budget", "0.05")
    measured = assay("bench", "lenet", *where(store), *words)
    assert measured.code == 0, measured.err
    assert "dist/lenet-fp32.tar.zst is out of date" in measured.err
    assert "run `assay bundle lenet" in measured.err
    reported = assay("report", "lenet", *where(store)).out
    assert "lenet-fp32.tar.zst is left out: it is out of date" in reported
    assert reported.count("lenet-fp32.tar.zst") == 1


def test_a_mistyped_folder_is_named(
    tmp_path: Path, assay: Assay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shapes").mkdir()
    assert "did you mean 'shapes'?" in assay("data", "--data", "shpaes/").err


def test_json_is_one_document_on_stdout(store: Store, assay: Assay) -> None:
    for words in (
        ("report", "lenet", *where(store)),
        ("verify", "lenet", *where(store), "--engine", "all"),
        ("doctor",),
        ("models",),
        ("check", "--trust", store.dist / "lenet-fp32.tar.zst"),
    ):
        result = assay(*words, "--json")
        assert result.code == 0
        json.loads(result.out)
        assert result.err  # the table for the user


def test_an_error_is_a_json_document(assay: Assay, tmp_path: Path) -> None:
    for words, code in ((("train", "lenett"), 2), (("export", "lenet", "--root", tmp_path), 1)):
        result = assay(*words, "--json")
        document = json.loads(result.out)["error"]
        assert (result.code, document["exit_code"]) == (code, code)
        assert document["message"] in result.err


def test_quiet_prints_results_only(store: Store, assay: Assay) -> None:
    result = assay("verify", "lenet", *where(store), "--quiet")
    assert result.err == ""
    assert "pass" in result.out


def test_a_bug_shows_its_traceback(assay: Assay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_runs, "run_stage", lambda *_: 1 / 0)
    result = assay("train", "lenet")
    assert result.code == 1
    assert "Traceback" in result.err
    assert "this is a bug in assay" in result.err


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not {".locks", ".resume"} & set(path.parts)
    }


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    for printed in process.stderr:
        if line in printed:
            return
    raise AssertionError(f"ended with {process.wait()} before {line!r}")


# When to interrupt a stage: this many seconds after it prints the text.
WORKING = {
    "train": ("epoch 2/", 0.05),
    "export": ("lenet fp32 export: running", 0.7),
    "bench": ("lenet fp32 bench: running", 1.0),
}
PAUSED = ("data", "verify", "build", "bundle")
LONG = {"train": ("--retrain", "--epochs", 10_000), "bench": ("--budget", 100, "--batch", 1)}
QUICK = {"train": ("--retrain", "--epochs", 1), "bench": ("--budget", 0.1, "--batch", 1)}
# One engine only: each engine is a run of its own, and finished runs stay.
ONE = {"build": ("--engine", "onnxruntime")}


@pytest.mark.slow(7)
# Both signals have the same handler, so SIGINT is tested with one working and one paused stage.
@pytest.mark.parametrize(
    ("name", "number"),
    [
        *((name, signal.SIGTERM) for name in (*WORKING, *PAUSED)),
        ("train", signal.SIGINT),
        ("data", signal.SIGINT),
    ],
)
def test_an_interrupted_stage_leaves_no_half_artifact(
    built: Store,
    tmp_path: Path,
    process: Callable[..., Process],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    number: int,
) -> None:
    shutil.copytree(built.root, tmp_path / "artifacts")
    shutil.copytree(built.dist, tmp_path / "dist")
    before = files(tmp_path)
    words = (name, *(() if name == "data" else ("lenet",)), "--force", *ONE.get(name, ()))
    line, seconds = WORKING.get(name, ("pausing", 0.0))
    with monkeypatch.context() as patch:
        if name in PAUSED:
            patch.setenv("ASSAY_TEST_PAUSE", name)
        running = process(*words, *LONG.get(name, ())).start()
    wait_for(running, line)
    time.sleep(seconds)
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 128 + number, out + err
    assert "error: interrupted" in err
    assert "Traceback" not in err
    assert files(tmp_path) == before
    assert not list(tmp_path.glob("*/.tmp*"))
    assert process(*words, *QUICK.get(name, ())).run().code == 0


@pytest.mark.slow(6)
def test_a_killed_run_leaves_no_outputs(
    built: Store, tmp_path: Path, process: Callable[..., Process]
) -> None:
    shutil.copytree(built.root, tmp_path / "artifacts")
    before = files(tmp_path / "artifacts/lenet")
    running = process("train", "lenet", "--retrain", "--epochs", 10_000).start()
    wait_for(running, "epoch 2/")
    running.kill()
    running.communicate(timeout=60)
    assert files(tmp_path / "artifacts/lenet") == before
    assert process("train", "lenet", "--retrain", "--epochs", 1).run().code == 0
    assert not list(tmp_path.glob("artifacts/.tmp*"))


@pytest.mark.slow(9)
def test_a_second_process_in_the_same_stage_waits_or_names_the_first(
    built: Store, tmp_path: Path, process: Callable[..., Process]
) -> None:
    shutil.copytree(built.root, tmp_path / "artifacts")
    first = process("train", "lenet", "--retrain", "--epochs", 10_000).start()
    wait_for(first, "epoch 1/")
    try:
        second = process("train", "lenet", "--retrain", "--epochs", 1, "--wait", 0).run()
        assert second.code == 1
        assert f"lenet train is being run by process {first.pid}" in second.err
        third = process("train", "lenet", "--retrain", "--epochs", 1).start()
        wait_for(third, f"waiting for process {first.pid}")
    finally:
        first.terminate()
        first.communicate(timeout=60)
    third.communicate(timeout=120)
    assert third.returncode == 0


def full_disk() -> None:
    # Python ignores SIGXFSZ, so a write beyond the limit fails with an OSError, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.slow(7)
def test_a_full_disk_is_an_error_and_keeps_the_old_outputs(
    built: Store, tmp_path: Path, process: Callable[..., Process]
) -> None:
    shutil.copytree(built.root, tmp_path / "artifacts")
    before = files(tmp_path)
    result = process("export", "lenet", "--force").run(preexec_fn=full_disk)
    assert result.code == 1
    assert "cannot write" in result.err
    assert "Traceback" not in result.err
    assert files(tmp_path) == before


def test_a_read_only_folder_is_an_error(
    built: Store, tmp_path: Path, process: Callable[..., Process]
) -> None:
    shutil.copytree(built.root, tmp_path / "artifacts")
    for folder in (tmp_path / "artifacts", tmp_path / "artifacts/lenet/fp32"):
        folder.chmod(0o555)
    if os.geteuid() == 0:  # root may write anywhere, unless it drops the capability
        command = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override")
    else:
        command = ()
    words = process("export", "lenet", "--force")
    result = _with_prefix(words, command)
    assert result.code == 1
    assert "cannot write" in result.err
    assert "Permission denied" in result.err
    assert "--root" in result.err


def _with_prefix(words: Process, prefix: tuple[str, ...]) -> Result:

    command = [*prefix, sys.executable, "-m", "tests.subset", *map(str, words.words)]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    answer = subprocess.run(
        command, cwd=words.cwd, env=environment, capture_output=True, text=True, check=False
    )
    return Result(answer.returncode, answer.stdout, answer.stderr)


def test_every_stage_is_a_command() -> None:
    assert set(chain.STAGES) < set(main.cli.commands)


def help_of(assay: Assay, command: str) -> dict[str, str]:
    """Returns the help of each option, by its flag."""
    out = assay(command, "--help").out
    parts = re.split(r"\n\n[A-Z][a-z ]+:(?=\n)|\n  (?=-)", out)
    words = (part.split() for part in parts)
    return {entry[0]: " ".join(entry[1:]) for entry in words if entry}


def test_the_help_of_run_names_the_stages_of_an_option(assay: Assay) -> None:
    texts = help_of(assay, "run")
    assert texts["--precision"].endswith("For export, verify, build, bench, bundle.")
    assert texts["--engine"].endswith("For verify, build, bench, bundle.")
    assert "Engines to build" in texts["--engine"]
    assert " For " not in texts["--epochs"]  # it stands below the heading of its stage
    assert not {"--measurements/--no-measurements", "--against", "--file", "--plot"} & texts.keys()
    assert " For " not in help_of(assay, "export")["--precision"]


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("--golden", "g.npz"), "--golden without --file", "name the file to judge"),
        (("--plot", "p.svg"), "--plot without --bisect", "add --bisect"),
        (("--plot", "p.svg", "--file", "f.onnx"), "--plot without --bisect", "add --bisect"),
    ],
)
def test_an_option_that_requires_another_names_it(
    assay: Assay, words: tuple[str, ...], message: str, hint: str
) -> None:
    result = assay("verify", "edge", *words)
    assert result.code == 2
    assert result.err.splitlines() == [f"error: {message}", f"hint: {hint}"]


def test_the_command_line_names_no_option_of_a_stage() -> None:
    named = {
        option.name
        for stage in map(chain.stage, chain.STAGES)
        for params in (stage.params, stage.command_options)
        if params is not None
        for option in options(params)
    }
    # `assay run` needs them for the summary at its end.
    named -= {"model", "precision"}
    for module in ("main", "options"):
        source = (ROOT / "pipeline" / "cli" / f"{module}.py").read_text()
        constants = [n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant)]
        assert not named & {value for value in constants if isinstance(value, str)}


def test_what_a_library_makes_of_an_interruption_is_an_interruption(
    assay: Assay, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.report import summary

    def collect(*_words: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise AttributeError("a module was left half imported") from None

    monkeypatch.setattr(summary, "collect", collect)
    result = assay("report", "lenet")
    assert (result.code, result.err) == (130, "error: interrupted\n")
    monkeypatch.undo()
    assert assay("report", "lenet", "--root", "nowhere").code != 130


def test_a_current_folder_that_was_removed_is_named(
    assay: Assay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for words in (["models"], ["summary", "edge"], ["export", "edge"]):
        result = assay(*words)
        assert result.code == 2
        assert "the current folder has been removed" in result.err


@pytest.mark.parametrize(
    "words",
    [
        ("check", "b.tar.zst", "--max-size"),
        ("check", "b.tar.zst", "--url", "http://a:1", "--wait"),
        ("watch", "http://a:1", "b.tar.zst", "--duration"),
        ("choose", "lenet", "--min-throughput"),
    ],
)
def test_what_is_not_a_number_is_wrong_usage(assay: Assay, words: tuple[str, ...]) -> None:
    result = assay(*words, "nan")
    assert result.code == 2
    assert "'nan' is not a number" in result.err


@pytest.mark.parametrize("option", ["--html", "--markdown"])
def test_a_device_is_not_replaced_by_a_file(built: Store, assay: Assay, option: str) -> None:
    for words in (("report", "lenet", option), ("card", "lenet", "--out")):
        result = assay(*words, "/dev/full", *where(built))
        assert result.code == 2
        assert "/dev/full is not a file" in result.err
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize(
    "words",
    [
        ("card", "lenet", "--out"),
        ("report", "lenet", "--html"),
        ("merge", "BUNDLE", "BUNDLE", "--out"),
        ("check", "BUNDLE", "--rebuild", "--out"),
        ("pull", "127.0.0.1:9/lenet:1", "--out"),
        ("keygen",),
    ],
)
def test_no_command_makes_the_folder_of_its_output(
    built: Store, assay: Callable[..., Result], tmp_path: Path, words: tuple[str, ...]
) -> None:
    words = tuple(str(bundle_of(built)) if word == "BUNDLE" else word for word in words)
    result = assay(*words, tmp_path / "nothing" / "new.tar.zst")
    assert result.code == 2
    assert f"error: {tmp_path / 'nothing'} is not a folder\nhint: create it first" in result.err
    assert not (tmp_path / "nothing").exists()
