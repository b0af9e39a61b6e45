"""Runs an ONNX graph node by node, in float64 or in the types that it has.

What an operator computes is ONNX's own definition, its reference implementation: it takes numpy
arrays of any float type. Operators that are slow there are computed by `graph_kernels`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from engines.contract import Array, Feeds, Outputs
from engines.errors import DeployError
from exporters import onnx_files
from exporters.graph_kernels import KERNELS
from exporters.half_graph import FLOATS
from exporters.onnx_nodes import graphs_of, named_constants, nodes_of

_FLOAT_BYTES = 4
_HALVES = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
# They give exact numbers, in a type that an attribute names.
_EXACT = ("EyeLike", "ConstantOfShape", "Constant", "OneHot", "Range")
_RANDOM = (
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    *("Bernoulli", "Multinomial"),
)
# What a node gives, by its name, before others read it: what is returned is read instead. The third
# argument is what the node reads.
Hook = Callable[[onnx.NodeProto, str, Array, "list[Array | None]"], Array]


def _as_it_is(
    _node: onnx.NodeProto, _name: str, value: Array, _inputs: list[Array | None]
) -> Array:
    return value


class GraphRun:
    """A graph that is run in float64, or with its half types held in float32."""

    def __init__(self, model: onnx.ModelProto, *, exactly: bool, hook: Hook = _as_it_is) -> None:
        """Prepares a graph.

        Args:
            model: A valid graph.
            exactly: Compute in float64. Otherwise float16 and bfloat16 are held in float32, and
                the other types are the graph's.
            hook: See `Hook`.

        Raises:
            DeployError: ONNX defines one of the operators only by words, or it is random.
        """
        _check_operators(model)
        wide = onnx.ModelProto()
        wide.CopyFrom(model)
        for tensor in onnx_files.tensors(wide):
            _widen(tensor, exactly=exactly)
        self._exactly = exactly
        kind = type("_Run", (_Evaluator,), {"hook": staticmethod(hook), "exactly": exactly})
        try:
            self._evaluator = kind(wide)
        except (NotImplementedError, RuntimeError) as error:  # an operator or a version of it
            raise DeployError(
                f"the graph cannot be run in float64: {error}",
                "assay judges graphs of ONNX's standard operators",
            ) from error
        self.outputs = tuple(value.name for value in model.graph.output)

    def __call__(self, feeds: Feeds) -> Outputs:
        """Returns the outputs, by name.

        Raises:
            DeployError: The graph cannot be run on these inputs.
        """
        wide = {name: self._wide(array) for name, array in feeds.items()}
        try:
            with np.errstate(all="ignore"):
                results = self._evaluator.run(None, wide)
        except DeployError:
            raise
        except Exception as error:  # the implementations raise many types
            raise DeployError(
                f"the graph cannot be run on its inputs: {error}",
                "check the shapes and values of the inputs: --inputs FILE.npz, --shape",
            ) from error
        return {name: np.asarray(value) for name, value in zip(self.outputs, results, strict=True)}

    def _wide(self, array: Array) -> Array:
        if array.dtype.kind == "f" and (self._exactly or array.dtype.itemsize < _FLOAT_BYTES):
            return array.astype(np.float64 if self._exactly else np.float32)
        return array


def _check_operators(model: onnx.ModelProto) -> None:
    names = {
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        for node in nodes_of(model.graph)
    }
    own = {f"{function.domain}.{function.name}" for function in model.functions}
    foreign = sorted(
        name
        for name in names - own
        if "." in name and not name.startswith(("ai.onnx.", "ai.onnx.ml."))
    )
    if foreign:
        raise DeployError(
            f"the graph has operators that ONNX does not define: {', '.join(foreign)}",
            "give the graph before a runtime optimized or quantized it",
        )
    if random := sorted(names.intersection(_RANDOM)):
        raise DeployError(
            f"the graph has random operators: {', '.join(random)}",
            "a verdict needs the same outputs for the same inputs: give the numbers as an input",
        )


def _widen(tensor: onnx.TensorProto, *, exactly: bool) -> None:
    kinds = FLOATS if exactly else _HALVES
    if tensor.data_type in kinds:
        array = numpy_helper.to_array(tensor).astype(np.float64 if exactly else np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


class _Evaluator(ReferenceEvaluator):
    """ONNX's evaluator with a hook on every value, which forgets values that nothing reads.

    ONNX makes evaluators of this class for subgraphs and function bodies, too.
    """

    hook: Hook
    exactly: bool

    def __init__(self, proto: Any, **options: Any) -> None:
        super().__init__(proto, **{**options, "new_ops": KERNELS})
        self._unread: list[list[str]] = [[] for _ in self.rt_nodes_]
        if not any(node.need_context() for node in self.rt_nodes_):
            last = {name: i for i, node in enumerate(self.rt_nodes_) for name in node.input}
            for name, index in last.items():
                if name and name not in self.output_names and name not in self.rt_inits_:
                    self._unread[index].append(name)

    def run(  # type: ignore[override]
        self,
        output_names: Any,
        feed_inputs: dict[str, Any],
        attributes: dict[str, Any] | None = None,
        **_more: Any,
    ) -> list[Any]:
        results: dict[str, Any] = {"": None, **self.rt_inits_, **feed_inputs}
        for node, unread in zip(self.rt_nodes_, self._unread, strict=True):
            inputs = [results[name] for name in node.input]
            linked = {"linked_attributes": attributes} if node.has_linked_attribute else {}
            context = {"context": results} if node.need_context() else {}
            if node.op_type == "Cast" and node.to in FLOATS:
                outputs = (np.asarray(inputs[0]).astype(self._type(node.to)),)
            else:
                try:
                    outputs = node.run(*inputs, **linked, **context)
                except DeployError:  # of a subgraph
                    raise
                except Exception as error:  # the implementations raise many types
                    raise _not_run(node, error) from error
            for name, value in zip(node.output, outputs, strict=False):
                if name:
                    wide = self._checked(node, value)
                    results[name] = self.hook(node.onnx_node, name, wide, inputs)
            for name in unread:
                del results[name]
        return [results[name] for name in output_names or self.output_names]

    def _type(self, kind: int) -> Any:
        if self.exactly:
            return np.float64
        return np.float32 if kind in _HALVES else onnx.helper.tensor_dtype_to_np_dtype(kind)

    def _checked(self, node: Any, value: Any) -> Any:
        """Returns a value; one that lost digits on the way to it is an error."""
        if not self.exactly or not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            return value
        if value.dtype != np.float64 and node.op_type not in _EXACT:
            raise DeployError(
                f"{node.op_type} {node.onnx_node.name or node.output[0]} cannot be computed in"
                f" float64: ONNX's own implementation gives {value.dtype}",
                "assay cannot judge a graph with this operator",
            )
        return value.astype(np.float64, copy=False)


def _not_run(node: Any, error: Exception) -> DeployError:
    name = node.onnx_node.name or node.output[0]
    hint = "check the shapes and values of the inputs: --inputs FILE.npz, --shape"
    if isinstance(error, IndexError):
        hint = "give integers that its tables have, such as token ids: --inputs FILE.npz"
    return DeployError(
        f"the graph cannot be run on its inputs, at {node.op_type} {name}: {error}", hint
    )


def constants(model: onnx.ModelProto) -> Mapping[str, onnx.TensorProto]:
    """Returns the constants of a graph and its subgraphs: initializers, and what Constants give.

    Returns:
        By name; a name that a subgraph has again gets the number of the subgraph.
    """
    known: dict[str, onnx.TensorProto] = {}
    for number, graph in enumerate(graphs_of(model.graph)):
        for name, tensor in named_constants(graph):
            known[name if name not in known else f"{name} of subgraph {number}"] = tensor
    return known
