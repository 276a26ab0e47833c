"""Perturbation curves as arrays: areas over and under them, by name, since the conventions differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relprop.errors import InvalidInput
from relprop.evaluate.arrays import given, ratio


def aopc(scores: Any, first: bool = True) -> Tensor:
    """The area over the perturbation curve (Samek et al. 2017): 1/(L+1) Σ_{k=0…L} f(x⁽⁰⁾) − f(x⁽ᵏ⁾).

    scores: (B, L+1), column 0 unperturbed; (B,) float64. With first=False the mean is over k = 1…L, as tools have it that do
    not count the unperturbed point.
    """
    curve = _curve(scores)
    drops = curve[:, :1] - curve
    return drops.mean(1) if first else drops[:, 1:].mean(1)


def abpc(morf: Any, lerf: Any) -> Tensor:
    """The area between the curves, AOPC of most relevant first − AOPC of least relevant first, (B,)."""
    return aopc(morf) - aopc(lerf)


def auc(scores: Any, fractions: Any = None) -> Tensor:
    """The area under the curve by trapezoids, over the replaced fraction in [0, 1], (B,).

    fractions: (L+1,) of the points; by default equally spaced. Not the sum with distance 1, which grows with the number of steps.
    """
    curve = _curve(scores)
    if fractions is None:
        return torch.trapezoid(curve, dim=1) / (curve.shape[1] - 1)
    at = torch.as_tensor(fractions, dtype=curve.dtype, device=curve.device)
    return torch.trapezoid(curve, at, dim=1)


def normalised(scores: Any, empty: Any) -> Tensor:
    """Curves on the scale where f(x) is 1 and the score of nothing left, f∅, is 0: (f_k − f∅)/(f_0 − f∅), not clipped.

    scores: (B, L+1); empty: (B,). NaN where f(x) = f∅.
    """
    curve = _curve(scores)
    nothing = torch.as_tensor(empty, dtype=curve.dtype, device=curve.device).reshape(-1, 1)
    return ratio(curve - nothing, (curve[:, :1] - nothing).expand_as(curve))


def naopc(scores: Any, empty: Any) -> Tensor:
    """AOPC of the normalised curve, (B,): ½ for a straight line."""
    return 1 - normalised(scores, empty).mean(1)


def _curve(scores: Any) -> Tensor:
    curve = given(scores, "scores")
    if curve.dim() != 2 or curve.shape[1] < 2:
        raise InvalidInput(f"scores: shape {tuple(curve.shape)}\n  do: give (B, L+1), column 0 unperturbed")
    return curve
