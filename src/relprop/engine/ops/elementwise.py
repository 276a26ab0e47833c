"""Activations, sums and products of tensors, and the constants that meet them."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

import torch
from torch import Tensor

from relprop.engine.graph import Node, Ref
from relprop.engine.ops.table import Operation, first_known, rows
from relprop.engine.rules import Addition, Epsilon, Modified, Pass, Product
from relprop.engine.step import Shares, Step


def pass_first(step: Step, relevance: Tensor) -> Shares:
    """The identity: the first argument receives the output's relevance (AttnLRP, Eq. 9)."""
    rule = step.rule
    if isinstance(rule, Modified) and rule.how != "gradient":
        relevance = relevance.clamp(min=0)
    if isinstance(rule, Modified) and rule.how != "deconvolution":
        return Shares({0: _local_gradient(step, relevance)})
    return Shares({0: relevance})


def _local_gradient(step: Step, relevance: Tensor) -> Tensor:
    x = step.args[0]
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        y = step.function(leaf, *step.args[1:], **step.kwargs)
    return torch.autograd.grad(y, leaf, relevance)[0]


def sum_to(values: Tensor, like: Any) -> Tensor:
    """Σ over the dimensions along which an operand of `like`'s shape was broadcast."""
    shape = tuple(like.shape)
    return values if values.shape == shape else values.sum_to_size(shape)


def addition(step: Step, relevance: Tensor) -> Shares:
    """a + α b of two data tensors, or of one and a constant, which then keeps its share in the account "constant"."""
    alpha = step.arg(2, "alpha", 1)
    a, b = step.args[:2]
    summands = [a, b if alpha == 1 else b * alpha]
    return _share_sum(step, summands, relevance)


def subtraction(step: Step, relevance: Tensor) -> Shares:
    """a − α b: a sum with the second summand negated."""
    alpha = step.arg(2, "alpha", 1)
    a, b = step.args[:2]
    return _share_sum(step, [a, b * -alpha], relevance)


def reverse_subtraction(step: Step, relevance: Tensor) -> Shares:
    """α-scaled other − self: `1 - x`."""
    alpha = step.arg(2, "alpha", 1)
    a, b = step.args[:2]
    return _share_sum(step, [a * -alpha, b], relevance)


def _share_sum(step: Step, summands: list[Any], relevance: Tensor) -> Shares:
    rule = step.rule
    rule = rule if isinstance(rule, Addition) else Addition(epsilon=getattr(rule, "epsilon", 1e-6))
    data = [step.data(0), step.data(1)]
    if rule.how in ("first", "equal") and all(data):
        parts = [1.0, 0.0] if rule.how == "first" else [0.5, 0.5]
        return Shares({i: sum_to(relevance * p, step.args[i]) for i, p in enumerate(parts) if p})
    absorbed: dict[str, Tensor] = {}
    if rule.how in ("abs", "positive"):
        sizes = [torch.as_tensor(s).abs() if rule.how == "abs" else torch.as_tensor(s).clamp(min=0) for s in summands]
        total = sizes[0] + sizes[1]
        equal = total == 0
        d = torch.where(equal, torch.ones_like(total), total)
        shares = [relevance * torch.where(equal, torch.full_like(d, 0.5), size / d) for size in sizes]
    else:
        total = step.output
        if rule.epsilon:
            stabiliser = torch.copysign(total.new_full((), rule.epsilon), total)
            s = relevance / (total + stabiliser)
            absorbed["stabilizer"] = step.account(s * stabiliser)
        else:
            empty = total == 0
            s = torch.where(empty, torch.zeros_like(total), relevance / total)
            absorbed["undistributed"] = step.account(torch.where(empty, relevance, torch.zeros_like(total)))
        shares = [s * summand for summand in summands]
    result: dict[int | str, Any] = {}
    for i, share in enumerate(shares):
        if data[i]:
            result[i] = sum_to(share, step.args[i])
        else:
            reason = "bias" if step.is_parameter(i) else "constant"
            absorbed[reason] = step.account(share)
    return Shares(result, absorbed)


