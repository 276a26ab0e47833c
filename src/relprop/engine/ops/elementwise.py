"""Activations, sums and products of tensors, and the constants that meet them."""

from __future__ import annotations

import math
from collections.abc import Callable, Set
from typing import Any

import torch
from torch import Tensor

from relprop.engine.graph import Node, Ref
from relprop.engine.ops.table import Nonnegative, Operation, first_known, rows
from relprop.engine.rules import Addition, Epsilon, LinearRule, Modified, Pass, Product
from relprop.engine.rules.affine import add, divided_in_place
from relprop.engine.step import Shares, Step

# ---------------------------------------------------------------- functions of one tensor


def pass_first(step: Step, relevance: Tensor) -> Shares:
    """The identity: the first argument receives the output's relevance (AttnLRP, Eq. 9), also where φ(0) is
    not 0."""
    rule = step.rule
    if isinstance(rule, Modified):
        if rule.how != "gradient":
            relevance = relevance.clamp(min=0)
        if rule.how != "deconvolution":
            relevance = _local_gradient(step, relevance)
    return Shares({0: relevance})


def _local_gradient(step: Step, relevance: Tensor) -> Tensor:
    """φ'(x) R."""
    with torch.enable_grad():
        leaf: Tensor = step.args[0].detach().requires_grad_()
        y = step.function(leaf, *step.args[1:], **step.kwargs)
    grads: tuple[Tensor, ...] = torch.autograd.grad(y, leaf, relevance)
    return grads[0]


def clamped(step: Step, relevance: Tensor) -> Shares:
    """clamp between tensors: the identity; a bound that is data itself receives what it replaces."""
    x = step.args[0]
    only_high = "clamp_max" in step.node.operation
    low, high = (None, step.args[1]) if only_high else (step.arg(1, "min"), step.arg(2, "max"))
    at_low, at_high = (1, 1) if only_high else (_place(step, 1, "min"), _place(step, 2, "max"))
    result: dict[int | str, Any] = {}
    if high is not None and step.data(at_high):
        over = (x if low is None else torch.maximum(x, low)) > high
        result[at_high] = sum_to(torch.where(over, relevance, 0.0), high)
        relevance = torch.where(over, 0.0, relevance)
    if low is not None and step.data(at_low):
        under = x < low
        result[at_low] = sum_to(torch.where(under, relevance, 0.0), low)
        relevance = torch.where(under, 0.0, relevance)
    rest = _split(step, [(0, relevance)])
    return Shares(result | rest.arguments, rest.absorbed)


def _place(step: Step, position: int, name: str) -> int | str:
    return position if position < len(step.args) else name


def sum_to(values: Tensor, like: Any) -> Tensor:
    """Σ over the dimensions along which an operand of `like`'s shape was broadcast."""
    shape = tuple(like.shape)
    return values if values.shape == shape else values.sum_to_size(shape)


# ---------------------------------------------------------------- sums


def addition(step: Step, relevance: Tensor) -> Shares:
    """a + α b."""
    a, b = step.args[:2]
    return _two_summands(step, a, b * step.arg(2, "alpha", 1), relevance)


def subtraction(step: Step, relevance: Tensor) -> Shares:
    """a − α b: a sum whose second summand is negated."""
    a, b = step.args[:2]
    return _two_summands(step, a, b * -step.arg(2, "alpha", 1), relevance)


def reverse_subtraction(step: Step, relevance: Tensor) -> Shares:
    """b − α a: `1 - x`."""
    a, b = step.args[:2]
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
    step: Step, terms: list[tuple[Any, int]], relevance: Tensor
) -> tuple[list[Tensor | None], dict[str, Tensor]]:
    """The shares of the summands of the step's output, in its shape; and what is absorbed.

    `terms`: each summand with the position of its argument. A summand that gets nothing has None. A
    constant's share is absorbed as
    "bias" where it is computed from weights alone, else as "constant". A constant −∞ is a mask, not a
    summand.
    """
    data = [step.data(position) for _, position in terms]
    rule = addition_rule(step)
    if all(data) and rule.how == "first":
        return [relevance, *[None] * (len(terms) - 1)], {}
    if all(data) and rule.how == "equal":
        return [relevance / len(terms) for _ in terms], {}
    values = [_without_mask(value) if not own else value for (value, _), own in zip(terms, data, strict=True)]
    if all(value is given for value, (given, _) in zip(values, terms, strict=True)):
        total = step.output
    else:
        total = sum(values)
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
    s, absorbed = stabilised(step, total, rule.epsilon, relevance)
    return [s * value for value in values], absorbed


