"""Normalisation: by running statistics (a linear operation), by the sample's own, and across channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relprop.engine.canonise import batch_norm_arguments
from relprop.engine.graph import Node
from relprop.engine.ops.linear import LINEAR_RULES, by_rule
from relprop.engine.ops.table import Operation, rows
from relprop.engine.rules import Affine, Epsilon, Pass
from relprop.engine.step import Shares, Step


def batch_norm(step: Step, relevance: Any) -> Shares:
    """Normalisation by running statistics: y = s x + t, its own diagonal linear operation."""
    several = isinstance(relevance, (list, tuple))
    r: Tensor = relevance[0] if several else relevance
    if isinstance(step.rule, Pass):
        return Shares({0: r})
    node = step.node
    positions = batch_norm_positions(node)
    scale, shift, mean, variance = (step.args[p] if p is not None else None for p in positions[:4])
    eps = step.args[positions[4]]
    x = step.args[0]
    shape = (-1, *[1] * (x.dim() - 2))
    factor = torch.rsqrt(variance.to(x.dtype) + eps)
    factor = factor if scale is None else factor * scale
    offset = -mean * factor if shift is None else shift - mean * factor
    factor, offset = factor.reshape(shape), offset.reshape(shape)

    def part(name: str) -> Tensor:
        return {"positive": factor.clamp(min=0), "negative": factor.clamp(max=0), "square": factor.square()}.get(
            name, torch.ones_like(factor)
        )

    f = Affine(
        x=x,
        weight=factor,
        bias=offset,
        output=step.output[0] if several else step.output,
        apply=lambda x, w: x * w,  # type: ignore[operator]
        transpose=lambda v, w: v * w,  # type: ignore[operator]
        part=part,
        nonnegative=step.nonnegative(0),
        account=lambda values: step.account(values, 0 if several else None),
    )
    return by_rule(step, 0, f, r)


def batch_norm_positions(node: Node) -> tuple[int | None, int | None, int, int, int]:
    """Where scale, shift, mean, variance and eps stand among the arguments."""
    name = str(node.function)
    eps = 6 if "no_training" in name else 7
    return 1 if node.args[1] is not None else None, 2 if node.args[2] is not None else None, 3, 4, eps


def _batch_statistics(node: Node) -> str | None:
    if batch_norm_arguments(node) is None:
        return "batch normalisation by the statistics of the batch mixes its samples"
    return None


def own_norm(step: Step, relevance: Any) -> Shares:
    """Layer, group, instance and RMS norm: the identity (AttnLRP, Prop. 3.4), or with a constant deviation (Ali 2022)."""
    r: Tensor = relevance[0] if isinstance(relevance, (list, tuple)) else relevance
    if isinstance(step.rule, Pass):
        return Shares({0: r})
    raise NotImplementedError


rows(
    "batch_norm _native_batch_norm_legit_no_training native_batch_norm cudnn_batch_norm",
    Operation("batch_norm", batch_norm, "both", Epsilon(), (*LINEAR_RULES, Pass), refuses=_batch_statistics),
)
rows(
    "layer_norm native_layer_norm group_norm native_group_norm instance_norm rms_norm _fused_rms_norm"
    " _native_batch_norm_legit.no_stats",
    Operation("norm", own_norm, "inputs", Pass(), (Pass, Epsilon)),
)
