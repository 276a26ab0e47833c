"""The toy task of Arras et al. (2019): an LSTM that adds or subtracts two marked numbers, so that true relevance is known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relprop.evaluate.arrays import ratio
from relprop.evaluate.similarity import pearson


def agreement(n_a: Any, n_b: Any, r_a: Any, r_b: Any, others: Any) -> tuple[float, float, float]:
    """ρ(n_a, R_a), ρ(n_b, R_b) and the mean share (|R_a| + |R_b|) / Σ_t |R_t| of the marked steps (Arras et al. 2019).

    All (B,): the two marked numbers, the relevance of their steps, and Σ|R_t| of all other steps. Where the numbers are
    subtracted the ideal ρ(n_b, R_b) is −1.
    """

    def flat(x: Any) -> Tensor:
        return torch.as_tensor(x, dtype=torch.float64).detach().reshape(1, -1)

    a, b, ra, rb, rest = map(flat, (n_a, n_b, r_a, r_b, others))
    marked = ra.abs() + rb.abs()
    share = ratio(marked, marked + rest)
    return float(pearson(a, ra)), float(pearson(b, rb)), float(share[torch.isfinite(share)].mean())
