"""When sums, products, choices and clamps are never below zero."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from relprop.engine.graph import Node, Ref


def _above_zero(operand: Any, values: Set[Ref]) -> bool:
    """Whether an operand is a value known to be ≥ 0, or such a number."""
    return (
        operand in values if isinstance(operand, Ref) else isinstance(operand, (int, float)) and operand >= 0
    )


def both_known(node: Node, values: Set[Ref]) -> bool:
    """Sums, products and quotients of operands ≥ 0."""
    alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
    return _above_zero(alpha, values) and all(_above_zero(operand, values) for operand in node.args[:2])


def product_known(node: Node, values: Set[Ref]) -> bool:
    """A square, or a product of factors ≥ 0."""
    square = isinstance(node.args[0], Ref) and node.args[0] == node.args[1]
    return square or all(_above_zero(operand, values) for operand in node.args[:2])


def one_known(node: Node, values: Set[Ref]) -> bool:
    """One of two operands is ≥ 0."""
    return any(_above_zero(operand, values) for operand in node.args[:2])


def second_known(node: Node, values: Set[Ref]) -> bool:
    """The second operand is ≥ 0, as is whatever else the result may be."""
    return _above_zero(node.args[1], values)


def branches_known(node: Node, values: Set[Ref]) -> bool:
    """A choice between values ≥ 0."""
    branches = (0, 2) if "masked_fill" in node.operation else (1, 2)
    return all(_above_zero(node.args[i], values) for i in branches)


def clamp_known(node: Node, values: Set[Ref]) -> bool:
    """min(max(x, low), high) is ≥ 0 where high is, and one of x and low."""
    if "clamp_max" in node.operation:
        low, high = None, node.args[1]
    else:
        low, high = _bound(node, 1, "min"), _bound(node, 2, "max")
    return (high is None or _above_zero(high, values)) and (
        _above_zero(node.args[0], values) or (low is not None and _above_zero(low, values))
    )


def _bound(node: Node, position: int, name: str) -> Any:
    if "hardtanh" in node.operation:
        return (
            node.args[position]
            if position < len(node.args)
            else node.kwargs.get(f"{name}_val", 2 * position - 3)
        )
    return node.args[position] if position < len(node.args) else node.kwargs.get(name)


def threshold_known(node: Node, values: Set[Ref]) -> bool:
    """threshold(x, t, v) is x where x > t, else v."""
    limit, value = node.args[1:3]
    return bool(value >= 0 and (limit >= 0 or node.args[0] in values))


def power_known(node: Node, values: Set[Ref]) -> bool:
    """An even power, or a power of a base ≥ 0."""
    base, exponent = node.args[:2]
    even = isinstance(exponent, (int, float)) and exponent % 2 == 0
    return even or _above_zero(base, values)
