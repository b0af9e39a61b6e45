"""What Prometheus can ask of a watch, over HTTP on the loopback interface."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from engines.checks import import_vendor
from engines.errors import DeployError
from pipeline.serving.watching.monitor import Alarm, Window

INSTALL = "pip install prometheus-client"
HOST = "127.0.0.1"
# Small models answer within a fraction of a millisecond.
_BUCKETS = [a * 10.0**b for b in range(-4, 2) for a in (1, 2.5, 5)]
_KINDS = ("mismatch", "slower", "down")


class Metrics:
    """Metrics at http://127.0.0.1:PORT/metrics while the block runs."""

    def __init__(self, port: int) -> None:
        """Starts to listen.

        Raises:
            NotAvailableError: The library `prometheus_client` is not installed.
            DeployError: The port cannot be opened.
        """
        client = import_vendor("prometheus_client", INSTALL)
        registry = client.CollectorRegistry()
        client.disable_created_metrics()
        self._requests = client.Counter(
            "assay_watch_requests", "Golden rows sent, by result", ["result"], registry=registry
        )
        self._latency = client.Histogram(
            "assay_watch_latency_seconds", "Time of a request", registry=registry, buckets=_BUCKETS
        )
        self._quick = client.Gauge(
            "assay_watch_quick_seconds",
            "Time that the quickest tenth of the last window's requests kept",
            registry=registry,
        )
        self._floors = client.Gauge(
            "assay_watch_error_floors",
            "Largest error of the last window in units of the noise floor",
            registry=registry,
        )
        self._alarms = client.Gauge(
            "assay_watch_alarm", "1 while something is wrong", ["kind"], registry=registry
        )
        for kind in _KINDS:
            self._alarms.labels(kind).set(0)
        try:
            self._server, self._thread = client.start_http_server(port, HOST, registry)
        except OSError as error:
            raise DeployError(
                f"port {port} cannot be opened: {error.strerror}", "give another --metrics PORT"
            ) from error
        self.url = f"http://{HOST}:{self._server.server_port}/metrics"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reply(self, seconds: float) -> None:
        """Counts a reply."""
        self._requests.labels("reply").inc()
        self._latency.observe(seconds)

    def failure(self) -> None:
        """Counts a request that failed."""
        self._requests.labels("failure").inc()

    def window(self, window: Window) -> None:
        """Takes a complete window."""
        self._quick.set(window.quick)
        self._floors.set(window.floors)

    def alarm(self, alarm: Alarm) -> None:
        """Takes the beginning or end of something."""
        self._alarms.labels(alarm.kind).set(float(alarm.begins))
