"""The stages as functions: what the command line calls, with results instead of tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from assay._results import Bench, Build, Bundle, Check, Export, Run, Training, Verification
from engines.errors import UsageError, suggestion
from pipeline import models
from pipeline.cli import stage_runs
from pipeline.cli.options import ALL, check_words, is_list
from pipeline.workflow import artifacts, console
from pipeline.workflow.chain import STAGES, stage
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
    """Gets a data set: one by its name, or a folder of images.

    Args:
        root: The folder below which artifacts lie.
        progress: Called with a line of text now and then.
        more: The options of `assay data`, by name with underscores.
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
    """Trains a model, or takes weights as they are.

    Args:
        model: A model's name, `package.module:factory` or `path/to/file.py:factory`.
        root: The folder below which artifacts lie.
        progress: Called with a line of text now and then.
        more: The options of `assay train`, by name with underscores.

    Raises:
        UsageError: An option or a name is not known, or a value is out of range.
        DeployError: The training failed; the message and the hint say how.
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
    """Exports a model to ONNX, with the golden file that proves it.

    Takes the arguments of `train`, and the options of `assay export`, `weights` included.
    """
    with console.redirected(progress):
        command = stage("export").command_options
        own = () if command is None else options(command)
        arguments = _given(("export",), {**more, "model": model}, own)
        extra = {
            option.name: arguments.pop(option.name) for option in own if option.name in arguments
        }
        outcomes = stage_runs.run_command("export", arguments, _store(root, artifacts.DIST), extra)
    return _export(outcomes[-1])


def verify(
    model: str,
    *,
    engine: str | Iterable[str] = "graph",
    root: PathLike = artifacts.ROOT,
    progress: Progress | None = None,
    **more: Any,
) -> Verification:
    """Proves the graph, or built engines, equal to the PyTorch model.

    Args:
        engine: "graph", engines by name, or "all" that are built.
        more: The options of `assay verify`, by name with underscores.

    Raises:
        ParityError: A verdict is a mismatch or proves nothing.
        NotAvailableError: An engine that was named does not run here.
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
        engine: Engines by name, or "all" that can be built here.
        more: The options of `assay build`, by name with underscores.

    Raises:
        NotAvailableError: An engine that was named cannot be built here.
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


def bundle(
    model: str,
    *,
    engine: str | Iterable[str] = "all",
    root: PathLike = artifacts.ROOT,
    dist: PathLike = artifacts.DIST,
    progress: Progress | None = None,
    **more: Any,
) -> Bundle:
    """Puts everything into one archive below `dist`; takes the options of `assay bundle`."""
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
    """Runs the whole chain; what has not changed is skipped.

    Takes the options of `assay run`. Engines that this machine lacks are left out, unless they
    are named.
    """
    with console.redirected(progress):
        arguments = _given(STAGES, {**more, "model": model, "engine": engine})
        outcomes = stage_runs.run_all(arguments, _store(root, dist))
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


def check(
    bundle: PathLike,
    *,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Check:
    """Proves a bundle on this machine: every digest, and every engine that runs here.

    Raises:
        DeployError: The bundle is damaged or its chain of digests is broken.
        ParityError: An engine computes something else here.
        NotAvailableError: Nothing in it runs here.
    """
    from engines.hardware import available_cpus
    from pipeline.bundling import checking
    from pipeline.verification.acceptance import require_pass

    with console.redirected(progress):
        checked = checking.check(Path(bundle), device, threads or available_cpus())
        ran = [verdict for verdict in checked.verdicts if verdict.status != "not run"]
        require_pass(ran, str(checked.manifest["model"]))
    return Check(checked.manifest, Verification(tuple(checked.verdicts)))


def _store(root: PathLike, dist: PathLike) -> Store:
    for name, folder in (("root", root), ("dist", dist)):
        if not isinstance(folder, str | os.PathLike):
            raise UsageError(f"{name} {folder!r} is not a path", "give the path of a folder")
    return Store(Path(root), Path(dist))


def _stage(
    name: str, arguments: dict[str, Any], root: PathLike, dist: PathLike, progress: Progress | None
) -> list[Outcome]:
    with console.redirected(progress):
        return stage_runs.run_stage(name, _given((name,), arguments), _store(root, dist))


def _given(
    stages: Iterable[str], asked: dict[str, Any], own: Iterable[Option] = ()
) -> dict[str, Any]:
    """Returns options as the stages take them: lists as tuples, engines as a list.

    Args:
        own: Options of the command that its stage does not have.

    Raises:
        UsageError: None of the stages has an option of that name, or it does not take the value.
    """
    known = {option.name: option for name in stages for option in options(stage(name).params)}
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
    """Returns an option's values as a list; one alone stands for a list of one."""
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
        UsageError: It is of another type.
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
    missing = {
        name: engines.get(name).available().reason for name in engines.names() if name not in built
    }
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
