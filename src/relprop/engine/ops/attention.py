"""Softmax and fused attention."""

from __future__ import annotations

import torch
from torch import Tensor

from relprop.engine.ops.table import Operation, rows
from relprop.engine.rules import Product, Softmax
from relprop.engine.step import Shares, Step


def softmax(step: Step, relevance: Tensor) -> Shares:
    """s = softmax(x): R_i = x_i (R_i − s_i Σ_j R_j) (AttnLRP, Prop. 3.1); what the expansion's bias takes is absorbed."""
    rule = step.rule if isinstance(step.rule, Softmax) else Softmax()
    x, dim = step.args[0], step.args[1]
    if rule.how == "pass":
        return Shares({0: relevance})
    if rule.how == "constant":
        return Shares({}, {"constant": step.account(relevance)})
    s = step.output
    x = torch.where(s == 0, torch.zeros_like(x), x).to(relevance.dtype)  # masked entries: −inf or the type's minimum
    total = relevance.sum(dim, keepdim=True)
    mean = (s * x).sum(dim, keepdim=True)
    return Shares({0: x * (relevance - s * total)}, {"softmax_bias": step.account(relevance * (1 - x + mean))})


rows("softmax.int _softmax", Operation("softmax", softmax, "both", Softmax(), (Softmax, Product), "always"))
