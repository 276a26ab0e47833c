"""Normalisation: by running statistics (a linear operation), by the sample's own, and across channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relprop.engine.canonise import batch_norm_arguments
from relprop.engine.graph import Meta, Node, Ref, arguments_of, by_name, name_of
from relprop.engine.norms import written_norm
from relprop.engine.ops.linear import LINEAR_RULES, by_rule, part_of
from relprop.engine.ops.lrn import local_response_norm, local_response_shares
from relprop.engine.ops.table import Operation, register, rows
from relprop.engine.rules import Affine, Epsilon, Pass, Taylor
from relprop.engine.step import Shares, Step


def named_arguments(step: Step) -> dict[str, Any]:
    """The values of a step's arguments by the names in the operator's schema, in its order, defaults filled
    in."""
    return by_name(step.function, step.args, step.kwargs)


def argument_named(step: Step, name: str) -> Any:
    """The node's argument of a name in the operator's schema: a place in the graph, or a value."""
    return arguments_of(step.node).get(name)


def first_part(relevance: Any) -> tuple[Tensor, int | None]:
    """The relevance of an operation's (first) output, and which part of the node's value that is."""
    return (relevance[0], 0) if isinstance(relevance, (list, tuple)) else (relevance, None)


def batch_norm(step: Step, relevance: Any) -> Shares:
    """Normalisation by running statistics: y = s x + t, its own diagonal linear operation."""
    r, index = first_part(relevance)
    if isinstance(step.rule, Pass):
        _give_all(step, r, r.dim() - 2)
        return Shares({0: r})
    a = named_arguments(step)
    eps = a["eps"] if "eps" in a else a["epsilon"]
    f = _diagonal(step, index, a["weight"], a["bias"], a["running_mean"], a["running_var"], eps)
    return by_rule(step, 0, f, r, argument_named(step, "weight"), argument_named(step, "bias"))


def _give_all(step: Step, relevance: Tensor, behind: int) -> None:
    """Under the identity all relevance of a channel passes through its scale, and none through its shift.

    `behind`: how many dimensions of the relevance follow that of the scale.
    """
    if step.journal is None:
        return
    a = named_arguments(step)
    for name, amount in (("weight", relevance), ("bias", torch.zeros_like(relevance))):
        if a.get(name) is not None:
            size = (*a[name].shape, *[1] * behind)
            step.give(argument_named(step, name), amount.sum_to_size(size))


def _diagonal(
    step: Step,
    index: int | None,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    eps: float,
) -> Affine:
    """y = s x + t per channel: s = γ/√(σ² + eps), t = β − μ s."""
    x = step.args[0]
    shape = (-1, *[1] * (x.dim() - 2))
    factor = torch.rsqrt(variance.to(x.dtype) + eps)
    factor = factor if scale is None else factor * scale
    offset = -mean * factor if shift is None else shift - mean * factor
    factor, offset = factor.reshape(shape), offset.reshape(shape)
    return Affine(
        x=x,
        weight=factor,
        bias=offset,
        output=x * factor + offset,
        apply=lambda x, w: x * w,  # type: ignore[operator]
        transpose=lambda v, w: v * w,  # type: ignore[operator]
        part=lambda name: part_of(factor, name),
        nonnegative=step.nonnegative(0),
        account=lambda values: step.account(values, index),
        layout=step.layout_of(Ref(step.node.name, index)),
    )


def _batch_statistics(node: Node) -> str | None:
    if batch_norm_arguments(node) is None:
        return "batch normalisation by the statistics of the batch mixes its samples"
    return None


@dataclass(frozen=True, slots=True)
class Groups:
    """What a norm takes its statistics over: dimensions `dims` of the input seen as `view`; scale and shift
    broadcast to the input. Without `centred` nothing is subtracted (RMS norm). σ is √(spread · v + eps) + outside, v
    the mean square."""

    view: tuple[int, ...]
    dims: tuple[int, ...]
    scale: Tensor | None
    shift: Tensor | None
    eps: float
    centred: bool = True
    spread: float = 1.0
    outside: float = 0.0

    def centre(self, x: Tensor) -> Tensor:
        """x minus the mean of its group; its own adjoint."""
        seen = x.reshape(self.view)
        return (seen - seen.mean(self.dims, keepdim=True)).reshape(x.shape) if self.centred else x

    def total(self, x: Tensor) -> Tensor:
        """The sum of its group, at each of its members; its own adjoint."""
        return x.reshape(self.view).sum(self.dims, keepdim=True).expand(self.view).reshape(x.shape)

    def factor(self, x: Tensor) -> Tensor:
        """scale / σ in the shape of x."""
        squares = self.centre(x).reshape(self.view).square().mean(self.dims, keepdim=True)
        deviation = (self.spread * squares + self.eps).sqrt() + self.outside
        factor = deviation.reciprocal().expand(self.view).reshape(x.shape)
        return factor if self.scale is None else factor * self.scale


def own_norm(step: Step, relevance: Any) -> Shares:
    """Layer, group, instance and RMS norm: the identity (AttnLRP, Prop. 3.4), or under `Epsilon` a linear
    operation.

    That is the rule of Ali et al. 2022: y = w (x − m)/σ + b with σ a constant, so that R_i =
    x_i Σ_j w_j/σ (δ_ij − 1/N) R_j/(y_j + ε s_j); the bias is absorbed unless the rule ignores it.
    """
    r, index = first_part(relevance)
    a = named_arguments(step)
    if isinstance(step.rule, Pass):
        _give_all(step, r, r.dim() - 2 if _by_channel(a) else 0)
        return Shares({0: r})
    x: Tensor = step.args[0]
    groups = _groups(step.node.operation, x, a)
    factor = groups.factor(x)
    scaled = groups.centre(x) * factor
    ones = torch.ones(())

    f = Affine(
        x=x,
        weight=factor,
        bias=groups.shift,
        output=scaled if groups.shift is None else scaled + groups.shift,
        apply=lambda x, w: groups.total(x) if w is ones else groups.centre(x) * w,  # type: ignore[operator]
        transpose=lambda v, w: groups.total(v) if w is ones else groups.centre(v * w),  # type: ignore[operator]
        part=lambda name: ones,  # "distribute" alone asks: every member of a group is connected to all of it
        nonnegative=False,
        account=lambda values: step.account(values, index),
        layout=step.layout_of(Ref(step.node.name, index)),
    )
    return by_rule(step, 0, f, r, argument_named(step, "weight"), argument_named(step, "bias"))


def _by_channel(a: dict[str, Any]) -> bool:
    """Whether scale and shift are one number a channel."""
    return "normalized_shape" not in a and "centred" not in a


def _groups(operation: str, x: Tensor, a: dict[str, Any]) -> Groups:
    weight, bias = a.get("weight"), a.get("bias")
    shape, rank = tuple(x.shape), x.dim()
    if "centred" in a:
        return Groups(shape, a["dims"], weight, bias, a["inside"], a["centred"], a["spread"], a["outside"])
    if "normalized_shape" in a:
        dims = tuple(range(rank - len(a["normalized_shape"]), rank))
        eps = torch.finfo(x.dtype).eps if a["eps"] is None else a["eps"]
        return Groups(shape, dims, weight, bias, eps, centred="rms" not in operation)
    weight, bias = (None if p is None else p.reshape(-1, *[1] * (rank - 2)) for p in (weight, bias))
    if "group_norm" in operation:
        count = a["num_groups"] if "num_groups" in a else a["group"]
        return Groups((shape[0], count, x[0].numel() // count), (2,), weight, bias, a["eps"])
    over = tuple(range(2, rank)) if "instance_norm" in operation else (0, *range(2, rank))
    return Groups(shape, over, weight, bias, a["eps"])


def _mixes_samples(node: Node) -> str | None:
    """Statistics over the first dimension: fine where the batch is part of the channels (instance norm)."""
    meta = node.meta[0] if isinstance(node.meta, tuple) else node.meta
    over_first = "_native_batch_norm_legit" in node.operation
    if over_first and isinstance(meta, Meta) and 0 in meta.batch:
        return "batch normalisation by the statistics of the batch mixes its samples"
    return None


rows(
    "batch_norm _native_batch_norm_legit_no_training native_batch_norm cudnn_batch_norm",
    Operation(
        "batch_norm", batch_norm, "inputs", Epsilon(), (*LINEAR_RULES, Pass), refuses=_batch_statistics
    ),
)
rows(
    "layer_norm native_layer_norm group_norm native_group_norm instance_norm rms_norm _fused_rms_norm"
    " _native_batch_norm_legit.no_stats",
    Operation("norm", own_norm, "inputs", Pass(), (Pass, Epsilon), refuses=_mixes_samples),
)
register(name_of(written_norm), Operation("norm", own_norm, "inputs", Pass(), (Pass, Epsilon)))
register(
    name_of(local_response_norm),
    Operation("norm", local_response_shares, "inputs", Pass(), (Pass, Epsilon, Taylor)),
)
