"""Convolutions of any rank, and sampling at fixed places."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from relprop.engine.canonise import REWRITES, padded_convolution
from relprop.engine.graph import Graph, Ref, name_of
from relprop.engine.ops.linear.maps import (
    BILINEAR_RULES,
    LINEAR_RULES,
    adjoint,
    affine,
    by_rule,
    linear_map,
    operand,
)
from relprop.engine.ops.linear.products import multilinear, two_factors
from relprop.engine.ops.linear.settings import convolution_of
from relprop.engine.ops.table import Operation, first_known, register, rows
from relprop.engine.rules import Epsilon, Pass, Product
from relprop.engine.step import Shares, Step
from relprop.errors import InvalidInput, UnsupportedOperation

aten = torch.ops.aten


def bicubic_sampler(x: Tensor, grid: Tensor, *settings: Any) -> Tensor:
    """grid_sample by bicubics."""
    return aten.grid_sampler(x, grid, 2, *settings)  # type: ignore[no-any-return]


def name_bicubics(graph: Graph) -> Graph:
    """Sampling by bicubics as an operation of its own, which obeys other rules than that by weights ≥ 0."""
    bicubic = {node.name for node in graph.nodes if "grid_sampler" in node.operation and node.args[2] == 2}
    nodes = [
        dataclasses.replace(node, function=bicubic_sampler, args=(*node.args[:2], *node.args[3:]))
        if node.name in bicubic
        else node
        for node in graph.nodes
    ]
    return dataclasses.replace(graph, nodes=tuple(nodes))


REWRITES.append(name_bicubics)


def convolution(step: Step, relevance: Tensor) -> Shares:
    """Convolution and transposed convolution of any rank, stride, padding, dilation and groups."""
    f = convolution_of(step)
    bias, x = step.arg(2, "bias"), step.args[0]
    shaped = None if bias is None else (2, bias.reshape(-1, *[1] * len(f.stride)))
    return two_factors(step, 0, 1, f.apply, relevance, shaped, lambda v, w: f.transpose(x, v, w))


def resampling(step: Step, relevance: Tensor) -> Shares:
    """grid_sample: linear in what is sampled, with weights ≥ 0 (those of bicubics, which have both signs, only under ε).
    The places are a choice, which gets nothing."""
    x, grid = step.args[:2]
    if not step.data(0):
        return Shares({}, {"constant": step.account(relevance)})

    def apply(y: Tensor, w: Tensor | None) -> Tensor:
        return step.function(y.expand(grid.shape[0], *y.shape[1:]), *step.args[1:])  # type: ignore[no-any-return]

    def transpose(v: Tensor, w: Tensor | None) -> Tensor:
        return adjoint(lambda y: apply(y, None), x, v)

    return by_rule(step, 0, affine(step, 0, None, None, apply, transpose), relevance)


def regions(step: Step, relevance: Any) -> Shares:
    """roi_align and its kin: averages over regions; the regions are a choice, which gets nothing."""
    x = step.args[0]
    r, index = (relevance[0], 0) if isinstance(relevance, (list, tuple)) else (relevance, None)
    if not step.data(0):
        return Shares({}, {"constant": step.account(r, index)})

    def apply(y: Tensor, w: Tensor | None) -> Tensor:
        result = step.function(y, *step.args[1:], **step.kwargs)
        found: Tensor = result if index is None else result[index]
        return found

    def transpose(v: Tensor, w: Tensor | None) -> Tensor:
        return adjoint(lambda y: apply(y, None), x, v)

    output = step.output if index is None else step.output[index]
    f = linear_map(step, operand(step, 0), None, None, output, apply, transpose)
    if index is not None:
        f = dataclasses.replace(
            f, layout=step.layout_of(Ref(step.node.name, index)), account=lambda v: step.account(v, index)
        )
    return by_rule(step, 0, f, r)


def largest_of_regions(step: Step, relevance: Any) -> Shares:
    """roi_pool: the largest value of each part of a region takes all, of equals the first; an empty part is a constant 0."""
    r, x = relevance[0], step.args[0]
    if not step.data(0):
        return Shares({}, {"constant": step.account(r, 0)})
    shares = adjoint(lambda y: step.function(y, *step.args[1:])[0], x, r)
    return Shares({0: shares}, {"constant": step.account(torch.where(step.output[1] < 0, r, 0.0), 0)})


def deformed(step: Step, relevance: Tensor) -> Shares:
    """deform_conv2d: a convolution of what is sampled at places that the offsets choose, which get nothing.

    Its mask is one more factor: where it is data, it shares as in every product of two data tensors (a gate gets nothing
    under the rule for that).
    """
    offset, mask, bias, *settings = step.args[2:]
    masked = bool(settings[-1])

    def operator(x: Tensor, w: Tensor, m: Tensor = mask) -> Tensor:
        return step.function(x, w, offset, m, torch.zeros_like(bias), *settings)  # type: ignore[no-any-return]

    signed = masked and not step.data(3) and not isinstance(step.rule, (Epsilon, Product))
    if signed and bool((mask < 0).any()):
        raise InvalidInput(
            f"rules: {step.rule} cannot be used for {step.node.operation} ({step.node.where()}), whose constant mask has"
            " negative values\n  do: give it Epsilon"
        )
    data = [i for i in ((0, 1, 3) if masked else (0, 1)) if step.data(i)]
    if data and data[0] != 0:
        raise UnsupportedOperation(
            f"{step.node.operation}: its weight or mask depends on the explained input, but what it samples does not\n"
            f"  at {step.node.where()}\n  do: explain what is sampled, too, or a part of the model without it"
        )
    factors = [operand(step, i) for i in (0, 1)]
    if len(data) > 1 and 3 in data:
        factors.append(operand(step, 3))
    shares, rest = multilinear(step, factors, operator, relevance, (4, bias.reshape(-1, 1, 1)))
    found = dict(rest.arguments)
    found |= {i: share for i, share in zip((0, 1, 3), shares, strict=False) if share is not None}
    return Shares(found, rest.absorbed)


_CONVOLUTION = Operation("convolution", convolution, "both", Epsilon(), BILINEAR_RULES, proportional=True)

rows(
    "conv1d conv2d conv3d conv1d.padding conv2d.padding conv3d.padding convolution"
    " conv_transpose1d conv_transpose2d.input conv_transpose3d.input",
    _CONVOLUTION,
)
register(name_of(padded_convolution), _CONVOLUTION)
rows(
    "grid_sampler grid_sampler_2d grid_sampler_3d",
    Operation("pool", resampling, "both", Epsilon(), LINEAR_RULES),
)
register(name_of(bicubic_sampler), Operation("pool", resampling, "both", Epsilon(), (Epsilon,)))
rows(
    "roi_align ps_roi_align",
    Operation("pool", regions, "both", Epsilon(), LINEAR_RULES),
    prefix="torchvision.",
)
rows(
    "roi_pool",
    Operation("max", largest_of_regions, "both", Pass(), (Pass,), first_known(0)),
    prefix="torchvision.",
)
rows(
    "deform_conv2d",
    Operation("convolution", deformed, "both", Epsilon(), BILINEAR_RULES, several=Product()),
    prefix="torchvision.",
)
