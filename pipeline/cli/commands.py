"""The commands that are not stages: they print and record nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import exporters
from engines.errors import DeployError, NotAvailableError, UsageError, suggestion
from pipeline.cli import rebuild, signing, wire
from pipeline.cli.flags import limit, limiting, make_store, print_as, printing, sized, storing
from pipeline.workflow import console

if TYPE_CHECKING:
    from pipeline.bundling.checking import Unpacked


@click.command()
@click.argument("model")
@click.option(
    "--precision",
    help=f"Precision of the graph [{exporters.DEFAULT_PRECISION}; of --html and --markdown: all"
    " that were exported].",
)
@click.option(
    "--html",
    "page",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write all results, with plots, to one HTML file that needs no other.",
)
@click.option(
    "--markdown",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help="Write a summary for a pull request to a file [standard output]. Goes after MODEL.",
)
@storing
def report(
    model: str, precision: str | None, page: Path | None, markdown: Path | None, **values: Any
) -> None:
    """Print a model's results: accuracy, verdicts, latency, bundle."""
    from pipeline import models
    from pipeline.report import summary

    store = make_store(values)
    models.check_name(model)
    if precision is not None and precision not in exporters.PRECISIONS:
        known = list(exporters.PRECISIONS)
        raise UsageError(f"unknown precision {precision!r}", suggestion(precision, known))
    if page is not None or markdown is not None:
        from pipeline.report.page import write

        if markdown == write.STDOUT and console.settings.json:
            raise UsageError(
                "--json and --markdown without a file both print on stdout", "give --markdown FILE"
            )
        write.write(model, [precision] if precision else [], store, page, markdown)
        if not console.settings.json:
            return
    results = summary.collect(model, precision or exporters.DEFAULT_PRECISION, store)
    if page is None and markdown is None:
        summary.show(results)
    console.document(results.document())


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--device", help="auto, cpu, cuda or cuda:N [auto].")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads [all available].")
@click.option("--engine", metavar="NAME", help="Judge this engine only, and the graphs [all].")
@click.option(
    "--precision",
    metavar="NAME",
    help="Judge this precision only [all; of a server: the bundle's first].",
)
@click.option(
    "--digests-only", is_flag=True, help="Check digests and records only; open no engine."
)
@click.option("--trust", is_flag=True, help="Open engines without asking (for scripts).")
@sized("the bundle may unpack to")
@rebuild.rebuilding
@signing.verifying
@wire.serving
@limiting
@printing
def check(
    bundle: Path,
    device: str | None,
    threads: int | None,
    engine: str | None,
    precision: str | None,
    digests_only: bool,
    trust: bool,
    max_bytes: int,
    **values: Any,
) -> None:
    """Prove a bundle on this machine: every digest, and every engine that can run.

    With --url, prove a server instead, by the bundle's golden file. With --rebuild, build the
    engines on this machine and prove those.
    """
    from engines.hardware import available_cpus
    from pipeline.bundling import checking
    from pipeline.report import verify as verdict_report
    from pipeline.verification.acceptance import require_pass

    print_as(values)
    limit(values)
    trusted = signing.trusted(values)

    def consent(lines: Sequence[str]) -> None:
        if not trust:
            ask(bundle, lines)

    again = rebuild.asked(values, digests_only=digests_only)
    if again:
        rebuild.check(
            bundle,
            device or "auto",
            threads or available_cpus(),
            again,
            engine=engine,
            precision=precision,
            max_bytes=max_bytes,
            trusted=trusted,
            consent=consent,
        )
        return
    of_this_machine = {
        "--digests-only": digests_only,
        "--engine": engine is not None,
        "--device": device is not None,
        "--threads": threads is not None,
    }
    if server := wire.server_of(values, of_this_machine):
        wire.check(bundle, server, precision, max_bytes, trusted)
        return
    checked = checking.check(
        bundle,
        device or "auto",
        threads or available_cpus(),
        engine=engine,
        precision=precision,
        digests_only=digests_only,
        max_bytes=max_bytes,
        trusted=trusted,
        consent=consent,
        further=_check_repositories,
    )
    signing.show_signer(bundle, checked.signer)
    members = len(checked.manifest["members"])
    console.result(f"{bundle}: {members} members and {checked.links} digests of the chain match")
    if digests_only:
        console.result(f"{bundle}: neither a graph nor an engine was opened")
    else:
        verdict_report.show(checked.verdicts)
    ran = [verdict for verdict in checked.verdicts if verdict.status != "not run"]
    require_pass(ran, str(checked.manifest["model"]))
    console.document(checked.document())


