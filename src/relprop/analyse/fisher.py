"""How well clusters separate: Fisher's discriminant."""

from __future__ import annotations

from typing import Any

import numpy as np

from relprop.analyse.graph import as_array, needed
from relprop.errors import InvalidInput

TAUS = ("max", "trace", "ratio")
"""The variants of τ: the largest generalised eigenvalue, the sum of them, the ratio of traces."""


def fisher_discriminant(points: Any, labels: Any, tau: str = "max", smallest: int = 1) -> float:
    """Fisher's discriminant of labelled points: scatter between clusters over scatter within them.

    With S_W = Σ_k Σ_(i∈k) (e_i − m_k)(e_i − m_k)ᵀ and S_B = Σ_k n_k (m_k − m)(m_k − m)ᵀ: the largest generalised eigenvalue
    of (S_B, S_W) for `"max"`, tr(S_W⁻¹ S_B) for `"trace"`, tr S_B / tr S_W for `"ratio"`. Anders et al. 2022 rank classes by it.

    Args:
        points: (n, d).
        labels: (n,).
        tau: the variant.
        smallest: clusters of fewer points are left out.

    Returns:
        τ ≥ 0; infinity where the clusters have no extent at all; 0 where fewer than two clusters are left.

    Raises:
        InvalidInput: the lengths differ, values are not finite, or an unknown variant.
    """
    x, y = as_array(points).astype(np.float64), np.asarray(labels).reshape(-1)
    if tau not in TAUS:
        raise InvalidInput(f"tau: {tau!r}\n  do: give one of {', '.join(TAUS)}")
    if x.ndim != 2 or len(x) != len(y):
        raise InvalidInput(f"points {x.shape} and labels {y.shape}\n  do: give (n, d) and (n,)")
    if not np.isfinite(x).all():
        raise InvalidInput("points: NaN or infinity\n  do: give finite points")
    names, index, counts = np.unique(y, return_inverse=True, return_counts=True)
    kept = counts[index] >= smallest
    if (counts >= smallest).sum() < 2:
        return 0.0
    x, index = x[kept], index[kept]
    means = np.stack(
        [x[index == k].mean(0) if (index == k).any() else np.zeros(x.shape[1]) for k in range(len(names))]
    )
    sizes = np.bincount(index, minlength=len(names))[:, None]
    within, apart = x - means[index], means - x.mean(0)
    s_w, s_b = within.T @ within, (sizes * apart).T @ apart
    total = np.trace(s_w)
    if total <= 1e-24 * max(np.trace(s_b), 1e-300):
        return float("inf") if np.trace(s_b) > 0 else 0.0
    if tau == "ratio":
        return float(np.trace(s_b) / total)
    s_w = s_w + 1e-12 * total * np.eye(len(s_w))
    values = needed("scipy.linalg").eigvalsh(s_b, s_w)
    return float(max(values[-1] if tau == "max" else values.sum(), 0.0))
