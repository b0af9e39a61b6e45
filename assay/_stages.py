"""The stages as functions that return results instead of printing tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from assay._results import Bench, Build, Bundle, Export, Run, Sweep, Training, Verification
from engines import cache
from engines.errors import UsageError, suggestion
from pipeline import models
from pipeline.cli import stage_runs
from pipeline.cli.options import ALL, check_words, is_list
from pipeline.workflow import artifacts, console, leftovers
from pipeline.workflow.chain import RUN, stage
from pipeline.workflow.digests import read_json
from pipeline.workflow.runner import Outcome, Store
from pipeline.workflow.stage import Option, options

PathLike = str | os.PathLike[str]
Progress = Callable[[str], None]


def data(
    name: str | None = None,
    *,
    root: PathLike = artifacts.ROOT,
    progress: Progress | None = None,
    **more: Any,
) -> None:
    """Gets a data set by its name, or makes one from a folder of images.

    Args:
        name: Name of a data set, or path of a folder of images.
        root: Folder of the artifacts.
        progress: Called with each progress line.
        more: The options of `assay data`, by name with underscores.

    Raises:
        DeployError: The data set could not be obtained, or a file or image is damaged.
    """
    if name is not None:
        more["data"] = name
    _stage("data", more, root, artifacts.DIST, progress)


def train(
    model: str,
    *,
    root: PathLike = artifacts.ROOT,
    progress: Progress | None = None,
    **more: Any,
) -> Training:
    """Trains a model, or takes its weights from a file.

    Args:
        model: A model's name, `package.module:factory` or `path/to/file.py:factory`.
        root: Folder of the artifacts.
        progress: Called with each progress line.
        more: The options of `assay train`, by name with underscores.

    Raises:
        UsageError: An option or a name is unknown, or a value is out of range.
        DeployError: The training failed.
    """
    (outcome,) = _stage("train", {**more, "model": model}, root, artifacts.DIST, progress)
    return _training(outcome)


def export(
    model: str,
    *,
    root: PathLike = artifacts.ROOT,
    progress: Progress | None = None,
    **more: Any,
) -> Export:
    """Exports a model to ONNX, with the golden file to verify it with.

    Takes the arguments of `train`, with the options of `assay export`, `weights` included.
    """
    with console.redirected(progress):
        command = stage("export").command_options
        own = () if command is None else options(command)
        arguments = _parse_options(("export",), {**more, "model": model}, own)
        extra = {
            option.name: arguments.pop(option.name) for option in own if option.name in arguments
        }
        store = store_in(root, artifacts.DIST)
        outcomes = stage_runs.run_command("export", arguments, store, extra)
    return _export(outcomes[-1])


def verify(
    model: str,
    *,
    engine: str | Iterable[str] = "graph",
    root: PathLike = artifacts.ROOT,
    progress: Progress | None = None,
    **more: Any,
) -> Verification:
    """Verifies that the graph, or built engines, equal the PyTorch model.

    Args:
        engine: "graph", names of engines, or "all" that are built.
        more: The options of `assay verify`, by name with underscores.

    Raises:
        ParityError: A verdict is "mismatch" or "vacuous".
        NotAvailableError: A named engine does not run on this machine.
    """
    arguments = {**more, "model": model, "engine": engine}
    return _verification(_stage("verify", arguments, root, artifacts.DIST, progress))


def build(
    model: str,
    *,
    engine: str | Iterable[str] = "all",
    root: PathLike = artifacts.ROOT,
    progress: Progress | None = None,
    **more: Any,
) -> Build:
    """Builds engines.

    Args:
        engine: Names of engines, or "all" that this machine can build.
        more: The options of `assay build`, by name with underscores.

    Raises:
        NotAvailableError: A named engine cannot be built on this machine.
    """
    arguments = {**more, "model": model, "engine": engine}
    return _build(_stage("build", arguments, root, artifacts.DIST, progress))


def bench(
    model: str,
    *,
    engine: str | Iterable[str] = "all",
    root: PathLike = artifacts.ROOT,
    progress: Progress | None = None,
    **more: Any,
) -> Bench:
    """Measures built engines side by side; takes the options of `assay bench`."""
    arguments = {**more, "model": model, "engine": engine}
    (outcome,) = _stage("bench", arguments, root, artifacts.DIST, progress)
    return _bench(outcome)


def sweep(
    model: str,
    *,
    engine: str | Iterable[str] = "all",
    root: PathLike = artifacts.ROOT,
    progress: Progress | None = None,
    **more: Any,
) -> Sweep:
    """Races every way to run a model; takes the options of `assay sweep`."""
    arguments = {**more, "model": model, "engine": engine}
    (outcome,) = _stage("sweep", arguments, root, artifacts.DIST, progress)
    path = outcome.outputs[artifacts.SWEEP]
    document = read_json(path)
    return Sweep(tuple(document["points"]), document["machine"], path)


def bundle(
    model: str,
    *,
    engine: str | Iterable[str] = "all",
    root: PathLike = artifacts.ROOT,
    dist: PathLike = artifacts.DIST,
    progress: Progress | None = None,
    **more: Any,
) -> Bundle:
    """Writes the bundle to the folder `dist`; takes the options of `assay bundle`."""
    arguments = {**more, "model": model, "engine": engine}
    (outcome,) = _stage("bundle", arguments, root, dist, progress)
    return Bundle(outcome.outputs[artifacts.BUNDLE], outcome.skipped)


def run(
    model: str,
    *,
    engine: str | Iterable[str] = "all",
    root: PathLike = artifacts.ROOT,
    dist: PathLike = artifacts.DIST,
    progress: Progress | None = None,
    **more: Any,
) -> Run:
    """Runs the whole chain; stages for which nothing has changed are skipped.

    Takes the options of `assay run`. Leaves out engines that this machine cannot build, unless
    they are named.

    Raises:
        ParityError: An engine is not proved; the others are measured and bundled.
        CrashedError: An engine's library ended its process; likewise.
    """
    with console.redirected(progress):
        arguments = _parse_options(RUN, {**more, "model": model, "engine": engine})
        outcomes, failure = stage_runs.run_all(arguments, store_in(root, dist))
    if failure is not None:
        raise failure
    by_stage: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_stage.setdefault(outcome.stage, []).append(outcome)
    measured = by_stage.get("bench")
    return Run(
        training=_training(by_stage["train"][-1]),
        export=_export(by_stage["export"][-1]),
        build=_build(by_stage["build"]),
        verification=_verification(by_stage["verify"]),
        bench=_bench(measured[-1]) if measured else None,
        bundle=by_stage["bundle"][-1].outputs[artifacts.BUNDLE],
    )


def store_in(root: PathLike, dist: PathLike) -> Store:
    """Returns the store in two folders, without what killed processes left in them."""
    for name, folder in (("root", root), ("dist", dist)):
        if not isinstance(folder, str | os.PathLike):
            raise UsageError(f"{name} {folder!r} is not a path", "give the path of a folder")
    cache.set_torch_cache()  # before any use of torch, which would set it to a shared folder
    leftovers.sweep(Path(root), Path(dist))
    return Store(Path(root), Path(dist))


def _stage(
    name: str, arguments: dict[str, Any], root: PathLike, dist: PathLike, progress: Progress | None
) -> list[Outcome]:
    with console.redirected(progress):
        return stage_runs.run_stage(name, _parse_options((name,), arguments), store_in(root, dist))


def _parse_options(
    stages: Iterable[str], asked: dict[str, Any], own: Iterable[Option] = ()
) -> dict[str, Any]:
    """Returns options in the form of `stage_runs.run_stage`: lists as tuples, engines as a list.

    Args:
        own: Options that only the command has.

    Raises:
        UsageError: None of the stages has an option of that name, or a value is not valid.
    """
    known: dict[str, Option] = {}
    for option in (option for name in stages for option in options(stage(name).params)):
        # One precision runs through stages of which the last one takes several.
        if option.name not in known or is_list(known[option.name]):
            known[option.name] = option
    known |= {option.name: option for option in own}
    arguments: dict[str, Any] = {}
    for name, value in asked.items():
        if name not in known:
            raise UsageError(f"unknown option {name!r}", suggestion(name, sorted(known)))
        option = known[name]
        several = is_list(option)
        values = [_typed(option, word) for word in _words(option, value, several=several)]
        check_words(option, values, name)
        if option.role.expand_all is not None:
            if ALL in values and len(values) > 1:
                raise UsageError(f"{name} {value} mixes {ALL} and names", f"give {ALL} or names")
            arguments[name] = values
        elif several:
            arguments[name] = tuple(values)
        else:
            arguments[name] = models.relative(values[0]) if name == "model" else values[0]
    return arguments


def _words(option: Option, value: Any, *, several: bool) -> list[Any]:
    """Returns an option's values as a list, of one item for a single value."""
    if isinstance(value, list | tuple | range | set):
        if several:
            return list(value)
        raise UsageError(f"{option.name} {value!r} is a list", "give one value")
    if value is None and several:
        raise UsageError(f"{option.name} is None", "leave it out, or give at least one")
    return [value]


