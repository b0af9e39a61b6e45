"""Stage export: graph, program and golden file from a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import hardware
from engines.errors import DeployError
from exporters import PRECISIONS
from pipeline import models
from pipeline.data import registry
from pipeline.report import export as report
from pipeline.stages import (
    data_artifacts,
    need_torch,
)
from pipeline.stages._export_options import EXPORTERS, CommandOptions, Params, inherit, resolve
from pipeline.training import data_fit
from pipeline.training.weights import load
from pipeline.verification import limits
from pipeline.workflow import hints, phases
from pipeline.workflow.artifacts import (
    CHECKPOINT,
    CONTENTS,
    CPU_GRAPH,
    DESCRIPTION,
    GOLDEN,
    GRAPH,
    GRAPH_DATA,
    PROGRAM,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    TRAINING,
    Artifact,
    Paths,
    reference_cache,
)
from pipeline.workflow.digests import read_json, sha256_file, write_json
from pipeline.workflow.stage import Stage, StageRuns

if TYPE_CHECKING:
    from engines.contract import Array
    from pipeline.data.registry import Contents
    from pipeline.exporting.calibration import Calibration
    from pipeline.exporting.graphs import Exported
    from pipeline.golden.reference_cache import ReferenceCache
    from pipeline.golden.rows import Rows
    from pipeline.models import Model


def prerequisite(params: Mapping[str, Any], root: Path) -> str:
    """Returns "train" if weights are given, or the model has no checkpoint and no training data."""
    model = params["model"]
    if models.graph_file(model) is not None:
        return ""
    has_checkpoint = (root / CHECKPOINT.at(model=model).path).exists()
    if params.get("weights") is not None or not (has_checkpoint or models.get(model).trainable):
        return CHECKPOINT.stage
    return ""


def run(inputs: Paths, outputs: Paths, params: Params) -> None:
    """Exports the trained model, and writes the golden file that proves its engines."""
    with phases.showing("export"):
        _export(inputs, outputs, params)


def _export(inputs: Paths, outputs: Paths, params: Params) -> None:
    phases.start("loading the model")
    need_torch("onnxscript")
    if (path := models.graph_file(params.model)) is not None:
        from pipeline.exporting import onnx_models

        asked = onnx_models.Asked(
            params.shape, params.inputs, params.golden_rows, params.calibration
        )
        max_drop = params.max_drop / 100
        exported = onnx_models.export(
            path, params.model, params.precision, asked, max_drop=max_drop
        )
        _write(exported, outputs)
        return
    import torch

    from exporters.program import save_program
    from pipeline.exporting import preprocessing
    from pipeline.exporting.batch_independence import check_rows_alone
    from pipeline.exporting.graphs import Source, export
    from pipeline.exporting.precision import at_precision
    from pipeline.golden import other_sizes
    from pipeline.golden.reference import ExactModel, make_reference, output_names
    from pipeline.models import dynamic_axes

    # One thread, since PyTorch's rounding, and with it the noise floor, depends on the number.
    torch.set_num_threads(1)
    training = read_json(inputs[TRAINING])
    if training["data"] != params.data:
        raise DeployError(
            f"{params.model} was trained on {training['data']}, not on {params.data}",
            f"leave --data out, or run `{hints.command('train', _train_params(params))}`",
        )
    model, contents = _trained_model(inputs, training, params)
    test = _test_set(inputs, training, model, contents, params.data) if model.labels else None
    rows = _rows(model, test, params)
    shapes = {name: array.shape for name, array in rows.inputs.items()}
    axes = dynamic_axes.ranges(model, shapes)
    tensors = [torch.from_numpy(array) for array in rows.inputs.values()]
    names = output_names(model, [*rows.inputs], tensors)
    traced = params.exporter != EXPORTERS[0]
    cast = at_precision(model, params.precision, rows, traced=traced, axes=axes)
    checkpoint = sha256_file(inputs[CHECKPOINT])
    arrays = [*rows.inputs.items(), *([] if test is None else [("test", test[0])])]
    cached = _reference_cache(
        inputs, params, {"checkpoint": checkpoint, "outputs": [*names]}, arrays
    )
    exact = ExactModel(model, names)
    reference = make_reference(
        model,
        cast.runs,
        exact,
        rows,
        params.precision,
        test,
        cached,
        noise_runs=limits.NOISE_RUNS,
        max_drop=params.max_drop / 100,
        beyond=cast.beyond,
    )
    check_rows_alone(exact, reference)
    reference = other_sizes.add(
        reference,
        model,
        cast.runs,
        exact,
        dynamic_axes.other_shapes(model, shapes),
        limits.NOISE_RUNS,
    )
    del exact  # twice the size of the model
    cached.save()
    metadata = {
        "assay.model": params.model,
        "assay.precision": params.precision,
        "assay.kept_in_fp32": json.dumps([*dict.fromkeys(value.name for value in cast.kept)]),
        "assay.labels": json.dumps(model.labels),
        "assay.preprocessing": preprocessing.inside(model),
        "assay.before": preprocessing.before(contents.image_size if contents else None),
        "assay.checkpoint": checkpoint,
        "assay.dataset": params.data or "",
        "assay.exporter": params.exporter,
    }
    names_of_axes = {name: {part.axis: part.name for part in p} for name, p in axes.items()}
    source = Source(cast.module, cast.program, reference, metadata, params.opset, names_of_axes)
    exported = export(source, lambda: _calibration(inputs, model, contents, params))
    phases.start("writing the files")
    if PROGRAM in _outputs(params):
        specs = reference.input_specs, reference.output_specs
        save_program(exported.program, outputs[PROGRAM], *specs)
    _write(exported, outputs)


def _write(exported: Exported, outputs: Paths) -> None:
    from exporters.onnx_files import write

    write(exported.graph, outputs[GRAPH])
    if exported.cpu_graph is not None:
        write(exported.cpu_graph, outputs[CPU_GRAPH])
    exported.golden.save(outputs[GOLDEN])
    write_json(outputs[DESCRIPTION], exported.description())


def _trained_model(
    inputs: Paths, training: dict[str, Any], params: Params
) -> tuple[Model, Contents | None]:
    """Returns the trained model, and the data set's image shape and classes, if it has one."""
    import torch

    contents = None
    if params.data is not None:
        contents = registry.read_contents(inputs[CONTENTS.at(dataset=params.data)])
    # The default seed of training; the weights are then replaced by the checkpoint's.
    torch.manual_seed(0)
    model = data_fit.build(models.get(params.model), contents, data_fit.of_training(training))
    load(model.network, inputs[CHECKPOINT], params.model)
    return model, contents


