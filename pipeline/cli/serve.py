"""The command that serves a bundle."""

from __future__ import annotations

import shlex
import socket
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines import hardware, temporary
from engines.errors import DeployError, NotAvailableError, UsageError
from pipeline.cli import signing
from pipeline.cli.commands import ask
from pipeline.cli.flags import Number, limit, limiting, print_as, printing, sized
from pipeline.stages import check_threads
from pipeline.workflow import console, signals, worker
from pipeline.workflow.artifacts import BUNDLE_SUFFIX

if TYPE_CHECKING:
    from pipeline.bundling.checking import Unpacked
    from pipeline.serving.repository import Source
    from pipeline.serving.tritonserver import Address, Running
    from pipeline.verification.verdict import Verdict

_path = click.Path(path_type=Path)
_port = click.IntRange(1, 65535)
_TRITON, _OWN = "triton", "assay"
_POLL = 0.5  # seconds


@click.command()
@click.argument("bundle", type=_path)
@click.argument("more", metavar="[-- TRITON'S OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--server",
    type=click.Choice(["auto", _TRITON, _OWN]),
    default="auto",
    show_default=True,
    help="What serves it; auto: Triton if it is installed, else assay's own, which is for tests.",
)
@click.option("--tritonserver", metavar="PATH", help="Triton's program [tritonserver on PATH].")
@click.option("--engine", metavar="NAME", help="The engine to serve [Triton: all; assay: fastest].")
@click.option("--precision", metavar="NAME", help="The precision [Triton: all; assay: the first].")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads of assay's own [all].")
@click.option("--host", default="127.0.0.1", show_default=True, help="The interface to listen on.")
@click.option("--http-port", type=_port, default=8000, show_default=True)
@click.option("--grpc-port", type=_port, default=8001, show_default=True, help="Triton only.")
@click.option("--metrics-port", type=_port, default=8002, show_default=True, help="Triton only.")
@click.option(
    "--wait",
    type=Number(min=0, min_open=True, max=86400),
    default=300.0,
    show_default=True,
    help="Seconds in which all models have to be ready. Triton only.",
)
@click.option("--trust", is_flag=True, help="Open engines without asking (for scripts).")
@sized("the bundle may unpack to")
@signing.verifying
@limiting
@printing
def serve(bundle: Path, more: tuple[str, ...], **values: Any) -> None:
    """Serve a bundle: check it, start a server, prove it over the wire, and run until Ctrl-C."""
    from engines.checks import check_device
    from pipeline.bundling import checking
    from pipeline.serving import tritonserver

    print_as(values)
    limit(values)
    check_threads(values["threads"])
    signer = signing.trusted(values)
    check_device(values["device"])
    program, kind = None, values["server"]
    if kind != _OWN:
        program = tritonserver.find(values["tritonserver"])
    if kind == "auto":
        kind = _TRITON if program or values["tritonserver"] else _OWN
    if kind == _OWN and (more or values["tritonserver"]):
        raise UsageError(
            f"{' '.join(more) or '--tritonserver'} is for Triton, which does not serve here",
            "install Triton and name it with --tritonserver PATH, or leave these options out",
        )
    _require_free(values, kind)
    with temporary.folder() as folder:
        root = folder.resolve() / "bundle"
        unpacked = checking.unpack(bundle, root, values["max_bytes"], signer)
        signing.show_signer(bundle, unpacked.signer)
        members = len(unpacked.manifest["members"])
        console.say(f"{bundle}: {members} members and {unpacked.links} digests of the chain match")
        if kind == _OWN:
            if values["server"] == "auto":
                console.say(
                    "tritonserver is not installed, so this is assay's own server, for tests;"
                    " --server triton says how to run Triton's container"
                )
            _serve_own(bundle, unpacked, root, values)
        else:
            _serve_triton(bundle, unpacked, root, program, more, values)


