"""Densities as outlier scores: kernel density, mixtures of Gaussians, the robust ellipse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from relprop.classical.build import Place, Score, estimator, refuse, tensor
from relprop.classical.steps import Distances, Flatten, Shift, Soften


@dataclass(frozen=True, eq=False)
class Density:
    """A mixture model as a density: how unlikely is a point, instead of which component it belongs to.

    Attributes:
        mixture: a fitted GaussianMixture; the explained score is −`score_samples`.
    """

    mixture: Any

    @property
    def n_features_in_(self) -> int:
        """The number of features that the mixture was fitted on."""
        return int(getattr(self.mixture, "n_features_in_", 0))


def add_quadratics(fitted: Any, place: Place) -> None:
    """Add −log π_k N(x; μ_k, Σ_k), (B, K): half a weighted squared distance, and a constant, which is the bias's."""
    means = tensor(fitted.means_)
    count, width = means.shape
    given = tensor(fitted.precisions_)
    precision = {
        "spherical": lambda: given[:, None].expand(count, width),
        "diag": lambda: given,
        "tied": lambda: given.expand(count, width, width),
        "full": lambda: given,
    }[fitted.covariance_type]()
    constant = -tensor(np.diag(fitted._estimate_weighted_log_prob(fitted.means_)))  # what it is at each mean
    place.then(Distances(means - place.origin(), precision.contiguous() / 2), count)
    place.then(Shift(reference=constant), count)
    place.reference = None


@estimator("Density")
def density(given: Density, place: Place) -> Score:
    """−log p(x), the soft minimum of the components' −log π_k N_k."""
    if not hasattr(given.mixture, "precisions_"):
        raise refuse(given.mixture, "is no fitted GaussianMixture", "give relprop.classical.Density one")
    add_quadratics(given.mixture, place)
    place.then(Soften(1.0), 1)
    return Score("outlier", lambda x: -given.mixture.score_samples(x))


@estimator("KernelDensity")
def kernel_density(fitted: Any, place: Place) -> Score:
    """−γ⁻¹ log Σ_j α_j exp(−γ d_j): the kernel's constant, which shifts all scores alike, is left out."""
    if fitted.kernel not in ("gaussian", "exponential") or fitted.metric not in (
        "euclidean",
        "minkowski",
        "l2",
    ):
        raise refuse(
            fitted,
            f"the kernel {fitted.kernel!r} with the metric {fitted.metric!r} is no soft minimum of distances",
            "use kernel='gaussian' or 'exponential' with the Euclidean metric",
        )
    points = np.asarray(fitted.tree_.data)
    weights = getattr(fitted.tree_, "sample_weight", None)
    share = np.full(len(points), 1.0) if weights is None else np.asarray(weights, float)
    share = share / share.sum()
    width = float(fitted.bandwidth_)
    gaussian = fitted.kernel == "gaussian"
    gamma = 1 / (2 * width**2) if gaussian else 1 / width
    place.then(Distances(tensor(points) - place.origin(), root=not gaussian), len(points))
    place.then(Soften(gamma, tensor(np.log(share)) / gamma), 1)
    size = points.shape[1]
    if gaussian:
        constant = -size / 2 * np.log(2 * np.pi) - size * np.log(width)
    else:
        sphere = np.log(2) + size / 2 * np.log(np.pi) - _log_gamma(size / 2)
        constant = -(sphere + _log_gamma(size)) - size * np.log(width)
    return Score("outlier", lambda x: -(fitted.score_samples(x) - constant) / gamma)


def _log_gamma(value: float) -> float:
    return float(torch.lgamma(torch.tensor(value, dtype=torch.float64)))


@estimator("EllipticEnvelope", "EmpiricalCovariance", "MinCovDet")
def ellipse(fitted: Any, place: Place) -> Score:
    """The squared Mahalanobis distance δᵀ P δ = Σ_i δ_i (P δ)_i, δ = x − μ."""
    centre, precision = tensor(fitted.location_), tensor(fitted.get_precision())
    place.then(Distances(centre[None] - place.origin(), precision[None]), 1)
    place.then(Flatten())
    return Score("outlier", fitted.mahalanobis)
