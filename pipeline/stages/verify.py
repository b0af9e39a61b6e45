"""Stage verify: does a graph or engine equal the PyTorch model?"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import engines
from engines import hardware
from engines.errors import DeployError, NotAvailableError, ParityError
from exporters import QUANTIZED
from pipeline import models
from pipeline.stages import data_option, model_option, precision_option
from pipeline.stages.train import inputs_of
from pipeline.workflow import console
from pipeline.workflow.artifacts import (
    ENGINE,
    ENGINE_VERDICT,
    GOLDEN,
    GRAPH,
    GRAPH_DATA,
    GRAPH_VERDICT,
    TEST_IMAGES,
    Artifact,
    Paths,
)
from pipeline.workflow.digests import read_json, write_json
from pipeline.workflow.stage import Made, Stage, check, option

if TYPE_CHECKING:
    from pipeline.verification.verdict import OutputVerdict, Verdict

SUBJECT = "graph"  # engine_proof.GRAPH, which is too heavy to import for --help


@dataclass(frozen=True)
class Params:
    """Options of the stage."""

    model: str = model_option()
    precision: str = precision_option()
    engine: str = option(
        SUBJECT,
        text='What to verify: "graph", the name of a built engine, several, or "all".',
        names=lambda: [SUBJECT, *engines.names()],
    )
    data: str | None = data_option(None)
    threads: int = option(factory=hardware.available_cpus, text="CPU threads.", high=1024)
    device: str = option("auto", text="Where the engine runs: auto, cpu, cuda or cuda:N.")


def resolve(params: Params) -> Params:
    """Fills in the data set of a model of the zoo; that of another is in its records."""
    spec = models.in_zoo(params.model)
    return dataclasses.replace(params, data=params.data or (spec.dataset if spec else None))


def run(inputs: Paths, outputs: Paths, params: Params) -> None:
    """Judges the subject, or records why it cannot be judged here."""
    from pipeline.data.idx import read_images
    from pipeline.verification.engine_proof import prove

    images = None
    if params.data is not None:
        images = read_images(inputs[TEST_IMAGES.at(dataset=params.data)])

    verdict = prove(
        params.engine,
        inputs[_subject(params)],
        inputs[GOLDEN],
        params.precision,
        device=params.device,
        threads=params.threads,
        images=images,
    )
    write_json(outputs[_verdict(params)], dataclasses.asdict(verdict))


def prove_file(file: Path, golden: Path, params: Params) -> Verdict:
    """Judges any file against a golden file; records nothing.

    Raises:
        DeployError: One of the files does not exist or cannot be read.
    """
    from pipeline.verification.engine_proof import prove

    for path in (file, golden):
        require_file(path)
    check(params)
    return prove(
        params.engine,
        file,
        golden,
        params.precision,
        device=params.device,
        threads=params.threads,
    )


def require_file(path: Path) -> None:
    """Raises DeployError unless there is such a file."""
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise DeployError(f"{path} {problem}", "give the path of a file")


def _subject(params: Params) -> Artifact:
    return GRAPH if params.engine == SUBJECT else ENGINE


def _verdict(params: Params) -> Artifact:
    return GRAPH_VERDICT if params.engine == SUBJECT else ENGINE_VERDICT


def _inputs(params: Params) -> tuple[Artifact, ...]:
    subject = _subject(params)
    data = (GRAPH_DATA,) if subject == GRAPH else ()
    return (subject, *data, GOLDEN, *inputs_of(params.data, (TEST_IMAGES,)))


def facts(params: Params) -> dict[str, str]:
    """The backend's versions, and why it cannot run, if so."""
    from pipeline.verification.engine_proof import runner

    engine = engines.get(runner(params.engine))
    return {**engine.fingerprint(), "run": str(engine.available().run)}


