"""Makes the reference: runs the model in float64 and at the precision on the golden inputs."""

from __future__ import annotations

import copy
import threading
import traceback
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from engines import hardware
from engines.errors import DeployError
from exporters import PRECISIONS, trace_errors
from exporters.module import Served, batch_for, named_outputs
from pipeline.golden import noise, not_finite, rounding
from pipeline.golden.file import EDGES, MADE_ROW, Reference
from pipeline.golden.float64 import in_float64
from pipeline.golden.repeats import check_repeats
from pipeline.workflow import console, phases

if TYPE_CHECKING:
    from torch import nn

    from engines.contract import Array
    from pipeline.golden.reference_cache import ReferenceCache
    from pipeline.golden.rounding import AtPrecision
    from pipeline.golden.rows import Rows
    from pipeline.models import Model

# Float64 results at other batch sizes differ by rounding only, by less than this part of a row.
SAME = 1e-9
_NAMED = 5  # how many rows a message names
# Models run at the same time only if free memory holds this many copies for each of them.
_COPIES_FREE = 8


class ExactModel:
    """A copy of a model that computes in float64.

    Attributes:
        names: The names of its outputs.
    """

    def __init__(self, model: Model, names: tuple[str, ...]) -> None:
        self.names = names
        network, prepare = copy.deepcopy(model.network), copy.deepcopy(model.prepare)
        self._served = Served(network, prepare, torch.float64).eval()

    @property
    def network(self) -> nn.Module:
        """The copy of the network."""
        return self._served.network

    def run(self, inputs: Sequence[torch.Tensor]) -> dict[str, Array]:
        """Returns the outputs for all rows, by name."""
        with in_float64():
            return run_all(self._served, inputs, self.names, " in float64")

    def differing(
        self,
        reference: dict[str, Array],
        inputs: Sequence[torch.Tensor],
        row: int,
        tolerance: float = SAME,
    ) -> list[str]:
        """Returns the names of the outputs in which a row alone differs from that row in a batch.

        Args:
            reference: By name, the outputs of a batch.
            inputs: That batch.
            tolerance: The largest difference allowed, as a part of the row's largest output.
        """
        alone = self.run([tensor[row : row + 1] for tensor in inputs])
        names = []
        for name, whole in reference.items():
            expected = whole[row : row + 1]
            if alone[name].shape != expected.shape:
                names.append(name)
                continue
            size = np.abs(expected.astype(np.float64)).max(initial=0.0)
            error = np.abs(noise.difference(expected, alone[name])).max(initial=0.0)
            if error > tolerance * size:
                names.append(name)
        return names


def make_reference(
    model: Model,
    served: AtPrecision,
    exact: ExactModel,
    rows: Rows,
    precision: str,
    test: tuple[Array, Array] | None,
    cache: ReferenceCache,
    *,
    noise_runs: int,
    max_drop: float,
    beyond: Collection[int] = (),
) -> Reference:
    """Runs a model in float64 and at the precision.

    Args:
        served: The model as it is exported, at the precision.
        exact: The model in float64.
        rows: The golden inputs.
        test: The test images, uint8 `[count, channels, height, width]`, and their classes.
        cache: Where the outputs in float64 of this model and these inputs are kept. They are not
            taken if the first row is another now: a model may depend on what nobody knows of.
        noise_runs: Runs at the precision that are rounded at random, besides the plain one.
        max_drop: See `Reference`.
        beyond: Numbers of edge cases whose values the precision cannot hold: they are left out.

    Raises:
        DeployError: The model does not run on the inputs, or in float64; or its outputs are
            random, lack a batch axis, or have NaN or Inf.
    """
    names = exact.names
    tensors = [torch.from_numpy(array) for array in rows.inputs.values()]
    plain = Served(model.network, model.prepare).eval()
    few = [tensor[:4] for tensor in tensors]
    check_repeats(model.network, lambda: run_all(plain, few, names))
    phases.start(f"{len(rows.cases)} golden rows at {precision}", len(rows.cases))
    native = run_all(served, tensors, names, "")
    phases.start(f"{len(rows.cases)} golden rows in float64", len(rows.cases))
    reference = cache.outputs(
        "golden",
        lambda: exact.run(tensors),
        lambda kept: not exact.differing(kept, tensors, 0),
    )
    kept = rows_to_keep(rows.cases, native, reference)
    if not kept.all():
        console.say(f"export: rows left out, whose outputs are NaN or Inf: {_named(rows, ~kept)}")
    cannot_hold = kept & np.isin(np.arange(len(kept)), [*beyond])
    if cannot_hold.any():
        console.say(
            f"export: edge cases left out, since {precision} cannot hold their values:"
            f" {_named(rows, cannot_hold)}"
        )
    kept &= ~cannot_hold
    if not kept.all():
        rows = replace(
            rows,
            inputs={name: array[kept] for name, array in rows.inputs.items()},
            cases=tuple(np.array(rows.cases)[kept].tolist()),
        )
        tensors = [torch.from_numpy(array) for array in rows.inputs.values()]
        native, reference = (
            {name: array[kept] for name, array in arrays.items()} for arrays in (native, reference)
        )
    logits = names[0] if model.labels else ""
    for outputs, exactly in ((reference, True), (native, False)):
        for name, array in outputs.items():
            bad = ~finite_rows(array)
            if bad.any():
                raise _not_finite(name, array, served, tensors, rows, precision, exactly=exactly)
    if logits and native[logits].shape[1:] != (len(model.labels),):
        raise DeployError(
            f"output {logits!r} is {list(native[logits].shape)}, but the model has"
            f" {len(model.labels)} classes",
            "the first output of a classifier has to be [batch, classes]",
        )
    images, labels = test or (None, np.zeros(0, np.int64))
    test_reference = np.zeros((0, len(model.labels)))
    if images is not None:
        every = [torch.from_numpy(images)]
        phases.start(f"{len(images):,} test images in float64", len(images))
        test_reference = cache.outputs("test", lambda: exact.run(every))[names[0]]
    measured = measured_noise(served, tensors, reference, native, noise_runs)
    complete = Reference(
        inputs=rows.inputs,
        reference=reference,
        native=native,
        noise=measured,
        cases=rows.cases,
        logits=logits,
        labels=rows.labels,
        test_reference=test_reference,
        test_labels=labels,
        precision=precision,
        max_drop=max_drop,
    )
    return complete.checked(
        "model", "check its weights and inputs; if it was trained here, use a smaller --lr"
    )


