"""Choices between two tensors: by a condition, by size, softly."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from relprop.engine.ops.elementwise.signs import branches_known, one_known, product_known
from relprop.engine.ops.elementwise.sums import sum_to
from relprop.engine.ops.table import Operation, rows
from relprop.engine.rules import Pass
from relprop.engine.rules.affine import add
from relprop.engine.step import Shares, Step


def split(step: Step, shares: list[tuple[int, Tensor]]) -> Shares:
    """Relevance that was divided among arguments; constants keep theirs in the account "constant"."""
    absorbed: dict[str, Tensor] = {}
    result: dict[int | str, Any] = {}
    for position, share in shares:
        if step.data(position):
            result[position] = sum_to(share, step.args[position])
        else:
            add(absorbed, "constant", step.account(share))
    return Shares(result, absorbed)


def selected(step: Step, relevance: Tensor) -> Shares:
    """where(c, a, b), masked_fill: relevance goes to the branch that was chosen."""
    condition, a, b = (step.args[1], 2, 0) if "masked_fill" in step.node.operation else (step.args[0], 1, 2)
    return split(
        step, [(a, torch.where(condition, relevance, 0.0)), (b, torch.where(condition, 0.0, relevance))]
    )


def extremum(step: Step, relevance: Tensor) -> Shares:
    """maximum(a, b), minimum(a, b): winner takes all, the first of equals."""
    a, b = step.args[:2]
    first = a >= b if "max" in step.node.operation else a <= b
    return split(step, [(0, torch.where(first, relevance, 0.0)), (1, torch.where(first, 0.0, relevance))])


def soft_maximum(step: Step, relevance: Tensor) -> Shares:
    """log(exp a + exp b): shares softmax(a, b), min-take-most (Kauffmann et al. 2020)."""
    a, b = step.args[:2]
    base = math.log(2) if "exp2" in step.node.operation else 1.0
    part = torch.sigmoid((a - b) * base)
    return split(step, [(0, relevance * part), (1, relevance * (1 - part))])


rows(
    "where.self where.ScalarOther where.ScalarSelf masked_fill.Scalar masked_fill.Tensor",
    Operation("selection", selected, "inputs", Pass(), (Pass,), branches_known),
)
rows("maximum max.other fmax", Operation("max", extremum, "inputs", Pass(), (Pass,), one_known))
rows("minimum min.other fmin", Operation("max", extremum, "inputs", Pass(), (Pass,), product_known))
rows("logaddexp logaddexp2", Operation("max", soft_maximum, "inputs", Pass(), (Pass,), one_known))
