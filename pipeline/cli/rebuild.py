"""The options of `assay check` that build a bundle's engines again on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.errors import NotAvailableError, NotMetError, ParityError, UsageError
from pipeline.cli.flags import require_new_bundle
from pipeline.workflow import console

if TYPE_CHECKING:
    from pipeline.bundling.signature import Trusted
    from pipeline.rebuilding.target import Rebuilt, Result

_OPTIONS = (
    click.option(
        "--rebuild",
        is_flag=True,
        help="Build the engines that this machine can build from the bundle's graph, and judge"
        " those; also by the acceptance region of `assay build --repeat`, if the bundle has one.",
    ),
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        help="With --rebuild: a new bundle to write, which has the rebuilt engines, too.",
    ),
)


def rebuilding(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--rebuild` and `--out`; see `asked`."""
    for decorate in reversed(_OPTIONS):
        command = decorate(command)
    return command


@dataclasses.dataclass(frozen=True)
class Asked:
    """That engines are to be built again.

    Attributes:
        out: The bundle to write, if any.
    """

    out: Path | None


def asked(values: dict[str, Any], *, digests_only: bool) -> Asked | None:
    """Removes the options of `rebuilding` from `values`; None without `--rebuild`.

    Raises:
        UsageError: Options contradict each other.
    """
    rebuild, out = values.pop("rebuild"), values.pop("out")
    if not rebuild:
        if out is not None:
            raise UsageError("--out without --rebuild", "add --rebuild")
        return None
    for name, other in (("--digests-only", digests_only), ("--url", values["url"] is not None)):
        if other:
            raise UsageError(f"--rebuild and {name} exclude each other", f"leave out {name}")
    if out is not None:
        require_new_bundle(out)
    return Asked(out)


def check(
    bundle: Path,
    device: str,
    threads: int,
    options: Asked,
    *,
    engine: str | None,
    precision: str | None,
    max_bytes: int,
    trusted: Trusted | None,
    consent: Callable[[Sequence[str]], None],
) -> None:
    """Builds engines of a bundle again, prints how they are judged, and writes the new bundle.

    Raises:
        ParityError: A new engine is a mismatch, or outside of the acceptance region.
        NotMetError: It is only too slow.
        NotAvailableError: None can be built here, or none of those that were built runs here.
    """
    from pipeline.rebuilding import target

    result = target.rebuild(
        bundle,
        device,
        threads,
        engine=engine,
        precision=precision,
        max_bytes=max_bytes,
        trusted=trusted,
        consent=consent,
        judge=lambda result: _judge(bundle, result),
        out=options.out,
    )
    if options.out is not None:
        from pipeline.report import bundle as report

        report.show(options.out)
    console.document({**result.document(), "out": options.out and str(options.out)})


def _judge(bundle: Path, result: Result) -> None:
    """Prints what was built and raises unless all of it is accepted; see `check`."""
    from pipeline.cli import signing
    from pipeline.report import verify as verdict_report
    from pipeline.verification.acceptance import require_pass

    signing.show_signer(bundle, result.signer)
    members = len(result.manifest["members"])
    console.result(f"{bundle}: {members} members and {result.links} digests of the chain match")
    verdicts = [entry.verdict for entry in result.rebuilt]
    verdict_report.show(verdicts)
    for entry in result.rebuilt:
        _show(entry)
    ran = [verdict for verdict in verdicts if verdict.status != "not run"]
    if not ran:
        reasons = "; ".join(f"{verdict.subject}: {verdict.reason}" for verdict in verdicts)
        raise NotAvailableError(
            f"what was built cannot be run on this machine, so nothing is proved: {reasons}",
            "run the command on the machine that is to run the engine",
        )
    require_pass(ran, str(result.manifest["model"]))
    outside = [f"{entry.name}: {why}" for entry in result.rebuilt for why in entry.outside]
    if outside:
        raise ParityError(
            f"outside of the acceptance region: {'; '.join(outside)}",
            "build again with the versions that the bundle names, or accept engines of this kind of"
            " machine: run `assay build --repeat N` on one and bundle the result",
            result.document(),
        )
    slower = [
        f"{entry.name}: {why}"
        for entry in result.rebuilt
        for why in entry.slower
        if entry.same_kind
    ]
    if slower:
        raise NotMetError(
            f"slower than the acceptance region: {'; '.join(slower)}",
            "see what else runs on this machine, and repeat the command",
            result.document(),
        )


def _show(entry: Rebuilt) -> None:
    from pipeline.report import repeated

    where = f"{entry.name} in {entry.precision}"
    regions = {} if entry.region is None else {"accepted": entry.region}
    repeated.table(f"{where}, built on this machine", {"rebuilt": entry.build}, regions)
    if entry.same_file:
        console.result(f"{where}: the same bytes as in the bundle")
    if entry.verdict.status == "not run":
        console.result(f"{where}: built, not run")
    elif entry.region is None:
        console.result(
            f"{where}: judged by the verdict alone; the bundle has no acceptance region, which"
            " `assay build --repeat N` makes"
        )
    for why in entry.outside:
        console.result(f"{where}: outside of the acceptance region: {why}")
    kind = "" if entry.same_kind else ", measured on another kind of machine, so not judged"
    for why in entry.slower:
        console.result(f"{where}: slower than the acceptance region{kind}: {why}")
