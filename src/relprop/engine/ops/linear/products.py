"""Products with constant matrices, and of two tensors that are data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from relprop.engine.biases import biased_einsum, biased_product
from relprop.engine.graph import Node, name_of
from relprop.engine.ops.elementwise import addition_rule, stabilised, sum_to, without_mask
from relprop.engine.ops.linear.maps import (
    BILINEAR_RULES,
    Linear,
    Operand,
    adjoint,
    is_shared,
    linear_map,
    obeyed,
    one_for_all,
    operand,
)
from relprop.engine.ops.table import Operation, register, rows
from relprop.engine.rules import Epsilon, LinearRule, Product
from relprop.engine.rules.affine import add
from relprop.engine.step import Shares, Step

Operator = Callable[..., Tensor]
"""The product of some factors, linear in each."""


def multilinear(
    step: Step,
    factors: Sequence[Operand],
    operator: Operator,
    relevance: Tensor,
    bias: tuple[int, Tensor] | None = None,
    transpose: Linear | None = None,
) -> tuple[list[Tensor | None], Shares]:
    """The shares of the factors of y = operator(*factors) + bias, and of its bias where that is data.

    One data factor: by the rule for linear operations, with the (one) other factor as the weight. Several:
    half of the ε rule to each of two (AttnLRP, Prop. 3.3), 1/n to each of n. A bias (position, value) that
    is data is a summand: it gets its share of the sum first.

    Args:
        transpose: the adjoint of the operator in its data factor, where a better one than autograd's is
        known.
    """
    to_bias: dict[int | str, Any] = {}
    absorbed: dict[str, Tensor] = {}
    output, constant = step.output, None if bias is None else bias[1]
    if bias is not None and step.data(bias[0]):
        position, value = bias
        s, absorbed = stabilised(step, output, addition_rule(step).epsilon, relevance)
        to_bias = {position: sum_to(s * value, step.args[position])}
        output, constant = output - value, None
        relevance = s * output
    data = [i for i, factor in enumerate(factors) if factor.ref is not None and step.is_data(factor.ref)]
    if not data:
        add(absorbed, "constant", step.account(relevance))
        return [None] * len(factors), Shares(to_bias, absorbed)
    if len(data) == 1:
        place = data[0]
        map_of = one_for_all if _is_shared(step, factors, place) else linear_map
        f = map_of(step, factors[place], *_one_weight(factors, place, operator, constant, output, transpose))
        rule = step.rule if isinstance(step.rule, LinearRule) else Epsilon()
        other = next((factor.ref for i, factor in enumerate(factors) if i != place), None)
        share, more = obeyed(step, rule, f, relevance, other, None if bias is None else _given(step, bias[0]))
        shares = [share if i == place else None for i in range(len(factors))]
    else:
        shares, more = _several(step, factors, data, operator, relevance, output)
        if constant is not None:
            s, _ = stabilised(step, output, _product_rule(step).epsilon, relevance)
            more["bias"] = step.account(s * constant)
            assert bias is not None
            step.give(_given(step, bias[0]), s * constant)
    for reason, amount in more.items():
        add(absorbed, reason, amount)
    return shares, Shares(to_bias, absorbed)


def _is_shared(step: Step, factors: Sequence[Operand], place: int) -> bool:
    """Whether several walks share the one sample of a factor, and its weight is of no sample."""
    weights = [factor.ref for i, factor in enumerate(factors) if i != place]
    own = all(ref is not None and step.parameters(ref) for ref in weights)
    return own and len(weights) == 1 and is_shared(step, factors[place])


def _one_weight(
    factors: Sequence[Operand],
    place: int,
    operator: Operator,
    bias: Tensor | None,
    output: Tensor,
    transpose: Linear | None,
) -> tuple[Operand | None, Tensor | None, Tensor, Linear, Linear]:
    """A product as a linear map of the factor at `place`: weight, bias, output, apply and its adjoint."""
    weights = [factor for i, factor in enumerate(factors) if i != place]
    x = factors[place].value

    def apply(x: Tensor, w: Tensor | None) -> Tensor:
        if not weights:
            return operator(x)
        return operator(x, w) if place == 0 else operator(w, x)

    def by_autograd(v: Tensor, w: Tensor | None) -> Tensor:
        return adjoint(lambda y: apply(y, w), x, v)

    known = transpose if place == 0 else None
    return weights[0] if weights else None, bias, output, apply, known or by_autograd


def _given(step: Step, position: int) -> Any:
    """The node's argument at a position; a bias may be given by its name."""
    return step.node.args[position] if position < len(step.node.args) else step.node.kwargs.get("bias")


def _product_rule(step: Step) -> Product:
    return step.rule if isinstance(step.rule, Product) else Product()


