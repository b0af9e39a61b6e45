"""PyTorch itself: the exported program, run eagerly, operator by operator."""

from __future__ import annotations

import importlib
import json
import linecache
import logging
import shutil
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from engines import hardware
from engines.backends._program_file import check_program
from engines.backends._torch_cuda import CudaRunner, channels_last, gpu_problem
from engines.checks import (
    FeedCheck,
    available_on_cpu,
    choose_device,
    closed_error,
    import_vendor,
    installed,
    unbound_error,
)
from engines.contract import (
    Array,
    Availability,
    BuildOptions,
    Engine,
    Feeds,
    OpenOptions,
    Outputs,
    TensorSpec,
)
from engines.errors import DeployError
from engines.layer_report import Layer, LayerTime, precision, typical_times

_INSTALL = "pip install torch"
# The file in the program's archive that lists its inputs and outputs.
SIGNATURE = "assay_signature.json"
# torch.export.load has state that the whole process shares.
_LOADING = threading.Lock()


class PyTorchEngine(Engine):
    """The baseline that every other engine is compared with.

    It opens a `torch.export` program, not the user's module, so that it needs no source code
    and computes on the target exactly what was exported. Calling the operators
    through the program takes a little longer than calling the module: benchmarks/program.py
    measures by how much.
    """

    name = "pytorch"
    module = "torch"
    source: Literal["graph", "program"] = "program"
    devices = ("cuda", "cpu")
    cuda_graphs = True
    suffix = ".pt2"

    def available(self) -> Availability:
        return available_on_cpu(("torch",), _INSTALL)

    def gpu_problem(self, index: int) -> str:
        return gpu_problem(import_vendor(self.module, _INSTALL), index)

    def fingerprint(self) -> dict[str, str]:
        return {
            **installed(("torch",)),
            **hardware.cpu_fingerprint(),
            **hardware.gpu_fingerprint(),
        }

    def build(self, source: Path, target: Path, options: BuildOptions) -> tuple[Layer, ...]:
        """Copies the program, once it has loaded without error. No option applies.

        Returns:
            The program's nodes, with the types of their outputs.
        """
        program, *_ = load_program(import_vendor(self.module, _INSTALL), source)
        shutil.copyfile(source, target)
        return tuple(
            Layer(
                node.name,
                operator_name(node),
                precision(str(value.dtype).removeprefix("torch.")),
            )
            for node in program.graph.nodes
            if node.op == "call_function" and hasattr(value := node.meta.get("val"), "dtype")
        )

    def layer_times(
        self, built: Path, options: OpenOptions, feeds: Feeds, runs: int
    ) -> tuple[LayerTime, ...]:
        """Returns the time of each operator; () on a GPU, where operators only launch kernels."""
        torch, path, device = self.prepared(built, options)
        if device != "cpu":
            return ()
        session = PyTorchSession(torch, path, device)
        times = [session.operator_seconds(feeds) for _ in range(runs + 1)]
        session.close()
        # The first one does not count. Nodes of the graph are named after those of the program.
        return typical_times(times[1:], "node_{}".format)

    def open(self, built: Path, options: OpenOptions) -> PyTorchSession:
        return PyTorchSession(*self.prepared(built, options), cuda_graph=options.cuda_graph)

    def prepared(self, built: Path, options: OpenOptions) -> tuple[Any, Path, str]:
        """Applies the options to torch; returns the arguments of a session."""
        torch = import_vendor(self.module, _INSTALL)
        device = choose_device(self, options.device)
        exact_fp32(torch)
        torch.set_num_threads(options.threads)
        return torch, built, device


def operator_name(node: Any) -> str:
    """Returns the name of the operator that a node of a program calls, such as "conv2d"."""
    return str(node.target).removeprefix("aten.").partition(".")[0]


def move_to_cuda(program: Any, device: str) -> Any:
    """Returns a program on a CUDA device.

    Args:
        device: "cuda" or "cuda:N". The program gets an index in any case: torch compares it with
            that of the inputs, and takes "cuda" and "cuda:0" for two devices.
    """
    from torch.export.passes import move_to_device_pass

    with quietly():
        return move_to_device_pass(program, device if ":" in device else f"{device}:0")


