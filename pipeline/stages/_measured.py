"""Built and proved engines that a stage measures, and the facts that the measurements depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
from engines import hardware
from engines.errors import DeployError, NotAvailableError, ParityError
from pipeline.workflow import hints
from pipeline.workflow.artifacts import ENGINE, ENGINE_VERDICT, Artifact

if TYPE_CHECKING:
    from engines.contract import Session


@dataclass(frozen=True)
class Subject:
    """A built engine, and whether it replays a CUDA graph."""

    engine: str
    built: Artifact
    verdict: Artifact
    cuda_graph: bool = False

    @classmethod
    def of(cls, engine: str, precision: str) -> Subject:
        """Returns an engine at a precision."""
        return cls(
            engine,
            ENGINE.at(engine=engine, precision=precision),
            ENGINE_VERDICT.at(engine=engine, precision=precision),
        )

    def require_proof(self, verdict: Mapping[str, Any], model: str, device: str) -> None:
        """Checks that the engine is proved on the kind of device that it is measured on.

        Other kernels run on another one, so that the proof says nothing about them.

        Args:
            verdict: The content of the engine's verdict.
            model: The name of the model, for the hint.
            device: The device that it is asked to run on.

        Raises:
            ParityError: It is not proved, so its speed means nothing.
        """
        from engines.checks import choose_device

        words = {"model": model, "precision": verdict["precision"]}
        if verdict["status"] != "pass":
            raise ParityError(
                f"{self.engine} is not measured, since its verdict in {verdict['precision']} is"
                f" {verdict['status']!r}: {verdict['reason']}",
                "leave it out with --engine, or see"
                f" `{hints.command('verify', words | {'engine': self.engine})}`",
            )
        proved = str(verdict["facts"].get("device", ""))
        device = choose_device(engines.get(self.engine), device)
        if proved and proved.partition(":")[0] != device.partition(":")[0]:
            words |= {"device": device, "engine": self.engine}
            raise ParityError(
                f"{self.engine} is not measured on {device!r}: it is proved on {proved!r} only",
                f"run `{hints.command('verify', words)}`, or give --device"
                f" {proved.partition(':')[0]}",
            )

    def open(self, built: Path, device: str, threads: int) -> Session:
        """Opens the engine.

        Args:
            built: The file of `self.built`.
            device: The device that it is asked to run on.
            threads: CPU threads of one inference.

        Raises:
            NotAvailableError: It does not run on this machine.
        """
        from engines.contract import OpenOptions
        from pipeline.verification.engine_proof import open_built

        engine = engines.get(self.engine)
        state = engine.available()
        if not state.run:
            raise NotAvailableError(
                f"engine {self.engine!r} cannot run here: {state.reason}", state.install
            )
        return open_built(engine, built, OpenOptions(device, threads, cuda_graph=self.cuda_graph))


def require_built(chosen: Sequence[str], params: Mapping[str, Any]) -> None:
    """Raises DeployError if no engine is chosen, since none is built that runs here."""
    if not chosen:
        raise DeployError(
            f"no engine of {params['model']} is built that runs on this machine",
            f"run `{hints.command('build', {**params, 'engine': None})}`",
        )


def machine_facts(chosen: Sequence[str]) -> dict[str, str]:
    """Returns the fingerprints of the chosen engines, the CPU and the GPU."""
    facts = {**hardware.cpu_fingerprint(), **hardware.gpu_fingerprint()}
    for name in chosen:
        facts |= engines.get(name).fingerprint()
    return facts