def _typed(option: Option, value: Any) -> Any:
    """Returns a value in the option's type.

    Raises:
        UsageError: The value has another type.
    """
    if value is None and not option.required and option.default is None:
        return None
    if option.type is Path and isinstance(value, str | os.PathLike):
        return Path(value)
    if option.name == "model" and isinstance(value, os.PathLike):
        return os.fspath(value)
    if option.type is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    is_number = option.type in (int, float)
    if not isinstance(value, option.type) or (is_number and isinstance(value, bool)):
        raise UsageError(
            f"{option.name} {value!r} is of type {type(value).__name__}",
            f"give a value of type {option.type.__name__}",
        )
    return value


def _training(outcome: Outcome) -> Training:
    record = read_json(outcome.outputs[artifacts.TRAINING])
    return Training(
        outcome.outputs[artifacts.CHECKPOINT],
        record.get("test_accuracy"),
        record,
        outcome.skipped,
    )


def _export(outcome: Outcome) -> Export:
    program = outcome.outputs.locate(artifacts.PROGRAM.at(**outcome.params))
    return Export(
        graph=outcome.outputs[artifacts.GRAPH],
        program=program if program.exists() else None,
        golden=outcome.outputs[artifacts.GOLDEN],
        description=read_json(outcome.outputs[artifacts.DESCRIPTION]),
        skipped=outcome.skipped,
    )


def _build(outcomes: list[Outcome]) -> Build:
    import engines

    built = {outcome.params["engine"]: outcome.outputs[artifacts.ENGINE] for outcome in outcomes}
    states = {name: engines.get(name).available() for name in engines.names() if name not in built}
    missing = {name: state.reason for name, state in states.items() if not state.build}
    return Build(built, missing)


def _verification(outcomes: list[Outcome]) -> Verification:
    from pipeline.verification.verdict import from_json

    paths = [
        outcome.outputs.locate(artifact)
        for outcome in outcomes
        for artifact in outcome.outputs.declared
    ]
    return Verification(tuple(from_json(read_json(path)) for path in paths))


def _bench(outcome: Outcome) -> Bench:
    path = outcome.outputs[artifacts.MEASUREMENTS]
    document = read_json(path)
    return Bench(tuple(document["results"]), document["machine"], path)
