"""Classical models as networks: fitted estimators and pipelines of scikit-learn, rewritten and explained by the same walk.

scikit-learn is imported when an estimator is explained: `pip install 'relprop[classical]'`.
"""

from __future__ import annotations

from typing import Any

from relprop.classical import (
    clusters,
    compose,
    linear,
    local,
    machines,
    mixtures,
    several,
    transformers,
    words,
)
from relprop.classical.build import ESTIMATORS, TRANSFORMERS, Place, Score, is_estimator
from relprop.classical.clusters import KernelKMeans
from relprop.classical.explained import RULES, Estimator, listed_once, rewritten
from relprop.classical.kernels import KERNELS, Kernel
from relprop.classical.machines import Precomputed, histogram_intersection
from relprop.classical.mixtures import Density
from relprop.classical.steps import Network

__all__ = [
    "ESTIMATORS",
    "KERNELS",
    "RULES",
    "TRANSFORMERS",
    "Density",
    "Estimator",
    "Kernel",
    "KernelKMeans",
    "Network",
    "Place",
    "Precomputed",
    "Score",
    "histogram_intersection",
    "is_estimator",
    "listed_once",
    "rewritten",
    "to_module",
]

_FILLED = (
    clusters,
    compose,
    linear,
    local,
    machines,
    mixtures,
    several,
    transformers,
    words,
)  # they enter their rows


def to_module(
    estimator: Any,
    *,
    reference: Any = None,
    beta: float | None = None,
    soft: bool | None = None,
    normalised: bool | None = None,
) -> Network:
    """The network that computes a fitted estimator's score, a float64 module in eval mode.

    Args:
        estimator: a fitted estimator or pipeline of scikit-learn, or `Precomputed`, `Density`, `KernelKMeans`.
        reference: the input (D,) whose features have relevance zero; one number for all. Default: what the first step
            with an offset of its own (a scaler's or PCA's mean) subtracts, else 0.
        beta: of a clustering, how sharply the nearest other cluster is preferred to those farther away: relevance of
            the minimum goes by softmin(β h). Default: 1/|f|, each sample's own evidence (a mixture: 1).
            float("inf"): the nearest takes all.
        soft: of a clustering, the evidence itself is a soft minimum, −β⁻¹ log Σ exp(−β h).
        normalised: of a one-class SVM with a Gaussian or Laplacian kernel, its coefficients count as shares of 1, so
            that the score is a distance: never negative, larger than −γ⁻¹ log `score_samples` by γ⁻¹ log Σ α.

    Returns:
        A `Network`: features (B, D) to scores, (B,) or (B, C). Explained as it is, give it `rules=relprop.classical.RULES`.

    Raises:
        UnsupportedEstimator: the estimator or a step of it has no rewriting.
        InvalidInput: it is not fitted, or an option is none of its own.
    """
    return rewritten(estimator, reference, beta=beta, soft=soft, normalised=normalised).network
