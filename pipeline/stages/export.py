"""Stage export: checkpoint to graph, program and golden file."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import DeployError
from pipeline import console, models
from pipeline import data as datasets
from pipeline.artifacts import (
    CHECKPOINT,
    GOLDEN,
    GRAPH,
    PROGRAM,
    TEST_IMAGES,
    TEST_LABELS,
    Artifact,
    Paths,
)
from pipeline.digests import sha256_file
from pipeline.models import ModelSpec
from pipeline.stage import Made, Stage
from pipeline.stages import model_option, need_torch, precision_option

if TYPE_CHECKING:
    from torch import nn

    from engines.base import Array
    from pipeline.golden import Golden

INPUT, OUTPUT = "image", "logits"


@dataclass(frozen=True)
class Params:
    """Options of the stage."""

    model: str = model_option()
    precision: str = precision_option()


def run(inputs: Paths, outputs: Paths, params: Params) -> None:
    """Exports the trained model and writes what proves any engine built from it."""
    need_torch()
    import torch

    from exporters.graph import export_graph
    from exporters.program import export_program, save_program
    from exporters.served import Served
    from pipeline.data import read_images, read_labels

    # One thread: PyTorch's own rounding, and with it the noise floor, depends on the number.
    torch.set_num_threads(1)
    spec = models.get(params.model)
    served = Served(load_network(spec, inputs[CHECKPOINT])).eval()
    images = read_images(inputs[TEST_IMAGES.at(dataset=spec.dataset)])
    labels = read_labels(inputs[TEST_LABELS.at(dataset=spec.dataset)])
    golden = make_golden(served, spec, images, labels, params.precision)
    try:
        golden.check()
    except ValueError as error:
        raise DeployError(
            f"{params.model} cannot be judged: {error}", "train it again, with a smaller --lr"
        ) from error
    program = export_program(served, golden.input_specs)
    metadata = {
        "assay.model": params.model,
        "assay.precision": params.precision,
        "assay.labels": json.dumps(datasets.get(spec.dataset).labels),
        "assay.preprocessing": served.prepare.description,
        "assay.checkpoint": sha256_file(inputs[CHECKPOINT]),
        "assay.dataset": spec.dataset,
    }
    graph = export_graph(program, golden.input_specs, golden.output_specs, metadata)
    outputs[GRAPH].write_bytes(graph)
    save_program(program, outputs[PROGRAM], golden.input_specs, golden.output_specs)
    golden.save(outputs[GOLDEN])


def load_network(spec: ModelSpec, checkpoint: Path) -> nn.Module:
    """Returns the model with the checkpoint's weights.

    Raises:
        DeployError: The file is not safetensors, or its tensors are not the model's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    network = spec.factory()
    try:
        network.load_state_dict(load_file(checkpoint))
    except (SafetensorError, RuntimeError) as error:
        raise DeployError(
            f"{checkpoint} does not hold the weights of {spec.name}: {error}",
            f"run `assay train {spec.name}`",
        ) from error
    return network


def make_golden(
    served: nn.Module, spec: ModelSpec, images: Array, labels: Array, precision: str
) -> Golden:
    """Runs the model in float64 and at the precision over test images and edge cases.

    Args:
        served: The module that is exported, with its preprocessing.
        images: The whole test set, uint8 `[count, channels, height, width]`.
        labels: Its classes, `[count]`.
    """
    import numpy as np
    import torch

    from exporters.served import Served
    from pipeline.audit import digest
    from pipeline.golden import REAL_IMAGES, Golden, edge_images
    from pipeline.training import predict

    exact = Served(copy.deepcopy(served.network), torch.float64).eval()  # type: ignore[arg-type]
    edges = edge_images(spec.image_shape)
    # Spread over the whole test set, whose order says nothing.
    chosen = np.linspace(0, len(images) - 1, min(REAL_IMAGES, len(images))).astype(np.int64)
    rows = np.concatenate([images[chosen], np.stack(list(edges.values()))])
    tensor = torch.from_numpy(rows)
    return Golden(
        inputs={INPUT: rows},
        reference={OUTPUT: predict(exact, tensor).numpy()},
        native={OUTPUT: predict(served, tensor).numpy()},
        cases=tuple(f"test image {index}" for index in chosen) + tuple(edges),
        labels=labels[chosen],
        test_reference=predict(exact, torch.from_numpy(images)).numpy(),
        test_labels=labels,
        precision=precision,
        weights={name: digest(tensor.numpy()) for name, tensor in served.state_dict().items()},
    )


def _inputs(params: Params) -> tuple[Artifact, ...]:
    dataset = models.get(params.model).dataset
    return (CHECKPOINT, TEST_IMAGES.at(dataset=dataset), TEST_LABELS.at(dataset=dataset))


def facts(params: Params) -> dict[str, str]:
    """The digest of the file that defines the model."""
    return {"model_source": sha256_file(models.get(params.model).source)}


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
    tools=("torch", "onnx", "onnxscript", "numpy"),
    facts=facts,
    show=show,
)
