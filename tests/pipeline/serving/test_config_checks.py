"""Mistakes in Triton's configurations, each of which is refused with its reason."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from pipeline.serving import config, config_checks, config_ensembles
from pipeline.workflow.runner import Store
from tests.conftest import Result

pytest.importorskip("tritonclient")
Assay = Callable[..., Result]
NAME = "lenet_fp32_onnxruntime"
DIMS_IN = "dims: 1\n  dims: 28\n  dims: 28"
SIZE = 'batch 262"\n  batch_size: '
WARM, WARM_DIMS = "value {\n      data_type: TYPE_", "dims: 1\n      dims: 28\n      dims: 28"
# What a user changes, as pattern and replacement in config.pbtxt, and what is said about it.
MISTAKES = [
    pytest.param(DIMS_IN, "dims: [-1, 1, 28, 28]", "with the batch in them", id="batch in dims"),
    pytest.param("max_batch_size: 262", "", "write [-1, 1, 28, 28], or set", id="no batch size"),
    pytest.param(DIMS_IN, "dims: [28, 28, 1]", "dims [28, 28, 1]; the graph has", id="layout"),
    pytest.param(DIMS_IN, "dims: [1, -1, 28]", "dims [1, -1, 28]; the graph has", id="free axis"),
    pytest.param("TYPE_UINT8", "TYPE_FP32", "is TYPE_FP32; the graph has TYPE_UINT8", id="dtype"),
    pytest.param("TYPE_FP32", "TYPE_FP16", "'logits' is TYPE_FP16", id="output dtype"),
    pytest.param("dims: 10\n", "dims: 1000\n", "'logits' has dims [1000]", id="classes"),
    pytest.param("platform:", 'backend: "tensorrt"\nplatform:', "remove one", id="two backends"),
    pytest.param("onnxruntime_onnx", "onnx", "'onnx' does not exist", id="unknown platform"),
    pytest.param(
        DIMS_IN,
        "dims: 700\n reshape { shape: [1, 28, 28] }",
        "dims [700], which cannot be reshaped to [1, 28, 28]",
        id="reshape",
    ),
    pytest.param(DIMS_IN, "", "'image' has no dims: write [1, 28, 28]", id="no dims"),
    pytest.param("TYPE_UINT8", "99", "'image' is of type 99", id="unknown type"),
    pytest.param(f"{WARM}UINT8", "value {\n      data_type: 99", "as of type 99", id="warm 99"),
    pytest.param(
        "max_batch", f'default_model_filename: "{"n" * 300}"\nmax_batch', "too long", id="long"
    ),
    pytest.param(
        DIMS_IN, DIMS_IN + "\n reshape { shape: [784] }", "is reshaped to [784]", id="reshape 2"
    ),
    pytest.param("max_batch_size: 262", "max_batch_size: 512", "larger than 262", id="batch"),
    pytest.param("max_batch_size: 262", "max_batch_size: -1", "is negative", id="negative"),
    pytest.param("max_batch_size: 262", "max_batch_size: 4", "preferred_batch_size 8", id="less"),
    pytest.param("count: 1\n  kind", "count: 0\n  kind", "count below 1", id="count 0"),
    pytest.param("count: 1\n  kind", "count: -2\n  kind", "count below 1", id="count -2"),
    pytest.param("KIND_CPU", "KIND_GPU", "onnxruntime runs on CPUs", id="gpu"),
    pytest.param("KIND_CPU", "KIND_CPU gpus: [0]", "names gpus [0]", id="gpus of a cpu"),
    pytest.param('name: "image"', 'name: "images"', "'images' is not in the graph", id="input"),
    pytest.param('name: "logits"', 'name: "output"', "'output' is not in the graph", id="out"),
    pytest.param(
        "output {",
        'input { name: "mask" data_type: TYPE_BOOL dims: 1 }\noutput {',
        "'mask' is not in the graph",
        id="extra input",
    ),
    pytest.param('"labels.txt"', '"classes.txt"', "classes.txt is missing", id="no labels"),
    pytest.param(
        "max_batch", "version_policy { specific { versions: 2 } }\nmax_batch", "version 2", id="v"
    ),
    pytest.param(
        "max_batch", "version_policy { specific { } }\nmax_batch", "none is served", id="no version"
    ),
    pytest.param(
        "max_batch", "version_policy { latest { } }\nmax_batch", "latest 0", id="latest 0"
    ),
    pytest.param(
        "max_batch", 'default_model_filename: "net.onnx"\nmax_batch', "no file net.onnx", id="file"
    ),
    pytest.param("count: 1\n  kind", "count: 0x0\n  kind", "count below 1", id="count 0x0"),
    pytest.param('"input0"', '"row"', "warmup/row for image: it is missing", id="warm-up"),
    pytest.param('key: "image"', 'key: "picture"', "'picture', which is not an input", id="warm"),
    pytest.param('"input0"', '"../labels.txt"', "outside of the model's folder", id="warm-up out"),
    pytest.param(f"{SIZE}262", f"{SIZE}0", "leaves it out", id="warm-up of 0"),
    pytest.param(
        f"{WARM}UINT8", f"{WARM}FP32", "gives 'image' as TYPE_FP32; it is TYPE_UINT8", id="type"
    ),
    pytest.param(
        WARM_DIMS, "dims: [28, 28]", "dims [28, 28]; they are [1, 28, 28]", id="warm dims"
    ),
    pytest.param(WARM_DIMS, "dims: [1, -1, 28]", "write the size of every axis", id="free warm-up"),
    pytest.param(
        WARM_DIMS,
        "dims: [1, 28, 56]",
        "has 784 bytes; dims [1, 28, 56] of image take 1,568",
        id="warm-up bytes",
    ),
    pytest.param('input_data_file: "input0"', "", "no data for 'image'", id="warm-up data"),
    pytest.param(
        "output {",
        'input { name: "mask" data_type: TYPE_BOOL dims: 1 }\noutput {',
        "does not give input 'mask'",
        id="warm-up of one input",
    ),
    pytest.param(
        "max_batch",
        "optimization { execution_accelerators {"
        ' gpu_execution_accelerator { name: "tensorrt" } } }\nmax_batch',
        "'tensorrt' has no effect on KIND_CPU instances",
        id="accelerator",
    ),
    pytest.param(
        "max_batch",
        'default_model_filename: "../../model.onnx"\nmax_batch',
        "outside of the version's folder",
        id="file elsewhere",
    ),
    pytest.param('"labels.txt"', '"/etc/passwd"', "outside of the model's folder", id="passwd"),
    pytest.param(
        "output {",
        'input { name: "image" data_type: TYPE_UINT8 dims: [1, 28, 28] }\noutput {',
        "an input is there twice",
        id="twice",
    ),
    pytest.param(f"{SIZE}262", f"{SIZE}300", "has batch_size 300", id="warm-up batch"),
    pytest.param(
        'key: "assay.sha256"\n  value {\n    string_value: "', r"\g<0>0", "was proved", id="sha"
    ),
    pytest.param("max_batch_size", "maximum_batch_size", "cannot be parsed", id="unknown field"),
    pytest.param("{", "[", "cannot be parsed", id="syntax"),
    pytest.param(f'name: "{NAME}"', 'name: "lenet"', "is not that of its folder", id="name"),
]


@pytest.fixture
def model(repository: Path, tmp_path: Path) -> Path:
    """LeNet's Triton model, to be changed."""
    shutil.copytree(repository / NAME, tmp_path / NAME)
    return tmp_path / NAME


def change(model: Path, pattern: str, replacement: str) -> None:
    path = model / "config.pbtxt"
    old = path.read_text()
    regular = pattern if replacement.startswith("\\g") else re.escape(pattern)
    new = re.sub(regular, replacement, old, count=1)
    assert new != old
    path.write_text(new)


def test_what_assay_writes_has_no_mistake(repository: Path, built: Store, assay: Assay) -> None:
    golden = built.root / "lenet/fp32/golden.npz"
    result = assay("triton-check", repository, "--golden", golden)
    assert result.code == 0, result.out
    assert "no mistake found" in result.out
    assert config_checks.check(repository, [golden]).notes == ()


@pytest.mark.parametrize(("pattern", "replacement", "message"), MISTAKES)
def test_mistakes_are_named(
    model: Path, assay: Assay, pattern: str, replacement: str, message: str
) -> None:
    change(model, pattern, replacement)
    result = assay("triton-check", model.parent)
    assert result.code == 1
    assert message in result.out


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        ("count: 1", 'name: "a#1" count: 1 rate_limiter { resources { name: "R" count: 0 } }'),
        ("max_batch", "# instance_group { count: 0 }\nmax_batch"),
        ("max_batch", "version_policy { specific { versions: 1 } }\nmax_batch"),
    ],
)
def test_unusual_configurations_are_no_mistakes(
    model: Path, assay: Assay, pattern: str, replacement: str
) -> None:
    (model / "2").mkdir() if "specific" in replacement else None
    change(model, pattern, replacement)
    result = assay("triton-check", model.parent)
    assert result.code == 0, result.out


