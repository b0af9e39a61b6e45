"""The commands on bundles that exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.errors import UsageError
from pipeline.cli import signing
from pipeline.cli.flags import print_as, printing, require_new_bundle, sized
from pipeline.workflow import console

_path = click.Path(path_type=Path)


@click.command()
@click.argument("bundles", nargs=-1, type=_path, required=True)
@click.option("--out", type=_path, required=True, help="The bundle to write.")
@sized("each bundle may unpack to")
@signing.verifying
@printing
def merge(bundles: tuple[Path, ...], out: Path, max_bytes: int, **values: Any) -> None:
    """Put bundles of one model, built on several machines, into one; opens nothing in them.

    Their graphs have to be the same: export once, and copy the artifacts to each machine that
    builds engines. Their signatures do not hold for the new bundle: sign it.
    """
    from pipeline.bundling import merging
    from pipeline.report import bundle as report

    print_as(values)
    if len(bundles) == 1:
        raise UsageError("merge takes several bundles, but got one", "name two or more")
    require_new_bundle(out)
    signer = signing.trusted(values)
    trusted = {} if signer is None else dict.fromkeys(bundles, signer)
    manifest, signers = merging.merge(bundles, out, max_bytes, trusted=trusted)
    for bundle, name in signers.items():
        signing.show_signer(bundle, name)
    report.show(out)
    console.document(manifest)


@click.command()
@click.argument("bundle", type=_path)
@click.argument("folder", metavar="DIR", type=_path)
@click.option("--precision", metavar="NAME", help="Precision of the graph [the bundle's first].")
@sized("the bundle may unpack to")
@signing.verifying
@printing
def mlflow(
    bundle: Path, folder: Path, precision: str | None, max_bytes: int, **values: Any
) -> None:
    """Write a bundle's graph to DIR as a model of MLflow; opens nothing in the bundle."""
    from pipeline.bundling import mlflow_model

    print_as(values)
    facts = mlflow_model.write(
        bundle,
        folder,
        precision=precision,
        max_bytes=max_bytes,
        trusted=signing.trusted(values),
    )
    console.result(
        f"{folder}: MLflow model of {facts['assay.model']} in {facts['assay.precision']}"
    )
    console.document({"folder": str(folder), **facts})


COMMANDS = (merge, mlflow)