def rows_to_keep(
    cases: tuple[str, ...], native: dict[str, Array], reference: dict[str, Array]
) -> Array:
    """Returns a mask of the rows to keep, `[rows]`.

    Edge cases that give NaN or Inf are left out, and generated rows that do so in float64: a
    generated mask, for example, may leave no position to attend to.
    """
    exactly: Array = np.ones(len(cases), bool)
    finite = exactly
    for name, array in reference.items():
        exactly = np.logical_and(exactly, finite_rows(array))
        finite = np.logical_and(exactly, np.logical_and(finite, finite_rows(native[name])))
    edges = np.isin(cases, EDGES)
    generated = np.array([case.startswith(MADE_ROW) for case in cases])
    mask: Array = np.where(edges, finite, exactly | ~generated)
    return mask


def finite_rows(array: Array) -> Array:
    """Returns a mask of the rows without NaN or Inf, `[rows]`."""
    if array.dtype.kind != "f":
        return np.ones(len(array), bool)
    mask: Array = np.all(np.isfinite(noise.by_row(array)), axis=1)
    return mask


def _named(rows: Rows, chosen: Array) -> str:
    names = [name for name, is_chosen in zip(rows.cases, chosen, strict=True) if is_chosen]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _not_finite(
    name: str,
    array: Array,
    served: AtPrecision,
    tensors: Sequence[torch.Tensor],
    rows: Rows,
    precision: str,
    *,
    exactly: bool,
) -> DeployError:
    """Returns the error for an output with NaN or Inf: on which row, and which operator gives it.

    Args:
        exactly: The output is NaN or Inf in float64, too.
    """
    bad = ~finite_rows(array)
    row = int(bad.argmax())
    nan = bool(np.isnan(array[row]).any())
    first = not_finite.first_operator(served, [t[[row, row]] for t in tensors], nan=nan)
    count = f"{int(bad.sum())} of {len(bad)} rows, as on {rows.cases[row]}"
    if exactly:
        return DeployError(
            f"the model cannot be judged: output {name!r} is {'NaN' if nan else 'Inf'} on"
            f" {count}{first}",
            "check its weights and that input; if it was trained here, use a smaller --lr",
        )
    return DeployError(
        f"output {name!r} overflows in {precision} on {count}, but is finite in float64{first}",
        "export it in bf16, whose range is that of fp32"
        if PRECISIONS[precision].dtype == "float16"
        else "scale the model's values down, or leave out such inputs",
    )


