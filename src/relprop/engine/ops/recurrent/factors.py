"""The shares of sums and products of two tensors as factors of the relevance that will arrive.

All values of a sequence are known before its walk begins; only relevance is not. What each summand and each
factor gets of it is therefore worked out for all steps at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from relprop.engine.rules import Addition, Epsilon, LinearRule, Product

Factor = Tensor | float


class Parts(NamedTuple):
    """R · `first` and R · `second` are the shares of two tensors; R · `stabiliser` is absorbed, and R where `empty`."""

    first: Factor
    second: Factor
    stabiliser: Tensor | None = None
    empty: Tensor | None = None


class Inverse(NamedTuple):
    """1 / (d + ε sign d) with its stabiliser; with ε = 0 it is 0 where d is, and `empty` marks that."""

    value: Tensor
    stabiliser: Tensor | None
    empty: Tensor | None


def inverse(d: Tensor, epsilon: float) -> Inverse:
    """The stabilised inverse of a denominator; zero counts as positive."""
    if epsilon:
        stabiliser = torch.copysign(d.new_full((), epsilon), d)
        return Inverse(torch.reciprocal(d + stabiliser), stabiliser, None)
    empty = d == 0
    return Inverse(torch.where(empty, 0.0, torch.reciprocal(d)), None, empty)


def shares_of_sum(rule: Addition, a: Tensor, b: Tensor) -> Parts:
    """What the summands of a + b get, as `ops.elementwise.addition` shares a sum."""
    if rule.how == "first":
        return Parts(1.0, 0.0)
    if rule.how == "equal":
        return Parts(0.5, 0.5)
    if rule.how == "proportional":
        return _by_value(a, b, rule.epsilon)
    u, v = (a.abs(), b.abs()) if rule.how == "abs" else (a.clamp(min=0), b.clamp(min=0))
    whole = u + v
    empty = whole == 0
    return Parts(torch.where(empty, 0.5, u / whole), torch.where(empty, 0.5, v / whole))


def shares_of_product(rule: Product, gate: Tensor, signal: Tensor) -> Parts:
    """What a gate and its signal get of their product (Arras et al. 2019), as `ops.elementwise` shares a product."""
    if rule.how in ("signal", "second"):
        return Parts(0.0, 1.0)
    if rule.how == "first":
        return Parts(1.0, 0.0)
    if rule.how == "half":
        return Parts(0.5, 0.5)
    u, v = (gate.abs(), signal.abs()) if rule.how == "abs" else (gate, signal)
    return _by_value(u, v, rule.epsilon)


def _by_value(u: Tensor, v: Tensor, epsilon: float) -> Parts:
    value, stabiliser, empty = inverse(u + v, epsilon)
    return Parts(u * value, v * value, None if stabiliser is None else stabiliser * value, empty)


def times(relevance: Tensor, factor: Factor) -> Tensor | None:
    """Relevance · factor; None where the factor is the number 0."""
    if isinstance(factor, Tensor):
        return relevance * factor
    return None if factor == 0 else relevance if factor == 1 else relevance * factor


def product_of(a: Factor, b: Factor) -> Factor:
    """The product of two factors; a number where it can be."""
    if (not isinstance(a, Tensor) and a == 0) or (not isinstance(b, Tensor) and b == 0):
        return 0.0
    return a * b


def gates_receive(rule: Product) -> bool:
    """Whether a gate gets anything of a product."""
    return rule.how not in ("signal", "second")


def is_batched(rule: LinearRule) -> bool:
    """Whether a rule's shares of all steps come from one matrix product: ε with its ordinary stabiliser."""
    return type(rule) is Epsilon and rule.stabiliser == "signed"
