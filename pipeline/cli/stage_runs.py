"""Runs the stages of a command: one or the whole chain, for the engines that it names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from engines.errors import (
    CrashedError,
    DeployError,
    FailedError,
    NotAvailableError,
    ParityError,
    RefusedError,
    UsageError,
)
from exporters import DEFAULT_PRECISION, PRECISIONS
from pipeline import models
from pipeline.cli.options import ALL
from pipeline.data import registry
from pipeline.verification.acceptance import ACCEPTED, require_pass
from pipeline.workflow import console, hints, runner
from pipeline.workflow.artifacts import (
    CHECKPOINT,
    ENGINE,
    ENGINE_VERDICT,
    FOLDER_PREFIX,
    GOLDEN,
    GRAPH,
    GRAPH_SUBJECT,
    PROGRAM,
)
from pipeline.workflow.chain import stage
from pipeline.workflow.digests import read_json, require_file
from pipeline.workflow.records import load
from pipeline.workflow.runner import Outcome, Store
from pipeline.workflow.stage import Option, Stage, options, validate_params

# Stages in which engines may fail while others go on.
_EACH_ENGINE = ("build", "verify", "bench")


def run_stage(
    name: str,
    arguments: dict[str, Any],
    store: Store,
    *,
    tolerant: bool = False,
    failures: list[DeployError] | None = None,
) -> list[Outcome]:
    """Runs a stage once, or once for each engine, and prints the results.

    Args:
        arguments: The parameters that differ from their defaults, by name; `engine` is a list.
        tolerant: Do not fail if an engine cannot run on this machine, as with engine "all".
        failures: Receives the errors of engines that crashed, failed or are not proved; without
            it, they are raised when all engines have had their turn.

    Raises:
        DeployError: The stage failed, or its result is a failure; see `Stage.show`.
    """
    chosen = stage(name)
    store = dataclasses.replace(store, images=_images(arguments) or store.images)
    arguments = localised(name, arguments)
    outcomes = []
    asked = _engines(chosen, arguments)
    unavailable: DeployError | None = None
    failed: list[DeployError] = []
    explicit = frozenset(arguments)
    runs = _expand(chosen, arguments, store)
    chosen.check_options(explicit, runs)
    for params in runs:
        try:
            outcomes.append((runner.run(chosen, params, store, explicit), params))
        except (NotAvailableError, RefusedError, CrashedError) as error:
            all_option = _all_option(chosen)
            if all_option is None or not all_option.role.skip_unavailable:
                raise
            console.say(f"{name}: without {getattr(params, all_option.name)}: {error.message}")
            if isinstance(error, CrashedError):
                failed.append(error)
            elif ALL not in asked:  # raise it after the other engines have run
                unavailable = unavailable or error
    try:
        with hints.completed(store.place):
            chosen.show([(outcome.outputs, params) for outcome, params in outcomes])
        if unavailable is not None:
            raise unavailable
    except NotAvailableError:
        # The stage has printed which engines could not be run.
        if not tolerant and ALL not in asked:
            raise
    except (ParityError, CrashedError, FailedError) as error:
        failed.append(error)
    if failures is not None:
        failures += failed
    elif failed:
        raise joined(failed)
    return [outcome for outcome, _ in outcomes]


def joined(failed: list[DeployError]) -> DeployError:
    """Returns one error that names all failures: a mismatch only if all are."""
    worst = next((error for error in failed if not isinstance(error, ParityError)), failed[0])
    if len(failed) > 1:
        error = type(worst)("; ".join(error.message for error in failed), worst.hint)
        error.details = {key: value for one in failed for key, value in one.details.items()}
        return error
    return worst


def localised(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns arguments with an image folder replaced by the name of its data set."""
    folder = _images(arguments)
    if folder is None:
        return arguments
    from pipeline.data import imagefolder

    declared = options(stage(name).params)
    values: dict[str, Any] = {
        option.name: imagefolder.name_of(folder)
        for option in declared
        if option.role.takes_image_folder
    }
    values |= {option.name: folder for option in declared if option.role.image_folder}
    return {**arguments, **values}


def _images(arguments: dict[str, Any]) -> Path | None:
    """Returns the image folder given as the data set, if it is one."""
    data = arguments.get("data")
    if data is None or data in registry.DATASETS or not Path(data).is_dir():
        return None
    return Path(data)


def run_command(
    name: str, arguments: dict[str, Any], store: Store, extra: dict[str, Any]
) -> list[Outcome]:
    """Runs a stage as its command does: after its prerequisite, if it has one.

    Args:
        arguments: As for `run_stage`.
        extra: Options that only the command has.
    """
    outcomes = []
    if first := stage(name).prerequisite({**arguments, **extra}, store.root):
        known = {option.name for option in options(stage(first).params)}
        passed = {key: value for key, value in {**arguments, **extra}.items() if key in known}
        outcomes += run_stage(first, passed, store)
    return outcomes + run_stage(name, arguments, store)