def multiplication(step: Step, relevance: Tensor) -> Shares:
    """a · b: the identity where one factor is a constant, the product rule where both are data."""
    a, b = step.args[:2]
    data = [step.data(0), step.data(1)]
    if not all(data):
        position = 0 if data[0] else 1
        return Shares({position: sum_to(relevance, step.args[position])})
    for statistic, other in ((1, 0), (0, 1)):
        if step.is_statistic(statistic, other):  # a norm written out: the identity (AttnLRP, Prop. 3.4)
            return Shares({other: sum_to(relevance, step.args[other])})
    rule = step.rule if isinstance(step.rule, Product) else Product()
    if step.node.args[0] == step.node.args[1]:  # a square: both halves arrive at the same tensor
        return Shares({0: relevance})
    if rule.how == "signal":
        gates = [step.is_gate(0), step.is_gate(1)]
        if gates[0] != gates[1]:
            position = 1 if gates[0] else 0
            return Shares({position: sum_to(relevance, step.args[position])})
    if rule.how in ("signal", "half"):
        return Shares({0: sum_to(relevance / 2, a), 1: sum_to(relevance / 2, b)})
    u, v = (a.abs(), b.abs()) if rule.how == "abs" else (a, b)
    d = u + v
    stabiliser = torch.copysign(d.new_full((), rule.epsilon), d)
    if rule.epsilon == 0:
        s = torch.where(d == 0, torch.zeros_like(d), relevance / d)
        absorbed = {"undistributed": step.account(torch.where(d == 0, relevance, torch.zeros_like(d)))}
    else:
        s = relevance / (d + stabiliser)
        absorbed = {"stabilizer": step.account(s * stabiliser)}
    return Shares({0: sum_to(s * u, a), 1: sum_to(s * v, b)}, absorbed)


def division(step: Step, relevance: Tensor) -> Shares:
    """u / v: everything to u where v is a constant or a statistic of u, else half each (AttnLRP's uniform rule)."""
    data = [step.data(0), step.data(1)]
    if data[0] and data[1] and not step.is_statistic(1, 0):
        return Shares({0: sum_to(relevance / 2, step.args[0]), 1: sum_to(relevance / 2, step.args[1])})
    position = 0 if data[0] else 1
    return Shares({position: sum_to(relevance, step.args[position])})


def selected(step: Step, relevance: Tensor) -> Shares:
    """where(c, a, b), masked_fill: relevance goes to the branch that was chosen; constants keep theirs."""
    condition, a, b = _branches(step)
    absorbed: dict[str, Tensor] = {}
    result: dict[int | str, Any] = {}
    for position, value, chosen in ((a, step.args[a], condition), (b, step.args[b], ~condition)):
        share = torch.where(chosen, relevance, torch.zeros_like(relevance))
        if step.data(position):
            result[position] = sum_to(share, value)
        else:
            absorbed["constant"] = step.account(share)
    return Shares(result, absorbed)


def _branches(step: Step) -> tuple[Tensor, int, int]:
    if "masked_fill" in step.node.operation:
        return step.args[1], 2, 0
    return step.args[0], 1, 2


def extremum(step: Step, relevance: Tensor) -> Shares:
    """maximum(a, b), minimum(a, b): winner takes all, the first of equals."""
    a, b = step.args[:2]
    first = a >= b if "max" in step.node.operation else a <= b
    absorbed: dict[str, Tensor] = {}
    result: dict[int | str, Any] = {}
    for position, chosen in ((0, first), (1, ~first)):
        share = torch.where(chosen, relevance, torch.zeros_like(relevance))
        if step.data(position):
            result[position] = sum_to(share, step.args[position])
        else:
            absorbed["constant"] = step.account(share)
    return Shares(result, absorbed)


def fused_multiply_add(step: Step, relevance: Tensor) -> Shares:
    """addcmul: a + value · t1 · t2, shared like the sum, then like the product."""
    value = step.kwargs.get("value", 1)
    a, t1, t2 = step.args[:3]
    term = value * t1 * t2
    total = step.output
    epsilon = step.rule.epsilon if isinstance(step.rule, Addition) else 1e-6
    stabiliser = torch.copysign(total.new_full((), epsilon), total)
    s = relevance / (total + stabiliser)
    absorbed = {"stabilizer": step.account(s * stabiliser)}
    result: dict[int | str, Any] = {}
    if step.data(0):
        result[0] = sum_to(s * a, a)
    else:
        absorbed["bias" if step.is_parameter(0) else "constant"] = step.account(s * a)
    factors = [i for i in (1, 2) if step.data(i)]
    for i in factors:
        result[i] = sum_to(s * term / len(factors), step.args[i])
    if not factors:
        absorbed["constant"] = absorbed.get("constant", 0) + step.account(s * term)
    return Shares(result, absorbed)


def _clamped_above_zero(position: int, name: str) -> Callable[[Node, Set[Ref]], bool]:
    def known(node: Node, values: Set[Ref]) -> bool:
        low = node.args[position] if position < len(node.args) else node.kwargs.get(name)
        return isinstance(low, (int, float)) and low >= 0

    return known


