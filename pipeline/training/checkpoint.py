"""The file from which an interrupted training resumes, with the same result."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.cache import write_atomic
from engines.errors import DeployError
from pipeline.training import weights
from pipeline.workflow.digests import require_file

if TYPE_CHECKING:
    import torch

SCHEMA = 1
_PARTS = ("model", "optimizer", "rng")


@dataclass(frozen=True)
class Progress:
    """The state of a training between two steps.

    Attributes:
        key: SHA-256 of everything that the final weights depend on.
        epoch: The current epoch, from 1.
        step: Completed steps of that epoch.
        loss: Sum of the losses of the epoch's images so far.
        correct: How many of those images were classified correctly.
        seconds: How long the epoch has taken so far.
        curve: One entry for each complete epoch.
        scaler: The state of the fp16 loss scaler.
        tensors: By part ("model", "optimizer", "rng") and name.
    """

    key: str
    epoch: int
    step: int
    loss: float
    correct: int
    seconds: float
    curve: list[dict[str, float]]
    scaler: dict[str, Any]
    tensors: dict[str, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class TrainingCheckpoint:
    """The file in which a training saves its progress.

    Attributes:
        path: The file; it is replaced atomically.
        key: SHA-256 of everything that the final weights depend on.
    """

    path: Path
    key: str

    @property
    def rescued(self) -> Path:
        """The file that gets the last good weights when a training diverges."""
        return self.path.with_name(f"{self.path.stem}-last-good.safetensors")

    def save(self, progress: Progress) -> None:
        """Writes the progress to the file."""
        meta = {name: value for name, value in vars(progress).items() if name != "tensors"}
        tensors = {
            f"{part}/{name}": tensor
            for part in _PARTS
            for name, tensor in progress.tensors.get(part, {}).items()
        }
        with write_atomic(self.path) as part:
            weights.save(tensors, part, {"schema": str(SCHEMA), "progress": json.dumps(meta)})

    def load(self) -> Progress | None:
        """Returns the saved progress; None if the file does not exist.

        Raises:
            DeployError: The file is damaged, or belongs to a training with other options.
        """
        if not self.path.exists():
            return None
        progress = _read(self.path)
        if progress.key != self.key:
            raise DeployError(
                f"{self.path} belongs to another training: an option, the data, the model's source"
                " or torch is different",
                "give the options it was started with, or leave --resume out to start again",
            )
        return progress

    def rescue(self) -> int:
        """Writes the last saved weights to `rescued`; returns their epoch, or 0 without any."""
        if not self.path.exists():
            return 0
        progress = _read(self.path)
        weights.save(progress.tensors["model"], self.rescued, None)
        return progress.epoch if progress.step else progress.epoch - 1


def _read(path: Path) -> Progress:
    from safetensors import SafetensorError, safe_open

    require_file(path, "remove it, and leave --resume out to start again")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata()
            if header["schema"] != str(SCHEMA):
                raise ValueError(f"schema {header['schema']}, this version reads {SCHEMA}")
            tensors: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}
            for key in file.keys():  # noqa: SIM118 - not a mapping
                part, _, name = key.partition("/")
                tensors[part][name] = file.get_tensor(key)
            return Progress(**json.loads(header["progress"]), tensors=tensors)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DeployError(
            f"{path} is damaged: {error}", "remove it, or leave --resume out to start again"
        ) from error