def _train_params(params: Params) -> dict[str, Any]:
    return {"model": params.model, "data": params.data}


def _calibration(
    inputs: Paths, model: Model, contents: Contents | None, params: Params
) -> Calibration:
    """Returns calibration rows: from `--calibration`, the training images, or generated."""
    from pipeline.data import idx
    from pipeline.exporting import calibration
    from pipeline.golden import rows

    if params.calibration is not None:
        feeds = rows.read(params.calibration, "--calibration")
        return calibration.of_rows(feeds, params.calibration.name)
    if params.data is None:
        return calibration.of_model(model)
    images = idx.read_images(inputs[TRAIN_IMAGES.at(dataset=params.data)])
    labels = idx.read_labels(inputs[TRAIN_LABELS.at(dataset=params.data)])
    return calibration.of_training_set(images, data_fit.targets(labels, contents, model))


def _rows(model: Model, test: tuple[Array, Array] | None, params: Params) -> Rows:
    from pipeline.golden import rows

    if params.golden_rows is None:
        assert params.inputs is not None  # noqa: S101 - see `_golden_rows`
        return rows.without_test_set(model, rows.read(params.inputs))
    if test is None:
        return rows.without_test_set(model, None, params.golden_rows)
    return rows.of_test_set(*test, params.golden_rows)


def _reference_cache(
    inputs: Paths, params: Params, facts: dict[str, Any], arrays: Sequence[tuple[str, Array]]
) -> ReferenceCache:
    """Returns the cache of the float64 outputs, which exports at other precisions reuse.

    Args:
        facts: Part of the cache key, besides the model's source, the machine and the libraries.
        arrays: The inputs that the outputs are computed from, by name; part of the key.
    """
    from pipeline.golden.reference_cache import ReferenceCache, key_of

    depends = {
        **facts,
        "model": models.get(params.model).facts(),
        "revision": STAGE.revision,
        # The CPU and the number of its cores change the last digits of sums.
        **hardware.cpu_fingerprint(),
        "cpus": hardware.available_cpus(),
        **{name: hardware.version(name) for name in ("torch", "torchvision", "timm")},
    }
    return ReferenceCache(reference_cache(inputs.root, params.model), key_of(depends, arrays))


def _test_set(
    inputs: Paths,
    training: dict[str, Any],
    model: Model,
    contents: Contents | None,
    data: str | None,
) -> tuple[Array, Array] | None:
    """Returns the test images and labels that the training was evaluated on; None without data."""
    from pipeline.data import idx

    if data is None:
        return None
    part = slice(0, training["test_images"])
    images = idx.read_images(inputs[TEST_IMAGES.at(dataset=data)])
    classes = idx.read_labels(inputs[TEST_LABELS.at(dataset=data)])[part]
    return images[part], data_fit.targets(classes, contents, model)


def _inputs(params: Params) -> tuple[Artifact, ...]:
    if models.graph_file(params.model) is not None:
        return ()
    wanted: tuple[Artifact, ...] = (TEST_IMAGES, TEST_LABELS, CONTENTS)
    if PRECISIONS[params.precision].quantized and params.calibration is None:
        wanted += (TRAIN_IMAGES, TRAIN_LABELS)
    return (CHECKPOINT, TRAINING, *data_artifacts(params.data, wanted))


def _outputs(params: Params) -> tuple[Artifact, ...]:
    outputs: tuple[Artifact, ...] = (GRAPH, GRAPH_DATA, GOLDEN, DESCRIPTION)
    if PRECISIONS[params.precision].quantized:
        return (*outputs, CPU_GRAPH) if PRECISIONS[params.precision].cpu_graph else outputs
    # TorchScript is for models that torch.export cannot trace, so there is no program.
    has_program = params.exporter == EXPORTERS[0] and models.graph_file(params.model) is None
    return (*outputs, PROGRAM) if has_program else outputs


def facts(params: Params) -> dict[str, str]:
    """Returns the model's facts, the limits, and the digests of the given .npz files."""
    facts_by_name = {**models.get(params.model).facts(), **limits.facts()}
    for name in ("inputs", "calibration"):
        if (path := getattr(params, name)) is not None:
            facts_by_name[name] = sha256_file(path)
    return facts_by_name


def show(runs: StageRuns[Params]) -> None:
    """Prints the graph's path, size and operator types."""
    for outputs, _ in runs:
        report.show(outputs[GRAPH], read_json(outputs[DESCRIPTION]))


STAGE = Stage(
    name="export",
    help="Export the model to ONNX, with the golden file that proves it.",
    params=Params,
    inputs=_inputs,
    outputs=_outputs,
    run=run,
    revision=17,
    tools=("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime-gpu", "numpy"),
    facts=facts,
    inherit=inherit,
    resolve=resolve,
    command_options=CommandOptions,
    prerequisite=prerequisite,
    show=show,
)
