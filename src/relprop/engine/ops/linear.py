"""Products with constant matrices, convolutions, and everything else that is linear in its data and has
weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from relprop.engine.canonise import convolution_arguments, padded_convolution
from relprop.engine.graph import Node, Ref, name_of
from relprop.engine.ops.elementwise import addition_rule, stabilised, sum_to
from relprop.engine.ops.table import Operation, register, rows
from relprop.engine.rules import RULES, Affine, Epsilon, LinearRule, Product, Result, Rule
from relprop.engine.rules.affine import add
from relprop.engine.rules.weights import by_weight
from relprop.engine.step import Shares, Step

aten = torch.ops.aten

Operator = Callable[..., Tensor]
"""The product of some factors, linear in each."""

Linear = Callable[[Tensor, Tensor | None], Tensor]
"""A function of a tensor and a weight that is linear in the tensor."""

PARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "positive": lambda w: w.clamp(min=0),
    "negative": lambda w: w.clamp(max=0),
    "square": torch.square,
    "ones": torch.ones_like,
    "both": lambda w: torch.cat([w.clamp(min=0), w.clamp(max=0)], 1),
}


def part_of(weight: Tensor, name: str) -> Tensor:
    """A tensor derived from a weight: a row of `PARTS`, "favour γ" (w + γ w⁺) or "favour negative γ" (w + γ w⁻)."""
    kind, _, gamma = name.rpartition(" ")
    if kind:
        return weight + float(gamma) * PARTS["negative" if "negative" in kind else "positive"](weight)
    return PARTS[name](weight)


"""The tensors that rules derive from a weight."""


@dataclass(frozen=True, slots=True)
class Operand:
    """A factor of a product: its value, and the place in the graph that it comes from (None: worked out
    here)."""

    ref: Ref | None
    value: Tensor


def operand(step: Step, position: int) -> Operand:
    """The argument at a position."""
    return Operand(step.node.args[position], step.args[position])


def affine(
    step: Step,
    position: int,
    weight: Operand | None,
    bias: Tensor | None,
    apply: Linear,
    transpose: Linear,
) -> Affine:
    """The linear map of a step from the argument at `position`; parts of the weight are cached."""
    return _affine(step, operand(step, position), weight, bias, step.output, apply, transpose)


def _affine(
    step: Step,
    x: Operand,
    weight: Operand | None,
    bias: Tensor | None,
    output: Tensor,
    apply: Linear,
    transpose: Linear,
) -> Affine:
    assert x.ref is not None
    layout = step.layout_of(x.ref)

    def part(name: str) -> Tensor | None:
        if weight is None:
            return None
        if weight.ref is None:
            return part_of(weight.value, name)
        return step.cached(weight.ref, name, lambda: part_of(weight.value, name))  # type: ignore[no-any-return]

    return Affine(
        x=x.value,
        weight=None if weight is None else weight.value,
        bias=bias,
        output=output,
        apply=apply,
        transpose=transpose,
        part=part,
        nonnegative=step.is_nonnegative(x.ref),
        account=step.account,
        batch_dimension=None if layout is None else layout.dimension,
        layout=step.layout_of(Ref(step.node.name)),
        paired=weight is not None and _pairs(step, x.value, weight.value),
        batch=step.batch,
    )


def _pairs(step: Step, x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution has so few input channels (colours) that twice as many cost the same: its kernels
    work on sixteen at a time."""
    if "conv" not in step.node.operation or weight.dim() < 3 or x.dim() != weight.dim():
        return False
    f = convolution_of(step)
    return not f.transposed and f.groups == 1 and weight.shape[1] <= 8


def by_rule(
    step: Step, position: int, f: Affine, relevance: Tensor, weight: Any = None, bias: Any = None
) -> Shares:
    """The shares that the step's rule gives to its one data argument; `weight`, `bias`: the node's arguments."""
    shares, absorbed = obeyed(step, step.rule, f, relevance, weight, bias)
    return Shares({position: shares}, absorbed)


