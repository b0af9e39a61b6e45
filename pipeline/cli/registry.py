"""The commands that send bundles to an OCI registry, and get them from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.cli.flags import print_as, printing, sized
from pipeline.workflow import console
from pipeline.workflow.digests import require_parent

_path = click.Path(path_type=Path)
_plain_http = click.option("--plain-http", is_flag=True, help="Use HTTP, without TLS.")


@click.command()
@click.argument("bundle", type=_path)
@click.argument("reference", metavar="REGISTRY/NAME:TAG")
@_plain_http
@printing
def push(bundle: Path, reference: str, plain_http: bool, **values: Any) -> None:
    """Send a bundle and its signature to an OCI registry, as a ModelPack artifact."""
    from pipeline.bundling import oci

    print_as(values)
    pushed = oci.push(bundle, reference, plain_http=plain_http)
    console.result(f"{bundle}: pushed as {pushed}")
    console.document({"reference": pushed})


@click.command()
@click.argument("reference", metavar="REGISTRY/NAME:TAG")
@click.option("--out", type=_path, metavar="FILE", help="The file to write [NAME-TAG.tar.zst].")
@sized("the bundle's file may take")
@_plain_http
@printing
def pull(reference: str, out: Path | None, max_bytes: int, plain_http: bool, **values: Any) -> None:
    """Get a bundle and its signature from an OCI registry; `assay check` proves it."""
    from pipeline.bundling import oci

    print_as(values)
    if out is not None:
        require_parent(out)
    path, digest, signed = oci.pull(reference, out, plain_http=plain_http, max_bytes=max_bytes)
    console.result(f"{path}: pulled from {digest}{', with its signature' if signed else ''}")
    console.document({"file": str(path), "reference": digest, "signed": signed})


COMMANDS = (push, pull)
