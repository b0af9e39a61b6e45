"""The command line, built from the stages; the only place that prints errors.

Importing this module loads no third-party library but click, so that `assay --help` is instant.
"""

from __future__ import annotations

import codecs
import dataclasses
import errno
import io
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from engines import cache, telemetry
from engines.errors import DeployError, UsageError, suggestion
from exporters import DEFAULT_PRECISION
from pipeline import __version__
from pipeline.cli import (
    bundles,
    card,
    commands,
    decisions,
    graph_commands,
    history,
    loadgen,
    precisions,
    registry,
    serve,
    signing,
    stage_runs,
    triton,
    watch,
)
from pipeline.cli.flags import forcing, limiting, make_store, storing
from pipeline.cli.options import SectionedCommand, click_parameter
from pipeline.workflow import chain, console, hints, signals
from pipeline.workflow.artifacts import BUNDLE
from pipeline.workflow.digests import read_json
from pipeline.workflow.records import RecordVerifier
from pipeline.workflow.runner import Outcome, Store
from pipeline.workflow.stage import Option, options

INTERRUPTED = 130  # by SIGINT; see `signals.Interrupted`
# What writing to the output raises if it is closed, full or gone.
_PRINTING = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF)


class Group(click.Group):
    """A group that suggests the nearest command if one is unknown."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            known = self.list_commands(ctx)
            raise UsageError(f"unknown command {args[0]!r}", suggestion(args[0], known))
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the chain; click would sort them


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="assay")
def cli() -> None:
    """Export, verify, build and bundle a PyTorch model for deployment.

    Each stage is a command, and runs only if something it depends on has changed. `assay run`
    runs those from data to bundle.
    """


# What options do once their stage has run: `OptionRole.after`.
_AFTER: dict[str, Callable[[Outcome, Store, Any], dict[str, Any]]] = {
    "compare": lambda outcome, store, _flag: history.compare(outcome, store),
    "sign": signing.sign_outcome,
}


def _document(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    documents = []
    for outcome in outcomes:
        files = [outcome.outputs.locate(artifact) for artifact in outcome.outputs.declared]
        files = [path for path in files if path.exists()]
        results = {path.stem: read_json(path) for path in files if path.suffix == ".json"}
        names = sorted(map(str, files))
        documents.append({**outcome.document(), "files": names, "results": results})
    return documents


def _add_stage(name: str) -> None:
    stage = chain.stage(name)
    own = () if stage.command_options is None else options(stage.command_options)
    quantized = [option.name for option in options(stage.params) if option.role.quantized]

    @forcing
    @storing
    def command(**values: Any) -> None:
        store = make_store(values)
        arguments = {key: value for key, value in values.items() if value is not None}
        extra = {
            option.name: arguments.pop(option.name) for option in own if option.name in arguments
        }
        for option in own:
            needs = option.role.requires
            if option.name in extra and needs and not set(needs) & extra.keys():
                raise UsageError(f"{option.flag} without --{needs[0]}", option.role.requires_hint)
        if any(option.role.again and extra.get(option.name) for option in own):
            store = dataclasses.replace(store, force=True)
        instead = [option for option in own if option.role.action and option.name in extra]
        if instead and len(set(arguments.get("precision", []))) > 1:
            flag = instead[-1].flag
            raise UsageError(f"{flag} takes one precision", "run it once for each --precision")

        def one(arguments: dict[str, Any]) -> dict[str, Any]:
            if instead:
                action = getattr(stage_runs, instead[-1].role.action)
                results: dict[str, Any] = action(arguments, store, **extra)
                return results
            outcomes = stage_runs.run_command(name, arguments, store, extra)
            if not all(outcome.skipped for outcome in outcomes):
                _say_if_bundle_is_outdated(outcomes[-1].params, store)
            document: dict[str, Any] = {"outcomes": _document(outcomes)}
            for option in own:
                if option.role.after and extra.get(option.name):
                    after = _AFTER[option.role.after]
                    document[option.name] = after(outcomes[-1], store, extra[option.name])
            return document

        console.document(precisions.each(one, arguments, quantized))

    parameters = [click_parameter(option) for option in (*options(stage.params), *own)]
    if stage.opens_engines:
        command = limiting(command)
    decorated = click.command(name, help=stage.help)(command)
    decorated.params = parameters + decorated.params
    cli.add_command(decorated)


def _say_if_bundle_is_outdated(params: dict[str, Any], store: Store) -> None:
    if not {"model", "precision"} <= params.keys():
        return
    bundle = BUNDLE.at(model=params["model"], precision=params["precision"])
    if not (store.dist / bundle.path).exists():
        return
    try:
        with hints.completed(store.place):
            RecordVerifier(store.root).check_fresh(bundle)
    except DeployError as error:
        if bundle.label in error.message:  # otherwise other stages have to run first
            console.say(f"{error.message}; {error.hint}")


def _default(option: Option) -> Any:
    """Returns the default of an option; of a list of one item, the item."""
    alone = option.many and option.default and len(option.default) == 1
    return option.default[0] if alone else option.default


def _add_run() -> None:
    union: dict[str, Option] = {}
    stages: dict[str, list[str]] = {}
    differing = set()  # options whose default depends on the stage
    for name in chain.RUN:
        for option in options(chain.stage(name).params):
            if option.role.in_run:
                stages.setdefault(option.name, []).append(name)
                if _default(union.get(option.name, option)) != _default(option):
                    differing.add(option.name)
                if option.role.shown_by_run or option.name not in union:
                    union[option.name] = option
    quantized = [name for name, option in union.items() if option.role.quantized]
    ordered = sorted(union.values(), key=lambda option: not option.required)

    @forcing
    @storing
    def run(**values: Any) -> None:
        from pipeline.report import summary

        store = make_store(values)

        def one(arguments: dict[str, Any]) -> dict[str, Any]:
            outcomes, failure = stage_runs.run_all(arguments, store)
            skipped = sum(outcome.skipped for outcome in outcomes)
            console.say(f"{len(outcomes)} stages, {skipped} skipped")
            results = summary.collect(
                arguments["model"], arguments.get("precision", DEFAULT_PRECISION), store
            )
            summary.show(results)
            document = {"outcomes": _document(outcomes), "summary": results.document()}
            if failure is not None:
                failure.details = document
                raise failure
            return document

        arguments = {key: value for key, value in values.items() if value is not None}
        console.document(precisions.each(one, arguments, quantized))

    text = "Run the whole chain: data, train, export, verify, build, bench, bundle."
    decorated = click.command("run", SectionedCommand, help=text)(limiting(run))
    decorated.params = [
        click_parameter(
            option,
            with_default=option.name not in differing,
            stages=stages[option.name] if len(stages[option.name]) > 1 else (),
        )
        for option in ordered
    ] + decorated.params
    alone = {name: users[0] for name, users in stages.items() if len(users) == 1}
    sections = {"Several stages": [name for name in stages if name not in alone]}
    for stage in chain.RUN:
        sections[stage.capitalize()] = [name for name, user in alone.items() if user == stage]
    decorated.sections = sections
    cli.add_command(decorated)


for _name in chain.STAGES:
    _add_stage(_name)
_add_run()


_others = (
    *bundles.COMMANDS,
    *card.COMMANDS,
    *signing.COMMANDS,
    *registry.COMMANDS,
    *decisions.COMMANDS,
    *graph_commands.COMMANDS,
    *triton.COMMANDS,
    *serve.COMMANDS,
    *watch.COMMANDS,
    loadgen.COMMAND,
)
for _command in (*commands.COMMANDS, *_others):
    cli.add_command(_command)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        signals.install()
        return _run(words)
    except (KeyboardInterrupt, click.Abort) as error:  # click raises the second from the first
        cause = error if isinstance(error, KeyboardInterrupt) else error.__cause__
        code = cause.exit_code if isinstance(cause, signals.Interrupted) else INTERRUPTED
        _fail("interrupted", "", code)
        return code


def _run(words: list[str]) -> int:
    telemetry.disable()
    cache.set_torch_cache()  # before any use of torch, which would set it to a shared folder
    if not _prepare_output():
        return 1
    # Set before the words are parsed, for errors in parsing them.
    console.settings.json, console.settings.quiet = "--json" in words, False
    try:
        _check_words(words)
        with signals.not_swallowed():
            cli.main(words, prog_name="assay", standalone_mode=False)
    except click.Abort:  # what click makes of an interruption
        raise
    except Exception as error:
        return _explain(error)
    return 0


def _explain(error: Exception) -> int:
    """Prints an error and returns its exit code."""
    if isinstance(error, DeployError):
        _report(error)
        return error.exit_code
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx is not None else "assay"
        _fail(error.format_message(), f"see `{where} --help`", error.exit_code)
        return error.exit_code
    if isinstance(error, OSError):  # stages raise DeployError instead
        if error.filename is None and error.errno in _PRINTING:
            console.error(f"cannot print: {error}")
        else:
            hint = "check permissions and free space, and TMPDIR"
            _fail(f"cannot read or write: {error}", hint, 1)
        return 1
    if isinstance(error, MemoryError):
        _fail("out of memory", "use a smaller batch, or a machine with more memory", 1)
        return 1
    # A bug of ours.
    traceback.print_exception(error)
    _fail(f"this is a bug in assay: {error!r}", "please report it with the lines above", 1)
    return 1


# What ASCII has instead of the characters that tables and messages use most.
_PLAIN = {"µ": "u", "\N{MULTIPLICATION SIGN}": "x", "…": "...", "─": "-"}


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replaces what the encoding of the output lacks, instead of an error."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    escaped = character.encode("unicode_escape").decode()
    return _PLAIN.get(character, escaped), error.start + 1


codecs.register_error("assay", _replace)


def _prepare_output() -> bool:
    """Makes all texts printable; returns False if the output is closed."""
    for descriptor in range(3):  # otherwise files that are opened later would get these numbers
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:  # closed: print would take stdout instead
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - to the end
    if sys.stdout is None:
        console.error(
            "cannot print: the standard output is closed",
            "redirect it to /dev/null to discard the results",
        )
        return False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="assay")
    return True


def _check_words(words: list[str]) -> None:
    """Raises UsageError if an argument cannot be written to records, which are UTF-8."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the argument {os.fsencode(word)!r} is not valid UTF-8",
                "rename the file or folder that it names",
            ) from error


def _fail(message: str, hint: str, exit_code: int) -> None:
    error = DeployError(message, hint)
    error.exit_code = exit_code
    _report(error)


def _report(error: DeployError) -> None:
    console.error(error.message, error.hint)
    console.document({"error": error.document(), **error.details})
