"""Operations as linear maps of one argument, which the rules take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from relprop.engine.canonise import convolution_arguments
from relprop.engine.graph import Ref, refs
from relprop.engine.ops.linear.settings import convolution_of
from relprop.engine.rules import RULES, Affine, LinearRule, Product, Result, Rule
from relprop.engine.rules.affine import owned
from relprop.engine.rules.weights import by_weight
from relprop.engine.step import Layout, Shares, Step

Linear = Callable[[Tensor, Tensor | None], Tensor]
"""A function of a tensor and a weight that is linear in the tensor."""

PARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "positive": lambda w: w.clamp(min=0),
    "negative": lambda w: w.clamp(max=0),
    "absolute": torch.abs,
    "square": torch.square,
    "ones": torch.ones_like,
    "both": lambda w: torch.cat([w.clamp(min=0), w.clamp(max=0)], 1),
}
"""The tensors that rules derive from a weight."""


def part_of(weight: Tensor, name: str) -> Tensor:
    """A tensor derived from a weight: a row of `PARTS`, or "favour γ", w + γ w⁺; of a sparse matrix from its entries."""
    if weight.layout != torch.strided:
        return _with_entries(weight, lambda entries: part_of(entries, name))
    kind, _, gamma = name.rpartition(" ")
    if kind:
        return weight + float(gamma) * PARTS["positive"](weight)
    return PARTS[name](weight)


def _with_entries(matrix: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A sparse matrix with other entries at the same places."""
    if matrix.layout != torch.sparse_coo:
        matrix = matrix.to_sparse()
    matrix = matrix.coalesce()
    values = function(matrix.values())
    return torch.sparse_coo_tensor(
        matrix.indices(), values, matrix.shape, is_coalesced=True, check_invariants=False
    )


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
    return linear_map(step, operand(step, position), weight, bias, step.output, apply, transpose)


def linear_map(
    step: Step,
    x: Operand,
    weight: Operand | None,
    bias: Tensor | None,
    output: Tensor,
    apply: Linear,
    transpose: Linear,
) -> Affine:
    """The linear map of a step from x, its parts of the weight cached where that comes from the graph."""
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
        batch_dimension=layout.dimension if layout is not None and _alike(step, x, weight, layout) else None,
        layout=step.layout_of(Ref(step.node.name)),
        paired=weight is not None and _pairs(step, x.value, weight.value),
        batch=step.batch,
        spare=step.spare and owned(output, x.value),
        rectified=step.rectified and output is step.output,
    )


def _alike(step: Step, x: Operand, weight: Operand | None, layout: Layout) -> bool:
    """Whether every sample meets the same weight: it is of no sample, a convolution finds none among its channels, and no
    other value (the places that samples are read at) belongs to a sample."""
    if not _alone(step, x):
        return False
    if weight is None:
        return True
    rows = layout.dimension == 0 and x.value.dim() == weight.value.dim()
    return (
        weight.ref is not None and step.parameters(weight.ref) and (rows or "conv" not in step.node.operation)
    )


def _alone(step: Step, x: Operand) -> bool:
    """Whether an operation reads weights besides x, and nothing else."""
    return all(step.parameters(ref) for ref in refs((step.node.args, step.node.kwargs)) if ref != x.ref)


def is_shared(step: Step, x: Operand) -> bool:
    """Whether x is one sample that several walks share: seen as many of them, without copies."""
    assert x.ref is not None
    relative = isinstance(step.rule, LinearRule) and step.rule.stabiliser == "relative"
    first = step.layout_of(x.ref) == step.layout_of(Ref(step.node.name)) == Layout(0, 1)
    seen = x.value.dim() > 1 and x.value.shape[0] == step.batch > 1 and x.value.stride(0) == 0
    return first and seen and not relative and _alone(step, x)


def one_for_all(
    step: Step,
    x: Operand,
    weight: Operand | None,
    bias: Tensor | None,
    output: Tensor,
    apply: Linear,
    transpose: Linear,
) -> Affine:
    """`linear_map` of a sample that several walks share: what depends on it alone is computed once, and broadcasts to the
    relevance, which has a row for every walk."""
    f = linear_map(step, Operand(x.ref, x.value[:1]), weight, bias, output[:1], apply, transpose)

    def account(values: Tensor) -> Tensor:
        return step.account(values.expand(step.batch, *values.shape[1:]))

    return replace(f, account=account, rectified=step.rectified and output is step.output)


def _pairs(step: Step, x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution has so few input channels (colours) that twice as many cost the same: its kernels
    work on sixteen at a time."""
    if convolution_arguments(step.node) is None or weight.dim() < 3 or x.dim() != weight.dim():
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


LINEAR_RULES = tuple(RULES)
BILINEAR_RULES = (*LINEAR_RULES, Product)