def exact_fp32(torch: Any) -> None:
    """Makes fp32 mean fp32 on CUDA, for the whole process.

    TF32 is on by default for convolutions, and a hundred times less precise than fp32.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def load_program(torch: Any, path: Path) -> tuple[Any, dict[str, Any]]:
    """Returns an exported program, and its inputs and outputs as `specs_of` takes them.

    The program's example inputs are zeros, with a batch of two.

    Raises:
        DeployError: The file is not an exported program, or reading it might run code.
    """
    extra = {SIGNATURE: ""}
    try:
        check_program(path)
    except ValueError as error:
        raise DeployError(
            f"{path} is not opened: {error}", "export the model again, and build this engine again"
        ) from error
    try:
        # An open file, since a path would have to end in .pt2.
        with _LOADING, quietly(), _freeing_sources(torch), path.open("rb") as file:
            program = torch.export.load(file, extra_files=extra)
        signature = json.loads(extra[SIGNATURE])
        program.example_inputs = (_zeros(torch, specs_of(signature["inputs"])), {})
        specs_of(signature["outputs"])
        return program, signature
    except Exception as error:  # torch.export.load documents no exception types
        raise DeployError(
            f"torch.export.load does not accept {path}: {error}",
            "build the engine again with this version of torch",
        ) from error


def _zeros(torch: Any, specs: tuple[TensorSpec, ...]) -> tuple[Any, ...]:
    """Returns a tensor of zeros for each input, with two in place of dynamic axes."""
    return tuple(
        torch.zeros([size or 2 for size in spec.shape], dtype=getattr(torch, spec.dtype))
        for spec in specs
    )


@contextmanager
def _freeing_sources(torch: Any) -> Iterator[None]:
    """Frees what torch otherwise keeps of a program until the process ends, 40 kB for LeNet.

    This is the source of the generated code, for tracebacks, and the symbols of its shapes.
    """
    sources = getattr(torch.fx.graph_module._loader, "eval_cache", {})
    before = set(sources)
    try:
        yield
    finally:
        for name in set(sources) - before:
            sources.pop(name, None)
            linecache.cache.pop(name, None)
        shapes = importlib.import_module("torch.fx.experimental.symbolic_shapes")
        if clear := getattr(shapes.ShapeEnv.constrain_symbol_range, "cache_clear", None):
            clear()


@contextmanager
def quietly() -> Iterator[None]:
    """Suppresses torch's logs and warnings about its own parts; exceptions still pass."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _eager(torch: Any, program: Any) -> Any:
    """Returns the program as a function from tensors to a tuple of tensors.

    Leaves out the checks that `ExportedProgram.module()` makes on every call: a session checks
    its feeds itself, and a baseline that checks twice would flatter the other engines.
    """
    module = program.module(check_guards=False)
    module._forward_pre_hooks.clear()
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
    module.graph.set_codegen(torch.fx.graph.CodeGen())  # plain tensors, no nested containers
    module.recompile()
    return module


