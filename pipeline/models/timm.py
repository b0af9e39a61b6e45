"""timm's models, by timm's names."""

from __future__ import annotations

import difflib
from functools import partial
from typing import TYPE_CHECKING, Any

from engines import hardware
from engines.checks import import_vendor
from engines.errors import UsageError, suggestion
from pipeline.models import Model, ModelSpec, for_images

if TYPE_CHECKING:
    from pipeline.data.registry import Contents


def find(library: str, name: str) -> ModelSpec:
    """Returns a model of timm.

    Raises:
        UsageError: timm has no model of this name.
        NotAvailableError: timm is not installed.
    """
    timm = import_vendor("timm", "pip install timm")
    if not timm.is_model(name):
        known = timm.list_models()
        nearest = difflib.get_close_matches(name, known, n=8, cutoff=0.5) or known[:8]
        raise UsageError(f"timm has no model {name!r}", suggestion(name, nearest))
    return ModelSpec(
        name=f"{library}:{name}",
        build=partial(_build, timm, name),
        trainable=False,
        facts=lambda: {"timm": hardware.version("timm")},
    )


def _build(timm: Any, name: str, contents: Contents | None) -> Model:
    """Returns the model with new weights, and timm's image size, mean and standard deviation."""
    options = {} if contents is None else {"num_classes": len(contents.labels)}
    network = timm.create_model(name, pretrained=False, **options)
    config = timm.data.resolve_model_data_config(network)
    wanted = tuple(config["input_size"])
    if contents is None:
        labels = tuple(f"class {index}" for index in range(network.num_classes))
    else:
        labels = contents.labels
    return for_images(
        network,
        shape=wanted if contents is None else contents.shape,
        wanted=wanted,
        labels=labels,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
