"""Pooling, up-sampling and reductions: averages and sums are linear, maxima are selections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relprop.engine.graph import Node
from relprop.engine.ops.linear import LINEAR_RULES, adjoint, affine, by_rule
from relprop.engine.ops.table import Operation, first_known, rows
from relprop.engine.rules import Epsilon, MaxPool, Pass
from relprop.engine.step import Shares, Step


def average(step: Step, relevance: Tensor) -> Shares:
    """Averages, sums and interpolations: linear with weights ≥ 0 (the interpolation by bicubics only under ε)."""
    x = step.args[0]

    def apply(x: Tensor, w: Tensor | None) -> Tensor:
        return step.function(x, *step.args[1:], **step.kwargs)  # type: ignore[no-any-return]

    def transpose(v: Tensor, w: Tensor | None) -> Tensor:
        like = x
        if v.shape != step.output.shape:
            like = x.narrow(0, 0, 1)
        return adjoint(lambda y: apply(y, None), like, v)

    return by_rule(step, 0, affine(step, 0, None, None, apply, transpose), relevance)


def winner(step: Step, relevance: Any) -> Shares:
    """The largest value takes all (the first of equals); overlapping windows add up."""
    given = list(relevance) if isinstance(relevance, (list, tuple)) else [relevance]
    x = step.args[0]
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        result = step.function(leaf, *step.args[1:], **step.kwargs)
    first = result[0] if isinstance(result, (list, tuple)) else result
    return Shares({0: torch.autograd.grad(first, leaf, given[0])[0]})


def spread_winner(step: Step, relevance: Tensor) -> Shares:
    """amax, amin and max over all: torch spreads the gradient over ties, relevance goes to the first of equals."""
    raise NotImplementedError


_AVERAGE = Operation("pool", average, "both", Epsilon(), LINEAR_RULES, first_known(0))
rows(
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"
    " _adaptive_avg_pool2d _adaptive_avg_pool3d mean mean.dim sum sum.dim_IntList cumsum"
    " upsample_linear1d.vec upsample_bilinear2d.vec upsample_trilinear3d.vec upsample_linear1d upsample_bilinear2d"
    " upsample_trilinear3d _upsample_bilinear2d_aa.vec _upsample_bilinear2d_aa",
    _AVERAGE,
)
rows(
    "upsample_bicubic2d.vec upsample_bicubic2d _upsample_bicubic2d_aa.vec _upsample_bicubic2d_aa",
    Operation("pool", average, "both", Epsilon(), (Epsilon,)),
)
rows(
    "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices max_pool1d_with_indices"
    " adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d max.dim min.dim sort topk",
    Operation("max", winner, "inputs", MaxPool(), (MaxPool, Pass), first_known(0)),
)


