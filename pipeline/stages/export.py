"""Stage export: checkpoint to graph, program and golden file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.errors import DeployError
from pipeline import console, models
from pipeline.artifacts import (
    CHECKPOINT,
    CONTENTS,
    GOLDEN,
    GRAPH,
    PROGRAM,
    TEST_IMAGES,
    TEST_LABELS,
    TRAINING,
    Artifact,
    Paths,
)
from pipeline.digests import read_json, sha256_file
from pipeline.stage import Made, Stage, option
from pipeline.stages import data_option, model_option, need_torch, precision_option
from pipeline.stages.train import contents_of, inputs_of
from pipeline.training.weights import load

if TYPE_CHECKING:
    from engines.base import Array
    from pipeline.models import Model
    from pipeline.rows import Rows


@dataclass(frozen=True)
class Params:
    """Options of the stage."""

    model: str = model_option()
    precision: str = precision_option()
    data: str | None = data_option(None)
    inputs: Path | None = option(
        None,
        text="Golden inputs from this .npz file, an array for each input [test images].",
        key=False,
    )


def resolve(params: Params) -> Params:
    """Fills in the model's own data set, and checks that the file of inputs is there."""
    if params.inputs is not None and not params.inputs.is_file():
        raise DeployError(f"there is no file {params.inputs}", "give the path of an .npz file")
    return dataclasses.replace(params, data=params.data or models.get(params.model).dataset)


def run(inputs: Paths, outputs: Paths, params: Params) -> None:
    """Exports the trained model and writes what proves any engine built from it."""
    need_torch("onnxscript")
    import torch

    from exporters.carriers import carriers
    from exporters.graph import export_graph
    from exporters.precision import DTYPES, OPSETS, typed
    from exporters.program import export_program, save_program
    from exporters.served import Preprocess, Served
    from pipeline.audit import digest
    from pipeline.reference import make_golden, output_names, run_all

    # One thread: PyTorch's own rounding, and with it the noise floor, depends on the number.
    torch.set_num_threads(1)
    training = read_json(inputs[TRAINING])
    if training["data"] != params.data:
        raise DeployError(
            f"{params.model} was trained on {training['data']}, not on {params.data}",
            f"leave --data out, or run `assay train {params.model} --data …`",
        )
    contents = contents_of(inputs, params.data)
    model = models.get(params.model).build(contents)
    load(model.network, inputs[CHECKPOINT], params.model)
    test = _test_set(inputs, training, params.data) if model.labels else None
    rows = _rows(model, test, params)
    tensors = [torch.from_numpy(array) for array in rows.inputs.values()]
    names = output_names(model, [tensor[:2] for tensor in tensors])
    network, kept = typed(
        model.network.eval(),
        params.precision,
        lambda network: run_all(Served(network, model.prepare).eval(), tensors, names),
    )
    if kept:
        console.say(f"export: kept in fp32, since {params.precision} overflows: {', '.join(kept)}")
    served = Served(network, model.prepare, DTYPES[params.precision]).eval()
    golden = make_golden(model, served, names, rows, params.precision, test)
    examples = [torch.from_numpy(array[:2]) for array in golden.inputs.values()]
    program = export_program(served, examples)
    prepared = "none"
    if isinstance(model.prepare, Preprocess):
        prepared = model.prepare.description
    elif model.prepare is not None:
        prepared = type(model.prepare).__name__
    metadata = {
        "assay.model": params.model,
        "assay.precision": params.precision,
        "assay.kept_in_fp32": json.dumps(kept),
        "assay.labels": json.dumps(model.labels),
        "assay.preprocessing": prepared,
        "assay.checkpoint": sha256_file(inputs[CHECKPOINT]),
        "assay.dataset": params.data or "",
    }
    opset = OPSETS[params.precision]
    graph = export_graph(program, golden.input_specs, golden.output_specs, metadata, opset)
    weights = {name: digest(array) for name, array in carriers(program, graph).items()}
    outputs[GRAPH].write_bytes(graph)
    save_program(program, outputs[PROGRAM], golden.input_specs, golden.output_specs)
    dataclasses.replace(golden, weights=weights).save(outputs[GOLDEN])


def _rows(model: Model, test: tuple[Array, Array] | None, params: Params) -> Rows:
    from pipeline import rows

    if params.inputs is not None:
        return rows.without_test_set(model, rows.read(params.inputs))
    return rows.without_test_set(model, None) if test is None else rows.of_test_set(*test)


def _test_set(
    inputs: Paths, training: dict[str, Any], data: str | None
) -> tuple[Array, Array] | None:
    """Returns images and labels of the test set, as many as the training was judged by."""
    from pipeline import idx

    if data is None:
        return None
    part = slice(0, training["test_images"])
    images = idx.read_images(inputs[TEST_IMAGES.at(dataset=data)])
    return images[part], idx.read_labels(inputs[TEST_LABELS.at(dataset=data)])[part]


def _inputs(params: Params) -> tuple[Artifact, ...]:
    wanted = (TEST_IMAGES, TEST_LABELS, CONTENTS)
    return (CHECKPOINT, TRAINING, *inputs_of(params.data, wanted))


def facts(params: Params) -> dict[str, str]:
    """What defines the model, and the digest of the golden inputs that were given."""
    found = models.get(params.model).facts()
    if params.inputs is not None:
        found["inputs"] = sha256_file(params.inputs)
    return found


def show(made: Made[Params]) -> None:
    """Prints where the graph is and how large."""
    for outputs, _ in made:
        path = outputs[GRAPH]
        console.result(f"graph: {path} ({path.stat().st_size:,} bytes)")


STAGE = Stage(
    name="export",
    help="Export the model to ONNX, with the golden file that proves it.",
    params=Params,
    inputs=_inputs,
    outputs=lambda _params: (GRAPH, PROGRAM, GOLDEN),
    run=run,
    revision=2,
    tools=("torch", "onnx", "onnxscript", "numpy"),
    facts=facts,
    resolve=resolve,
    show=show,
)