def _require_free(values: dict[str, Any], kind: str) -> None:
    """Raises DeployError if a port is not free, before engines are proved for minutes."""
    options = ("http_port",) if kind == _OWN else ("http_port", "grpc_port", "metrics_port")
    for name in options:
        port, host = values[name], values["host"]
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise DeployError(
                    f"port {port} of {host} cannot be opened: {error.strerror or error}",
                    f"give another --{name.replace('_', '-')} or --host, or end what uses it",
                ) from error


def _ready(facts: dict[str, Any], urls: list[str]) -> None:
    """Prints the JSON document when the server is ready, since it has no other end than Ctrl-C."""
    with signals.deferred():
        console.document({**facts, "urls": urls})
        console.settings.json = False  # an interruption would add a second document


def _consent(bundle: Path, unpacked: Unpacked, lines: list[str], values: dict[str, Any]) -> None:
    if not (values["trust"] or unpacked.signer):
        ask(bundle, lines)


def _judged(model: str, verdicts: list[Verdict]) -> None:
    """Prints verdicts; raises unless every one is a pass."""
    from pipeline.report import verify as verdict_report
    from pipeline.verification.acceptance import require_pass

    verdict_report.show(verdicts)
    require_pass(verdicts, model)


def _serve_own(bundle: Path, unpacked: Unpacked, root: Path, values: dict[str, Any]) -> None:
    """Serves the fastest engine that passes verification here.

    Raises:
        ParityError: No engine passes, and at least one computes something else.
        NotAvailableError: This machine can run none.
        UsageError: The bundle does not have the engine or the precision.
    """
    from engines.cache import slug
    from pipeline.bundling import checking, opening
    from pipeline.golden import file as goldens
    from pipeline.serving import own_server, proof
    from pipeline.serving.client import Server
    from pipeline.serving.tritonserver import Address

    model, engine, device = unpacked.model(values["precision"]), values["engine"], values["device"]
    threads = values["threads"] or hardware.available_cpus()
    judged = checking.engines_named([model], engine)
    lines = checking.opened(root, [(model, name) for name in judged])
    _consent(bundle, unpacked, lines, values)
    golden = goldens.load(model.golden)
    names = opening.proved(model, engine, device, threads)
    worker.end()  # it holds memory, on a GPU too
    chosen, session = opening.fastest(names, model, golden, device, threads)
    name = slug(f"{unpacked.manifest['model']}_{model.precision}")  # whatever engine is fastest
    address = Address(values["host"], http=values["http_port"])
    with (
        closing(session),
        own_server.running(address.host, address.http, name, session),
    ):
        try:
            verdict, _ = proof.prove(golden, Server(address.http_url, name), timed=False)
        except NotAvailableError as error:  # the client library is missing
            console.say(f"not proved over the wire: {error.message}; {error.hint}")
            console.say(f"{chosen}: proved in process")
        else:
            _judged(str(unpacked.manifest["model"]), [verdict])
        console.result(
            f"serving {name} by {chosen} on {session.device} at {address.http_url} until Ctrl-C"
        )
        facts = {"server": _OWN, "models": [name], "engine": chosen, "device": session.device}
        _ready(facts, [address.http_url])
        while True:
            time.sleep(_POLL)


