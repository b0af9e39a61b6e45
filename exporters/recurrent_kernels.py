"""RNN, GRU and LSTM; the reference implementation ignores some of their inputs and attributes.

These are the lengths of sequences, activations and the clipping of what they take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from engines.contract import Array

_Activation = Callable[[Array], Array]
_OF_CELL = 2  # the last activation of an LSTM
# By name: the function, and its usual alpha and beta; None if it takes none.
_FUNCTIONS: Mapping[str, tuple[Callable[..., Array], float | None, float | None]] = {
    "affine": (lambda x, a, b: a * x + b, 1.0, 0.0),
    "elu": (lambda x, a: np.where(x >= 0, x, a * np.expm1(x)), 1.0, None),
    "hardsigmoid": (lambda x, a, b: np.clip(a * x + b, 0, 1), 0.2, 0.5),
    "leakyrelu": (lambda x, a: np.where(x >= 0, x, a * x), 0.01, None),
    "relu": (lambda x: np.maximum(x, 0), None, None),
    "scaledtanh": (lambda x, a, b: a * np.tanh(b * x), 1.0, 1.0),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), None, None),
    "softplus": (lambda x: np.logaddexp(0, x), None, None),
    "softsign": (lambda x: x / (1 + np.abs(x)), None, None),
    "tanh": (np.tanh, None, None),
    "thresholdedrelu": (lambda x, a: np.where(x > a, x, 0), 1.0, None),
}


def _activations(
    options: Mapping[str, Any], usual: tuple[str, ...], count: int
) -> list[_Activation]:
    """Returns the functions of all directions, in their order."""
    alphas, betas = (iter(options.get(f"activation_{n}") or ()) for n in ("alpha", "beta"))
    clip: float = options.get("clip") or 0.0

    def prepared(name: str, number: int) -> _Activation:
        if name.lower() not in _FUNCTIONS:
            raise NotImplementedError(f"activation {name}")
        function, alpha, beta = _FUNCTIONS[name.lower()]
        values: list[Any] = []
        if alpha is not None:
            values.append(next(alphas, alpha))
        if beta is not None:
            values.append(next(betas, beta))
        # Runtimes clip what gates take, but not the cell of an LSTM.
        clips = clip and number % len(usual) != _OF_CELL

        def call(x: Array) -> Array:
            return np.asarray(function(np.clip(x, -clip, clip) if clips else x, *values), x.dtype)

        return call

    names = options.get("activations") or usual * count
    return [prepared(name, number) for number, name in enumerate(names)]


class _Recurrent(OpRun):
    """A network that reads a sequence in one direction or in both."""

    op_domain = ""
    usual: tuple[str, ...]  # activations
    has_cell = False

    def _run(self, *inputs: Any, **options: Any) -> Any:
        x, weights, recurrent, bias, lengths, hidden, cell, peepholes = (*inputs, *[None] * 8)[:8]
        rows_first = bool(options.get("layout"))
        if rows_first:
            x = x.swapaxes(0, 1)
            hidden, cell = (v if v is None else v.swapaxes(0, 1) for v in (hidden, cell))
        steps, rows, _ = x.shape
        count, _, size = recurrent.shape
        lengths = np.full(rows, steps) if lengths is None else lengths
        zeros = np.zeros((count, rows, size), x.dtype)
        functions = _activations(options, self.usual, count)
        if bias is None:
            bias = np.zeros((count, 2 * weights.shape[1]), x.dtype)
        outputs = np.zeros((steps, count, rows, size), x.dtype)
        last = zeros.copy(), zeros.copy()
        direction = options.get("direction") or "forward"
        for number in range(count):
            backward = direction == "reverse" or number == 1
            chosen = functions[number * len(self.usual) :][: len(self.usual)]
            state = (
                (zeros if hidden is None else hidden)[number],
                (zeros if cell is None else cell)[number],
            )
            parts = weights[number].T, recurrent[number].T, *np.split(bias[number], 2)
            peephole = None if peepholes is None else np.split(peepholes[number], 3)
            for at, active in _order(steps, lengths, backward=backward):
                new = self.step(x[at], state, parts, chosen, peephole, options)
                mask = active[:, np.newaxis]
                state = np.where(mask, new[0], state[0]), np.where(mask, new[1], state[1])
                outputs[at, number] = np.where(mask, new[0], 0)
            last[0][number], last[1][number] = state
        if rows_first:
            outputs = outputs.transpose(2, 0, 1, 3)
            last = last[0].swapaxes(0, 1), last[1].swapaxes(0, 1)
        return (outputs, *last) if self.has_cell else (outputs, last[0])

    def step(
        self,
        x: Array,
        state: tuple[Array, Array],
        parts: tuple[Array, ...],
        functions: list[_Activation],
        peephole: list[Array] | None,
        options: Mapping[str, Any],
    ) -> tuple[Array, Array]:
        """Returns the state after a step: what is hidden, and the cell.

        Args:
            parts: The weights of inputs and states, `[in, gates]`, and the biases of both.
            peephole: The weights of the cell for the gates in, out and forget.
        """
        raise NotImplementedError


def _order(steps: int, lengths: Array, *, backward: bool) -> Iterator[tuple[int, Array]]:
    """Yields each step, and which rows of the batch have it."""
    for at in reversed(range(steps)) if backward else range(steps):
        yield at, at < lengths


class RNN(_Recurrent):
    """A network with one gate."""

    usual = ("Tanh",)

    def step(self, x, state, parts, functions, peephole, options):  # type: ignore[no-untyped-def]
        """See `_Recurrent.step`."""
        weights, recurrent, bias, recurrent_bias = parts
        hidden = functions[0](x @ weights + state[0] @ recurrent + bias + recurrent_bias)
        return hidden, state[1]


class GRU(_Recurrent):
    """A network with gates that update and reset."""

    usual = ("Sigmoid", "Tanh")

    def step(self, x, state, parts, functions, peephole, options):  # type: ignore[no-untyped-def]
        """See `_Recurrent.step`."""
        weights, recurrent, bias, recurrent_bias = parts
        hidden = state[0]
        update, reset, new = np.split(x @ weights + bias, 3, axis=1)
        update_weights, reset_weights, new_weights = np.split(recurrent, 3, axis=1)
        update_bias, reset_bias, new_bias = np.split(recurrent_bias, 3)
        update = functions[0](update + hidden @ update_weights + update_bias)
        reset = functions[0](reset + hidden @ reset_weights + reset_bias)
        if options.get("linear_before_reset"):
            new = new + reset * (hidden @ new_weights + new_bias)
        else:
            new = new + (reset * hidden) @ new_weights + new_bias
        return (1 - update) * functions[1](new) + update * hidden, state[1]


class LSTM(_Recurrent):
    """A network with a cell, and gates in, out and forget."""

    usual = ("Sigmoid", "Tanh", "Tanh")
    has_cell = True

    def step(self, x, state, parts, functions, peephole, options):  # type: ignore[no-untyped-def]
        """See `_Recurrent.step`."""
        weights, recurrent, bias, recurrent_bias = parts
        hidden, cell = state
        gates = x @ weights + hidden @ recurrent + bias + recurrent_bias
        into, out, forget, new = np.split(gates, 4, axis=1)
        if peephole is not None:
            into, forget = into + peephole[0] * cell, forget + peephole[2] * cell
        into = functions[0](into)
        forget = 1 - into if options.get("input_forget") else functions[0](forget)
        cell = forget * cell + into * functions[1](new)
        if peephole is not None:
            out = out + peephole[1] * cell
        return functions[0](out) * functions[2](cell), cell


KERNELS = [RNN, GRU, LSTM]
