"""Products with constant matrices, convolutions, and everything else that is linear in its data and has weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from relprop.engine.canonise import convolution_arguments, padded_convolution
from relprop.engine.graph import name_of
from relprop.engine.ops.table import Operation, register, rows
from relprop.engine.rules import RULES, Affine, Epsilon, LinearRule, Product
from relprop.engine.step import Shares, Step

aten = torch.ops.aten

PARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "positive": lambda w: w.clamp(min=0),
    "negative": lambda w: w.clamp(max=0),
    "square": torch.square,
    "ones": torch.ones_like,
}


def affine(
    step: Step,
    position: int,
    weight: int | None,
    bias: Tensor | None,
    apply: Callable[[Tensor, Tensor | None], Tensor],
    transpose: Callable[[Tensor, Tensor | None], Tensor],
) -> Affine:
    """The linear map of a step from the argument at `position`; parts of the weight (an argument too) are cached."""
    matrix = None if weight is None else step.args[weight]

    def part(name: str) -> Tensor | None:
        if weight is None or matrix is None:
            return None
        source = step.node.args[weight]
        return step.cached(source, name, lambda: PARTS[name](matrix))  # type: ignore[no-any-return]

    layout = step.layout_of(step.node.args[position])
    return Affine(
        x=step.args[position],
        weight=matrix,
        bias=bias,
        output=step.output,
        apply=apply,
        transpose=transpose,
        part=part,
        nonnegative=step.nonnegative(position),
        account=step.account,
        batch_dimension=0 if layout is None else layout.dimension,
    )


def by_rule(step: Step, position: int, f: Affine, relevance: Tensor) -> Shares:
    """The shares that the step's rule gives to its one data argument."""
    shares, absorbed = RULES[type(step.rule)](step.rule, f, relevance)
    return Shares({position: shares}, absorbed)