def measured_noise(
    served: AtPrecision,
    tensors: Sequence[torch.Tensor],
    reference: dict[str, Array],
    native: dict[str, Array],
    noise_runs: int,
) -> dict[str, Array]:
    """Returns the noise of each output, from the plain run and from runs with random rounding.

    In a single run, the rounding errors of a row may cancel by chance. An engine that adds up in
    another order or folds a batch norm would then seem to be far off.
    """
    names = tuple(native)
    phases.start("rounding noise", noise_runs * len(tensors[0]))
    ended, threads = threading.Event(), torch.get_num_threads()

    def run(seed: int) -> dict[str, Array]:
        torch.set_num_threads(1)  # copies beside each other share the CPUs
        with rounding.at_random(served, seed) as rounded:
            rounded.register_forward_pre_hook(lambda *_: _raise_if(ended))
            return run_all(rounded, tensors, names)

    with ThreadPoolExecutor(_copies_at_once(served, noise_runs)) as pool:
        try:
            runs = [native, *pool.map(run, range(noise_runs))]
        finally:
            ended.set()  # a signal must not wait until all runs are done
            torch.set_num_threads(threads)
    return {name: noise.measure(reference[name], [run[name] for run in runs]) for name in names}


def _copies_at_once(served: AtPrecision, most: int) -> int:
    """Returns how many copies of a model to run at the same time, each on one thread."""
    size = sum(tensor.nbytes for tensor in (*served.parameters(), *served.buffers()))
    fitting = hardware.free_memory() // (_COPIES_FREE * max(size, 1))
    return max(1, min(most, hardware.available_cpus(), fitting))


def _raise_if(ended: threading.Event) -> None:
    if ended.is_set():
        raise DeployError("ended before the model has run on all rows")


def output_names(
    model: Model, inputs: Sequence[str], tensors: Sequence[torch.Tensor]
) -> tuple[str, ...]:
    """Returns a name for each output: as the model declares them, or as `named_outputs` does.

    Args:
        inputs: The names of the inputs.
        tensors: The inputs; two rows of them are run.

    Raises:
        DeployError: The network does not run, or the model declares too few or too many names, or
            two inputs and outputs have the same name.
    """
    network = model.network.eval()
    first = [tensor[:2].clone() for tensor in tensors]  # a network may change its inputs in place
    with torch.inference_mode(), explained(""):
        prepared = first if model.prepare is None else model.prepare(*first)
        results = network(*prepared) if isinstance(prepared, tuple | list) else network(prepared)
    named = named_outputs(results)
    if model.outputs and len(model.outputs) != len(named):
        raise DeployError(
            f"the model has {len(named)} outputs, but {len(model.outputs)} names:"
            f" {', '.join(model.outputs)}",
            "name every output once",
        )
    names = model.outputs or tuple(named)
    for index, name in enumerate(names):
        if name in inputs or name in names[:index]:
            other = "an input" if name in inputs else "another output"
            raise DeployError(
                f"an output is named {name!r}, like {other}",
                "a graph needs a different name for each: give other names by"
                " assay.Model(outputs=(...)), one for each output",
            )
    return names


_USUAL_HINT = (
    "it has to run at any batch size, such as 2; check names, dtypes and shapes of the inputs"
)
_FLOAT64_HINT = "the reference is a float64 run: keep constant tensors in buffers, which are cast"


@contextmanager
def explained(how: str, hint: str = "") -> Iterator[None]:
    """Turns any exception of a user's model into an error that says how the model was run."""
    try:
        yield
    except DeployError:
        raise
    except Exception as error:  # the user's code may raise anything
        known = trace_errors.cause_of(str(error))
        line = trace_errors.place(traceback.extract_tb(error.__traceback__))
        raise DeployError(
            f"the model cannot be run on its inputs{how}{trace_errors.at_line(line)}:"
            f" {type(error).__name__}: {error}",
            hint or (known[1] if known else _USUAL_HINT),
        ) from error


def run_all(
    served: AtPrecision, inputs: Sequence[torch.Tensor], names: tuple[str, ...], how: str = ""
) -> dict[str, Array]:
    """Returns the outputs for all rows by name, computed in batches on the network's device.

    Args:
        how: Words for an error message, such as " in float64".
    """
    rows, parts = len(inputs[0]), []
    size = batch_for(served.pixels, inputs)
    tensors = (*served.parameters(), *served.buffers())
    device = tensors[0].device if tensors else inputs[0].device
    with torch.inference_mode(), explained(how, _FLOAT64_HINT if how else ""):
        for start in range(0, rows, size):
            # Copied, since a network may change its inputs in place.
            batch = [tensor[start : start + size].to(device, copy=True) for tensor in inputs]
            phases.advance(len(batch[0]))
            parts.append([output.cpu() for output in served(*batch)])
    outputs = {}
    for name, pieces in zip(names, zip(*parts, strict=True), strict=True):
        if any(piece.ndim == 0 for piece in pieces) or sum(map(len, pieces)) != rows:
            raise DeployError(
                f"output {name} is {list(pieces[0].shape)} for a batch of"
                f" {min(rows, size)}: its first axis is not the batch",
                "return one row for each row of the inputs",
            )
        outputs[name] = torch.cat(pieces).numpy()
    return outputs