def stabilised(
    step: Step, d: Tensor, epsilon: float, relevance: Tensor, index: int | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """s = R / (d + ε sign d) with the account of the stabiliser; with ε = 0, 0 where d is 0, and R stays
    there.

    `index`: the part of the output that d and R are laid out like.
    """
    if epsilon:
        stabiliser = torch.copysign(d.new_full((), epsilon), d)
        s = divided_in_place(relevance, d + stabiliser)
        return s, {"stabilizer": step.account(s, index, times=stabiliser)}
    empty = d == 0
    lost = step.account(torch.where(empty, relevance, 0.0), index)
    return torch.where(empty, 0.0, relevance / d), {"undistributed": lost}


def _without_mask(value: Any) -> Any:
    """A constant summand without its infinite entries: they hide the others' values and are no part of a
    sum."""
    if not isinstance(value, Tensor) or bool(torch.isfinite(value).all()):
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


# ---------------------------------------------------------------- products


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
    to_a, to_b, absorbed = _share_product(step, a, b, (step.is_gate(0), step.is_gate(1)), relevance)
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


def _rounds(node: Node) -> str | None:
    rounding = node.kwargs.get("rounding_mode", node.args[2] if len(node.args) > 2 else None)
    return None if rounding is None else "division that rounds has no relevance rule"


# ---------------------------------------------------------------- choices between two tensors


def _split(step: Step, shares: list[tuple[int, Tensor]]) -> Shares:
    """Relevance that was divided among arguments; constants keep theirs in the account "constant"."""
    absorbed: dict[str, Tensor] = {}
    result: dict[int | str, Any] = {}
    for position, share in shares:
        if step.data(position):
            result[position] = sum_to(share, step.args[position])
        else:
            add(absorbed, "constant", step.account(share))
    return Shares(result, absorbed)


def selected(step: Step, relevance: Tensor) -> Shares:
    """where(c, a, b), masked_fill: relevance goes to the branch that was chosen."""
    condition, a, b = (step.args[1], 2, 0) if "masked_fill" in step.node.operation else (step.args[0], 1, 2)
    return _split(
        step, [(a, torch.where(condition, relevance, 0.0)), (b, torch.where(condition, 0.0, relevance))]
    )


def extremum(step: Step, relevance: Tensor) -> Shares:
    """maximum(a, b), minimum(a, b): winner takes all, the first of equals."""
    a, b = step.args[:2]
    first = a >= b if "max" in step.node.operation else a <= b
    return _split(step, [(0, torch.where(first, relevance, 0.0)), (1, torch.where(first, 0.0, relevance))])


def soft_maximum(step: Step, relevance: Tensor) -> Shares:
    """log(exp a + exp b): shares softmax(a, b), min-take-most (Kauffmann et al. 2020)."""
    a, b = step.args[:2]
    base = math.log(2) if "exp2" in step.node.operation else 1.0
    part = torch.sigmoid((a - b) * base)
    return _split(step, [(0, relevance * part), (1, relevance * (1 - part))])


# ---------------------------------------------------------------- what is never negative


def _above_zero(operand: Any, values: Set[Ref]) -> bool:
    """Whether an operand is a value known to be ≥ 0, or such a number."""
    return (
        operand in values if isinstance(operand, Ref) else isinstance(operand, (int, float)) and operand >= 0
    )


def _both_known(node: Node, values: Set[Ref]) -> bool:
    """Sums, products and quotients of operands ≥ 0."""
    alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
    return _above_zero(alpha, values) and all(_above_zero(operand, values) for operand in node.args[:2])


def _product_known(node: Node, values: Set[Ref]) -> bool:
    square = isinstance(node.args[0], Ref) and node.args[0] == node.args[1]
    return square or all(_above_zero(operand, values) for operand in node.args[:2])


def _one_known(node: Node, values: Set[Ref]) -> bool:
    return any(_above_zero(operand, values) for operand in node.args[:2])


def _branches_known(node: Node, values: Set[Ref]) -> bool:
    branches = (0, 2) if "masked_fill" in node.operation else (1, 2)
    return all(_above_zero(node.args[i], values) for i in branches)


def _clamp_known(node: Node, values: Set[Ref]) -> bool:
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


def _threshold_known(node: Node, values: Set[Ref]) -> bool:
    """threshold(x, t, v) is x where x > t, else v."""
    limit, value = node.args[1:3]
    return bool(value >= 0 and (limit >= 0 or node.args[0] in values))


def _power_known(node: Node, values: Set[Ref]) -> bool:
    base, exponent = node.args[:2]
    even = isinstance(exponent, (int, float)) and exponent % 2 == 0
    return even or _above_zero(base, values)


# ---------------------------------------------------------------- the rows


def activation(
    names: str,
    nonnegative: Nonnegative = "never",
    refuses: Callable[[Node], str | None] = lambda node: None,
    fixed: dict[int, str] | None = None,
) -> None:
    """Rows for elementwise functions: the identity rule."""
    row = Operation(
        "activation", pass_first, "inputs", Pass(), (Pass, Modified), nonnegative, refuses, fixed or {}
    )
    rows(names, row)


def _training(node: Node) -> str | None:
    training = node.args[2] if len(node.args) > 2 else node.kwargs.get("train", False)
    return (
        "dropout is active although the model is in eval mode (training=True in its call)"
        if training
        else None
    )


def _random_slopes(node: Node) -> str | None:
    training = node.args[3] if len(node.args) > 3 else node.kwargs.get("training", False)
    return "rrelu draws random slopes (training=True in its call)" if training else None


activation("relu relu6 sigmoid hardsigmoid softplus exp exp2 abs square sqrt rsqrt erfc acos cosh", "always")
activation(
    "leaky_relu elu selu celu gelu silu hardswish mish tanh hardshrink softshrink erf log1p expm1 reciprocal"
    " atan asin asinh sinh atanh floor ceil round trunc sign sgn nan_to_num deg2rad rad2deg",
    first_known(0),
)
activation("log_sigmoid log log2 log10 logit sin cos tan acosh neg sinc erfinv")
activation("prelu _prelu_kernel", first_known(0), fixed={1: "the slope depends on the explained input"})
activation("clamp hardtanh clamp_min clamp_max", _clamp_known)
activation("threshold", _threshold_known)
activation("pow.Tensor_Scalar", _power_known)
activation("rrelu", first_known(0), _random_slopes)
activation("dropout feature_dropout alpha_dropout feature_alpha_dropout", first_known(0), _training)
activation("mul.Scalar div.Scalar multiply.Scalar divide.Scalar true_divide.Scalar", _product_known)
rows(
    "clamp.Tensor clamp_min.Tensor clamp_max.Tensor",
    Operation("activation", clamped, "inputs", Pass(), (Pass,), _clamp_known),
)

_SUMS = (Addition, Epsilon)
rows("add.Tensor add.Scalar", Operation("addition", addition, "both", Addition(), _SUMS, _both_known))
rows("sub.Tensor sub.Scalar subtract.Tensor", Operation("addition", subtraction, "both", Addition(), _SUMS))
rows("rsub.Scalar rsub.Tensor", Operation("addition", reverse_subtraction, "both", Addition(), _SUMS))
rows("addcmul addcdiv", Operation("addition", multiply_add, "both", Addition(), _SUMS))
rows("lerp.Scalar lerp.Tensor", Operation("addition", interpolation, "both", Addition(), _SUMS))

_PRODUCTS = (Product, Pass)
rows(
    "mul.Tensor multiply.Tensor",
    Operation("product", multiplication, "inputs", Product(), _PRODUCTS, _product_known),
)
rows("glu", Operation("product", gated, "inputs", Product(), _PRODUCTS, first_known(0)))
rows(
    "div.Tensor divide.Tensor true_divide.Tensor",
    Operation("product", division, "inputs", Product(), _PRODUCTS, _both_known),
)
rows(
    "div.Tensor_mode", Operation("product", division, "inputs", Product(), _PRODUCTS, _product_known, _rounds)
)
rows(
    "pow.Tensor_Tensor pow.Scalar",
    Operation("product", division, "inputs", Product(), _PRODUCTS, _power_known),
)

rows(
    "where.self where.ScalarOther where.ScalarSelf masked_fill.Scalar masked_fill.Tensor",
    Operation("selection", selected, "inputs", Pass(), (Pass,), _branches_known),
)
rows("maximum max.other fmax", Operation("max", extremum, "inputs", Pass(), (Pass,), _one_known))
rows("minimum min.other fmin", Operation("max", extremum, "inputs", Pass(), (Pass,), _product_known))
rows("logaddexp logaddexp2", Operation("max", soft_maximum, "inputs", Pass(), (Pass,), _one_known))


def gate_source(node: Node) -> bool:
    """Whether the node is what makes a gate: a sigmoid, a hard sigmoid or a softmax."""
    return any(word in node.operation for word in ("sigmoid", "softmax")) and "log" not in node.operation