def _clamp_known(node: Node, values: Set[Ref]) -> bool:
    """clamp is ≥ 0 where its lower bound is, or where its input is and its upper bound is ≥ 0."""
    low = node.args[1] if len(node.args) > 1 else node.kwargs.get("min")
    high = node.args[2] if len(node.args) > 2 else node.kwargs.get("max")
    if isinstance(low, (int, float)) and low >= 0:
        return high is None or (isinstance(high, (int, float)) and high >= 0)
    inside = isinstance(node.args[0], Ref) and node.args[0] in values
    return inside and (high is None or (isinstance(high, (int, float)) and high >= 0))


def _threshold_known(node: Node, values: Set[Ref]) -> bool:
    """threshold(x, t, v) is x or v: ≥ 0 where both are."""
    limit, value = node.args[1:3]
    return (limit >= 0 or node.args[0] in values) and value >= 0


def _even_power(node: Node, values: Set[Ref]) -> bool:
    exponent = node.args[1]
    even = isinstance(exponent, (int, float)) and float(exponent).is_integer() and int(exponent) % 2 == 0
    return even or (isinstance(node.args[0], Ref) and node.args[0] in values)


def _all_known(node: Node, values: Set[Ref]) -> bool:
    """Sums and products of values ≥ 0, literal numbers included."""
    operands = node.args[:2]
    alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
    if isinstance(alpha, (int, float)) and alpha < 0:
        return False
    return all(o in values if isinstance(o, Ref) else isinstance(o, (int, float)) and o >= 0 for o in operands)


def _product_known(node: Node, values: Set[Ref]) -> bool:
    return _all_known(node, values) or (isinstance(node.args[0], Ref) and node.args[0] == node.args[1])


def _second_or_both(node: Node, values: Set[Ref]) -> bool:
    known = [o in values if isinstance(o, Ref) else isinstance(o, (int, float)) and o >= 0 for o in node.args[:2]]
    return any(known)


_PASSES = (Pass, Modified)


def activation(names: str, nonnegative: Any = "never", refuses: Any = lambda node: None) -> None:
    """Rows for elementwise functions: the identity rule."""
    rows(names, Operation("activation", pass_first, "inputs", Pass(), _PASSES, nonnegative, refuses))


def _training(node: Node) -> str | None:
    training = node.args[2] if len(node.args) > 2 else node.kwargs.get("train", node.kwargs.get("training", False))
    return "dropout is active although the model is in eval mode (training=True in its call)" if training else None


def _training_rrelu(node: Node) -> str | None:
    return "rrelu draws random slopes (training=True in its call)" if len(node.args) > 3 and node.args[3] else None


activation("relu relu6 sigmoid hardsigmoid softplus exp exp2 abs square sqrt rsqrt", "always")
activation("leaky_relu prelu _prelu_kernel elu selu celu gelu silu hardswish mish tanh hardshrink softshrink", "never")
activation("tanhshrink erf log_sigmoid logsigmoid log log1p expm1 sin cos reciprocal neg erfc atan asinh softsign", "never")
activation("clamp hardtanh", _clamp_known)
activation("clamp_min", _clamped_above_zero(1, "min"))
activation("clamp_max", "never")
activation("threshold", _threshold_known)
activation("pow.Tensor_Scalar", _even_power)
activation("rrelu rrelu_with_noise", "never", _training_rrelu)
activation("dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout", first_known(0), _training)
activation("mul.Scalar div.Scalar", _all_known)
activation("div.Tensor_mode", "never", lambda node: "division that rounds has no relevance rule")

_SUMS = (Addition, Epsilon, Modified)
rows("add.Tensor add.Scalar", Operation("addition", addition, "both", Addition(), _SUMS, _all_known))
rows("sub.Tensor sub.Scalar", Operation("addition", subtraction, "both", Addition(), _SUMS))
rows("rsub.Scalar rsub.Tensor", Operation("addition", reverse_subtraction, "both", Addition(), _SUMS))
rows("addcmul", Operation("addition", fused_multiply_add, "both", Addition(), _SUMS))
rows("mul.Tensor multiply.Tensor", Operation("product", multiplication, "inputs", Product(), (Product, Pass), _product_known))
rows("div.Tensor divide.Tensor", Operation("product", division, "inputs", Product(), (Product, Pass), _all_known))
rows(
    "where.self where.ScalarOther where.ScalarSelf where.Scalar masked_fill.Scalar masked_fill.Tensor",
    Operation("selection", selected, "inputs", Pass(), (Pass,)),
)
rows("maximum max.other", Operation("max", extremum, "inputs", Pass(), (Pass,), _second_or_both))
rows("minimum min.other", Operation("max", extremum, "inputs", Pass(), (Pass,), _all_known))


def gate_source(node: Node) -> bool:
    """Whether the node is what makes a gate: a sigmoid, a hard sigmoid or a softmax."""
    return any(word in node.operation for word in ("sigmoid", "softmax")) and "log" not in node.operation

