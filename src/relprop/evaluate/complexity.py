"""How many places an explanation names: sparseness, entropy, effective complexity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relprop.evaluate.arrays import ratio, rows


def gini(relevance: Any) -> Tensor:
    """The Gini index of |R| (Chalasani et al. 2020): 0 where all are equal, (n−1)/n where one has it all; NaN for R = 0.

    Σ_i (2i − n − 1) a_(i) / (n Σ a), a = |R| ascending, i from 1. relevance: (B, …) -> (B,) float64.
    Depends on the map's size: compare maps of one size only.
    """
    ordered = rows(relevance).abs().sort(1).values
    count = ordered.shape[1]
    place = torch.arange(1, count + 1, dtype=ordered.dtype, device=ordered.device)
    return ratio(((2 * place - count - 1) * ordered).sum(1), count * ordered.sum(1))


def entropy(relevance: Any) -> Tensor:
    """The entropy of |R| / Σ|R| in nats (Bhatt et al. 2020): ln n where all are equal; NaN for R = 0.

    relevance: (B, …) -> (B,) float64.
    """
    size = rows(relevance).abs()
    share = ratio(size, size.sum(1, keepdim=True).expand_as(size))
    found: Tensor = -torch.special.xlogy(share, share).sum(1)
    return found


def effective_complexity(relevance: Any, threshold: float = 1e-5) -> Tensor:
    """How many places have |R| above the threshold, (B,) float64."""
    return (rows(relevance).abs() > threshold).sum(1).to(torch.float64)
