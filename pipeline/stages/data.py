"""Stage data: the data set's files, every digest checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline import console
from pipeline import data as datasets
from pipeline.artifacts import DATA, Artifact, Paths
from pipeline.stage import Made, Stage, option


@dataclass(frozen=True)
class Params:
    """Options of the stage."""

    dataset: str = option("fashion-mnist", text="Data set.", names=datasets.names)
    # The digests pin the content, so where it comes from changes nothing.
    data_dir: Path | None = option(
        None, text="Folder that holds the data set's files (.gz or not).", key=False
    )


def run(_inputs: Paths, outputs: Paths, params: Params) -> None:
    """Writes the uncompressed files."""
    content = datasets.fetch(datasets.get(params.dataset), params.data_dir)
    for artifact in DATA:
        target = outputs[artifact]
        target.write_bytes(content[target.name])


def facts(params: Params) -> dict[str, str]:
    """The digests that the files must have."""
    return {file.name: file.sha256 for file in datasets.get(params.dataset).files}


def _outputs(_params: Params) -> tuple[Artifact, ...]:
    return DATA


def show(made: Made[Params]) -> None:
    """Prints where the files are."""
    for outputs, params in made:
        console.result(f"{params.dataset}: {outputs[DATA[0]].parent}")


STAGE = Stage(
    name="data",
    help="Get the data set and check every file's digest.",
    params=Params,
    inputs=lambda _params: (),
    outputs=_outputs,
    run=run,
    facts=facts,
    show=show,
)