def _several(
    step: Step,
    factors: Sequence[Operand],
    data: list[int],
    operator: Operator,
    relevance: Tensor,
    output: Tensor,
) -> tuple[list[Tensor | None], dict[str, Tensor]]:
    """The shares of several data factors.

    Under `Product("signal")` one of two that is a gate gets nothing, and the other all (CP-LRP, Ali et al.
    2022).
    """
    rule = _product_rule(step)
    s, absorbed = stabilised(step, output, rule.epsilon, relevance)
    gates = [i for i in data if (ref := factors[i].ref) is not None and step.gates(ref)]
    receivers = [i for i in data if i not in gates] if rule.how == "signal" and len(gates) == 1 else data
    if rule.how in ("first", "second"):
        receivers = data[:1] if rule.how == "first" else data[-1:]
    values = [factor.value for factor in factors]
    with torch.enable_grad():
        for i in receivers:
            values[i] = values[i].detach().requires_grad_()
        result = operator(*values)
    grads = torch.autograd.grad(result, [values[i] for i in receivers], s)
    shares: list[Tensor | None] = [None] * len(factors)
    for i, grad in zip(receivers, grads, strict=True):
        shares[i] = factors[i].value * grad / len(receivers)
    return shares, absorbed


def two_factors(
    step: Step,
    left: int,
    right: int,
    operator: Operator,
    relevance: Tensor,
    bias: tuple[int, Tensor] | None = None,
    transpose: Linear | None = None,
) -> Shares:
    """The shares of a product of the arguments at two positions."""
    factors = [operand(step, left), operand(step, right)]
    shares, rest = multilinear(step, factors, operator, relevance, bias, transpose)
    found = dict(rest.arguments)
    found |= {p: share for p, share in zip((left, right), shares, strict=True) if share is not None}
    return Shares(found, rest.absorbed)


