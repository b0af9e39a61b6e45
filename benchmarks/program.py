"""The cost of running an exported program instead of the module.

The `pytorch` engine runs `torch.export` programs. This measures LeNet both ways, interleaved, on
one thread, and prints the module's time divided by the program's.

usage: python -m benchmarks.program
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch

import engines
from engines import hardware
from engines.contract import Feeds, OpenOptions, Outputs, TensorSpec
from exporters.module import Served
from exporters.program import export_program, save_program
from pipeline import models
from pipeline.benchmarking import clock

IMAGE = TensorSpec("image", "uint8", (None, 1, 28, 28))
LOGITS = TensorSpec("logits", "float32", (None, 10))


class Eager:
    """A session that calls the module itself."""

    inputs: tuple[TensorSpec, ...] = (IMAGE,)
    outputs: tuple[TensorSpec, ...] = (LOGITS,)
    device = "cpu"
    batch: tuple[int, int] | None = None
    stream: int | None = None

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module

    def run(self, feeds: Feeds) -> Outputs:
        self.bind(feeds)
        with torch.inference_mode():
            return {"logits": self._module(self._image)[0].numpy()}

    def bind(self, feeds: Feeds) -> None:
        self._image = torch.from_numpy(feeds["image"])

    def launch(self) -> None:
        with torch.inference_mode():
            self._module(self._image)

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        pass


def main() -> None:
    """Measures batches 1, 8 and 64 and prints JSON."""
    model = models.get("lenet").build(None)
    module = Served(model.network, model.prepare).eval()
    example = torch.zeros((2, 1, 28, 28), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "engine"
        save_program(export_program(module, [example]), path, (IMAGE,), (LOGITS,))
        program = engines.get("pytorch").open(path, OpenOptions(device="cpu", threads=1))
    results = []
    for batch in (1, 8, 64):
        images = np.random.default_rng(0).integers(0, 256, (batch, 1, 28, 28), dtype=np.uint8)
        candidates = [
            clock.Candidate("module", Eager(module), {"image": images}),
            clock.Candidate("program", program, {"image": images}),
        ]
        for entry in clock.measure(candidates, budget=10, seed=0):
            if entry.name == "program":
                ratio = {key: round(value, 3) for key, value in vars(entry.ratio).items()}
                results.append({"batch": batch, "boundary": entry.boundary, **ratio})
    facts = {"torch": torch.__version__, "cpu": hardware.cpu_model(), "threads": 1}
    print(json.dumps({**facts, "module_over_program": results}, indent=2))


if __name__ == "__main__":
    main()
