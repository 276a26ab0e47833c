"""Sums of tensors, and the constants in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relprop.engine.graph import Node, Ref
from relprop.engine.looks import holds, traced
from relprop.engine.ops.elementwise.signs import both_known
from relprop.engine.ops.table import Operation, rows
from relprop.engine.rules import Addition, Epsilon, LinearRule
from relprop.engine.rules.affine import (
    add,
    divided_at_once,
    divided_in_place,
    divided_where_positive,
    owned,
    replaceable,
    taken,
)
from relprop.engine.step import Layout, Shares, Step, all_finite, one_of


def sum_to(values: Tensor, like: Any) -> Tensor:
    """Σ over the dimensions along which an operand of `like`'s shape was broadcast."""
    shape = tuple(like.shape)
    return values if values.shape == shape else values.sum_to_size(shape)


def addition(step: Step, relevance: Tensor) -> Shares:
    """a + α b."""
    a, b = step.args[:2]
    alpha = step.arg(2, "alpha", 1)
    return _two_summands(step, a, b if alpha == 1 else b * alpha, relevance)


def subtraction(step: Step, relevance: Tensor) -> Shares:
    """a − α b: a sum whose second summand is negated.

    Equal numbers leave nothing to share: R ε⁻¹ (a − b) would be the difference of two huge shares, so R stays there. Gated
    recurrences take every step from itself.
    """
    a, b = step.args[:2]
    second = b * -step.arg(2, "alpha", 1)
    if addition_rule(step).how != "proportional" or not (step.data(0) and step.data(1)):
        return _two_summands(step, a, second, relevance)
    empty = step.output == 0
    shares = _two_summands(step, a, second, relevance.masked_fill(empty, 0.0))
    add(shares.absorbed, "undistributed", step.account(torch.where(empty, relevance, 0.0)))
    return shares


def reverse_subtraction(step: Step, relevance: Tensor) -> Shares:
    """b − α a: `1 - x`. Of a gate z, 1 − z is the other gate (1 − σ(a) = σ(−a)): the identity, not a sum."""
    a, b = step.args[:2]
    if is_complement(step.node) and step.is_gate(0):
        return Shares({0: relevance})
    return _two_summands(step, a * -step.arg(2, "alpha", 1), b, relevance)


def interpolation(step: Step, relevance: Tensor) -> Shares:
    """lerp(a, b, w) = (1 − w) a + w b: a sum of two; the weight w is a gate, which gets nothing (Arras et
    al. 2017)."""
    a, b, w = step.args[0], step.args[1], step.arg(2, "weight")
    return _two_summands(step, (1 - w) * a, w * b, relevance)


def _two_summands(step: Step, first: Any, second: Any, relevance: Tensor) -> Shares:
    """The shares of a sum whose summands belong to the arguments 0 and 1."""
    shares, absorbed = share_sum(step, [(first, 0), (second, 1)], relevance)
    result: dict[int | str, Any] = {}
    for position, share in enumerate(shares):
        if share is not None:
            result[position] = sum_to(share, step.args[position])
    return Shares(result, absorbed)


def share_sum(
    step: Step, terms: list[tuple[Any, int]], relevance: Tensor, total: Tensor | None = None
) -> tuple[list[Tensor | None], dict[str, Tensor]]:
    """The shares of the summands of the step's output (of `total`, where that is something else), in its shape; and what is
    absorbed.

    `terms`: each summand with the position of its argument. A summand that gets nothing has None. A
    constant's share is absorbed as
    "bias" where it is computed from weights alone, else as "constant". A constant −∞ is a mask, not a
    summand; nor is that of a mask in what a second one is added to.
    """
    data = [step.data(position) for _, position in terms]
    rule = addition_rule(step)
    if all(data) and rule.how == "first":
        return [relevance, *[None] * (len(terms) - 1)], {}
    if all(data) and rule.how == "equal":
        return [relevance / len(terms) for _ in terms], {}
    masked = any(
        isinstance(value, Tensor) and not own and not step.is_parameter(position)
        for (value, position), own in zip(terms, data, strict=True)
    )
    values = [
        value if own and not masked else without_mask(value)
        for (value, _), own in zip(terms, data, strict=True)
    ]
    if total is None:
        same = all(value is given for value, (given, _) in zip(values, terms, strict=True))
        total = step.output if same else sum(values)
    shares, absorbed = _shares_of(values, total, rule, relevance, step)
    result: list[Tensor | None] = []
    for share, own, (_, position) in zip(shares, data, terms, strict=True):
        result.append(share if own else None)
        if not own:
            add(absorbed, "bias" if step.is_parameter(position) else "constant", step.account(share))
            step.give(step.node.args[position], share)
    return result, absorbed


def addition_rule(step: Step) -> Addition:
    """The step's rule for sums; of a rule for linear operations its ε counts."""
    if isinstance(step.rule, Addition):
        return step.rule
    return Addition(epsilon=step.rule.epsilon) if isinstance(step.rule, LinearRule) else Addition()


