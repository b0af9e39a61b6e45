"""Stage data: a data set's images and labels, with every digest checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import UsageError
from pipeline.data import download as datasets
from pipeline.data import registry
from pipeline.data.registry import FASHION_MNIST
from pipeline.report import data as report
from pipeline.stages import data_option
from pipeline.workflow import console
from pipeline.workflow.artifacts import (
    CONTENTS,
    DATA,
    FOLDER_PREFIX,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    Artifact,
    Paths,
)
from pipeline.workflow.digests import write_json
from pipeline.workflow.stage import OptionRole, Stage, StageRuns, option


@dataclass(frozen=True)
class Params:
    """Options of the stage."""

    data: str = data_option(FASHION_MNIST.name)
    # Not part of the key: the digests of the files are.
    data_dir: Path | None = option(
        None,
        text="Folder that holds the data set's files (.gz or not).",
        key=False,
        role=OptionRole(image_folder=True),
    )
    image_size: int | None = option(
        None,
        text="Resize and crop a folder's images to squares with this side, in pixels.",
        high=4096,
    )
    skip_bad: bool = option(
        False, text="Leave out a folder's broken images, and those that differ from the usual size."
    )


def resolve(params: Params) -> Params:
    """Checks the data set's name, and that options for image folders are given for a folder."""
    registry.check_name(params.data)
    folder = params.data.startswith(FOLDER_PREFIX)
    if folder and params.data_dir is None:
        raise UsageError(
            f"the folder of data set {params.data!r} is not known", "give its path with --data"
        )
    if not folder and (params.image_size is not None or params.skip_bad):
        raise UsageError(
            f"--image-size and --skip-bad are for a folder of images, not for {params.data!r}",
            "give the folder with --data",
        )
    return params


def run(_inputs: Paths, outputs: Paths, params: Params) -> None:
    """Writes images and labels as IDX files, and their shape and class names as JSON."""
    from pipeline.data import folder_layout, idx, imagefolder

    if params.data.startswith(FOLDER_PREFIX) and params.data_dir is not None:
        listing = folder_layout.scan(params.data_dir)
        for note in listing.notes:
            console.say(f"data: {note}")
        train, test = imagefolder.decode(listing, params.image_size, params.skip_bad)
        for images, labels, part in (
            (TRAIN_IMAGES, TRAIN_LABELS, train),
            (TEST_IMAGES, TEST_LABELS, test),
        ):
            idx.write(_at(outputs, images), part.images)
            idx.write(_at(outputs, labels), part.labels)
        shape, names = train.images.shape[1:], listing.labels
    else:
        dataset = registry.get(params.data)
        content = datasets.fetch(dataset, params.data_dir)
        order = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
        for artifact, file in zip(order, dataset.files, strict=True):
            _at(outputs, artifact).write_bytes(content[file.name])
        shape, names = dataset.contents.shape, dataset.contents.labels
    contents: dict[str, Any] = {"shape": list(shape), "labels": list(names)}
    if params.image_size is not None:
        contents["image_size"] = params.image_size
    write_json(_at(outputs, CONTENTS), contents)


def _at(paths: Paths, artifact: Artifact) -> Path:
    return paths[artifact.at(dataset=str(paths.fields["data"]))]


def facts(params: Params) -> dict[str, str]:
    """Returns the known digests of the data set's files, or the digest of a folder's images."""
    if params.data.startswith(FOLDER_PREFIX) and params.data_dir is not None:
        from pipeline.data import imagefolder

        return {"images": imagefolder.digest(params.data_dir)}
    return {file.name: file.sha256 for file in registry.get(params.data).files}


def _outputs(params: Params) -> tuple[Artifact, ...]:
    return tuple(artifact.at(dataset=params.data) for artifact in DATA)


def show(runs: StageRuns[Params]) -> None:
    """Prints the folder of the files, the image shape, and the images of each class."""
    from pipeline.data import idx

    for outputs, params in runs:
        path = _at(outputs, CONTENTS)
        parts = [idx.read_labels(_at(outputs, part)) for part in (TRAIN_LABELS, TEST_LABELS)]
        report.show(params.data, path.parent, registry.read_contents(path), *parts)


STAGE = Stage(
    name="data",
    help="Get the data set and check every file's digest, or decode a folder of images.",
    params=Params,
    inputs=lambda _params: (),
    outputs=_outputs,
    run=run,
    revision=2,
    facts=facts,
    resolve=resolve,
    show=show,
)