def in_one(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """x Wᵀ + b as one product of matrices, also of an x that takes steps before samples: torch makes one for each step of it
    where no gradient is asked for, at several times the cost."""
    return F.linear(x.contiguous() if x.dim() > 2 else x, w, b)


def linear(step: Step, relevance: Tensor) -> Shares:
    """y = x Wᵀ + b."""

    def transpose(v: Tensor, w: Tensor | None) -> Tensor:
        assert w is not None
        if w.dim() != 2:
            return v.unsqueeze(-1) * w
        return v.contiguous() @ w

    bias = step.arg(2, "bias")
    return two_factors(step, 0, 1, in_one, relevance, None if bias is None else (2, bias), transpose)


def product(step: Step, relevance: Tensor) -> Shares:
    """Matrix products A·B, of any number of dimensions."""
    return two_factors(step, 0, 1, torch.matmul, relevance, transpose=_by_matrix(step, 1))


def _by_matrix(step: Step, position: int, alpha: float = 1.0) -> Linear | None:
    """The adjoint of x ↦ α x·W for the one matrix W at a position; None where that holds several, or x is a vector."""
    if step.args[position].dim() != 2 or step.args[position - 1].dim() < 2:
        return None

    def transpose(v: Tensor, w: Tensor | None) -> Tensor:
        assert w is not None
        shares = v.contiguous() @ w.mT
        return shares if alpha == 1 else shares * alpha

    return transpose


def product_with_bias(step: Step, relevance: Tensor) -> Shares:
    """β b + α A·B (addmm, baddbmm): how a linear layer reads after decomposition; the bias comes first."""
    beta, alpha = float(step.arg(3, "beta", 1)), float(step.arg(4, "alpha", 1))
    times = torch.outer if "addr" in step.node.operation else torch.matmul

    def operator(a: Tensor, b: Tensor) -> Tensor:
        return times(a, b) if alpha == 1 else times(a, b) * alpha

    bias = step.args[0] if step.data(0) else without_mask(step.args[0])
    bias = bias if beta == 1 else bias * beta
    return two_factors(step, 1, 2, operator, relevance, (0, bias), _by_matrix(step, 2, alpha))


def einsum(step: Step, relevance: Tensor) -> Shares:
    """einsum of any number of operands; several constant ones are multiplied first. A bias comes last."""
    equation: str = step.args[0].replace(" ", "")
    factors = [Operand(ref, value) for ref, value in zip(step.node.args[1], step.args[1], strict=True)]
    data = [i for i, ref in enumerate(step.node.args[1]) if step.is_data(ref)]
    places = list(range(len(factors)))
    if len(data) == 1 and len(factors) > 2:
        equation, factors = _one_constant(equation, factors, data[0])
        places = data
    bias = (2, step.args[2]) if step.function is biased_einsum else None
    shares, rest = multilinear(
        step, factors, lambda *values: torch.einsum(equation, *values), relevance, bias
    )
    found: list[Tensor | None] = [None] * len(step.args[1])
    for i, share in zip(places, shares, strict=False):
        found[i] = share
    return Shares({1: found}, rest.absorbed)


def _one_constant(equation: str, factors: list[Operand], data: int) -> tuple[str, list[Operand]]:
    """The same einsum with all but one operand multiplied into a single one, all their indices kept."""
    left, _, right = equation.partition("->")
    terms = left.split(",")
    if "->" not in equation:
        right = "".join(sorted(letter for letter in set(left) - {","} if left.count(letter) == 1))
    others = [i for i in range(len(terms)) if i != data]
    letters = "".join(sorted(set("".join(terms[i] for i in others))))
    together = torch.einsum(
        f"{','.join(terms[i] for i in others)}->{letters}", *(factors[i].value for i in others)
    )
    return f"{terms[data]},{letters}->{right}", [factors[data], Operand(None, together)]


def bilinear(step: Step, relevance: Tensor) -> Shares:
    """y_o = Σ_ij x_i W_oij z_j + b_o (`nn.Bilinear`), a product of x and z."""
    x, z, weight, bias = (*step.args[:3], step.arg(3, "bias"))
    constant = None if bias is None else (3, bias)
    left, right = operand(step, 0), operand(step, 1)
    operator: Operator
    if step.data(0) and step.data(1):

        def both(x: Tensor, z: Tensor) -> Tensor:
            return torch.einsum("...i,oij,...j->...o", x, weight, z)

        factors, operator = [left, right], both
    else:
        position = 0 if step.data(0) else 1
        matrix = (
            torch.einsum("...j,oij->...oi", z, weight)
            if position == 0
            else torch.einsum("...i,oij->...oj", x, weight)
        )
        factors, operator = [(left, right)[position], Operand(None, matrix)], _times_vector
    shares, rest = multilinear(step, factors, operator, relevance, constant)
    places = [i for i in (0, 1) if step.data(i)]
    found: dict[int | str, Any] = {i: r for i, r in zip(places, shares, strict=False) if r is not None}
    return Shares({**rest.arguments, **found}, rest.absorbed)


def _times_vector(x: Tensor, w: Tensor) -> Tensor:
    return torch.einsum("...i,...oi->...o", x, w)


def cross(step: Step, relevance: Tensor) -> Shares:
    """a × b, linear in each: of one data factor a product with the matrix that the other makes."""
    dim = step.arg(2, "dim", -1)
    if step.data(0) and step.data(1):
        return two_factors(step, 0, 1, lambda a, b: torch.linalg.cross(a, b, dim=dim), relevance)
    position = 0 if step.data(0) else 1
    other = step.args[1 - position].movedim(dim, -1)
    units = torch.eye(3, dtype=other.dtype, device=other.device)
    sides = [(unit.expand_as(other), other)[:: 1 if position == 0 else -1] for unit in units.unbind(0)]
    columns = [torch.linalg.cross(*pair) for pair in sides]

    def operator(x: Tensor, w: Tensor) -> Tensor:
        return _times_vector(x.movedim(dim, -1), w).movedim(-1, dim)

    factors = [operand(step, position), Operand(None, torch.stack(columns, -1))]
    shares, rest = multilinear(step, factors, operator, relevance)
    return Shares({position: shares[0]}, rest.absorbed)


def _hidden_indices(node: Node) -> str | None:
    if "..." in node.args[0] and len(node.args[1]) > 2:
        return "an einsum of more than two operands with an ellipsis; write its indices out"
    return None


rows(
    "linear",
    Operation("linear", linear, "both", Epsilon(), BILINEAR_RULES, computes=in_one, proportional=True),
)
rows(
    "matmul mm bmm mv _sparse_mm",
    Operation("linear", product, "both", Epsilon(), BILINEAR_RULES, proportional=True),
)
rows(
    "addmm baddbmm addmv addr _sparse_addmm",
    Operation("linear", product_with_bias, "both", Epsilon(), BILINEAR_RULES, proportional=True),
)
rows("einsum", Operation("linear", einsum, "both", Epsilon(), BILINEAR_RULES, refuses=_hidden_indices))
_BIASED = Operation("linear", product_with_bias, "both", Epsilon(), BILINEAR_RULES, proportional=True)
register(name_of(biased_product), _BIASED)
register(name_of(biased_einsum), Operation("linear", einsum, "both", Epsilon(), BILINEAR_RULES))
rows("bilinear", Operation("linear", bilinear, "both", Epsilon(), BILINEAR_RULES))
rows("linalg_cross", Operation("linear", cross, "both", Epsilon(), BILINEAR_RULES))
