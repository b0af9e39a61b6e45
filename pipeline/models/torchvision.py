"""torchvision's classification models, by torchvision's names."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from engines import hardware
from engines.checks import import_vendor
from engines.errors import UsageError, suggestion
from pipeline.models import Model, ModelSpec, for_images

if TYPE_CHECKING:
    from pipeline.data.registry import Contents

_INSTALL = "pip install torch torchvision"
_DEFAULT_SIZE = 224


def find(library: str, name: str) -> ModelSpec:
    """Returns a classification model of torchvision.

    Raises:
        UsageError: torchvision has no classification model of this name.
        NotAvailableError: torchvision is not installed.
    """
    zoo = import_vendor("torchvision", _INSTALL).models
    known = zoo.list_models(module=zoo)
    if name not in known:
        raise UsageError(
            f"torchvision has no classification model {name!r}", suggestion(name, known)
        )
    return ModelSpec(
        name=f"{library}:{name}",
        build=partial(_build, zoo, name),
        trainable=False,
        facts=lambda: {"torchvision": hardware.version("torchvision")},
    )


def _build(zoo: Any, name: str, contents: Contents | None) -> Model:
    """Returns the model with new weights.

    Image size, mean and standard deviation, and the classes if `contents` is None, are those of
    its published weights.
    """
    published = zoo.get_model_weights(name).DEFAULT
    transforms = published.transforms()
    size = (transforms.crop_size or [_DEFAULT_SIZE])[0]
    labels = tuple(published.meta["categories"]) if contents is None else contents.labels
    options: dict[str, Any] = {"num_classes": len(labels)}
    if name in ("googlenet", "inception_v3"):
        # Their auxiliary heads are for training only; they warn if `init_weights` is not given.
        options |= {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        options["image_size"] = size  # torchvision's default is 224, whatever the weights need
    wanted = (3, size, size)
    return for_images(
        zoo.get_model(name, weights=None, **options),
        shape=wanted if contents is None else contents.shape,
        wanted=wanted,
        labels=labels,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )
