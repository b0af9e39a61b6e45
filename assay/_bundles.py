"""Judging bundles, and servers by them."""

from __future__ import annotations

from assay import _values
from assay._results import Check, ServerCheck, Verification
from assay._stages import PathLike, Progress
from pipeline.workflow import console

_MAX_GIB, _DAY = 1 << 20, 86400


def check(
    bundle: PathLike,
    *,
    device: str = "auto",
    threads: int | None = None,
    engine: str | None = None,
    precision: str | None = None,
    digests_only: bool = False,
    max_size: float = 64.0,
    public_key: PathLike | None = None,
    certificate_chain: PathLike | None = None,
    progress: Progress | None = None,
) -> Check:
    """Verifies a bundle on this machine: every digest, and every engine that runs here.

    Args:
        bundle: Path of the archive.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads for one inference; None means all that the process may use.
        engine: The only engine to judge besides the graphs.
        precision: The only precision to judge.
        digests_only: Open neither a graph nor an engine, so that nothing is judged.
        max_size: GiB that the bundle may unpack to.
        public_key: PEM file with the key that must have signed the bundle.
        certificate_chain: PEM file with authorities, one of whose certificates must have signed it.
        progress: Called with each progress line.

    Raises:
        DeployError: The bundle is damaged, its chain of digests is broken, or its signature is not
            valid.
        CrashedError: A verdict is "crashed".
        FailedError: A verdict is "failed".
        ParityError: A verdict is "mismatch" or "vacuous".
        NotAvailableError: This machine can run nothing in the bundle.
    """
    from engines.hardware import available_cpus
    from pipeline.bundling import checking, signature
    from pipeline.stages import check_threads
    from pipeline.verification.acceptance import require_pass

    path, size = _values.path("bundle", bundle), _values.number("max_size", max_size, _MAX_GIB)
    if threads is not None:
        check_threads(_values.whole("threads", threads, _values.MAX_THREADS))
    for name, word in (("device", device), ("engine", engine), ("precision", precision)):
        if word is not None:
            _values.text(name, word, "give one name")
    with console.redirected(progress):
        checked = checking.check(
            path,
            device,
            threads or available_cpus(),
            engine=engine,
            precision=precision,
            digests_only=digests_only,
            max_bytes=int(size * 2**30),
            trusted=signature.Trusted.of(public_key, certificate_chain),
        )
        ran = [verdict for verdict in checked.verdicts if verdict.status != "not run"]
        require_pass(ran, str(checked.manifest["model"]))
    return Check(checked.manifest, Verification(tuple(checked.verdicts)))


def check_server(
    bundle: PathLike,
    url: str,
    *,
    model_name: str = "",
    model_version: str = "",
    precision: str | None = None,
    wait: float = 10.0,
    timeout: float = 30.0,
    max_size: float = 64.0,
    public_key: PathLike | None = None,
    certificate_chain: PathLike | None = None,
    progress: Progress | None = None,
) -> ServerCheck:
    """Judges a model server by the golden file of a bundle, and measures its latency.

    Opens nothing of the bundle.

    Args:
        bundle: Path of the archive.
        url: http://HOST:PORT or grpc://HOST:PORT of a server that speaks the Open Inference
            Protocol.
        model_name: The model's name on the server; "" if the server has only one.
        model_version: Its version; "" leaves the choice to the server.
        precision: The precision that is served; None means the bundle's first.
        wait: Seconds to wait until the model is ready.
        timeout: Seconds in which each request has to be answered.
        max_size: GiB that the bundle may unpack to.
        public_key: PEM file with the key that must have signed the bundle.
        certificate_chain: PEM file with authorities, one of whose certificates must have signed it.
        progress: Called with each progress line.

    Raises:
        DeployError: The bundle is damaged, or the server fails or does not answer.
        ParityError: The server computes something else than the model.
        NotAvailableError: The server is not ready in time, or the client library is missing.
        UsageError: The server does not have the model, or the bundle not the precision.
    """
    from pipeline.bundling import signature
    from pipeline.serving import proof
    from pipeline.serving.client import Server
    from pipeline.verification.acceptance import require_pass

    path, size = _values.path("bundle", bundle), _values.number("max_size", max_size, _MAX_GIB)
    server = Server(
        _values.text("url", url, "give http://HOST:PORT or grpc://HOST:PORT"),
        _values.text("model_name", model_name, "give one name"),
        _values.text("model_version", model_version, 'give a text, as in "1"'),
        _values.number("wait", wait, _DAY),
        _values.number("timeout", timeout, _DAY),
    )
    if precision is not None:
        _values.text("precision", precision, "give one name")
    with console.redirected(progress):
        served = proof.check(
            path,
            server,
            precision=precision,
            max_bytes=int(size * 2**30),
            trusted=signature.Trusted.of(public_key, certificate_chain),
        )
        require_pass([served.verdict], str(served.manifest["model"]))
    return ServerCheck(served.manifest, served.model, served.verdict, served.latencies)
