"""The command that lets MLPerf's LoadGen ask proved engines."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines import hardware, temporary
from engines.errors import DeployError, FailedError, NotAvailableError, NotMetError, UsageError
from pipeline.cli import precisions
from pipeline.cli.flags import limiting, make_store, storing
from pipeline.cli.options import ALL, click_parameter
from pipeline.stages import (
    Subject,
    check_threads,
    check_time,
    engines_option,
    model_option,
    precision_option,
    proved_engines,
    require_built,
    threads_each,
)
from pipeline.workflow import chain, console, hints, runner, worker
from pipeline.workflow.artifacts import ENGINE, ENGINE_VERDICT, GOLDEN
from pipeline.workflow.digests import read_json
from pipeline.workflow.stage import option, options

if TYPE_CHECKING:
    from pipeline.verification.verdict import Verdict
    from pipeline.workflow.runner import Store

# Those of pipeline.benchmarking.loadgen, which imports numpy.
SCENARIOS = ("SingleStream", "MultiStream", "Offline", "Server")
PERFORMANCE, ACCURACY = "performance", "accuracy"


@dataclass(frozen=True)
class Params:
    """Options of the command."""

    model: str = model_option()
    precision: str = precision_option()
    engine: tuple[str, ...] = engines_option("ask")
    scenario: tuple[str, ...] = option(
        SCENARIOS, text="Scenarios of MLPerf.", names=lambda: [*SCENARIOS]
    )
    mode: str = option(
        PERFORMANCE,
        text="Measure, or have each golden row answered once and judge the outputs.",
        names=lambda: [PERFORMANCE, ACCURACY],
    )
    min_duration: float = option(
        5.0, text="Least seconds of each measurement; MLPerf's rules ask for 600.", high=86400
    )
    rate: float | None = option(
        None, text="Queries per second of Server [half of the throughput].", high=10**6
    )
    p99: str = option(
        "100ms", text="Time in which Server has to answer 99 of 100 queries.", validate=check_time
    )
    batch: int = option(8, text="Rows of one inference in Offline.", high=65536)
    concurrency: int = option(1, text="Sessions that serve Offline and Server.", high=1024)
    threads: int | None = option(
        None,
        text="CPU threads of one inference [the CPUs divided by the sessions].",
        high=1024,
        validate=check_threads,
    )
    device: str = option("auto", text="Where the engines run: auto, cpu, cuda or cuda:N.")
    log: Path | None = option(None, text="Folder in which LoadGen's own logs are kept.")
    seed: int = option(0, text="Seed of the order of rows and of the arrivals.", low=0)


@storing
def _command(**values: Any) -> None:
    from engines.checks import import_vendor
    from pipeline.benchmarking.loadgen import INSTALL

    store = make_store(values)
    arguments = {name: value for name, value in values.items() if value is not None}
    import_vendor("mlperf_loadgen", INSTALL)
    console.document(precisions.each(lambda one: _asked(Params(**one), store), arguments))


def _asked(params: Params, store: Store) -> dict[str, Any]:
    """Prints what LoadGen says of engines at one precision, and returns its JSON form.

    Raises:
        FailedError: An engine failed.
        NotMetError: LoadGen calls a result invalid.
        ParityError: The outputs of accuracy mode do not pass.
    """
    from pipeline.report import loadgen as report
    from pipeline.report import verify as verdict_report
    from pipeline.verification.acceptance import require_pass

    results: list[dict[str, Any]] = []
    verdicts: list[Verdict] = []
    failures: list[str] = []
    with hints.completed(store.place):
        subjects = _subjects(params, store)
    for subject, path, golden in subjects:
        for scenario in dict.fromkeys(params.scenario):
            console.say(f"{params.model} {params.precision} {subject.engine} {scenario}: running")
            try:
                result, verdict = _ask(subject, path, golden, scenario, params)
            except (NotAvailableError, UsageError):
                raise
            except DeployError as error:
                failures.append(f"{subject.engine} failed in {scenario}: {error.message}")
                break
            results.append(result)
            verdicts += [] if verdict is None else [verdict]
    document = {
        "loadgen": hardware.version("mlcommons-loadgen"),
        "results": results,
        "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts],
        "failures": failures,
    }
    if verdicts:
        verdict_report.show(
            [
                dataclasses.replace(verdict, subject=f"{verdict.subject} {result['scenario']}")
                for verdict, result in zip(verdicts, results, strict=True)
            ]
        )
    elif results:
        report.show(results)
    if failures:
        failed = FailedError("; ".join(failures), "name the other engines with --engine")
        failed.details = document
        raise failed
    require_pass(verdicts, params.model)
    if invalid := report.invalid(results):
        raise NotMetError(
            f"LoadGen calls {', '.join(invalid)} invalid",
            f"its reasons are above; {report.remedy(results)}",
            document,
        )
    return document


def _subjects(params: Params, store: Store) -> list[tuple[Subject, Path, Path]]:
    """Returns the proved engines to ask, each with its file and its golden file."""
    chosen = {"model": params.model, "precision": params.precision}
    names: Sequence[str] = params.engine
    if ALL in names:
        names = proved_engines(chosen, store.root)
    require_built(names, chosen)
    subjects = []
    for name in dict.fromkeys(names):
        fields = chain.stage("verify").params(**chosen, engine=name)
        subject = Subject.of(name, params.precision)
        verdict = read_json(runner.require(ENGINE_VERDICT, fields, store))
        subject.require_proof(verdict, params.model, params.device)
        path, golden = (runner.require(artifact, fields, store) for artifact in (ENGINE, GOLDEN))
        subjects.append((subject, path, golden))
    return subjects


def _ask(
    subject: Subject, path: Path, golden: Path, scenario: str, params: Params
) -> tuple[dict[str, Any], Verdict | None]:
    """Returns what LoadGen says of an engine in a scenario, and in accuracy mode the verdict."""
    name = f"{subject.engine}-{params.precision}-{scenario}-{params.mode}"
    with ExitStack() as stack:
        if params.log is None:
            folder = stack.enter_context(temporary.folder())
        else:
            folder = params.log / name
            folder.mkdir(parents=True, exist_ok=True)
        # Alone: PyTorch is 2.4 times as slow once two threads of a process have run it, since GNU
        # OpenMP then has more threads than there are CPUs, and lets none of them spin.
        return worker.call_alone(
            f"asking {subject.engine} with LoadGen",
            under_loadgen,
            subject,
            path,
            golden,
            scenario,
            params,
            folder,
        )


def under_loadgen(
    subject: Subject, path: Path, golden_path: Path, scenario: str, params: Params, folder: Path
) -> tuple[dict[str, Any], Verdict | None]:
    """Opens an engine in this process and runs one scenario; see `_ask`."""
    from pipeline.benchmarking import loadgen
    from pipeline.golden import file as goldens
    from pipeline.report import units
    from pipeline.verification.recorded import Recorded
    from pipeline.verification.verdict import judge

    golden = goldens.load(golden_path)
    settings = loadgen.Settings(
        scenario=scenario,
        accuracy=params.mode == ACCURACY,
        seconds=params.min_duration,
        rate=params.rate,
        p99=units.seconds(params.p99),
        batch=params.batch,
        seed=params.seed,
    )
    count = 1 if scenario in loadgen.STREAMS else params.concurrency
    threads = threads_each(params.threads, count)
    with ExitStack() as stack:
        opener = subject.opener(path, params.device)
        sessions = [stack.enter_context(closing(opener(threads))) for _ in range(count)]
        library = loadgen.Library(golden.inputs, batched=golden.batched)
        summary, outputs = loadgen.run(sessions, library, settings, folder)
        verdict = None
        if settings.accuracy:
            # LoadGen asks for the rows of the usual size.
            golden = dataclasses.replace(golden, others=())
            recorded = Recorded(sessions[0], golden, outputs)
            sizes = (len(golden.cases) if golden.batched else 1,)
            verdict = judge(subject.engine, recorded, golden, sizes=sizes)
        device = sessions[0].device
    result = {
        "engine": subject.engine,
        "scenario": scenario,
        "device": device,
        "sessions": count,
        "threads": threads,
        **dataclasses.asdict(summary),
    }
    return result, verdict


_HELP = "Measure proved engines with MLPerf's LoadGen, which judges its own runs."
COMMAND = click.command("loadgen", help=_HELP)(limiting(_command))
COMMAND.params = [click_parameter(declared) for declared in options(Params)] + COMMAND.params