def adjoint(function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """Lᵀ v of a function that is linear in x (x itself matters by its shape only)."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        result = function(leaf)
    (grad,) = torch.autograd.grad(result, leaf, v.to(result.dtype))
    return grad


def linear(step: Step, relevance: Tensor) -> Shares:
    """y = x Wᵀ + b."""
    if step.data(1):
        return bilinear(step, 0, 1, relevance, step.arg(2, "bias"))

    def apply(x: Tensor, w: Tensor | None) -> Tensor:
        return torch.nn.functional.linear(x, w)  # type: ignore[arg-type]

    def transpose(v: Tensor, w: Tensor | None) -> Tensor:
        return v @ w  # type: ignore[operator, no-any-return]

    return by_rule(step, 0, affine(step, 0, 1, step.arg(2, "bias"), apply, transpose), relevance)


def product(step: Step, relevance: Tensor) -> Shares:
    """Matrix products A·B: linear where one factor is constant, shared by the product rule where both are data."""
    return _matrix_product(step, 0, 1, None, step.function, relevance)


def product_with_bias(step: Step, relevance: Tensor) -> Shares:
    """β b + α A·B (addmm, baddbmm): how a linear layer reads after decomposition; the bias comes first."""
    beta, alpha = step.kwargs.get("beta", 1), step.kwargs.get("alpha", 1)

    def operator(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b) * alpha if alpha != 1 else a @ b

    return _matrix_product(step, 1, 2, step.args[0] * beta if beta != 1 else step.args[0], operator, relevance)


def _matrix_product(
    step: Step, left: int, right: int, bias: Tensor | None, operator: Callable[..., Tensor], relevance: Tensor
) -> Shares:
    if step.data(left) and step.data(right):
        return bilinear(step, left, right, relevance, bias, operator)
    position, other = (left, right) if step.data(left) else (right, left)

    def apply(x: Tensor, w: Tensor | None) -> Tensor:
        return operator(x, w) if position == left else operator(w, x)

    x = step.args[position]

    def transpose(v: Tensor, w: Tensor | None) -> Tensor:
        return adjoint(lambda y: apply(y, w), x, v)

    return by_rule(step, position, affine(step, position, other, bias, apply, transpose), relevance)


def bilinear(
    step: Step,
    left: int,
    right: int,
    relevance: Tensor,
    bias: Tensor | None = None,
    operator: Callable[..., Tensor] | None = None,
) -> Shares:
    """A product of two data tensors, y = A·B + b, bilinear: half of the ε rule to each (AttnLRP, Prop. 3.3).

    Under `Product("signal")` a factor that is a gate gets nothing and the other all (CP-LRP, Ali et al. 2022).
    """
    rule = step.rule if isinstance(step.rule, Product) else Product()
    a, b = step.args[left], step.args[right]
    function = step.function if operator is None else operator
    stabiliser = torch.copysign(step.output.new_full((), rule.epsilon), step.output)
    s = relevance / (step.output + stabiliser)
    if rule.epsilon == 0:
        s = torch.where(step.output == 0, torch.zeros_like(s), s)
    with torch.enable_grad():
        leaves = a.detach().requires_grad_(), b.detach().requires_grad_()
        result = function(*leaves)
    grad_a, grad_b = torch.autograd.grad(result, leaves, s)
    to_a = 0.5
    if rule.how == "signal" and step.is_gate(left) != step.is_gate(right):
        to_a = 0.0 if step.is_gate(left) else 1.0
    shares: dict[int | str, Any] = {}
    if to_a > 0:
        shares[left] = a * grad_a * to_a
    if to_a < 1:
        shares[right] = b * grad_b * (1 - to_a)
    if rule.epsilon == 0:
        zero = torch.where(step.output == 0, relevance, torch.zeros_like(relevance))
        absorbed = {"undistributed": step.account(zero)}
    else:
        absorbed = {"stabilizer": step.account(s * stabiliser)}
    if bias is not None:
        absorbed["bias"] = step.account(s * bias)
    return Shares(shares, absorbed)


def einsum(step: Step, relevance: Tensor) -> Shares:
    """einsum of up to two data tensors; other operands are constants."""
    equation, operands = step.args[0], list(step.args[1])
    data = [i for i, ref in enumerate(step.node.args[1]) if step.is_data(ref)]
    with torch.enable_grad():
        leaves = [operands[i].detach().requires_grad_() for i in data]
        filled = list(operands)
        for i, leaf in zip(data, leaves, strict=True):
            filled[i] = leaf
        result = torch.einsum(equation, filled)
    rule = step.rule
    eps = rule.epsilon if isinstance(rule, (LinearRule, Product)) else 1e-6
    stabiliser = torch.copysign(step.output.new_full((), eps), step.output)
    d = step.output + stabiliser
    s = torch.where(d == 0, torch.zeros_like(d), relevance / d)
    grads = torch.autograd.grad(result, leaves, s)
    shares: list[Tensor | None] = [None] * len(operands)
    for i, leaf, grad in zip(data, leaves, grads, strict=True):
        shares[i] = leaf.detach() * grad / len(data)
    absorbed = {"stabilizer": step.account(s * stabiliser)}
    absorbed["undistributed"] = step.account(torch.where(d == 0, relevance, torch.zeros_like(d)))
    return Shares({1: shares}, absorbed)


def convolution(step: Step, relevance: Tensor) -> Shares:
    """Convolution and transposed convolution of any rank, stride, padding, dilation and groups."""
    if step.function is padded_convolution:
        x, weight, bias, sides, stride, dilation, groups = step.args
        rank = len(stride)
        inner = [-side for side in sides]

        def apply(x: Tensor, w: Tensor | None) -> Tensor:
            return padded_convolution(x, w, None, sides, stride, dilation, groups)  # type: ignore[arg-type]

        padded = aten.constant_pad_nd(x, sides, 0)

        def transpose(v: Tensor, w: Tensor | None) -> Tensor:
            zeros = [0] * rank
            grad = _transpose_convolution(v, padded, w, stride, zeros, dilation, False, zeros, groups)
            return aten.constant_pad_nd(grad, inner, 0)  # type: ignore[no-any-return]

    else:
        c = convolution_arguments(step.node)
        x, weight = step.args[0], step.args[1]
        bias = step.arg(2, "bias")
        if c is None:  # padding given as a word
            word = step.arg(4, "padding")
            c = _worded(step, weight, word)
        rank = weight.dim() - 2
        stride, dilation, groups = c["stride"], c["dilation"], c["groups"]
        padding, out_padding, transposed = c["padding"], c["output_padding"], c["transposed"]
        batched = x.dim() == rank + 2

        def apply(x: Tensor, w: Tensor | None) -> Tensor:
            y = aten.convolution(
                x if batched else x[None], w, None, stride, padding, dilation, transposed, out_padding, groups
            )
            return y if batched else y[0]  # type: ignore[no-any-return]

        def transpose(v: Tensor, w: Tensor | None) -> Tensor:
            like = x if batched else x[None]
            grad = _transpose_convolution(
                v if batched else v[None], like, w, stride, padding, dilation, transposed, out_padding, groups
            )
            return grad if batched else grad[0]

    shaped = None if bias is None else bias.reshape(-1, *[1] * rank)
    if step.data(1):
        return bilinear(step, 0, 1, relevance, shaped, apply)
    return by_rule(step, 0, affine(step, 0, 1, shaped, apply, transpose), relevance)


def _transpose_convolution(
    v: Tensor, x: Tensor, w: Tensor | None, stride: Any, padding: Any, dilation: Any, transposed: bool, out_padding: Any, groups: int
) -> Tensor:
    """The adjoint of a convolution: its backward pass to the input, which knows the input's exact size."""
    x = x if x.shape[0] == v.shape[0] else x[:1].expand(v.shape[0], *x.shape[1:])
    return aten.convolution_backward(  # type: ignore[no-any-return]
        v, x, w, None, stride, padding, dilation, transposed, out_padding, groups, [True, False, False]
    )[0]


def _worded(step: Step, weight: Tensor, word: str) -> dict[str, Any]:
    """The arguments of a convolution whose padding is "same" or "valid"; "same" with uneven sides is refused at capture."""
    rank = weight.dim() - 2

    def full(position: int, name: str) -> list[int]:
        value = step.arg(position, name, [1])
        value = [value] if isinstance(value, int) else list(value)
        return value * rank if len(value) == 1 else value

    stride, dilation = full(3, "stride"), full(5, "dilation")
    total = [d * (k - 1) if word == "same" else 0 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    return {
        "stride": stride, "dilation": dilation, "padding": [t // 2 for t in total],
        "groups": step.arg(6, "groups", 1), "output_padding": [0] * rank, "transposed": False,
    }  # fmt: skip


LINEAR_RULES = tuple(RULES)
BILINEAR_RULES = (*LINEAR_RULES, Product)
_LINEAR = Operation("linear", linear, "both", Epsilon(), BILINEAR_RULES)
_CONVOLUTION = Operation("convolution", convolution, "both", Epsilon(), BILINEAR_RULES)

rows("linear", _LINEAR)
rows("matmul mm bmm mv", Operation("linear", product, "both", Epsilon(), BILINEAR_RULES))
rows("addmm baddbmm", Operation("linear", product_with_bias, "both", Epsilon(), BILINEAR_RULES))
rows("einsum", Operation("linear", einsum, "both", Epsilon(), (Epsilon, Product)))
rows(
    "conv1d conv2d conv3d conv1d.padding conv2d.padding conv3d.padding convolution"
    " conv_transpose1d conv_transpose2d.input conv_transpose3d.input",
    _CONVOLUTION,
)
register(name_of(padded_convolution), _CONVOLUTION)