def _trained_on(arguments: dict[str, Any], store: Store) -> dict[str, Any]:
    """Returns arguments with the data set that the model was trained on, if none is given."""
    if arguments.get("data") is not None:
        return arguments
    try:
        record = load(store.root / CHECKPOINT.at(model=arguments["model"]).record)
    except DeployError:
        return arguments  # the stage reports the damaged record
    if record is None:
        return arguments
    return {**arguments, "data": record.params.get("data")}


def verify_file(
    arguments: dict[str, Any], store: Store, *, file: Path, golden: Path | None = None
) -> dict[str, Any]:
    """Judges a graph or engine file, prints the verdict and returns its JSON form.

    Args:
        file: An ONNX graph, or a built engine.
        golden: The golden file; None means the one of the export stage.

    Raises:
        ParityError: The verdict is a mismatch.
        DeployError: See `pipeline.verification.engine_proof`.
    """
    from pipeline.report import verify as report
    from pipeline.verification.engine_proof import prove

    (params, *more) = _expand(stage("verify"), arguments, store)
    if more:
        raise UsageError("--file takes one engine, but several are named", "name one --engine")
    if golden is None:
        golden = runner.require(GOLDEN, params, store)
    for path in (file, golden):
        require_file(path)
    validate_params(params)
    verdict = prove(
        params.engine,
        file,
        golden,
        params.precision,
        device=params.device,
        threads=params.threads,
        elsewhere=True,
    )
    report.show([verdict])
    with hints.completed(store.place):
        require_pass([verdict], params.model, file)
    return dataclasses.asdict(verdict)


def bisect(
    arguments: dict[str, Any],
    store: Store,
    *,
    file: Path | None = None,
    golden: Path | None = None,
    plot: Path | None = None,
    **_flag: bool,
) -> dict[str, Any]:
    """Finds the first value of a graph that differs from the model, and prints the search.

    Args:
        file: An ONNX graph; None means the one of the export stage.
        golden: The golden file; None means the one of the export stage.
        plot: File to plot the error into.

    Returns:
        The search in its JSON form.

    Raises:
        ParityError: A value differs, or the graph's weights or signature do.
        DeployError: See `pipeline.verification.bisection.search`.
    """
    from pipeline.golden import file as goldens
    from pipeline.report import growth
    from pipeline.stages import need_torch
    from pipeline.verification.bisection import search, windows
    from pipeline.verification.engine_proof import prove

    subject, *more = arguments.get("engine") or [GRAPH_SUBJECT]
    if more or subject == ALL:
        raise UsageError("--bisect takes one engine, but several are named", "name one --engine")
    if plot is not None:
        growth.check_plot(plot)
    params = stage("verify").params(**{**arguments, "engine": GRAPH_SUBJECT})
    if (path := models.graph_file(params.model)) is not None:
        raise UsageError(
            f"--bisect follows a PyTorch program, and {params.model} is an ONNX graph",
            f"`assay reduce {path}` finds the part on which an engine fails",
        )
    precision = PRECISIONS[params.precision]
    if precision.quantized:
        raise UsageError(
            f"{precision.name} has no PyTorch program to compare the graph with",
            f"bisect the {precision.made_from} graph that it is made from",
        )
    need_torch("onnxscript")
    prober = windows.Prober(subject, params.device)
    prober.check()
    graph = file or runner.require(GRAPH, params, store)
    program = runner.require(PROGRAM, params, store)
    golden = golden or runner.require(GOLDEN, params, store)
    for path in (graph, golden):
        require_file(path)
    known = goldens.load(golden)
    what = str(graph) if subject == GRAPH_SUBJECT else subject
    others = search.other_faults(graph, known, program if file else None)
    if search.takes_other_inputs(graph, known):
        growth.raise_not_comparable(what, others)
    search_result = search.bisect(program, graph, known, prober)
    growth.show(search_result, subject)
    if plot is not None:
        growth.plot(search_result, plot)
    if search_result.first is None and not others:
        # The verdict runs more rows and batch sizes, and the engine's fused kernels.
        subject_file = graph if subject == GRAPH_SUBJECT else _built(subject, params, store)
        if subject_file is not None:
            proof = prove(
                subject,
                subject_file,
                golden,
                params.precision,
                device=params.device,
                threads=params.threads,
                elsewhere=file is not None,
            )
            others = f"the verdict says: {proof.reason}" if proof.status == "mismatch" else ""
    growth.require_match(search_result, what, others)
    return growth.document(search_result)


