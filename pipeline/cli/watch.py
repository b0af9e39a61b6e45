"""The commands that watch a server, and that verify what they attested."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.errors import DeployError, FailedError, NotMetError, ParityError, UsageError
from pipeline.cli import signing, wire
from pipeline.cli.flags import Number, print_as, printing, sized
from pipeline.workflow import console, signals

if TYPE_CHECKING:
    from pipeline.serving.watching.watch import Watched

_path = click.Path(path_type=Path)
_above_0 = Number(min=0, min_open=True)


@click.command()
@click.argument("url")
@click.argument("bundle", type=_path)
@click.option("--precision", metavar="NAME", help="The precision it serves [the bundle's first].")
@click.option(
    "--rate",
    type=Number(min=0, min_open=True, max=10_000),
    default=1.0,
    show_default=True,
    help="Golden rows sent in a second, at most.",
)
@click.option(
    "--window",
    type=click.IntRange(5, 100_000),
    default=20,
    show_default=True,
    help="Requests that are judged together.",
)
@click.option(
    "--baseline",
    type=click.IntRange(5, 100_000),
    default=30,
    show_default=True,
    help="Windows at the beginning that later ones are compared with.",
)
@click.option(
    "--tolerance",
    type=Number(0, 1000),
    default=10.0,
    show_default=True,
    help="Percent that a window may take longer.",
)
@click.option(
    "--false-alarms",
    type=Number(1e-12, 0.5),
    default=1e-4,
    show_default=True,
    help="The largest rate of false alarms of slowness, for each window.",
)
@click.option("--duration", type=_above_0, help="Seconds to watch [until it is interrupted].")
@click.option("--stop", is_flag=True, help="End with the first alarm.")
@click.option(
    "--metrics",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Serve metrics for Prometheus on 127.0.0.1.",
)
@click.option("--attest", type=_path, help="File to which a signed line is added for each day.")
@click.option("--key", type=_path, help="The private key for --attest.")
@wire.naming
@sized("the bundle may unpack to")
@signing.verifying
@printing
def watch(url: str, bundle: Path, max_bytes: int, **values: Any) -> None:
    """Watch a server in service: send golden rows between live requests, and tell what changes.

    The server speaks the Open Inference Protocol: http://HOST:PORT or grpc://HOST:PORT. Exit code 3
    if its outputs differed from the model's, 5 if it was slower for some time, 1 if it did not
    answer at the end.
    """
    from pipeline.serving import proof
    from pipeline.serving.client import Server
    from pipeline.serving.watching import attestation, metrics
    from pipeline.serving.watching.watch import Settings, Watch
    from pipeline.workflow.digests import sha256_file

    print_as(values)
    trusted = signing.trusted(values)
    if (values["attest"] is None) != (values["key"] is None):
        raise UsageError("--attest and --key belong together", "give both, or neither")
    server = Server(url, **wire.named(values))
    settings = Settings(
        rate=values["rate"],
        window=values["window"],
        baseline=values["baseline"],
        tolerance=values["tolerance"] / 100,
        false_alarms=values["false_alarms"],
        duration=values["duration"],
        stop=values["stop"],
    )
    with ExitStack() as stack:
        log: Callable[[dict[str, Any]], None] | None = None
        unpacked, golden = proof.golden_of(bundle, values["precision"], max_bytes, trusted)
        if values["attest"] is not None:
            private = values["key"]
            key = attestation.Key(private, lambda: signing.passphrase_of(private))
            lines = stack.enter_context(closing(attestation.Log(values["attest"], key)))
            subject, digest = bundle.name, sha256_file(bundle)
            content = unpacked.manifest["content"]

            def log(day: dict[str, Any]) -> None:
                lines.add(subject, digest, {**day, "content": content})

        shown = None
        if values["metrics"] is not None:
            shown = stack.enter_context(metrics.Metrics(values["metrics"]))
            console.say(f"metrics: {shown.url}")
        one = Watch(server, golden, settings, say=console.result, metrics=shown, attest=log)
        slowdown, window = one.monitor.slowdown, settings.window
        console.say(
            f"{one.model}: {settings.rate:g} golden rows a second; slowness is judged after"
            f" {window * settings.baseline:,} requests, and found within"
            f" {window * (slowdown.needed + 1):,}; false alarms: at most {slowdown.rate:.1e} of the"
            " windows"
        )
        watched = one.run()
    _conclude(url, watched)


def _conclude(url: str, watched: Watched) -> None:
    """Prints what a watch has seen, or raises what it comes to.

    Raises:
        ParityError: The outputs differed from the model's.
        NotMetError: It was slower for some time.
        FailedError: It does not answer, or nothing could be judged.
    """
    signals.handled()  # a watch ends by a signal, and what it has seen is its result
    document = dataclasses.asdict(dataclasses.replace(watched, interrupted=None))
    document.pop("interrupted")
    replies = sum(day["replies"] for day in watched.days)
    judged = sum(day["windows"] for day in watched.days)
    if watched.alarms.get("mismatch"):
        raise ParityError(
            f"{url}: the outputs of {watched.model} differed from the model's",
            "compare what the server has loaded with the bundle: `assay check BUNDLE --url URL`; of"
            " a bundle with several precisions, --precision names the one that is served",
            document,
        )
    if watched.alarms.get("slower"):
        raise NotMetError(
            f"{url}: {watched.model} was slower than at the beginning",
            "see the lines above for what else changed",
            document,
        )
    problem, hint = watched.active.get("down", ""), "see the server's own log"
    if not problem and not judged:
        problem = f"{replies} {'reply is' if replies == 1 else 'replies are'} too few to judge"
        problem += f" {watched.model}"
        hint = "watch for longer, or at a higher --rate"
    if problem:
        error = FailedError(f"{url}: {problem}", hint)
        error.details = document
        raise error
    failures = sum(day["failures"] for day in watched.days)
    failed = f", {failures:,} failed requests" if failures else ""
    console.result(
        f"{url}: {replies:,} replies of {watched.model}{failed}, judged {judged:,}"
        f" time{'s' * (judged != 1)}, no alarm at the end"
    )
    console.document(document)
    if watched.interrupted is not None:
        console.settings.json = False  # there is one document
        raise watched.interrupted


@click.command()
@click.argument("file", type=_path)
@click.option("--public-key", type=_path, required=True, help="The key that signed the lines.")
@click.option("--bundle", type=_path, help="Require that every line is about this bundle.")
@click.option("--url", help="Require that every line is about the server at this address.")
@printing
def attestations(
    file: Path, public_key: Path, bundle: Path | None, url: str | None, **values: Any
) -> None:
    """Verify the lines that `assay watch --attest` wrote, and print them."""
    from pipeline.bundling import archive
    from pipeline.serving.watching import attestation
    from pipeline.workflow.digests import require_file, sha256_file

    print_as(values)
    if bundle is not None:
        require_file(bundle, archive.NO_BUNDLE)
    statements = attestation.verify(file, public_key)
    if not statements:
        raise DeployError(
            f"{file} attests nothing", "a watch adds a line at the end of a day, and when it ends"
        )
    sha256 = None if bundle is None else sha256_file(bundle)
    attestation.require_about(file, statements, sha256, url)
    tables: dict[str, list[list[str]]] = {}
    for statement in statements:
        facts = statement["predicate"]
        title = f"{facts['model']} at {facts['url']}, by {statement['subject'][0]['name']}"
        tables.setdefault(title, []).append(_day(facts))
    counts = (">replies", ">failures", ">error x floor", ">judged", ">p99", ">events")
    for title, rows in tables.items():
        console.table(title, ("from (UTC)", "to (UTC)", *counts), rows)
    for statement in statements:
        for event in statement["predicate"]["events"]:
            console.say(f"{event['time']} {event['kind']}: {event['reason']}")
    count = len(statements)
    lines = "1 line, its signature holds"
    if count > 1:
        lines = f"{count} lines, every signature and their order hold"
    nothing = sum(not statement["predicate"]["windows"] for statement in statements)
    console.result(f"{file}: {lines}" + (f"; {nothing} without a judgement" if nothing else ""))
    console.document(statements)


def _day(facts: Mapping[str, Any]) -> list[str]:
    """Returns the cells of a day of a watch."""
    from pipeline.report.units import duration

    p99 = facts["latency"].get("p99")
    return [
        *(facts[key][:16].replace("T", " ") for key in ("from", "to")),
        f"{facts['replies']:,}",
        f"{facts['failures']:,}",
        "" if facts["error_floors"] is None else f"{facts['error_floors']:.2f}",
        f"{facts['windows']:,}",
        "" if p99 is None else duration(p99["value"]),
        str(sum(not event["kind"].endswith("ended") for event in facts["events"])),
    ]


COMMANDS = (watch, attestations)
