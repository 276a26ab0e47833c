"""Convolutions of any rank, and sampling at fixed places."""

from __future__ import annotations

import torch
from torch import Tensor

from relprop.engine.canonise import padded_convolution
from relprop.engine.graph import Node, name_of
from relprop.engine.ops.linear.maps import BILINEAR_RULES, LINEAR_RULES, adjoint, affine, by_rule
from relprop.engine.ops.linear.products import two_factors
from relprop.engine.ops.linear.settings import convolution_of
from relprop.engine.ops.table import Operation, register, rows
from relprop.engine.rules import Epsilon
from relprop.engine.step import Shares, Step

aten = torch.ops.aten


def convolution(step: Step, relevance: Tensor) -> Shares:
    """Convolution and transposed convolution of any rank, stride, padding, dilation and groups."""
    f = convolution_of(step)
    bias, x = step.arg(2, "bias"), step.args[0]
    shaped = None if bias is None else (2, bias.reshape(-1, *[1] * len(f.stride)))
    return two_factors(step, 0, 1, f.apply, relevance, shaped, lambda v, w: f.transpose(x, v, w))


def resampling(step: Step, relevance: Tensor) -> Shares:
    """grid_sample: linear in what is sampled, with weights ≥ 0. The places are a choice, which gets nothing."""
    x, grid = step.args[:2]
    if not step.data(0):
        return Shares({}, {"constant": step.account(relevance)})

    def apply(y: Tensor, w: Tensor | None) -> Tensor:
        return step.function(y.expand(grid.shape[0], *y.shape[1:]), *step.args[1:])  # type: ignore[no-any-return]

    def transpose(v: Tensor, w: Tensor | None) -> Tensor:
        return adjoint(lambda y: apply(y, None), x, v)

    return by_rule(step, 0, affine(step, 0, None, None, apply, transpose), relevance)


def regions(step: Step, relevance: Tensor) -> Shares:
    """roi_align: averages over regions; the regions are a choice, which gets nothing."""
    x = step.args[0]
    if not step.data(0):
        return Shares({}, {"constant": step.account(relevance)})

    def apply(y: Tensor, w: Tensor | None) -> Tensor:
        return step.function(y, *step.args[1:], **step.kwargs)  # type: ignore[no-any-return]

    def transpose(v: Tensor, w: Tensor | None) -> Tensor:
        return adjoint(lambda y: apply(y, None), x, v)

    return by_rule(step, 0, affine(step, 0, None, None, apply, transpose), relevance)


def _bicubic(node: Node) -> str | None:
    return "bicubic sampling at given places has no relevance function" if node.args[2] == 2 else None


_CONVOLUTION = Operation("convolution", convolution, "both", Epsilon(), BILINEAR_RULES, proportional=True)

rows(
    "conv1d conv2d conv3d conv1d.padding conv2d.padding conv3d.padding convolution"
    " conv_transpose1d conv_transpose2d.input conv_transpose3d.input",
    _CONVOLUTION,
)
register(name_of(padded_convolution), _CONVOLUTION)
rows(
    "grid_sampler grid_sampler_2d grid_sampler_3d",
    Operation("pool", resampling, "both", Epsilon(), LINEAR_RULES, refuses=_bicubic),
)
rows(
    "roi_align",
    Operation("pool", regions, "both", Epsilon(), LINEAR_RULES),
    prefix="torchvision.",
)
