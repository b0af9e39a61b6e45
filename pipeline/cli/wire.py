"""The options that name a server, and how `assay check` judges one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.errors import ParityError, UsageError
from pipeline.cli.flags import Number
from pipeline.workflow import console

if TYPE_CHECKING:
    from pipeline.bundling.signature import Trusted
    from pipeline.serving.client import Server

_positive = Number(min=0, min_open=True, max=86400)
_URL = click.option(
    "--url",
    help="Judge a server that speaks the Open Inference Protocol: http://HOST:PORT or"
    " grpc://HOST:PORT. Opens nothing of the bundle.",
)
_OPTIONS = (
    click.option("--model-name", metavar="NAME", help="The server's model [the only one it has]."),
    click.option("--model-version", metavar="V", help="The model's version [the server's choice]."),
    click.option("--wait", type=_positive, help="Seconds to wait until it is ready [10]."),
    click.option("--timeout", type=_positive, help="Seconds in which it has to reply [30]."),
)
_FIELDS = {
    "model_name": "name",
    "model_version": "version",
    "wait": "wait",
    "timeout": "timeout",
}


def naming(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that name a model of a server; see `named`."""
    for decorate in reversed(_OPTIONS):
        command = decorate(command)
    return command


def serving(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--url`, and the options of `naming`."""
    return _URL(naming(command))


def named(values: dict[str, Any]) -> dict[str, Any]:
    """Removes the options of `naming`; returns those that were given, as fields of `Server`."""
    chosen = {field: values.pop(key) for key, field in _FIELDS.items()}
    return {field: value for field, value in chosen.items() if value is not None}


def server_of(values: dict[str, Any], excluded: Mapping[str, bool]) -> Server | None:
    """Removes the options of `serving` from `values`; returns the server, or None without --url.

    Args:
        excluded: Whether an option was given, by its name, that makes no sense together with --url.

    Raises:
        UsageError: Options contradict each other.
    """
    url = values.pop("url")
    fields = named(values)
    if url is None:
        for key, field in _FIELDS.items():
            if field in fields:
                option = f"--{key.replace('_', '-')}"
                raise UsageError(f"{option} without --url", "name a server with --url")
        return None
    for option, present in excluded.items():
        if present:
            raise UsageError(f"--url and {option} exclude each other", f"leave out {option}")
    from pipeline.serving.client import Server

    return Server(url, **fields)


def check(
    bundle: Path,
    server: Server,
    precision: str | None,
    max_bytes: int,
    trusted: Trusted | None = None,
) -> None:
    """Judges a server by a bundle's golden file, and prints the verdict and the latency.

    Args:
        trusted: Whose signature the bundle must have.
    """
    from pipeline.report import units
    from pipeline.report import verify as verdict_report
    from pipeline.serving import proof
    from pipeline.verification.acceptance import require_pass

    served = proof.check(bundle, server, precision=precision, max_bytes=max_bytes, trusted=trusted)
    members = len(served.manifest["members"])
    console.result(f"{bundle}: {members} members and {served.links} digests of the chain match")
    verdict_report.show([served.verdict])
    if served.latencies:
        console.table(
            "Latency of one client",
            (">batch", ">requests", ">p50", ">p99"),
            [
                [
                    str(latency.batch),
                    f"{latency.requests:,}",
                    units.duration(latency.median),
                    "" if latency.p99 is None else units.duration(latency.p99),
                ]
                for latency in served.latencies
            ],
        )
    try:
        require_pass([served.verdict], str(served.manifest["model"]))
    except ParityError as error:
        error.hint = (
            f"compare what {server.url} has loaded with the bundle's graph and engines; of a bundle"
            " with several precisions, --precision names the one that is served"
        )
        raise
    console.document(served.document())
