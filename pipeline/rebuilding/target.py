"""Building the engines of a bundle again on this machine, and judging them by its region."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines import temporary
from engines.checks import check_device
from engines.errors import DeployError, NotAvailableError, RefusedError
from pipeline.bundling import archive, checking, merging, signature
from pipeline.rebuilding import plans, spread
from pipeline.rebuilding import region as regions
from pipeline.rebuilding.plans import Planned
from pipeline.verification.verdict import Verdict, from_json
from pipeline.workflow import chain, console, runner
from pipeline.workflow.artifacts import (
    BUNDLE,
    DIST,
    ENGINE,
    ENGINE_VERDICT,
    GOLDEN,
)
from pipeline.workflow.digests import read_json, sha256_file


@dataclass(frozen=True)
class Rebuilt:
    """An engine that was built again on this machine.

    Attributes:
        name: The name of the engine of the bundle.
        verdict: On the new engine, by the bundle's golden file.
        build: Its figures.
        region: The acceptance region, if the bundle has one.
        outside: What of error and flips is outside of the region, in words.
        slower: Which latencies are, in words.
        same_kind: This machine is of the kind on which the region's latencies were measured.
        same_file: It has the same bytes as the engine in the bundle.
    """

    name: str
    precision: str
    verdict: Verdict
    build: regions.Build
    region: regions.Region | None
    outside: list[str]
    slower: list[str]
    same_kind: bool
    same_file: bool


@dataclass(frozen=True)
class Result:
    """What was built again of a bundle.

    Attributes:
        manifest: The bundle's manifest.
        links: Number of links that were checked in the chain of digests.
        signer: Who signed the bundle, in words; "" if no signature was to be verified.
        rebuilt: The engines.
    """

    manifest: dict[str, Any]
    links: int
    signer: str
    rebuilt: list[Rebuilt]

    def document(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return dataclasses.asdict(self)


def rebuild(
    bundle: Path,
    device: str,
    threads: int,
    *,
    engine: str | None = None,
    precision: str | None = None,
    max_bytes: int = archive.MAX_BYTES,
    trusted: signature.Trusted | None = None,
    consent: Callable[[Sequence[str]], None] = lambda _lines: None,
    judge: Callable[[Result], None] = lambda _result: None,
    out: Path | None = None,
) -> Result:
    """Builds engines of a bundle on this machine, from its graph and with the recorded options.

    Args:
        device: Where the new engines are proved: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads of one inference.
        engine: The only engine to build, or its backend; by default all that this machine can
            build. Of several for one backend, only one is built: rather that of a machine as this
            one.
        precision: The only precision.
        max_bytes: Bytes that all members together may take.
        trusted: Whose signature the bundle must have; it replaces the consent.
        consent: Called before anything is built, with a line for each engine that will be; an
            exception ends it.
        judge: Called with the result before `out` is written; an exception ends it.
        out: A bundle to write, which has the new engines, too. It must not exist.

    Raises:
        DeployError: The bundle is damaged or its chain is broken.
        UsageError: The bundle does not have the engine or the precision, the device is unknown, or
            `out` exists when it is to be put in its place.
        NotAvailableError: This machine can build none of the engines.
        CrashedError: A library ended the process that built an engine.
    """
    check_device(device)
    # Resolved, as engines do before they name a file.
    with temporary.folder() as folder:
        root = folder.resolve()
        unpacked = checking.unpack(bundle, root, max_bytes, trusted)
        models = [*unpacked.models.values()] if precision is None else [unpacked.model(precision)]
        wanted = checking.engines_named(models, engine)
        with checking.naming(bundle, root):
            planned = plans.plans(root, unpacked.manifest, models, wanted, threads)
        if not unpacked.signer:
            consent([plans.line(plan, root) for plan in planned])
        rebuilt, built = [], []
        refused: list[DeployError] = []
        with checking.naming(bundle, root):
            for plan in planned:
                try:
                    rebuilt.append(_rebuild(plan, device, threads))
                except (NotAvailableError, RefusedError) as error:
                    console.say(f"without {plan.name} in {plan.precision}: {error.message}")
                    refused.append(error)
                else:
                    built.append(plan)
            if not rebuilt:
                raise plans.none_built(refused)
        rebuilt = [_named(entry, bundle, root) for entry in rebuilt]
        result = Result(unpacked.manifest, unpacked.links, unpacked.signer, rebuilt)
        judge(result)
        if out is not None:
            _write(bundle, built, out, max_bytes, trusted)
    return result


def _rebuild(plan: Planned, device: str, threads: int) -> Rebuilt:
    """Builds an engine in the place of the bundle's, proves it, and measures it.

    The stages do it, in the folder of the unpacked bundle, so that their records are the new links
    of its chain.
    """
    path = plan.at(ENGINE)
    before = sha256_file(path)
    # Else the stages would find that nothing has changed.
    for artifact in (ENGINE, ENGINE_VERDICT):
        (plan.root / artifact.at(**plan.fields).record).unlink(missing_ok=True)
    store = runner.Store(plan.root, plan.root / DIST)
    with spread.fresh_caches():
        outcome = runner.run(chain.stage(ENGINE.stage), plan.params, store)
        verify = chain.stage(ENGINE_VERDICT.stage)
        # It is judged by the golden file alone: a target does not have the test set.
        alone = dataclasses.replace(verify, resolve=lambda params: params)
        asked = verify.params(**plan.fields, data=None, threads=threads, device=device)
        runner.run(alone, asked, store)
        verdict = from_json(read_json(plan.at(ENGINE_VERDICT)))
        low, high = outcome.params["batch_min"], outcome.params["batch_max"]
        subject = spread.Subject(
            plan.params.engine,
            plan.at(GOLDEN),
            plan.precision,
            (low, high),
            device,
            threads,
        )
        build = regions.Build.of(
            path, outcome.record.seconds, verdict, spread.latencies(path, verdict, subject)
        )
        region = plan.region if verdict.status == "pass" else None
        if region is not None and region.slower(build):
            # What slowed it down may be over; an engine that is slow is so again.
            again = spread.latencies(path, verdict, subject)
            build = dataclasses.replace(build, latency=regions.quicker(build.latency, again))
    return Rebuilt(
        plan.name,
        plan.precision,
        dataclasses.replace(verdict, subject=plan.name),
        build,
        plan.region,
        region.outside(build) if region is not None else [],
        region.slower(build) if region is not None else [],
        plan.at_home(verdict.facts.get("device", ""), threads),
        build.sha256 == before,
    )


def _named(rebuilt: Rebuilt, bundle: Path, root: Path) -> Rebuilt:
    """Returns the result with a reason that names members of the bundle."""
    reason = checking.renamed(rebuilt.verdict.reason, bundle, root)
    return dataclasses.replace(
        rebuilt,
        verdict=dataclasses.replace(rebuilt.verdict, reason=reason),
        build=dataclasses.replace(rebuilt.build, reason=reason),
    )


def _write(
    bundle: Path,
    built: Sequence[Planned],
    out: Path,
    max_bytes: int,
    trusted: signature.Trusted | None,
) -> None:
    """Writes a bundle of the new engines alone, and merges it with the other one."""
    stage = chain.stage(BUNDLE.stage)
    parts = []
    with temporary.folder() as folder:
        for number, root in enumerate(dict.fromkeys(plan.root for plan in built)):
            ours = [plan for plan in built if plan.root == root]
            params = stage.params(
                model=ours[0].params.model,
                precision=tuple(dict.fromkeys(plan.precision for plan in ours)),
                engine=tuple(dict.fromkeys(plan.params.engine for plan in ours)),
                measurements=False,
            )
            paths = {plan.at(ENGINE) for plan in ours}
            for precision, engine in itertools.product(params.precision, params.engine):
                fields = {"model": params.model, "precision": precision, "engine": engine}
                path = root / ENGINE.at(**fields).path
                if path not in paths:  # an old one that was not built again
                    shutil.rmtree(path.parent, ignore_errors=True)
            outcome = runner.run(stage, params, runner.Store(root, folder / str(number)))
            parts.append(outcome.outputs[BUNDLE])
        signers = {} if trusted is None else {bundle: trusted}
        merging.merge([bundle, *parts], out, max_bytes, trusted=signers, keep_equal=True)
