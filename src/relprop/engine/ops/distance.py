"""Distances between points."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relprop.engine.graph import Node
from relprop.engine.ops.norm import named_arguments
from relprop.engine.ops.table import Operation, rows
from relprop.engine.rules import Pass
from relprop.engine.rules.affine import add
from relprop.engine.step import Shares, Step


def distances(step: Step, relevance: Tensor) -> Shares:
    """d_ij = ‖x_i − y_j‖_p: |x_ik − y_jk|^p in proportion, each as a difference: x_ik/(x_ik − y_jk) of it to x.

    Where x_i = y_j there is nothing to share by, and R stays in the account "undistributed"; points that are
    constants keep their part in "constant".
    """
    a = named_arguments(step)
    x, y = (step.args[i].to(relevance.dtype) for i in (0, 1))
    difference = x.unsqueeze(-2) - y.unsqueeze(-3)
    sizes = difference.abs().pow(a["p"])
    total = sizes.sum(-1)
    empty = total == 0
    s = torch.where(empty, 0.0, relevance / total)
    part = torch.where(difference == 0, 0.0, sizes / difference) * s.unsqueeze(-1)
    absorbed: dict[str, Tensor] = {"undistributed": step.account(torch.where(empty, relevance, 0.0))}
    shares: dict[int | str, Any] = {}
    for i, (points, signed, own) in enumerate(((x, part, -2), (y, -part, -3))):
        expanded = points.unsqueeze(own) * signed
        if step.data(i):
            shares[i] = expanded.sum(own).sum_to_size(points.shape)
        else:
            add(absorbed, "bias" if step.is_parameter(i) else "constant", step.account(expanded.sum(-1)))
    return Shares(shares, absorbed)


def _no_power(node: Node) -> str | None:
    p = node.args[2] if len(node.args) > 2 else node.kwargs.get("p", 2.0)
    return None if 0 < p < float("inf") else f"a distance of order {p} is no sum of its coordinates' parts"


rows("cdist _cdist_forward", Operation("pool", distances, "inputs", Pass(), (Pass,), "always", _no_power))