def show(made: Made[Params]) -> None:
    """Prints the verdicts; raises unless all are passes."""
    from pipeline.verification.verdict import from_json

    verdicts = [from_json(read_json(outputs[_verdict(params)])) for outputs, params in made]
    show_verdicts(verdicts)
    require(verdicts)


def show_verdicts(verdicts: list[Verdict]) -> None:
    """Prints a table, one row an output."""
    columns = ("subject", "verdict", "output", ">rms error", ">x floor", ">max error", ">x floor")
    more: tuple[str, ...] = (">flips", ">top-1", ">weights")
    quantized = any(verdict.precision == QUANTIZED for verdict in verdicts)
    if quantized:
        more += (">accuracy lost", ">SQNR (dB)")
    rows = []
    for verdict in verdicts:
        if not verdict.outputs:
            empty = [""] * (len(columns) + len(more) - 2)
            rows.append((verdict.subject, verdict.status, *empty))
        for output in verdict.outputs:
            rows.append(
                (
                    verdict.subject,
                    verdict.status,
                    output.name,
                    f"{output.rms:.2e}",
                    f"{output.rms_ratio:.2f}",
                    f"{output.max:.2e}",
                    f"{output.max_ratio:.2f}",
                    _flips(verdict),
                    _accuracy(verdict),
                    "" if verdict.audit is None else str(verdict.audit),
                    *((_lost(verdict), _sqnr(output)) if quantized else ()),
                )
            )
    console.table("Parity with PyTorch", (*columns, *more), rows)
    for verdict in verdicts:
        for output in verdict.outputs:
            if output.incomparable:
                console.result(
                    f"{verdict.subject}: {output.incomparable} golden rows of {output.name} are not"
                    " compared, since rounding alone moves them by a large part of their size"
                )
        if verdict.reason:
            console.result(f"{verdict.subject}: {verdict.status}: {verdict.reason}")


def _flips(verdict: Verdict) -> str:
    flips = verdict.flips
    return "" if flips is None else f"{flips.unexplained}+{flips.explained} of {flips.images:,}"


def _accuracy(verdict: Verdict) -> str:
    flips = verdict.flips
    if flips is None or flips.correct is None:
        return ""
    return f"{flips.correct / flips.images:.2%}"


def _lost(verdict: Verdict) -> str:
    lost = None if verdict.flips is None else verdict.flips.drop
    return "" if lost is None else str(lost)


def _sqnr(output: OutputVerdict) -> str:
    return "" if output.sqnr is None else f"{output.sqnr:.1f}"


def require(verdicts: list[Verdict], file: Path | None = None) -> None:
    """Raises unless every verdict is a pass.

    Args:
        file: What was judged, if no stage made it.

    Raises:
        ParityError: A mismatch, or a comparison that proves nothing.
        NotAvailableError: Something could not be run here.
    """
    for verdict in verdicts:
        if verdict.status in ("mismatch", "vacuous"):
            words = f" --file {file}" if file else ""
            hint = f"`assay verify MODEL{words} --bisect` names the first node that differs, if any"
            if verdict.status == "vacuous":
                hint = "no engine can be proved by it; look at the model's weights and inputs"
            elif verdict.precision == QUANTIZED:
                hint = "calibrate on other data, or deploy another precision"
            raise ParityError(
                f"{verdict.subject} is not proved equal to the PyTorch model: {verdict.reason}",
                hint,
                {"verdicts": [dataclasses.asdict(each) for each in verdicts]},
            )
    for verdict in verdicts:
        if verdict.status == "not run":
            raise NotAvailableError(
                f"{verdict.subject} was not run on this machine: {verdict.reason}",
                "prove it on the target with `assay check BUNDLE`",
            )


STAGE = Stage(
    name="verify",
    help="Prove a graph or engine equal to the PyTorch model.",
    params=Params,
    inputs=_inputs,
    outputs=lambda params: (_verdict(params),),
    run=run,
    revision=3,
    tools=("numpy",),
    facts=facts,
    resolve=resolve,
    show=show,
)
