"""What may change around a served model: its version, the server, the machine, the load."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from engines import hardware
from engines.errors import DeployError
from pipeline.benchmarking.contention import Others
from pipeline.serving.client import Client

# A load is told as changed from this factor on, and a time or a clock from that one.
_LOAD_FACTOR, _TIME_FACTOR = 1.5, 1.1
_BUSY = 0.5  # of the CPUs


def is_here(url: str) -> bool:
    """Whether an address is one of this machine's own."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Load:
    """What a server did between two looks at its statistics.

    Attributes:
        rows: Rows of all clients.
        computed: Mean seconds of the model's own work in an execution; None if nothing ran.
        queued: Mean seconds that a request waited in the server's queue; None likewise.
    """

    rows: int
    computed: float | None
    queued: float | None


@dataclass(frozen=True)
class Snapshot:
    """What was to be seen at one moment.

    Attributes:
        facts: The server's name and version, the versions of the model and its platform; on this
            machine also the GPUs and their driver. By name, in words.
        load: None if the server has no statistics.
        clocks: Of each GPU of this machine by its UUID, in MHz.
        others: The part of this machine's CPUs that other processes took, the server's own among
            them; None if the server is elsewhere.
    """

    facts: dict[str, str] = field(default_factory=dict)
    load: Load | None = None
    clocks: dict[str, float] = field(default_factory=dict)
    others: float | None = None


class Surroundings:
    """Takes snapshots of a server and of this machine, if it is the server's."""

    def __init__(self, client: Client, url: str, name: str, version: str) -> None:
        self._client, self._name, self._version = client, name, version
        self._here = is_here(url)
        self._before = client.statistics(name, version)
        self._others = Others()

    def look(self) -> Snapshot:
        """Returns what is to be seen now; what the server does not tell is left out."""
        try:
            facts = self._client.facts(self._name, self._version)
        except DeployError:
            return Snapshot()
        now = self._client.statistics(self._name, self._version)
        load = None if now is None or self._before is None else _between(self._before, now)
        self._before = now
        if not self._here:
            return Snapshot(facts, load)
        facts |= {f"driver of {gpu['name']}": gpu["driver"] for gpu in hardware.gpus()}
        clocks = {}
        for state in hardware.gpu_states():
            facts[f"throttling of {state['uuid']}"] = state["throttling"]
            with suppress(ValueError):  # the tool may not know it
                clocks[state["uuid"]] = float(state["sm_mhz"])
        part, self._others = self._others.part(), Others()
        return Snapshot(facts, load, clocks, part)


def _between(before: Mapping[str, float], now: Mapping[str, float]) -> Load:
    """Returns the load between two readings of a server's counters, which may begin anew."""
    difference = {name: now[name] - before.get(name, 0) for name in now}
    if any(value < 0 for value in difference.values()):
        difference = dict(now)
    executions, requests = difference["executions"], difference["requests"]
    return Load(
        rows=int(difference["rows"]),
        computed=difference["compute_ns"] / executions / 1e9 if executions else None,
        queued=difference["queue_ns"] / requests / 1e9 if requests else None,
    )


def changes(before: Snapshot, now: Snapshot) -> list[str]:
    """Returns what is different between two snapshots, in words."""
    words = []
    for name in [*dict.fromkeys((*before.facts, *now.facts))]:
        old, new = before.facts.get(name, "unknown"), now.facts.get(name, "unknown")
        if old != new:
            words.append(f"{name} was {old}, is {new}")
    for uuid, clock in now.clocks.items():
        words += _moved(f"clock of {uuid}", before.clocks.get(uuid), clock, _TIME_FACTOR, " MHz")
    if before.load and now.load:
        words += _moved("rows of all clients", before.load.rows, now.load.rows, _LOAD_FACTOR, "")
        times = {
            "the server's own time to compute": (before.load.computed, now.load.computed),
            "its time in the queue": (before.load.queued, now.load.queued),
        }
        for name, (then, since) in times.items():
            if then and since:
                words += _moved(name, then * 1e3, since * 1e3, _TIME_FACTOR, " ms")
    if before.others is not None and now.others is not None and now.others > _BUSY:
        pair = before.others * 100, now.others * 100
        words += _moved("other processes' part of the CPUs", *pair, _LOAD_FACTOR, " %")
    return words


def _moved(name: str, old: float | None, new: float, factor: float, unit: str) -> list[str]:
    """Returns a sentence if a value has changed by a factor."""
    if not old or not new or 1 / factor < new / old < factor:
        return []
    return [f"{name} was {old:.3g}{unit}, is {new:.3g}{unit}"]
