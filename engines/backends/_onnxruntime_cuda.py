"""An ONNX Runtime session on an NVIDIA GPU: its own stream, bound buffers, CUDA graphs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.checks import FeedCheck, closed_error, import_vendor, unbound_error
from engines.contract import Array, Feeds, Outputs, TensorSpec
from engines.cuda import Cuda
from engines.errors import DeployError

# Combinations of input shapes whose buffers a session keeps; the oldest goes first.
_MAX_SHAPES = 16
# ONNX Runtime's graph id for a run that is neither captured nor replayed.
_NO_GRAPH = "-1"
# The metadata of a graph that is to run channels-last. It is in the file, since a graph is opened
# without the options that it was built with.
NHWC = "assay.prefer_nhwc"


def provider_options(built: Path, *, cuda_graph: bool) -> dict[str, str]:
    """Returns the options of the CUDA provider for a built graph, without those of the device."""
    onnx = import_vendor("onnx", "pip install onnx")
    model = onnx.load(built, load_external_data=False)
    half = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    in_half = any(
        tensor.data_type in half and len(tensor.dims) > 1 for tensor in model.graph.initializer
    )
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return {
        # In half precision, cuDNN's heuristics choose faster convolutions than ONNX Runtime's
        # default, which tries them in one layout only: ResNet-18 at batch 256 on an H100 takes
        # half the time. In fp32 the default is faster.
        "cudnn_conv_algo_search": "HEURISTIC" if in_half else "EXHAUSTIVE",
        "enable_cuda_graph": str(int(cuda_graph)),
        "prefer_nhwc": str(int(metadata.get(NHWC) == "1")),
    }


@dataclass
class _Buffers:
    """The memory of one combination of input shapes.

    Attributes:
        binding: Binds the names of inputs and outputs to memory on the device.
        inputs: Tensors on the device. Their addresses never change, so that a graph stays valid.
        options: Run options; they name the captured graph to replay.
    """

    binding: Any
    inputs: dict[str, Any]
    options: Any


class OnnxRuntimeCudaSession:
    """An open session on one GPU; see `engines.contract.Session`.

    Launches are enqueued on a stream of our own and return at once. With a CUDA graph, ONNX
    Runtime captures the first launch of each shape and replays it from then on.
    """

    batch: tuple[int, int] | None = None

    def __init__(
        self,
        session: Any,
        runtime: Any,
        name: str,
        cuda: Cuda,
        stream: int,
        *,
        cuda_graph: bool,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        """Takes over a session that was opened with `user_compute_stream` set to `stream`."""
        self._session: Any = session
        self._runtime = runtime
        self._name = name
        self._cuda = cuda
        self._graph_wanted = cuda_graph
        self._shapes: OrderedDict[object, _Buffers] = OrderedDict()
        self._captured = 0
        self._bound: _Buffers | None = None
        self.device = f"cuda:{cuda.index}"
        self.stream: int | None = stream
        self.inputs, self.outputs = inputs, outputs
        self._check = FeedCheck(inputs)
        self._names = [spec.name for spec in outputs]

    def run(self, feeds: Feeds) -> Outputs:
        self._put(feeds)
        self.launch()
        self.synchronize()
        assert self._bound is not None  # noqa: S101 - _put has set it
        outputs: list[Array] = self._bound.binding.copy_outputs_to_cpu()
        return dict(zip(self._names, outputs, strict=True))

    def bind(self, feeds: Feeds) -> None:
        self._put(feeds)

    def launch(self) -> None:
        self._require_open()
        if self._bound is None:
            raise unbound_error()
        self._run(self._bound.binding, self._bound.options)

    def synchronize(self) -> None:
        self._require_open()
        if self.stream is not None:
            self._cuda.synchronize(self.stream)

    def close(self) -> None:
        if self._session is None:
            return
        stream, self.stream = self.stream, None
        try:
            if stream is not None:
                self._cuda.synchronize(stream)
        finally:
            self._bound = None
            self._shapes.clear()
            self._session = None
            if stream is not None:
                self._cuda.destroy_stream(stream)

    def _put(self, feeds: Feeds) -> None:
        self._require_open()
        self._check(feeds)
        key = tuple(feeds[spec.name].shape for spec in self.inputs)
        buffers = self._shapes.get(key)
        if buffers is None:
            buffers = self._shapes[key] = self._allocate(feeds)
            # A captured graph keeps its addresses: its buffers stay as long as the session.
            if len(self._shapes) > _MAX_SHAPES and not self._graph_wanted:
                self._shapes.popitem(last=False)
        else:
            self._shapes.move_to_end(key)
            for name, value in buffers.inputs.items():
                value.update_inplace(feeds[name])
        self._bound = buffers

    def _allocate(self, feeds: Feeds) -> _Buffers:
        index = self._cuda.index
        binding = self._session.io_binding()
        inputs = {}
        for spec in self.inputs:
            inputs[spec.name] = self._runtime.OrtValue.ortvalue_from_numpy(
                feeds[spec.name], "cuda", index
            )
            binding.bind_ortvalue_input(spec.name, inputs[spec.name])
        for name in self._names:
            binding.bind_output(name, "cuda", index)
        # A first run finds the shapes of the outputs, and warms up the kernels.
        self._run(binding, self._options(_NO_GRAPH))
        self.synchronize()
        outputs = binding.get_outputs()
        binding.clear_binding_outputs()
        for name, value in zip(self._names, outputs, strict=True):
            binding.bind_ortvalue_output(name, value)
        graph = str(self._captured + 1) if self._graph_wanted else _NO_GRAPH
        self._captured += 1
        return _Buffers(binding, inputs, self._options(graph))

    def _options(self, graph: str) -> Any:
        options = self._runtime.RunOptions()
        # Otherwise every launch waits for the device.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._graph_wanted:
            options.add_run_config_entry("gpu_graph_id", graph)
        return options

    def _run(self, binding: Any, options: Any) -> None:
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:  # its exception types share no public base
            raise DeployError(
                f"ONNX Runtime failed while it ran the graph: {error}",
                "the message names the node",
            ) from error

    def _require_open(self) -> None:
        if self._session is None:
            raise closed_error(self._name)
