"""Inference from a bundle, with its fastest engine that passes verification on this machine."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from assay import _values
from engines import temporary
from engines.errors import DeployError

if TYPE_CHECKING:
    from engines.contract import Array, Feeds, Outputs, Session, TensorSpec


class Predictor:
    """An open engine of a bundle. Not thread-safe.

    Attributes:
        engine: The name of the engine.
        precision: The precision of the graph that it was built from.
        device: "cpu" or "cuda:N".
        labels: The classes in the order of the logits; empty unless it is a classifier.
        inputs: Names, dtypes and shapes of the inputs.
        outputs: Names, dtypes and shapes of the outputs.
        manifest: The bundle's list of members and facts.
    """

    def __init__(
        self,
        engine: str,
        precision: str,
        session: Session,
        manifest: Mapping[str, Any],
        sizes: Mapping[str, Sequence[list[int] | None]],
        files: ExitStack,
    ) -> None:
        self.engine = engine
        self.precision = precision
        self.device = session.device
        self.labels = tuple(manifest["labels"])
        self.inputs: tuple[TensorSpec, ...] = session.inputs
        self.outputs: tuple[TensorSpec, ...] = session.outputs
        self.manifest = manifest
        self._session = session
        self._sizes = sizes  # see `Reference.sizes`
        self._remove_files = weakref.finalize(self, files.close)

    def predict(self, *arrays: Array, **named: Array) -> Array | dict[str, Array]:
        """Runs the model on a batch.

        Args:
            arrays: The inputs in order, such as uint8 images `[batch, channels, height, width]`;
                they are not cast.
            named: Inputs by name instead.

        Returns:
            The output, `[batch, …]`; a dictionary by name if the model has several.

        Raises:
            DeployError: An input's name, dtype or shape does not match the graph, or an axis has a
                size that was not verified.
        """
        if len(arrays) > len(self.inputs):
            raise DeployError(
                f"{len(arrays)} inputs were given, but the model takes {len(self.inputs)}",
                f"give {', '.join(map(str, self.inputs))}",
            )
        feeds = {spec.name: array for spec, array in zip(self.inputs, arrays, strict=False)}
        if twice := sorted(set(feeds) & set(named)):
            raise DeployError(
                f"{', '.join(twice)} given both by position and by name", "give every input once"
            )
        outputs = self._run({**feeds, **named})
        if len(outputs) == 1:
            return next(iter(outputs.values()))
        return outputs

    def classify(self, images: Array) -> list[str]:
        """Returns the label of each image.

        Args:
            images: uint8 `[batch, channels, height, width]`, as in `inputs`.

        Raises:
            DeployError: The model has no labels, or the images do not match its input.
        """
        if not self.labels:
            raise DeployError("the model has no labels", "call predict() for its outputs")
        outputs = self._run({self.inputs[0].name: images})
        return [self.labels[index] for index in outputs[self.outputs[0].name].argmax(axis=1)]

    def _run(self, feeds: Feeds) -> Outputs:
        for spec in self.inputs:
            shape, axes = getattr(feeds.get(spec.name), "shape", ()), self._sizes.get(spec.name, ())
            if len(shape) != len(axes):
                continue  # the session says what is wrong
            for axis, (size, known) in enumerate(zip(shape, axes, strict=True)):
                if known is None or spec.shape[axis] is not None:
                    continue
                if known[0] <= size <= known[2]:
                    continue
                name = f" ({spec.axes[axis]})" if spec.axes and spec.axes[axis] else ""
                raise DeployError(
                    f"input {spec.name!r} has size {size} on axis {axis}{name}, but the engine was"
                    f" verified for {known[0]} to {known[2]} only",
                    "resize or pad the input, or export the model for a wider range:"
                    " assay.Model(dynamic=...), or --shape for an ONNX file",
                )
        return self._session.run(feeds)

    def close(self) -> None:
        """Frees the engine and removes the unpacked files. May be called twice."""
        self._session.close()
        self._remove_files()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def load(
    bundle: str | os.PathLike[str],
    *,
    engine: str | None = None,
    precision: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    public_key: str | os.PathLike[str] | None = None,
    certificate_chain: str | os.PathLike[str] | None = None,
) -> Predictor:
    """Opens a bundle: checks every digest, verifies its engines here and takes the fastest.

    Opening an engine runs native code: load only bundles whose source you trust, or name who has
    to have signed them.

    Args:
        bundle: Path of the archive.
        engine: Name of the engine to take; it is verified, too.
        precision: The precision to take; None means the bundle's first, in the order fp32, fp16,
            bf16, int8, fp8.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads for one inference; None means all that the process may use.
        public_key: PEM file with the key that must have signed the bundle.
        certificate_chain: PEM file with authorities, one of whose certificates must have signed it.

    Raises:
        DeployError: The bundle is damaged, or its signature is not valid.
        ParityError: No engine passes verification, and at least one computes something else.
        NotAvailableError: This machine can run no engine of the bundle, or not the named one.
    """
    from engines.hardware import available_cpus
    from pipeline.bundling import checking, opening, signature
    from pipeline.golden import file as goldens
    from pipeline.workflow import console

    path = _values.path("bundle", bundle)
    if threads is not None:
        threads = _values.whole("threads", threads, _values.MAX_THREADS)
    files = ExitStack()
    try:
        with console.redirected():
            trusted = signature.Trusted.of(public_key, certificate_chain)
            folder = files.enter_context(temporary.folder())
            unpacked = checking.unpack(path, folder, trusted=trusted)
            threads = threads or available_cpus()
            model = unpacked.model(precision)
            golden = goldens.load(model.golden)
            proved = opening.proved(model, engine, device, threads)
            chosen, session = opening.fastest(proved, model, golden, device, threads)
        sizes = golden.sizes(session.inputs)
        return Predictor(chosen, model.precision, session, unpacked.manifest, sizes, files)
    except BaseException:
        files.close()
        raise
