"""What one inference of a graph has to compute and to move, whichever engine runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Product:
    """The work of one convolution or matrix product of a graph.

    Attributes:
        names: Of its node and output, and those of the nodes after it that runtimes fuse with it.
        precision: That it computes in.
        operations: A multiply-add is two.
        weights: Bytes of its constant inputs, counted like those of `Work`.
    """

    names: frozenset[str]
    precision: str
    operations: int
    weights: int


@dataclass(frozen=True)
class Work:
    """The work of one inference.

    Attributes:
        operations: Of convolutions and matrix products, by the precision that they compute in; a
            multiply-add is two. Those with a convolution's padding are left out.
        weights: Bytes of the constants, as the graph stores them; of a table from which elements
            are picked, those of as many elements; of a convolution's weights, those that meet more
            than padding.
        inputs: Bytes of the graph's inputs.
        outputs: Bytes of the graph's outputs.
        products: What the operations consist of.
        uncounted: Operators whose products, if they have any, the operations lack.
    """

    operations: Mapping[str, int]
    weights: int
    inputs: int
    outputs: int
    products: tuple[Product, ...] = ()
    uncounted: tuple[str, ...] = ()

    @property
    def compulsory_bytes(self) -> int:
        """Bytes that every engine has to read or write at least once."""
        return self.weights + self.inputs + self.outputs
