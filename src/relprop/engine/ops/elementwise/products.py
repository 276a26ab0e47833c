"""Products and quotients of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from relprop.engine.graph import Node
from relprop.engine.ops.elementwise.choices import split
from relprop.engine.ops.elementwise.signs import both_known, power_known, product_known
from relprop.engine.ops.elementwise.sums import stabilised, sum_to
from relprop.engine.ops.table import Operation, first_known, rows
from relprop.engine.rules import Pass, Product
from relprop.engine.step import Shares, Step


def multiplication(step: Step, relevance: Tensor) -> Shares:
    """a · b: the identity where one factor is a constant, the product rule where both are data."""
    a, b = step.args[:2]
    if not (step.data(0) and step.data(1)):
        return _to_one(step, 0 if step.data(0) else 1, relevance)
    for statistic, other in ((1, 0), (0, 1)):
        if step.is_statistic(statistic, other):  # a norm written out: the identity (AttnLRP, Prop. 3.4)
            return _to_one(step, other, relevance)
    if step.node.args[0] == step.node.args[1]:  # a square: both halves arrive at the same tensor
        return Shares({0: relevance})
    gates = (step.is_gate(0), step.is_gate(1))
    if isinstance(step.rule, Product) and step.rule.activated and gates[0] == gates[1]:
        gates = (step.is_activated(0), step.is_activated(1))
    to_a, to_b, absorbed = _share_product(step, a, b, gates, relevance)
    shares = ((0, to_a, a), (1, to_b, b))
    return Shares({i: sum_to(share, factor) for i, share, factor in shares if share is not None}, absorbed)


def _to_one(step: Step, position: int, relevance: Tensor) -> Shares:
    """Everything to one of the arguments; all of it passes through a constant factor, too."""
    step.give(step.node.args[1 - position], relevance)
    return Shares({position: sum_to(relevance, step.args[position])})


def _share_product(
    step: Step, a: Tensor, b: Tensor, gates: tuple[bool, bool], relevance: Tensor
) -> tuple[Tensor | None, Tensor | None, dict[str, Tensor]]:
    """The shares of two factors (None: nothing) by the product rule (Arras et al. 2019; AttnLRP, Prop.
    3.2)."""
    rule = step.rule if isinstance(step.rule, Product) else Product()
    if rule.how == "signal" and gates[0] != gates[1]:
        return (None, relevance, {}) if gates[0] else (relevance, None, {})
    if rule.how in ("first", "second"):
        return (relevance, None, {}) if rule.how == "first" else (None, relevance, {})
    if rule.how in ("signal", "half"):
        return relevance / 2, relevance / 2, {}
    u, v = (a.abs(), b.abs()) if rule.how == "abs" else (a, b)
    s, absorbed = stabilised(step, u + v, rule.epsilon, relevance)
    return s * u, s * v, absorbed


def gated(step: Step, relevance: Tensor) -> Shares:
    """glu: the first half of x times the sigmoid of the second, shared by the product rule; the second is
    the gate."""
    dim = step.arg(1, "dim", -1)
    a, b = step.args[0].chunk(2, dim)
    to_a, to_b, absorbed = _share_product(step, a, torch.sigmoid(b), (False, True), relevance)
    halves = [torch.zeros_like(relevance) if half is None else half for half in (to_a, to_b)]
    return Shares({0: torch.cat(halves, dim)}, absorbed)


def division(step: Step, relevance: Tensor) -> Shares:
    """u / v, u ** v: everything to the one that is data, or to u where v is its statistic; else half each.

    The uniform rule of AttnLRP, Prop. 3.2.
    """
    if step.data(0) and step.data(1) and not step.is_statistic(1, 0):
        return Shares({i: sum_to(relevance / 2, step.args[i]) for i in (0, 1)})
    return _to_one(step, 0 if step.data(0) else 1, relevance)


def hypotenuse(step: Step, relevance: Tensor) -> Shares:
    """√(a² + b²): the identity through the root, the squares in proportion, as for a norm."""
    squares = [x.to(relevance.dtype).square() for x in step.args[:2]]
    total = squares[0] + squares[1]
    empty = total == 0
    s = torch.where(empty, 0.0, relevance / total)
    shares = split(step, [(i, s * square) for i, square in enumerate(squares)])
    lost = step.account(torch.where(empty, relevance, 0.0))
    return Shares(shares.arguments, shares.absorbed | {"undistributed": lost})


def gate_source(node: Node) -> bool:
    """Whether the node is what makes a gate: a sigmoid, a hard sigmoid or a softmax."""
    return any(word in node.operation for word in ("sigmoid", "softmax")) and "log" not in node.operation


_PRODUCTS = (Product, Pass)
rows(
    "mul.Tensor multiply.Tensor",
    Operation("product", multiplication, "inputs", Product(), _PRODUCTS, product_known),
)
# of two halves of its one argument: a product whatever that is
rows("glu", Operation("product", gated, "inputs", Product(), (Product,), first_known(0)))
rows(
    "div.Tensor divide.Tensor true_divide.Tensor",
    Operation("product", division, "inputs", Product(), _PRODUCTS, both_known),
)
rows(
    "div.Tensor_mode floor_divide",  # the identity through what rounds
    Operation("product", division, "inputs", Product(), _PRODUCTS, product_known),
)
# of a quotient; the size of one with the sign of the other; a · 2ᵇ; a · log b
rows(
    "atan2 copysign.Tensor ldexp.Tensor xlogy.Tensor xlogy.Scalar_Other special_xlog1py",
    Operation("product", division, "inputs", Product(), _PRODUCTS),
)
rows("hypot", Operation("pool", hypotenuse, "inputs", Pass(), (Pass,), "always"))
rows(
    "pow.Tensor_Tensor pow.Scalar",
    Operation("product", division, "inputs", Product(), _PRODUCTS, power_known),
)
