"""A bundle's graph as a model of MLflow, of its flavour `onnx`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from engines import temporary
from engines.cache import sync
from engines.checks import import_vendor
from engines.contract import TensorSpec
from engines.errors import UsageError
from exporters import onnx_files
from pipeline.bundling import archive, checking, signature
from pipeline.golden import file as goldens
from pipeline.workflow.artifacts import GRAPH, GRAPH_SUBJECT
from pipeline.workflow.digests import require_parent

INSTALL = "pip install mlflow-skinny pandas"


def write(
    bundle: Path,
    target: Path,
    *,
    precision: str | None = None,
    max_bytes: int = archive.MAX_BYTES,
    trusted: signature.Trusted | None = None,
) -> dict[str, Any]:
    """Writes the model to a new folder; opens no engine.

    The graph has the same bytes as in the bundle. The signature has the names, dtypes and shapes of
    its inputs and outputs, and the input example is one golden row.

    Args:
        precision: The precision of the graph; None means the bundle's first.
        max_bytes: Bytes that all members of the bundle together may take.
        trusted: Whose signature the bundle must have.

    Returns:
        Facts of the model that are in its metadata, too.

    Raises:
        DeployError: The bundle is damaged.
        NotAvailableError: MLflow is not installed.
        UsageError: The folder exists, or the one it is to be in does not; or the bundle does not
            have the precision.
    """
    require_parent(target)
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target} exists", "name a new folder, or remove this one first")
    library = import_vendor("mlflow.onnx", INSTALL)
    with temporary.folder() as folder:
        unpacked = checking.unpack(bundle, folder.resolve(), max_bytes, trusted)
        model = unpacked.model(precision)
        graph = model.subjects[GRAPH_SUBJECT]
        golden = goldens.load(model.golden)
        members = unpacked.manifest["members"]
        facts = {
            "assay.model": unpacked.manifest["model"],
            "assay.precision": model.precision,
            "assay.content": unpacked.manifest["content"],
            "assay.graph_sha256": members[str(graph.relative_to(folder.resolve()))]["sha256"],
            "labels": unpacked.manifest["labels"],
            "preprocessing": unpacked.manifest["preprocessing"],
            "before": unpacked.manifest["before"],
        }
        hints = {target.parent: "free some space there, or write to another folder"}
        with temporary.folder_beside(target) as new, temporary.full_disk_named(hints):
            library.save_model(
                onnx_files.read(graph, data=False),
                new,
                signature=_signature(golden),
                input_example={name: np.asarray(rows) for name, rows in golden.feeds(1).items()},
                pip_requirements=["numpy", "onnx>=1.21", "onnxruntime>=1.31"],
                onnx_execution_providers=["CPUExecutionProvider"],
                metadata=facts,
                save_as_external_data=False,
            )
            # MLflow has written the graph anew, under this name: the same graph, but not the bytes
            # that were proved.
            shutil.copyfile(graph, new / GRAPH.name)
            for name in onnx_files.external_locations(graph):
                shutil.copyfile(graph.with_name(name), new / name)
            for path in new.rglob("*"):
                if path.is_file():
                    sync(path)
            new.rename(target)
            sync(target.parent)
    return facts


def _signature(golden: goldens.Reference) -> Any:
    models = import_vendor("mlflow.models", INSTALL)
    return models.ModelSignature(
        inputs=_schema(golden.input_specs), outputs=_schema(golden.output_specs)
    )


def _schema(specs: tuple[TensorSpec, ...]) -> Any:
    types = import_vendor("mlflow.types", INSTALL)
    return types.Schema(
        [
            types.TensorSpec(
                np.dtype(spec.dtype),
                tuple(-1 if axis is None else axis for axis in spec.shape),
                spec.name,
            )
            for spec in specs
        ]
    )