def _serve_triton(
    bundle: Path,
    unpacked: Unpacked,
    root: Path,
    program: str | None,
    more: tuple[str, ...],
    values: dict[str, Any],
) -> None:
    """Serves every engine that Triton runs on this machine.

    Raises:
        NotAvailableError: Triton is not installed, can serve nothing of it, or is not ready in
            time.
        DeployError: The server ended.
        ParityError: It computes something else.
    """
    from pipeline.serving import repository, tritonserver
    from pipeline.serving.forms import FORMS

    sources = _sources(unpacked, values)
    address = tritonserver.Address(
        values["host"], values["http_port"], values["grpc_port"], values["metrics_port"]
    )
    if program is None:
        raise NotAvailableError(
            "tritonserver is not installed", _container(bundle, unpacked, sources, address, more)
        )
    files = [(source, source.file.relative_to(root)) for source in sources]
    lines = [
        f"{path}: Triton's {FORMS[source.engine].backend} backend opens it"
        for source, path in files
    ]
    _consent(bundle, unpacked, lines, values)
    place = root.parent / "repository"
    repository.write(place, sources, link=True)
    with tritonserver.running(program, place, address, more, console.say) as server:
        console.say("starting tritonserver")
        server.wait_until_ready(address, values["wait"])
        try:
            _prove(unpacked, sources, server, address.http_url)
        except DeployError:
            server.require_alive(1.0)
            raise
        for source in sources:
            console.result(
                f"serving {source.name} at {address.http_url} and {address.grpc_url} until Ctrl-C"
            )
        names = [source.name for source in sources]
        _ready({"server": _TRITON, "models": names}, [address.http_url, address.grpc_url])
        server.watch()


def _prove(unpacked: Unpacked, sources: list[Source], server: Running, url: str) -> None:
    from pipeline.golden import file as goldens
    from pipeline.serving import proof
    from pipeline.serving.client import Server

    verdicts = []
    for source in sources:
        golden = goldens.load(source.golden)
        verdicts.append(proof.prove(golden, Server(url, source.name), timed=False)[0])
        server.require_alive()
    _judged(str(unpacked.manifest["model"]), verdicts)


def _sources(unpacked: Unpacked, values: dict[str, Any]) -> list[Source]:
    """Returns what Triton serves here: engines for GPUs if this machine has one, else for CPUs."""
    from pipeline.serving.sources import of_bundle

    engine, precision, device = values["engine"], values["precision"], values["device"]
    gpu = bool(hardware.gpus()) if device == "auto" else device != "cpu"
    sources, left_out = of_bundle(unpacked, gpu=gpu, precision=precision, engine=engine)
    if not sources and gpu and device == "auto":
        sources, more = of_bundle(unpacked, gpu=False, precision=precision, engine=engine)
        left_out |= more
    if not sources:
        known = list(dict.fromkeys(name for m in unpacked.models.values() for name in m.engines))
        raise NotAvailableError(
            "Triton can serve nothing of this bundle here"
            + "".join(f"; {name}: {why}" for name, why in left_out.items()),
            f"name another engine or --device; the bundle has {', '.join(known)};"
            " `--server assay` serves any engine that runs here",
        )
    for name, why in left_out.items():
        console.say(f"without {name}: {why}")
    return sources


def _container(
    bundle: Path,
    unpacked: Unpacked,
    sources: list[Source],
    address: Address,
    more: tuple[str, ...],
) -> str:
    """Returns how to serve the bundle with Triton's container."""
    from pipeline.bundling.manifest import backend
    from pipeline.serving import tritonserver

    manifest = unpacked.manifest
    folder, write = "model-repository", f"`assay triton {manifest['model']} model-repository`"
    if any(name.startswith("triton/") for name in manifest["members"]):
        write = f"`tar -xf {shlex.quote(str(bundle))}`"
        folder = f"{bundle.name.removesuffix(BUNDLE_SUFFIX)}/triton"
    versions = {
        entry["built_with"].get("tensorrt-cu13")
        for model in manifest["models"].values()
        for name, entry in model["engines"].items()
        if backend(name) == "tensorrt"
    } - {None}
    of = f" with TensorRT {', '.join(sorted(versions))}" if versions else ""
    names = [source.engine for source in sources]
    command = tritonserver.container(f"$PWD/{folder}", names, address, more)
    return (
        f"install it, name it with --tritonserver PATH, or use its container: write the repository"
        f" with {write}, then run\n{command}\nwhere IMAGE is the tritonserver container of"
        f" Triton's release notes{of}. `--server assay` serves without it, for tests"
    )


COMMANDS = (serve,)
