"""The commands on bundles that exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.errors import UsageError
from pipeline.cli.flags import print_as, printing
from pipeline.workflow import console
from pipeline.workflow.artifacts import BUNDLE_SUFFIX

_path = click.Path(path_type=Path)


@click.command()
@click.argument("bundles", nargs=-1, type=_path, required=True)
@click.option("--out", type=_path, required=True, help="The bundle to write.")
@printing
def merge(bundles: tuple[Path, ...], out: Path, **values: Any) -> None:
    """Put bundles of one model, built on several machines, into one; opens nothing in them.

    Their graphs have to be the same: export once, and copy the artifacts to each machine that
    builds engines.
    """
    from pipeline.bundling import merging
    from pipeline.report import bundle as report

    print_as(values)
    if len(bundles) == 1:
        raise UsageError("merge takes several bundles, but got one", "name two or more")
    if not out.name.endswith(BUNDLE_SUFFIX):
        raise UsageError(
            f"--out {out} is not the name of a bundle", f"give a name that ends in {BUNDLE_SUFFIX}"
        )
    manifest = merging.merge(bundles, out)
    report.show(out)
    console.document(manifest)


COMMANDS = (merge,)