def _check_repositories(unpacked: Unpacked, root: Path) -> None:
    """Checks the Triton model repositories in a bundle, if the library for it is installed."""
    from pipeline.serving import in_bundle

    try:
        for line in in_bundle.check(unpacked, root):
            console.result(line)
    except NotAvailableError as error:
        console.say(f"Triton's model repository was not checked: {error.message}; {error.hint}")


def ask(bundle: Path, lines: Sequence[str]) -> None:
    """Asks whether to open what is in a bundle.

    Args:
        lines: What would open each file.

    Raises:
        UsageError: The command does not run in a terminal.
        DeployError: The answer is no.
    """
    unsigned = f"every digest of {bundle} matches, but that does not tell who made it"
    if not console.can_ask():
        raise UsageError(
            f"{unsigned}; opening it runs native code, and without a terminal nobody can be asked",
            "give --trust if you trust its source; `assay check --digests-only` opens nothing",
        )
    heading = f"{unsigned}. These files will be opened:"
    if not console.confirm([heading, *(f"  {line}" for line in lines)], "Do you trust its source?"):
        raise DeployError(
            f"nothing in {bundle} was opened", "`assay check --digests-only` does not ask"
        )


@click.command()
@click.argument("model")
@click.option("--depth", type=click.IntRange(1, 100), help="How deep to go [to the innermost].")
@click.option(
    "--inputs", type=click.Path(path_type=Path), help="Inputs of the model, from an .npz file."
)
@storing
def summary(model: str, depth: int | None, inputs: Path | None, **values: Any) -> None:
    """Print a model layer by layer: output shapes, parameters, multiply-adds."""
    from engines.checks import import_vendor
    from pipeline import models

    store = make_store(values)
    spec = models.get(model)
    torch = import_vendor("torch", "pip install torch torchvision")
    from pipeline.golden import rows
    from pipeline.report import layers
    from pipeline.training import data_fit

    torch.manual_seed(0)
    built = data_fit.as_trained(spec, store.root)
    examples = rows.without_test_set(built, None if inputs is None else rows.read(inputs)).inputs
    tensors = [torch.from_numpy(array[:1]) for array in examples.values()]
    table = layers.summarise(model, built, tensors, depth)
    layers.show(table)
    console.document(table.document())


@click.command("models")
@printing
def list_models(**values: Any) -> None:
    """List the models of the zoo."""
    from pipeline import models

    print_as(values)
    specs = [models.get(name) for name in models.names()]
    console.table(
        "Models",
        ("model", "image", "data set", ">epochs", ">learning rate", ">batch"),
        [
            (
                spec.name,
                "x".join(map(str, spec.image_shape or ())),
                spec.dataset or "",
                str(spec.recipe.epochs),
                f"{spec.recipe.lr:g}",
                str(spec.recipe.batch_size),
            )
            for spec in specs
        ],
    )
    console.document([spec.name for spec in specs])


@click.command()
@printing
def doctor(**values: Any) -> None:
    """Print what this machine has: Python, CPU, GPU, and every engine."""
    from pipeline.cli import doctor as machine_report

    print_as(values)
    machine = machine_report.examine()
    machine_report.show(machine)
    console.document(machine)


@click.command()
@click.argument("graph", type=click.Path(path_type=Path))
@click.option("--nodes", is_flag=True, help="List every node that computes.")
@printing
def inspect(graph: Path, nodes: bool, **values: Any) -> None:
    """Print an ONNX graph's signature, precisions, operators, parameters and metadata."""
    from pipeline.report import graph as graph_report

    print_as(values)
    description = graph_report.read(graph)
    graph_report.show(description, nodes=nodes)
    console.document(description)


@click.command()
@click.argument("model")
@click.option("--use", metavar="NAME", help="Make the weights of this run the model's again.")
@storing
def runs(model: str, use: str | None, **values: Any) -> None:
    """List the weights that were trained for a model, those that others replaced included."""
    from pipeline import models
    from pipeline.report import runs as runs_report
    from pipeline.workflow import runs as kept

    store = make_store(values)
    models.check_name(model)
    if use is not None:
        kept.use(store.root, model, use, store.wait)
    known = kept.of_model(store.root, model)
    runs_report.show(model, known)
    console.document([run.document() for run in known])


@click.command()
@click.argument("model")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@storing
def clean(model: str, dry_run: bool, **values: Any) -> None:
    """Remove the weights of a model that others replaced."""
    from pipeline import models
    from pipeline.report import runs as runs_report
    from pipeline.workflow import runs as kept

    store = make_store(values)
    models.check_name(model)
    removed = kept.remove(store.root, model, dry_run=dry_run)
    runs_report.show_removed(removed, dry_run=dry_run)
    console.document([run.document() for run in removed])


COMMANDS = (report, check, summary, inspect, list_models, runs, clean, doctor)
