"""Functions that older operator sets cannot name, written by exporters as several operators, become one again.

GELU is an operator from set 20 on, layer normalisation from 17, SiLU from 24: before that a file spells them out.
Read as one operation they are explained as in the model that was exported.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from relprop.engine.frontends.onnx.table import Node


class Look:
    """Who makes a value, and what is known of it."""

    def __init__(self, nodes: list[Node], constants: Mapping[str, np.ndarray[Any, Any]]) -> None:
        self._makers = {output: node for node in nodes for output in node.outputs}
        self._constants = constants

    def maker(self, name: str, *operations: str) -> Node | None:
        """The node that makes a value, if it is one of these operators."""
        node = self._makers.get(name)
        return node if node is not None and not node.domain and node.operation in operations else None

    def number(self, name: str) -> float | None:
        """The value of a constant with one entry."""
        value = self._constants.get(name)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def integers(self, name: str) -> list[int] | None:
        """The entries of a constant row of whole numbers."""
        value = self._constants.get(name)
        return None if value is None else [int(v) for v in value.reshape(-1)]

    def is_constant(self, name: str) -> bool:
        """Whether the file gives the value."""
        return name in self._constants

    def with_number(self, node: Node | None, number: float) -> str | None:
        """The other input of a node of which one input is this constant."""
        if node is None:
            return None
        for mine, other in (node.inputs[:2], node.inputs[1::-1]):
            found = self.number(mine)
            if found is not None and math.isclose(found, number, rel_tol=1e-3):
                return other
        return None


def fused(nodes: list[Node], constants: Mapping[str, np.ndarray[Any, Any]]) -> list[Node]:
    """The nodes with every known pattern replaced, at the place of its last node."""
    look = Look(nodes, constants)
    return [next((new for find in PATTERNS if (new := find(node, look)) is not None), node) for node in nodes]


def _gated(node: Node, look: Look) -> Node | None:
    """x · g(x) with a sigmoid, a hard sigmoid or tanh(softplus(x)): SiLU, Hardswish, Mish."""
    if node.operation != "Mul" or node.domain:
        return None
    for x, gate in (node.inputs, node.inputs[::-1]):
        maker = look.maker(gate, "Sigmoid", "HardSigmoid", "Tanh")
        if maker is None:
            continue
        if maker.operation == "Tanh":
            inner = look.maker(maker.inputs[0], "Softplus")
            if inner is not None and inner.inputs[0] == x:
                return _renamed(node, "Mish", (x,))
        elif maker.inputs[0] == x:
            if maker.operation == "Sigmoid":
                return _renamed(node, "Swish", (x,), alpha=1.0)
            if math.isclose(maker["alpha"], 1 / 6, rel_tol=1e-4) and math.isclose(maker["beta"], 0.5):
                return _renamed(node, "HardSwish", (x,))
    return None


def _gelu(node: Node, look: Look) -> Node | None:
    """x · (1 + erf(x / √2)) / 2 in any order of the three factors."""
    if node.operation != "Mul" or node.domain:
        return None
    factors = _factors(node, look)
    halves = [f for f in factors if (n := look.number(f)) is not None and math.isclose(n, 0.5)]
    others = [f for f in factors if f not in halves]
    if len(halves) != 1 or len(others) != 2:
        return None
    for x, gate in (others, others[::-1]):
        erf = look.maker(look.with_number(look.maker(gate, "Add"), 1.0) or "", "Erf")
        if erf is None:
            continue
        scaled = look.maker(erf.inputs[0], "Div", "Mul")
        if scaled is None:
            continue
        divided = scaled.operation == "Div" and scaled.inputs[0] == x and look.number(scaled.inputs[1])
        if divided and math.isclose(divided, math.sqrt(2), rel_tol=1e-3):
            return _renamed(node, "Gelu", (x,), approximate="none")
        if scaled.operation == "Mul" and look.with_number(scaled, math.sqrt(0.5)) == x:
            return _renamed(node, "Gelu", (x,), approximate="none")
    return None


def _factors(node: Node, look: Look) -> list[str]:
    """The three factors of a product of two products."""
    for place in (0, 1):
        inner = look.maker(node.inputs[place], "Mul")
        if inner is not None:
            return [*inner.inputs, node.inputs[1 - place]]
    return list(node.inputs)


def _layer_norm(node: Node, look: Look) -> Node | None:
    """((x - mean) / √(variance + ε)) · weight + bias over the last dimension."""
    if node.operation != "Add" or node.domain:
        return None
    for scaled, bias in (node.inputs, node.inputs[::-1]):
        product = look.maker(scaled, "Mul")
        if product is None or not look.is_constant(bias):
            continue
        for normed, weight in (product.inputs, product.inputs[::-1]):
            found = _normed(look.maker(normed, "Div"), look) if look.is_constant(weight) else None
            if found is not None:
                x, epsilon = found
                return _renamed(node, "LayerNormalization", (x, weight, bias), axis=-1, epsilon=epsilon)
    return None


def _normed(node: Node | None, look: Look) -> tuple[str, float] | None:
    """What is normalised, and ε, where a division is (x - mean) / √(variance + ε)."""
    if node is None:
        return None
    centred = look.maker(node.inputs[0], "Sub")
    root = look.maker(node.inputs[1], "Sqrt")
    shifted = look.maker(root.inputs[0], "Add") if root is not None else None
    if centred is None or shifted is None:
        return None
    for variance, small in (shifted.inputs, shifted.inputs[::-1]):
        epsilon = look.number(small)
        spread = look.maker(variance, "ReduceMean")
        if epsilon is None or spread is None or not _last(spread, look):
            continue
        square = look.maker(spread.inputs[0], "Pow", "Mul")
        if square is None or square.inputs[0] != node.inputs[0]:
            continue
        if not (
            look.number(square.inputs[1]) == 2
            if square.operation == "Pow"
            else square.inputs[1] == square.inputs[0]
        ):
            continue
        mean = look.maker(centred.inputs[1], "ReduceMean")
        if mean is not None and mean.inputs[0] == centred.inputs[0] and _last(mean, look):
            return centred.inputs[0], epsilon
    return None


def _last(node: Node, look: Look) -> bool:
    """Whether a mean is over the last dimension, which stays."""
    axes = look.integers(node.inputs[1]) if len(node.inputs) > 1 else node["axes"]
    return axes == [-1] and bool(node["keepdims"])


def _renamed(node: Node, operation: str, inputs: tuple[str, ...], **attributes: Any) -> Node:
    return dataclasses.replace(node, operation=operation, inputs=inputs, attributes=attributes)


PATTERNS: list[Callable[[Node, Look], Node | None]] = [_gated, _gelu, _layer_norm]
"""Each looks at one node as the last of a pattern and gives the one operator for all of it, or None."""