def graph_of(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')


IN = "(float[N, 4] X) => "
TYPES = 'data_type: TYPE_FP32 name: "'
RIGHT = [
    pytest.param(
        f"{IN}(float[N] Y) <int64[1] a = {{1}}> {{ Y = ReduceSum<keepdims = 0>(X, a) }}",
        f'input {{ {TYPES}X" dims: 4 }} output {{ {TYPES}Y" dims: 1 reshape {{ shape: [] }} }}',
        id="a value a row",
    ),
    pytest.param(
        f"{IN}(float[N, 4] Y, float[N, 4] Z) {{ Y = Relu(X) Z = Neg(X) }}",
        f'input {{ {TYPES}X" dims: 4 }} output {{ {TYPES}Y" dims: 4 }}',
        id="fewer outputs",
    ),
    pytest.param(
        "(float[N, 4] X, float[N, 1] START) => (float[N, 4] Y) { Y = Add(X, START) }",
        f'input {{ {TYPES}X" dims: 4 }} output {{ {TYPES}Y" dims: 4 }}'
        ' sequence_batching { control_input { name: "START" control {'
        " kind: CONTROL_SEQUENCE_START fp32_false_true: [0, 1] } } }",
        id="sequences",
    ),
    pytest.param(
        "(float[N] X, float[M] I) => (float[K] Y) { Y = Concat<axis = 0>(X, I) }",
        f'input {{ {TYPES}X" dims: -1 allow_ragged_batch: true }}'
        f' output {{ {TYPES}Y" dims: -1 }} batch_input {{'
        ' kind: BATCH_ACCUMULATED_ELEMENT_COUNT target_name: "I" data_type: TYPE_FP32'
        ' source_input: "X" }',
        id="ragged",
    ),
    pytest.param(
        f"{IN}(float[N, 4] Y, seq(float) Z) {{ Y = Relu(X) Z = SequenceEmpty() }}",
        f'input {{ {TYPES}X" dims: 4 }} output {{ {TYPES}Y" dims: 4 }}',
        id="a sequence",
    ),
]


@pytest.mark.parametrize(
    "text",
    [
        "dynamic_batching { }",
        f'output {{ {TYPES}Y" dims: 4 }}',
        f'output {{ {TYPES}Y" dims: [-1, 4] }}',
    ],
)
def test_what_triton_completes_is_no_mistake(tmp_path: Path, assay: Assay, text: str) -> None:
    (tmp_path / "m/1").mkdir(parents=True)
    onnx.save(graph_of(f"{IN}(float[N, 4] Y) {{ Y = Relu(X) }}"), tmp_path / "m/1/model.onnx")
    (tmp_path / "m/config.pbtxt").write_text(f'backend: "onnxruntime" {text}')
    result = assay("triton-check", tmp_path)
    assert result.code == 0, result.out


def test_ensembles_compare_each_axis(tmp_path: Path, assay: Assay) -> None:
    def model(name: str, text: str) -> None:
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "config.pbtxt").write_text(text)

    def tensors(dims_in: str, dims_out: str) -> str:
        return f'input {{ {TYPES}i" {dims_in} }} output {{ {TYPES}o" {dims_out} }}'

    flat = "dims: [3, 224] reshape { shape: [672, 1] }"
    steps = (
        'ensemble_scheduling { step { model_name: "a" model_version: -1'
        ' input_map { key: "i" value: "i" } output_map { key: "o" value: "x" } }'
        ' step { model_name: "b" model_version: -1'
        ' input_map { key: "i" value: "x" } output_map { key: "o" value: "o" } } }'
    )
    mine = 'backend: "mine" max_batch_size: 4'
    model("a", f"{mine} {tensors('dims: [672, 1]', 'dims: [-1, 80]')}")
    model("b", f"{mine} {tensors('dims: [100, -1]', 'dims: 2')}")
    whole = f'platform: "ensemble" max_batch_size: 4 {tensors(flat, "dims: 2")} {steps}'
    model("all", whole)
    result = assay("triton-check", tmp_path)
    assert result.code == 0, result.out
    (tmp_path / "all/config.pbtxt").write_text(whole.replace(flat, "dims: [1, 672, 1]"))
    result = assay("triton-check", tmp_path)
    assert "step 1 gives 'i' of 'a' what has dims [1, 672, 1]; it has [672, 1]" in result.out


