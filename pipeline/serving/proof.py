"""Proof over the wire: a server is judged by a bundle's golden file, as an engine is."""

from __future__ import annotations

import dataclasses
import statistics
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines import temporary
from engines.contract import Feeds, Outputs
from engines.errors import DeployError
from pipeline.benchmarking.intervals import percentiles
from pipeline.bundling import archive, checking, signature
from pipeline.golden import file as goldens
from pipeline.golden.file import Golden
from pipeline.serving.client import Client, Metadata, Server, wait_until_ready
from pipeline.verification.verdict import Verdict, judge

# How long the latency of a batch size is measured, and the requests that are enough for a p99.
_SECONDS = 3.0
_REQUESTS = 1000
_WARM_UP = 3


class WireSession:
    """A model on a server in place of a session on this machine; see `engines.contract.Session`.

    Attributes:
        device: The address of the server, since it does not tell its device.
        requests: How many were answered.
    """

    stream: int | None = None

    def __init__(self, client: Client, server: Server, metadata: Metadata, golden: Golden) -> None:
        self.device = server.url
        # A server may keep its inputs and outputs to itself; its replies are judged all the same.
        self.inputs = metadata.inputs or golden.input_specs
        self.outputs = metadata.outputs or golden.output_specs
        self.batch = (1, metadata.largest) if metadata.largest else None
        self.requests = 0
        self._client, self._server = client, server
        self._names = tuple(golden.native)
        self._bound: Feeds = {}

    def run(self, feeds: Feeds) -> Outputs:
        """Sends one request; returns its reply."""
        outputs = self._client.infer(self._server.name, self._server.version, feeds, self._names)
        self.requests += 1
        return outputs

    def bind(self, feeds: Feeds) -> None:
        """Keeps the inputs of the next requests."""
        self._bound = feeds

    def launch(self) -> None:
        """Sends the bound inputs, and waits for the reply."""
        self.run(self._bound)

    def synchronize(self) -> None:
        """Does nothing: a launch has completed when it returns."""

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()


@dataclass(frozen=True)
class Latency:
    """How long one client waits for a reply, one request after the other.

    Attributes:
        batch: Rows of a request.
        requests: How many were measured.
        median: In seconds.
        p99: In seconds; None if too few requests know it.
    """

    batch: int
    requests: int
    median: float
    p99: float | None


@dataclass(frozen=True)
class Served:
    """The result of a proof over the wire.

    Attributes:
        manifest: The bundle's manifest.
        links: Number of links that were checked in the chain of digests.
        model: The name of the model on the server.
        verdict: The verdict on it.
        latencies: Its latency by batch size; empty unless the verdict is a pass.
    """

    manifest: dict[str, Any]
    links: int
    model: str
    verdict: Verdict
    latencies: tuple[Latency, ...]

    def document(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "manifest": self.manifest,
            "links": self.links,
            "server_model": self.model,
            "verdicts": [dataclasses.asdict(self.verdict)],
            "latencies": [dataclasses.asdict(latency) for latency in self.latencies],
        }


def check(
    bundle: Path,
    server: Server,
    *,
    precision: str | None = None,
    max_bytes: int = archive.MAX_BYTES,
    trusted: signature.Trusted | None = None,
) -> Served:
    """Checks the digests of a bundle, and judges a server by its golden file. Opens no engine.

    Args:
        precision: The precision that it serves; None means the bundle's first.
        max_bytes: Bytes that all members of the bundle together may take.
        trusted: Whose signature the bundle must have.

    Raises:
        DeployError: The bundle is damaged, or the server fails or does not answer.
        NotAvailableError: The server is not ready in time, or the client library is missing.
        UsageError: The server does not have the model, or the bundle not the precision.
    """
    unpacked, golden = golden_of(bundle, precision, max_bytes, trusted)
    verdict, latencies = prove(golden, server)
    model = verdict.facts["model"]
    return Served(unpacked.manifest, unpacked.links, model, verdict, latencies)


def golden_of(
    bundle: Path,
    precision: str | None,
    max_bytes: int = archive.MAX_BYTES,
    trusted: signature.Trusted | None = None,
) -> tuple[checking.Unpacked, Golden]:
    """Checks the digests of a bundle; returns what they say, without files, and its golden file.

    For the arguments and what is raised see `check`.
    """
    with temporary.folder() as folder:
        unpacked = checking.unpack(bundle, folder.resolve(), max_bytes, trusted)
        return unpacked, goldens.load(unpacked.model(precision).golden)


def prove(
    golden: Golden, server: Server, *, timed: bool = True
) -> tuple[Verdict, tuple[Latency, ...]]:
    """Returns the verdict on a server, and its latency if that is a pass; see `check`.

    Args:
        timed: Measure the latency, which takes seconds.
    """
    server = dataclasses.replace(server, name=wait_until_ready(server))
    client = Client(server)
    try:
        metadata = client.metadata(server.name, server.version)
    except DeployError:
        client.close()
        raise
    with closing(WireSession(client, server, metadata, golden)) as session:
        verdict = judge(f"{server.name} at {server.url}", session, golden)
        facts = {"model": server.name, "version": server.version, "platform": metadata.platform}
        facts |= {"device": server.url, "requests": str(session.requests)}
        verdict = dataclasses.replace(verdict, facts=facts)
        latencies: tuple[Latency, ...] = ()
        if timed and verdict.status == "pass":
            largest = verdict.batches[-1] if golden.batched else 1
            latencies = tuple(_latency(session, golden, size) for size in sorted({1, largest}))
    return verdict, latencies


def _latency(session: WireSession, golden: Golden, batch: int) -> Latency:
    feeds = golden.feeds(batch)
    for _ in range(_WARM_UP):
        session.run(feeds)
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while not times or (len(times) < _REQUESTS and time.perf_counter() < end):
        start = time.perf_counter()
        session.run(feeds)
        times.append(time.perf_counter() - start)
    p99 = percentiles(times).get("p99")
    return Latency(batch, len(times), statistics.median(times), None if p99 is None else p99.value)