def obeyed(
    step: Step, rule: Rule, f: Affine, relevance: Tensor, weight: Any = None, bias: Any = None
) -> Result:
    """What a rule for linear operations makes of them, with the relevance of weight and bias where it is asked for."""
    function = RULES[type(rule)]
    if step.journal is None:
        return function(rule, f, relevance)
    messages = by_weight(function, rule, f, relevance)
    for argument, found in ((weight, messages.weight), (bias, messages.bias)):
        if found is not None:
            step.give(argument, found)
    return messages.result


def adjoint(function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """Lᵀ v of a function that is linear in x (x itself matters by its shape only)."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        result = function(leaf)
    (grad,) = torch.autograd.grad(result, leaf, v.to(result.dtype))
    return grad


# ---------------------------------------------------------------- products of some factors, and a bias


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
        f = _affine(step, factors[place], *_one_weight(factors, place, operator, constant, output, transpose))
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


def _two_factors(
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


def linear(step: Step, relevance: Tensor) -> Shares:
    """y = x Wᵀ + b."""

    def transpose(v: Tensor, w: Tensor | None) -> Tensor:
        assert w is not None
        return v @ w if w.dim() == 2 else v.unsqueeze(-1) * w

    bias = step.arg(2, "bias")
    return _two_factors(step, 0, 1, F.linear, relevance, None if bias is None else (2, bias), transpose)


def product(step: Step, relevance: Tensor) -> Shares:
    """Matrix products A·B, of any number of dimensions."""
    return _two_factors(step, 0, 1, torch.matmul, relevance)


def product_with_bias(step: Step, relevance: Tensor) -> Shares:
    """β b + α A·B (addmm, baddbmm): how a linear layer reads after decomposition; the bias comes first."""
    beta, alpha = float(step.arg(3, "beta", 1)), float(step.arg(4, "alpha", 1))

    def operator(a: Tensor, b: Tensor) -> Tensor:
        return torch.matmul(a, b) * alpha

    return _two_factors(step, 1, 2, operator, relevance, (0, step.args[0] * beta))


def einsum(step: Step, relevance: Tensor) -> Shares:
    """einsum of any number of operands; several constant ones are multiplied first."""
    equation: str = step.args[0].replace(" ", "")
    factors = [Operand(ref, value) for ref, value in zip(step.node.args[1], step.args[1], strict=True)]
    data = [i for i, ref in enumerate(step.node.args[1]) if step.is_data(ref)]
    if len(data) == 1 and len(factors) > 2:
        equation, factors = _one_constant(equation, factors, data[0])
    shares, rest = multilinear(step, factors, lambda *values: torch.einsum(equation, *values), relevance)
    found: list[Tensor | None] = [None] * len(step.args[1])
    for i, share in zip(data, (share for share in shares if share is not None), strict=True):
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
    found = [share for share in shares if share is not None]
    places = [i for i in (0, 1) if step.data(i)]
    return Shares({**rest.arguments, **dict(zip(places, found, strict=True))}, rest.absorbed)


def _times_vector(x: Tensor, w: Tensor) -> Tensor:
    return torch.einsum("...i,...oi->...o", x, w)


def _hidden_indices(node: Node) -> str | None:
    if "..." in node.args[0] and len(node.args[1]) > 2:
        return "an einsum of more than two operands with an ellipsis; write its indices out"
    return None


# ---------------------------------------------------------------- convolutions


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution without its data: `sides` is zero padding, each side on its own, on top of `padding`."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int
    sides: list[int]

    def apply(self, x: Tensor, w: Tensor | None) -> Tensor:
        """The convolution of x, batched or not, with the weight w."""
        batched = x.dim() == len(self.stride) + 2
        y = aten.convolution(self._padded(x if batched else x[None]), w, None, *self._rest())
        return y if batched else y[0]  # type: ignore[no-any-return]

    def transpose(self, x: Tensor, v: Tensor, w: Tensor | None) -> Tensor:
        """Its adjoint: the backward pass to an input of x's size."""
        batched = x.dim() == len(self.stride) + 2
        like, v = self._padded(x if batched else x[None]), v if batched else v[None]
        channels = like.shape[1] if self.transposed or w is None else w.shape[1] * self.groups
        if channels != like.shape[1]:  # only its size matters
            like = like.new_empty(like.shape[0], channels, *like.shape[2:])
        grad: Tensor = aten.convolution_backward(v, like, w, None, *self._rest(), [True, False, False])[0]
        if any(self.sides):
            grad = aten.constant_pad_nd(grad, [-side for side in self.sides], 0)
        return grad if batched else grad[0]

    def _padded(self, x: Tensor) -> Tensor:
        return aten.constant_pad_nd(x, self.sides, 0) if any(self.sides) else x

    def _rest(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups


def convolution(step: Step, relevance: Tensor) -> Shares:
    """Convolution and transposed convolution of any rank, stride, padding, dilation and groups."""
    f = convolution_of(step)
    bias, x = step.arg(2, "bias"), step.args[0]
    shaped = None if bias is None else (2, bias.reshape(-1, *[1] * len(f.stride)))
    return _two_factors(step, 0, 1, f.apply, relevance, shaped, lambda v, w: f.transpose(x, v, w))


def convolution_of(step: Step) -> Convolution:
    """The settings of a convolution, whatever its spelling."""
    rank = step.args[1].dim() - 2
    zeros = [0] * rank
    if step.function is padded_convolution:
        sides, stride, dilation, groups = step.args[3:]
        return Convolution(stride, zeros, dilation, False, zeros, groups, sides)
    found = convolution_arguments(step.node)
    if found is not None:
        names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
        return Convolution(**{name: found[name] for name in names}, sides=[0] * 2 * rank)

    def full(position: int, name: str) -> list[int]:
        value = step.arg(position, name, [1])
        return [value] * rank if isinstance(value, int) else list(value) * (rank if len(value) == 1 else 1)

    stride, dilation, kernel = full(3, "stride"), full(5, "dilation"), step.args[1].shape[2:]
    sides = []
    if step.arg(4, "padding") == "same":  # an odd amount has its larger half on the far side
        for total in (d * (k - 1) for d, k in zip(reversed(dilation), reversed(kernel), strict=True)):
            sides += [total // 2, total - total // 2]
    return Convolution(
        stride, zeros, dilation, False, zeros, step.arg(6, "groups", 1), sides or [0] * 2 * rank
    )


# ---------------------------------------------------------------- sampling at fixed places


def resampling(step: Step, relevance: Tensor) -> Shares:
    """grid_sample at places that do not depend on the data: linear with weights ≥ 0."""
    x, grid = step.args[:2]

    def apply(y: Tensor, w: Tensor | None) -> Tensor:
        return step.function(y.expand(grid.shape[0], *y.shape[1:]), *step.args[1:])  # type: ignore[no-any-return]

    def transpose(v: Tensor, w: Tensor | None) -> Tensor:
        return adjoint(lambda y: apply(y, None), x, v)

    return by_rule(step, 0, affine(step, 0, None, None, apply, transpose), relevance)


def _bicubic(node: Node) -> str | None:
    return "bicubic sampling at given places has no relevance function" if node.args[2] == 2 else None


# ---------------------------------------------------------------- the rows

LINEAR_RULES = tuple(RULES)
BILINEAR_RULES = (*LINEAR_RULES, Product)
_CONVOLUTION = Operation("convolution", convolution, "both", Epsilon(), BILINEAR_RULES)

rows("linear", Operation("linear", linear, "both", Epsilon(), BILINEAR_RULES))
rows("matmul mm bmm mv", Operation("linear", product, "both", Epsilon(), BILINEAR_RULES))
rows("addmm baddbmm", Operation("linear", product_with_bias, "both", Epsilon(), BILINEAR_RULES))
rows("einsum", Operation("linear", einsum, "both", Epsilon(), BILINEAR_RULES, refuses=_hidden_indices))
rows("bilinear", Operation("linear", bilinear, "both", Epsilon(), BILINEAR_RULES))
rows(
    "conv1d conv2d conv3d conv1d.padding conv2d.padding conv3d.padding convolution"
    " conv_transpose1d conv_transpose2d.input conv_transpose3d.input",
    _CONVOLUTION,
)
register(name_of(padded_convolution), _CONVOLUTION)
rows(
    "grid_sampler grid_sampler_2d grid_sampler_3d",
    Operation(
        "pool", resampling, "both", Epsilon(), LINEAR_RULES, refuses=_bicubic,
        fixed={1: "the places that are sampled depend on the explained input"},
    ),
)  # fmt: skip