def test_long_chains_of_ensembles_are_followed() -> None:
    count = 1200
    steps = [
        f'step {{ model_name: "e{(number + 1) % count}" model_version: -1 }}'
        for number in range(count)
    ]
    configs = [
        config.parse(f'platform: "ensemble" ensemble_scheduling {{ {step} }}') for step in steps
    ]
    models = {f"e{number}": config_ensembles.Known(one, {1}) for number, one in enumerate(configs)}
    assert "it runs itself, by its steps" in [*config_ensembles.problems(configs[0], models, "e0")]


@pytest.mark.parametrize(("graph", "config"), RIGHT)
def test_right_configurations_of_other_models_are_no_mistakes(
    tmp_path: Path, assay: Assay, graph: str, config: str
) -> None:
    (tmp_path / "m/1").mkdir(parents=True)
    onnx.save(graph_of(graph), tmp_path / "m/1/model.onnx")
    text = f'backend: "onnxruntime"\nmax_batch_size: 8\n{config}'
    (tmp_path / "m/config.pbtxt").write_text(text)
    result = assay("triton-check", tmp_path)
    assert result.code == 0, result.out
    assert "not compared" not in result.out


def test_a_graph_whose_types_triton_lacks_does_not_hide_the_other_models(
    model: Path, assay: Assay
) -> None:
    (model.parent / "a/1").mkdir(parents=True)
    graph = graph_of("(int4[N, 4] X) => (float[N, 4] Y) { Y = Cast<to = 1>(X) }")
    onnx.save(graph, model.parent / "a/1/model.onnx")
    entries = 'input { name: "X" data_type: TYPE_INT8 dims: 4 }'
    (model.parent / "a/config.pbtxt").write_text(f'backend: "onnxruntime" {entries}')
    change(model, "count: 1", "count: 0")
    result = assay("triton-check", model.parent)
    assert result.code == 1
    assert "a/config.pbtxt: input 'X': Triton has no type for int4" in result.out
    assert "count below 1" in result.out


def test_a_configuration_without_a_backend_is_a_mistake_without_its_file(
    model: Path, assay: Assay
) -> None:
    change(model, 'platform: "onnxruntime_onnx"', "")
    result = assay("triton-check", model.parent)
    assert result.code == 0
    assert "Triton takes that of the file's name" in result.err
    (model / "1/model.onnx").rename(model / "1/net.onnx")
    assert "neither a backend nor a platform" in assay("triton-check", model.parent).out


def test_other_shapes_for_clients_are_told(model: Path, assay: Assay) -> None:
    change(model, DIMS_IN, "dims: 784\n reshape { shape: [1, 28, 28] }")
    text = (model / "config.pbtxt").read_text()
    (model / "config.pbtxt").write_text(text[: text.index("model_warmup")])
    result = assay("triton-check", model.parent)
    assert result.code == 0, result.out
    assert "clients use dims [784] for 'image', and the model [1, 28, 28]" in result.err


