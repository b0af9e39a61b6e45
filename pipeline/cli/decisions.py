"""The commands that decide by measurements: `choose` and `compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines import temporary
from engines.errors import FailedError, NotMetError, UsageError
from pipeline.cli import side_by_side, signing
from pipeline.cli.commands import ask
from pipeline.cli.flags import Number, limit, limiting, make_store, print_as, printing, storing
from pipeline.report.units import times_as_long
from pipeline.stages import check_threads
from pipeline.workflow import console

if TYPE_CHECKING:
    from pipeline.bundling.checking import Model
    from pipeline.bundling.signature import Trusted

_path = click.Path(path_type=Path)


@click.command()
@click.argument("model")
@click.option("--p99", metavar="TIME", help="Time that 99 of 100 inferences may take, as in 5ms.")
@click.option("--latency", metavar="TIME", help="Time that the median inference may take.")
@click.option(
    "--min-throughput",
    type=Number(min=0, min_open=True),
    help="Images or rows per second.",
)
@click.option(
    "--max-drop",
    type=Number(0, 100),
    help="Percentage points of accuracy that may be lost.",
)
@click.option("--memory", metavar="SIZE", help="Memory its process may take, as in 500MB.")
@storing
def choose(
    model: str,
    p99: str | None,
    latency: str | None,
    min_throughput: float | None,
    max_drop: float | None,
    memory: str | None,
    **values: Any,
) -> None:
    """Name the engine, precision and batch that keep bounds; exit 5 if none does.

    Chooses among the engines of all precisions that are proved and that `assay bench` or `assay
    sweep` has measured.
    With a bound on a time, it names the one of the highest throughput; else the quickest.
    """
    from pipeline.report.page import bounds_table
    from pipeline.report.page.bounds import Bounds
    from pipeline.report.page.decision import decide

    store = make_store(values)
    bounds = Bounds.of(p99, latency, min_throughput, max_drop, memory)
    if bounds == Bounds():
        raise UsageError(
            "choose needs a bound",
            "give --p99, --latency, --min-throughput, --max-drop or --memory",
        )
    decision = decide(model, bounds, store)
    for gap in decision.gaps:
        console.say(f"left out: {gap.problem}; {gap.hint}")
    bounds_table.show(decision.compared, decision.best, decision.perhaps, bounds)
    if decision.doubt:
        console.result(decision.doubt)
    decision.require()
    console.document(decision.document())


def _sizes(_context: click.Context, _option: click.Parameter, text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isdecimal() and 1 <= int(word) <= 65536 for word in words):  # noqa: PLR2004
        raise UsageError(f"--batch {text}: not batch sizes", "give numbers from 1, as in 1,8,64")
    return tuple(dict.fromkeys(map(int, words)))


@click.command()
@click.argument("first", metavar="A", type=_path)
@click.argument("second", metavar="B", type=_path)
@click.option("--batch", default="1", show_default=True, callback=_sizes, help="Batch sizes.")
@click.option("--engine", metavar="NAME", help="The engine to time [all that both have].")
@click.option("--precision", metavar="NAME", help="The precision to time [a bundle's first].")
@click.option(
    "--tolerance",
    type=Number(0, 1000),
    default=2.0,
    show_default=True,
    help="Percent that B may be slower.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads [all available].")
@click.option(
    "--budget",
    type=Number(min=0, min_open=True, max=86400),
    default=8.0,
    show_default=True,
    help="Seconds for each batch size.",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the order in rounds.")
@click.option("--trust", is_flag=True, help="Open engines without asking (for scripts).")
@signing.verifying
@limiting
@printing
def compare(
    first: Path,
    second: Path,
    batch: tuple[int, ...],
    engine: str | None,
    precision: str | None,
    tolerance: float,
    device: str,
    threads: int | None,
    budget: float,
    seed: int,
    trust: bool,
    **values: Any,
) -> None:
    """Time bundle B beside bundle A; exit 5 if B is slower.

    Each may also be a built engine in a folder of artifacts, such as
    artifacts/lenet/fp32/openvino/engine.zip. Engines are proved on this machine first. A and B run
    in turns, many times a second, so that what else happens on the machine affects both.
    """
    from engines.hardware import available_cpus
    from pipeline.bundling import opening
    from pipeline.report import bench as report

    print_as(values)
    limit(values)
    check_threads(threads)
    count, signer = threads or available_cpus(), signing.trusted(values)
    with ExitStack() as stack:
        folders = [stack.enter_context(temporary.folder()).resolve() for _ in range(2)]
        models: list[Model] = []
        manifests: list[Mapping[str, Any]] = []
        for path, folder in zip((first, second), folders, strict=True):
            # B at the precision of A, if it has it and none is asked for.
            alike = models[0].precision if models and precision is None else None
            model, manifest = _unpack(path, folder, precision, trust, signer, alike)
            models.append(model)
            manifests.append(manifest)
        if models[0].precision != models[1].precision:
            console.result(f"A is {models[0].precision}, and B is {models[1].precision}")
        shared = {*models[0].engines} & {*models[1].engines}
        proved = [opening.proved(model, engine, device, count, among=shared) for model in models]
        common = [name for name in proved[0] if name in proved[1]]
        results: list[dict[str, Any]] = []
        devices: dict[str, str] = {}
        # Only bundles without a common engine are compared by the fastest of each.
        choices = [([name], [name]) for name in common] or [(proved[0], proved[1])]
        for names in choices:
            pair, used = side_by_side.apart(
                side_by_side.Pair(models, names, batch, device, count, budget / len(choices), seed)
            )
            report.show({"baseline": next(iter(used)), "devices": used, "results": pair})
            devices |= used
            results += pair
    verdicts = _verdicts(results, tolerance)
    for verdict in verdicts:
        console.result(verdict["sentence"])
    document = {
        "bundles": {"A": str(first), "B": str(second)},
        "manifests": manifests,
        "devices": devices,
        "tolerance": tolerance,
        "verdicts": verdicts,
        "results": results,
    }
    slower = [verdict for verdict in verdicts if verdict["status"] == "slower"]
    if slower:
        raise NotMetError(
            f"B is slower than A by more than {tolerance:g} %: "
            + ", ".join(f"{verdict['name']} at batch {verdict['batch']}" for verdict in slower),
            "a larger --tolerance accepts it",
            document,
        )
    if unknown := [verdict for verdict in verdicts if verdict["status"] == "busy"]:
        error = FailedError(
            "other processes slowed "
            + ", ".join(f"{verdict['name']} at batch {verdict['batch']}" for verdict in unknown)
            + " down, so that nothing is known of it",
            "compare again on a quieter machine, or with fewer --threads",
        )
        error.details = document
        raise error
    console.document(document)


def _unpack(
    path: Path,
    folder: Path,
    precision: str | None,
    trust: bool,
    signer: Trusted | None,
    preferred: str | None = None,
) -> tuple[Model, Mapping[str, Any]]:
    """Returns what is to be timed, and its manifest; asks first whether to open a bundle.

    Args:
        precision: The precision to time; None means the preferred or else the bundle's first.
        preferred: Taken if the bundle has it.
    """
    from pipeline.bundling import checking, opening

    if opening.is_engine_file(path):  # other commands open it without asking, too
        return opening.engine_file(path), {"engine": str(path)}
    unpacked = checking.unpack(path, folder, trusted=signer)
    model = unpacked.model(preferred if preferred in unpacked.models else precision)
    if not (trust or unpacked.signer):
        ask(path, checking.opened(folder, [(model, name) for name in model.subjects]))
    return model, unpacked.manifest


def _verdicts(results: Sequence[dict[str, Any]], tolerance: float) -> list[dict[str, Any]]:
    """Returns how much longer each engine of B takes end to end, at each batch size."""
    whole = [entry for entry in results if entry["boundary"] == "end to end"]
    slowed = {(entry["name"], entry["batch"]): entry["busy"] for entry in whole}
    return [
        _judged(entry, slowed[entry["baseline"], entry["batch"]], tolerance)
        for entry in whole
        if entry["name"] != entry["baseline"]
    ]


def _judged(entry: dict[str, Any], busy: bool, tolerance: float) -> dict[str, Any]:
    """Returns how much longer B takes at one batch size, and whether that is within the tolerance.

    Args:
        entry: Of B end to end, as `pipeline.benchmarking.comparison.compare` returns it.
        busy: Other processes slowed A down.
        tolerance: In percent.
    """
    longer, limit = times_as_long(entry["ratio"]), 1 + tolerance / 100
    if entry["busy"] or busy:
        status, words = "busy", "other processes slowed it down, so that nothing is known"
    elif longer["low"] > limit:
        status, words = "slower", f"more than the tolerance of {tolerance:g} %"
    elif longer["high"] < limit:
        status, words = "pass", f"within the tolerance of {tolerance:g} %"
    else:
        status = "pass"
        words = f"not known to be more than the tolerance of {tolerance:g} %; --budget narrows it"
    name = entry["name"].partition(" ")[2]
    sentence = (
        f"{name}, batch {entry['batch']}: B takes {longer['value']:.3f} times as long as A"
        f" ({longer['low']:.3f} to {longer['high']:.3f}): {words}"
    )
    return {
        "name": name,
        "batch": entry["batch"],
        "status": status,
        "longer": longer,
        "sentence": sentence,
    }


COMMANDS = (choose, compare)