def _built(engine: str, params: Any, store: Store) -> Path | None:
    """Returns what an engine has built; None if it has built nothing."""
    path = store.root / ENGINE.at(**{**dataclasses.asdict(params), "engine": engine}).path
    return path if path.exists() else None


def run_all(arguments: dict[str, Any], store: Store) -> tuple[list[Outcome], DeployError | None]:
    """Runs the whole chain for a model.

    Engines that crash or are not proved are left out of the measurements and the bundle.

    Returns:
        The outcomes of all stages, and the error that names those engines, if there are any.

    Raises:
        DeployError: A stage failed, or no engine is left; the outputs of earlier stages remain.
    """
    asked = arguments.get("engine", [ALL])
    outcomes: list[Outcome] = []
    failures: list[DeployError] = []

    def step(name: str, **fixed: Any) -> list[Outcome]:
        known = {option.name for option in options(stage(name).params)}
        picked = {key: value for key, value in {**arguments, **fixed}.items() if key in known}
        each_engine = name in _EACH_ENGINE and picked.get("engine") != [GRAPH_SUBJECT]
        done = run_stage(
            name,
            picked,
            store,
            tolerant=name == "verify",
            failures=failures if each_engine else None,
        )
        outcomes.extend(done)
        return done

    # The summary at the end repeats all results but the measurements.
    quietly = console.only_on_failure
    is_graph = models.graph_file(arguments["model"]) is not None
    with quietly():
        if not is_graph and (data := _data_to_get(arguments, store)) is not None:
            step("data", data=data)
    for name in ("export",) if is_graph else ("train", "export"):
        with quietly():
            step(name)
    with quietly():
        step("verify", engine=[GRAPH_SUBJECT], device="auto")  # it is run on the CPU
    with quietly():
        built = [outcome.params["engine"] for outcome in step("build", engine=asked)]
        if failures and not built:
            raise joined(failures)
    with quietly():
        usable = _usable(step("verify", engine=built))
        if failures and not usable:
            raise joined(failures)
    here = [name for name, status in usable.items() if status == "pass"]
    if here:
        step("bench", engine=here)
    precision = (arguments.get("precision", DEFAULT_PRECISION),)
    with quietly():
        step("bundle", engine=list(usable), precision=precision, measurements=bool(here))
    return outcomes, joined(failures) if failures else None


def _data_to_get(arguments: dict[str, Any], store: Store) -> str | None:
    """Returns the data set that the chain begins with: the given one, or that of the weights here.

    None if there is none, or if it was made from a folder whose path is not given again.
    """
    if (asked := arguments.get("data")) is not None:
        return str(asked)
    seed = arguments.get("seed") or 0
    known = _trained_on(arguments, store).get("data", models.get(arguments["model"], seed).dataset)
    return None if known is None or known.startswith(FOLDER_PREFIX) else str(known)


def _usable(proofs: list[Outcome]) -> dict[str, str]:
    """Returns the verdicts of the engines that may be bundled, by name."""
    statuses = {
        proof.params["engine"]: str(read_json(proof.outputs[ENGINE_VERDICT])["status"])
        for proof in proofs
    }
    return {name: status for name, status in statuses.items() if status in ACCEPTED}


def _expand(chosen: Stage[Any], arguments: dict[str, Any], store: Store) -> list[Any]:
    """Returns the parameters of each run of a stage: one for each engine, or one for all."""
    if any(option.role.default_from_training for option in options(chosen.params)):
        arguments = _trained_on(arguments, store)
    all_option = _all_option(chosen)
    if all_option is None or all_option.role.expand_all is None:
        return [chosen.params(**arguments)]
    names = _engines(chosen, arguments)
    if ALL in names:
        rest = [name for name in names if name != ALL]
        names = rest or all_option.role.expand_all(arguments, store.root)
    if all_option.many:
        return [chosen.params(**{**arguments, all_option.name: tuple(names)})]
    return [chosen.params(**{**arguments, all_option.name: name}) for name in dict.fromkeys(names)]


def _all_option(chosen: Stage[Any]) -> Option | None:
    """Returns the option of a stage that takes several values or "all", if it has one."""
    declared = options(chosen.params)
    return next((option for option in declared if option.role.expand_all is not None), None)


def _engines(chosen: Stage[Any], arguments: dict[str, Any]) -> list[str]:
    """Returns the engines named in the arguments, or by default; may contain "all"."""
    all_option = _all_option(chosen)
    if all_option is None:
        return []
    values = arguments.get(all_option.name) or all_option.default
    return [values] if isinstance(values, str) else list(values)