def test_edits_of_a_configuration_are_told_and_other_changes_are_mistakes(
    repository: Path, tmp_path: Path, assay: Assay
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(repository, folder)
    change(folder / NAME, "max_batch", "# more\nmax_batch")
    shutil.copytree(folder / NAME, folder / "added")
    change(folder / "added", f'name: "{NAME}"', "")
    result = assay("triton-check", folder)
    assert result.code == 0, result.out
    assert f"{NAME}/config.pbtxt was changed since assay wrote it" in result.err
    assert "added/config.pbtxt was added since assay wrote it" in result.err
    (folder / NAME / "warmup/input0").write_bytes(bytes(784))
    result = assay("triton-check", folder)
    assert result.code == 1
    assert f"{NAME}/warmup/input0 was changed" in result.out


def test_a_repository_is_named_by_its_real_folder(
    model: Path, assay: Assay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(model)
    for name in (".", "..", "1/.."):
        assert assay("triton-check", name).code == 0
    (tmp_path / "loop").symlink_to("loop")
    assert assay("triton-check", tmp_path / "loop").code == 1


def test_a_wrong_golden_file_is_one_error(model: Path, assay: Assay) -> None:
    result = assay("triton-check", model.parent, "--golden", model / "labels.txt")
    assert result.code == 1
    assert "labels.txt is not a golden file" in result.err
    assert result.out == ""


@pytest.mark.parametrize("backend", ["tensorflow", "tensorrtllm", "my_python", "vllm"])
def test_other_backends_are_not_taken_for_misspelt_ones(
    model: Path, assay: Assay, backend: str
) -> None:
    (model / "config.pbtxt").write_text(f'backend: "{backend}"\nmax_batch_size: 4\n')
    result = assay("triton-check", model.parent, "--quiet")
    assert result.code == 0, result.out
    assert f"not compared with a golden file or graph: {NAME}" in result.out


def test_a_graph_in_a_folder_of_its_own_is_found(model: Path, assay: Assay) -> None:
    graph = (model / "1/model.onnx").read_bytes()
    (model / "1/model.onnx").unlink()
    (model / "1/model.onnx").mkdir()
    (model / "1/model.onnx/model.onnx").write_bytes(graph)
    assert assay("triton-check", model.parent).code == 0


@pytest.mark.timeout(60)
def test_what_cannot_be_read_does_not_hide_the_other_models(model: Path, assay: Assay) -> None:
    others = {name: model.parent / name for name in ("pipe", "folder", "empty")}
    for place in others.values():
        shutil.copytree(model, place)
        (place / "config.pbtxt").unlink()
    os.mkfifo(others["pipe"] / "config.pbtxt")
    (others["folder"] / "config.pbtxt").mkdir()
    text = (model / "config.pbtxt").read_text()
    (others["empty"] / "config.pbtxt").write_text(text.replace(f'name: "{NAME}"', ""))
    (others["empty"] / "1/model.onnx").write_bytes(b"")
    change(model, "count: 1", "count: 0")
    result = assay("triton-check", model.parent)
    assert result.code == 1
    assert "count below 1" in result.out
    for name in ("pipe", "folder"):
        assert f"{name}/config.pbtxt: it cannot be read" in result.out
    assert "empty/config.pbtxt: " in result.out


def test_labels_of_another_model_are_a_mistake(model: Path, assay: Assay) -> None:
    (model / "labels.txt").write_text("cat\ndog\n")
    result = assay("triton-check", model)
    assert result.code == 1
    assert "labels.txt has 2 labels, and logits has 10 values" in result.out


def test_a_folder_without_a_version_is_a_mistake(model: Path, assay: Assay) -> None:
    (model / "1").rename(model / "v1")
    result = assay("triton-check", model)
    assert result.code == 1
    assert "has no version" in result.out


def test_another_golden_file_is_a_mistake(model: Path, built: Store) -> None:
    text = (model / "config.pbtxt").read_text()
    golden = built.root / "lenet/fp32/golden.npz"
    (model / "config.pbtxt").write_text(re.sub('(golden_sha256"[^"]*")...', r"\1abc", text))
    (problem,) = config_checks.check(model, [golden]).problems
    assert "another golden file" in problem


def test_a_plan_without_a_golden_file_is_not_compared(model: Path) -> None:
    change(model, "onnxruntime_onnx", "tensorrt_plan")
    (model / "1/model.onnx").rename(model / "1/model.plan")
    (model / "labels.txt").unlink()
    findings = config_checks.check(model)
    assert any("labels.txt is missing" in problem for problem in findings.problems)
    assert any("name its --golden file" in note for note in findings.notes)
    assert any("needs a GPU" in problem for problem in findings.problems)


ENSEMBLE = """platform: "ensemble"
max_batch_size: 8
input { name: "image" data_type: TYPE_UINT8 dims: [1, 28, 28] }
output { name: "logits" data_type: TYPE_FP32 dims: 10 }
ensemble_scheduling {
  step {
    model_name: "lenet_fp32_onnxruntime"
    model_version: -1
    input_map { key: "image" value: "image" }
    output_map { key: "logits" value: "logits" }
  }
}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("", "", "no mistake found"),
        ('key: "image"', 'key: "img"', "names input 'img' of 'lenet_fp32_onnxruntime', which has"),
        ('key: "image"', 'key: "img"', "does not give input 'image'"),
        ('key: "logits"', 'key: "out"', "names output 'out' of 'lenet_fp32_onnxruntime'"),
        ("model_version: -1", "model_version: 7", "runs version 7 of 'lenet_fp32_onnxruntime'"),
        ("TYPE_UINT8", "TYPE_FP32", "what is TYPE_FP32; it has TYPE_UINT8"),
        ("[1, 28, 28]", "[1, 28, 29]", "what has dims [1, 28, 29]; it has [1, 28, 28]"),
        ("dims: 10", "dims: 11", "output 'logits' has dims [11]; its step has [10]"),
        ("max_batch_size: 8", "max_batch_size: 512", "and that of the ensemble is 512"),
        ('"lenet_fp32_onnxruntime"', '"all"', "it runs itself, by its steps"),
        (
            "output {",
            'input { name: "mask" data_type: TYPE_BOOL dims: 1 }\noutput {',
            "input 'mask' is read by none of the steps",
        ),
        (
            'output_map { key: "logits" value: "logits" }',
            'output_map { key: "logits" value: "image" }',
            "step 1 writes 'image', which is written before",
        ),
        (ENSEMBLE[ENSEMBLE.index("ensemble_s") :], "", "an ensemble without a step"),
        ('"lenet_fp32_onnxruntime"', '"resnet"', "step 1 runs 'resnet', which is not in"),
        ('model_name: "lenet_fp32_onnxruntime"', "", "step 1 has no model_name"),
        ('platform: "ensemble"', 'backend: "python"', "its platform is not"),
        ('value: "image"', 'value: "pixels"', "step 1 reads 'pixels' as 'image', which no step"),
        ('value: "logits"', 'value: "scores"', "output 'logits' is written by none of the steps"),
        ('output_map { key: "logits" value: "logits" }', "", "step 1 has no output_map"),
        ("max_batch", "instance_group { kind: KIND_CPU }\nmax_batch", "with an instance_group"),
    ],
)
def test_mistakes_of_ensembles_are_named(
    model: Path, assay: Assay, old: str, new: str, message: str
) -> None:
    ensemble = model.parent / "all"
    (ensemble / "1").mkdir(parents=True)
    text = ENSEMBLE.replace(old, new, 1) if old else ENSEMBLE
    (ensemble / "config.pbtxt").write_text(text)
    result = assay("triton-check", model.parent)
    assert result.code == bool(old), result.out
    assert message in result.out


def test_a_folder_without_models_is_an_error(tmp_path: Path, assay: Assay) -> None:
    result = assay("triton-check", tmp_path)
    assert result.code == 1
    assert "has no folder with a config.pbtxt" in result.err
