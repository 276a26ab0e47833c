"""The relevance of a linear operation's weights: the messages that pass through each of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from relprop.engine.rules.affine import Affine, Result


class Messages(NamedTuple):
    """What a rule hands on (`result`), and the same by weight and by bias: of their shapes, summed over samples and
    positions; None where the operation has none."""

    result: Result
    weight: Tensor | None
    bias: Tensor | None


def by_weight(
    function: Callable[[Any, Affine, Tensor], Result], rule: Any, f: Affine, relevance: Tensor
) -> Messages:
    """R_w = Σ m_kj / d_k R_k over all uses of w_kj (samples, positions), for the messages m of any rule.

    A rule's shares are Σ_i c_i · Lᵀ(s_i, w_i) with tensors w_i derived from the weights. By the adjoint their sum is
    Σ_i ⟨s_i, L(c_i, w_i)⟩, which is linear in each w_i: so that w_i times its derivative is what passes through it. The
    factor c_i is the derivative of the shares' sum by the adjoint's result.
    """
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    of_bias: list[Tensor] = []

    def transpose(v: Tensor, w: Tensor | None) -> Tensor:
        with torch.no_grad():
            back = f.transpose(v.detach(), w)
        if w is None:
            return back
        back = back.detach().clone().requires_grad_()
        calls.append((v.detach(), w, back))
        return back

    def apply(x: Tensor, w: Tensor | None) -> Tensor:
        with torch.no_grad():
            return f.apply(x.detach(), w)

    watched = dataclasses.replace(
        f, apply=apply, transpose=transpose, noted=lambda s, bias: of_bias.append((s * bias).detach())
    )
    with torch.enable_grad():
        shares, absorbed = function(rule, watched, relevance)
    result = shares.detach(), {reason: amount.detach() for reason, amount in absorbed.items()}
    weight = None
    if f.weight is not None and calls:
        factors = torch.autograd.grad(shares.sum(), [back for _, _, back in calls], allow_unused=True)
        weight = torch.zeros_like(f.weight)
        for (v, w, _), c in zip(calls, factors, strict=True):
            if c is not None:
                weight += _folded(_through(f, w, c, v), f.weight)
    bias = None
    if f.bias is not None:
        bias = torch.zeros_like(f.bias)
        for part in of_bias:
            bias += part.sum_to_size(f.bias.shape)
    return Messages(result, weight, bias)


def _through(f: Affine, w: Tensor, c: Tensor, v: Tensor) -> Tensor:
    """w · ∂⟨v, L(c, w)⟩/∂w."""
    with torch.enable_grad():
        leaf = w.detach().requires_grad_()
        y = f.apply(c, leaf)
    if not y.requires_grad:  # an operation whose weights are all ones and fixed
        return torch.zeros_like(w)
    (grad,) = torch.autograd.grad(y, leaf, v.to(y.dtype).expand_as(y))
    return w * grad


def _folded(values: Tensor, like: Tensor) -> Tensor:
    """The sum of the halves where positive and negative weights stand side by side (`Affine.paired`)."""
    if values.shape == like.shape:
        return values
    plus, minus = values.chunk(2, 1)
    return plus + minus