class PyTorchSession:
    """An open exported program; see `engines.contract.Session`."""

    name = "pytorch"
    batch: tuple[int, int] | None = None

    def __init__(self, torch: Any, path: Path, device: str, *, cuda_graph: bool = False) -> None:
        self._torch = torch
        program, signature = load_program(torch, path)
        if device != "cpu":
            program = move_to_cuda(program, device)
        with _LOADING, _freeing_sources(torch):
            module = _eager(torch, program)
        if device != "cpu" and (cuda_graph or self.name != "pytorch"):
            # Not for plain eager launches: the baseline runs as it does for a user.
            for tensor in module.parameters():
                channels_last(torch, tensor)
        self._set_up(
            self._compiled(module),
            device,
            specs_of(signature["inputs"]),
            specs_of(signature["outputs"]),
            cuda_graph=cuda_graph,
        )

    def _compiled(self, module: Any) -> Any:
        """Returns the function to call with the inputs."""
        return module

    def _set_up(
        self,
        function: Any,
        device: str,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        cuda_graph: bool,
    ) -> None:
        self._function = function
        self.device = device
        self._bound: list[Any] | None = None
        self.inputs, self.outputs = inputs, outputs
        self._check = FeedCheck(self.inputs)
        self._cuda: CudaRunner | None = None
        self.stream: int | None = None
        if device != "cpu":
            self._cuda = CudaRunner(self._torch, device, function, cuda_graph=cuda_graph)
            self.stream = self._cuda.stream

    def run(self, feeds: Feeds) -> Outputs:
        self._require_open()
        self._check(feeds)
        arrays = [feeds[spec.name] for spec in self.inputs]
        with self._errors():
            if self._cuda is not None:
                values = self._cuda.run(arrays)
            else:
                values = [value.numpy() for value in self._call(self._tensors(arrays))]
        return {spec.name: value for spec, value in zip(self.outputs, values, strict=True)}

    def bind(self, feeds: Feeds) -> None:
        self._require_open()
        self._check(feeds)
        arrays = [feeds[spec.name] for spec in self.inputs]
        with self._errors():
            if self._cuda is not None:
                self._cuda.bind(arrays)
            else:
                self._bound = self._tensors(arrays)

    def launch(self) -> None:
        self._require_open()
        if self._bound is None and not (self._cuda and self._cuda.is_bound):
            raise unbound_error()
        with self._errors():
            if self._cuda is not None:
                self._cuda.launch()
            elif self._bound is not None:
                self._call(self._bound)

    def synchronize(self) -> None:
        if self._cuda is not None:
            with self._errors():
                self._cuda.synchronize()

    def operator_seconds(self, feeds: Feeds) -> dict[tuple[str, str, str], float]:
        """Runs an eager program on the CPU; returns seconds by an operator's name, kind and ""."""
        times: dict[tuple[str, str, str], float] = {}

        class Timed(self._torch.fx.Interpreter):  # type: ignore[misc, name-defined]
            def run_node(self, node: Any) -> Any:
                start = time.perf_counter()
                value = super().run_node(node)
                if node.op == "call_function":
                    times[node.name, operator_name(node), ""] = time.perf_counter() - start
                return value

        with self._torch.inference_mode(), self._errors():
            Timed(self._function).run(*self._tensors([feeds[spec.name] for spec in self.inputs]))
        return times

    def close(self) -> None:
        self._function = None
        self._bound = None
        if self._cuda is not None:
            self._cuda.close()
            self._cuda = None

    def _require_open(self) -> None:
        if self._function is None:
            raise closed_error(self.name)

    def _tensors(self, arrays: list[Array]) -> list[Any]:
        # torch rejects read-only arrays and negative strides.
        return [
            self._torch.from_numpy(
                array
                if array.flags.writeable and all(stride >= 0 for stride in array.strides)
                else array.copy()
            )
            for array in arrays
        ]

    def _call(self, tensors: list[Any]) -> Any:
        with self._torch.inference_mode():
            return self._function(*tensors)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise DeployError(
                f"{self.name} failed while it ran the program: {error}",
                "the message names the operator",
            ) from error


def specs_of(entries: Any) -> tuple[TensorSpec, ...]:
    """Returns the specs of the inputs or outputs in a program's signature, a JSON value.

    Raises:
        ValueError: An entry has not a name, a dtype and a shape.
    """
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"its signature has {entries!r:.80} for inputs or outputs")
    specs = []
    for entry in entries:
        fields = entry if isinstance(entry, dict) else {}
        name, dtype, shape = (fields.get(key) for key in ("name", "dtype", "shape"))
        texts = isinstance(name, str) and isinstance(dtype, str)
        if not texts or not isinstance(shape, list) or not all(map(_is_axis, shape)):
            raise ValueError(f"its signature has {entry!r:.80} for an input or output")
        specs.append(TensorSpec(str(name), str(dtype), tuple(shape)))
    return tuple(specs)


def _is_axis(size: Any) -> bool:
    return size is None or (type(size) is int and size >= 0)


ENGINE = PyTorchEngine()