def _shares_of(
    values: list[Any], total: Tensor, rule: Addition, relevance: Tensor, step: Step
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The shares of values that sum to `total`, by the rule; constants take part like all others."""
    if rule.how in ("abs", "positive"):
        tensors = [torch.as_tensor(value, dtype=total.dtype, device=total.device) for value in values]
        sizes = [value.abs() if rule.how == "abs" else value.clamp(min=0) for value in tensors]
        whole = torch.as_tensor(sum(sizes))
        empty = whole == 0
        return [relevance * torch.where(empty, 1 / len(sizes), size / whole) for size in sizes], {}
    over = step.spare and total is step.output and isinstance(total, Tensor)
    s, absorbed = stabilised(step, total, rule.epsilon, relevance, over=over)
    shares = [s * value for value in values[:-1]]
    last = values[-1]
    fits = isinstance(last, Tensor) and last.shape == s.shape and last.dtype == s.dtype
    own = rule.epsilon > 0 and s.shape == total.shape and s.dtype == total.dtype and not s.requires_grad
    own = own and not traced()
    return [*shares, s.mul_(last) if fits and own else s * last], absorbed


def stabilised(
    step: Step,
    d: Tensor,
    epsilon: float,
    relevance: Tensor,
    index: int | None = None,
    *,
    over: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """s = R / (d + ε sign d) with the account of the stabiliser; with ε = 0, 0 where d is 0, and R stays
    there.

    `index`: the part of the output that d and R are laid out like. With `over` s may be written over d.
    """
    if epsilon:
        layout = step.layout_of(Ref(step.node.name, index))
        over = over and owned(d, *(v for v in step.args if isinstance(v, Tensor)))
        if over and step.rectified and d is step.output and replaceable(d, relevance):
            s = divided_where_positive(relevance, d, epsilon)
            return s, {"stabilizer": epsilon * step.account(s, index)}
        z = one_of(d) if layout == Layout(0, 1) else d
        found = divided_at_once(relevance, z, layout, step.batch, epsilon, over=over)
        if found is not None:
            return found[0], {"stabilizer": found[1]}
        stabiliser = torch.copysign(d.new_full((), epsilon), d)
        s = divided_in_place(relevance, d + stabiliser)
        return s, {"stabilizer": step.account(taken(s, stabiliser), index)}
    empty = d == 0
    lost = step.account(torch.where(empty, relevance, 0.0), index)
    return torch.where(empty, 0.0, relevance / d), {"undistributed": lost}


def without_mask(value: Any) -> Any:
    """A constant summand without its infinite entries: they hide the others' values and are no part of a
    sum."""
    if not isinstance(value, Tensor) or holds(value, lambda: all_finite(value), cheap=True):
        return value
    return torch.where(torch.isfinite(value), value, 0.0)


def multiply_add(step: Step, relevance: Tensor) -> Shares:
    """addcmul, addcdiv: a + v · t · u (or t / u), shared like the sum, its second summand then like a
    product."""
    a, t, u = step.args[:3]
    value = step.arg(3, "value", 1)
    term = value * t / u if "addcdiv" in step.node.operation else value * t * u
    factors = [i for i in (1, 2) if step.data(i)]
    if len(factors) == 2 and step.is_gate(1) != step.is_gate(2):
        factors = [2 if step.is_gate(1) else 1]
    owner = factors[0] if factors else 1
    (to_a, to_term), absorbed = share_sum(step, [(a, 0), (term, owner)], relevance)
    result: dict[int | str, Any] = {} if to_a is None else {0: sum_to(to_a, a)}
    if to_term is not None:
        result |= {i: sum_to(to_term / len(factors), step.args[i]) for i in factors}
    return Shares(result, absorbed)


def loss(step: Step, relevance: Tensor) -> Shares:
    """φ(x − t), as it stands or as a sum or mean of all (of one sample): the terms, which are ≥ 0, in proportion, the identity
    through φ, and the difference as a sum."""
    x, t = (value.to(relevance.dtype) for value in step.args[:2])
    absorbed: dict[str, Tensor] = {}
    if step.arg(2, "reduction", 1) != 0:
        rest = (step.arg(3, "beta" if "smooth" in step.node.operation else "delta", 1.0),) * (
            step.node.operation != "aten.mse_loss.default"
        )
        terms = step.function(x, t, 0, *rest)
        empty = terms.sum() == 0
        absorbed = {"undistributed": step.account(torch.where(empty, relevance, 0.0))}
        relevance = torch.where(empty, 0.0, relevance / terms.sum()) * terms
    shares, more = share_sum(step, [(x, 0), (-t, 1)], relevance, x - t)
    found: dict[int | str, Any] = {
        i: sum_to(share, step.args[i]) for i, share in enumerate(shares) if share is not None
    }
    return Shares(found, absorbed | more)


def is_complement(node: Node) -> bool:
    """Whether the node computes 1 − x."""
    return (
        node.operation == "aten.rsub.Scalar" and len(node.args) == 2 and node.args[1] == 1 and not node.kwargs
    )


_SUMS = (Addition, Epsilon)
rows(
    "add.Tensor add.Scalar",
    Operation("addition", addition, "both", Addition(), _SUMS, both_known, proportional=True),
)
rows("sub.Tensor sub.Scalar subtract.Tensor", Operation("addition", subtraction, "both", Addition(), _SUMS))
rows("rsub.Scalar rsub.Tensor", Operation("addition", reverse_subtraction, "both", Addition(), _SUMS))
rows("addcmul addcdiv", Operation("addition", multiply_add, "both", Addition(), _SUMS))
rows(
    "mse_loss smooth_l1_loss huber_loss",
    Operation("addition", loss, "inputs", Addition(), (Addition,), "always"),
)
rows("lerp.Scalar lerp.Tensor", Operation("addition", interpolation, "both", Addition(), _SUMS))
