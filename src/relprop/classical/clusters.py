"""Clusterings: by how much a point is nearer to its cluster than to the nearest other one (Kauffmann et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relprop.classical.build import Place, Score, estimator, refuse, rows, tensor
from relprop.classical.mixtures import add_quadratics
from relprop.classical.steps import Distances, Grouped, Margins, Soften
from relprop.errors import InvalidInput


def _all_rivals(count: int) -> tuple[Tensor, Tensor]:
    """Every cluster against each of the others: own and other, both (C, C − 1)."""
    other = [[k for k in range(count) if k != c] for c in range(count)]
    own = [[c] * (count - 1) for c in range(count)]
    return torch.tensor(own), torch.tensor(other)


def _margins(place: Place, own: Tensor, other: Tensor) -> None:
    """Add the evidence for each cluster; `beta` and `soft` are the caller's."""
    soft = bool(place.asked("soft", False))
    beta = place.asked("beta", 0.0)
    if not isinstance(beta, (int, float)) or not beta >= 0 or (soft and not 0 < beta < float("inf")):
        raise InvalidInput(
            f"beta: {beta!r} is no sharpness{' of a soft minimum' if soft else ''}\n  do: give a number above 0"
        )
    place.then(Margins(own, other, float(beta), soft), len(own))


def _enough(fitted: Any, count: int) -> None:
    if count < 2:
        raise refuse(
            fitted,
            "has one cluster, so that nothing says why a point is not in another",
            "fit two clusters or more",
        )


def _pooled(place: Place, h: Any) -> Any:
    """The margin of each cluster from the gaps (B, C, M) of its pairs, as `Margins` has it."""
    step: Any = place.steps[-1]
    if not step.soft:
        return np.min(h, -1)
    return -np.log(np.exp(-step.beta * h).sum(-1)) / step.beta


@estimator("KMeans", "MiniBatchKMeans", "MeanShift", "AffinityPropagation")
def nearest_centre(fitted: Any, place: Place) -> Score:
    """f_c = min over k ≠ c of ‖x − μ_k‖² − ‖x − μ_c‖²: above zero where c is the nearest."""
    centres = tensor(fitted.cluster_centers_)
    _enough(fitted, len(centres))
    place.then(Distances(centres - place.origin()), len(centres))
    own, other = _all_rivals(len(centres))
    _margins(place, own, other)

    def margins(x: Any) -> Any:
        d = ((rows(x)[:, None] - fitted.cluster_centers_[None]) ** 2).sum(-1)
        return _pooled(place, d[:, other.numpy()] - d[:, own.numpy()])

    return Score("clusters", margins, tuple(range(len(centres))))


@estimator("BisectingKMeans")
def bisected(fitted: Any, place: Place) -> Score:
    """f_c = min over the splits on the way to c of ‖x − μ_sibling‖² − ‖x − μ_own‖²: above zero where all led to c."""
    centres: list[Any] = []
    paths: dict[int, list[tuple[int, int]]] = {}

    def follow(node: Any, path: list[tuple[int, int]]) -> None:
        if node.left is None:
            paths[int(node.label)] = path
            return
        first = len(centres)
        centres.extend((node.left.center, node.right.center))
        follow(node.left, [*path, (first, first + 1)])
        follow(node.right, [*path, (first + 1, first)])

    follow(fitted._bisecting_tree, [])
    _enough(fitted, len(paths))
    longest = max(map(len, paths.values()))
    filled = [paths[c] + [(-1, -1)] * (longest - len(paths[c])) for c in range(len(paths))]
    own, other = torch.tensor(filled).unbind(-1)
    points = np.stack(centres) + fitted._X_mean
    place.then(Distances(tensor(points) - place.origin()), len(points))
    _margins(place, own, other)

    def margins(x: Any) -> Any:
        d = ((rows(x)[:, None] - points[None]) ** 2).sum(-1)
        h = d[:, other.numpy()] - d[:, own.numpy()]
        return _pooled(place, np.where(own.numpy() < 0, np.inf, h))

    return Score("clusters", margins, tuple(range(len(paths))))


@dataclass(frozen=True, eq=False)
class KernelKMeans:
    """A clustering by a Gaussian kernel: the points that were clustered, and their clusters.

    A point belongs to the cluster to whose points it is most similar on the mean, S_c = mean over j in c of
    exp(−γ‖x − u_j‖²): the power assignment of Kauffmann et al. (2022). The evidence is the difference of the soft
    distances −γ⁻¹ log S. The labels may be those of any clustering: kernel k-means, spectral clustering.

    Attributes:
        vectors: the points (n, D).
        labels: the cluster of each point, whole numbers from 0.
        gamma: γ of the kernel.
    """

    vectors: Any
    labels: Any
    gamma: float

    @property
    def n_features_in_(self) -> int:
        """The number of features of the points."""
        return int(np.shape(self.vectors)[-1]) if np.ndim(self.vectors) else 0

    def predict(self, x: Any) -> Any:
        """The cluster of each row of x (m, D)."""
        return self.soft_distances(x).argmin(1)

    def soft_distances(self, x: Any) -> Any:
        """−γ⁻¹ log S_c of each row of x (m, D) and cluster, (m, C)."""
        d = ((rows(x)[:, None] - np.asarray(self.vectors, float)[None]) ** 2).sum(-1)
        found = []
        for c in range(int(np.max(self.labels)) + 1):
            own = -self.gamma * d[:, np.asarray(self.labels) == c]
            top = own.max(1, keepdims=True)
            found.append(-(np.log(np.exp(own - top).mean(1)) + top[:, 0]) / self.gamma)
        return np.stack(found, 1)


@estimator("KernelKMeans")
def kernel_clusters(given: KernelKMeans, place: Place) -> Score:
    """f_c = min over k ≠ c of o_k − o_c, with o the soft distance to a cluster's points."""
    labels = np.asarray(given.labels)
    whole = labels.dtype.kind in "iu" and labels.ndim == 1 and labels.size and labels.min() >= 0
    counts = np.bincount(labels) if whole else np.zeros(1)
    if (
        np.ndim(given.vectors) != 2
        or len(labels) != len(given.vectors)
        or (counts == 0).any()
        or not given.gamma > 0
    ):
        raise InvalidInput(
            "KernelKMeans: the labels are not one whole number a point with none left out, or gamma is not above 0\n"
            "  do: give labels 0 … C−1, one for each row of the vectors"
        )
    _enough(given, len(counts))
    order = np.argsort(labels, kind="stable")
    place.then(Distances(tensor(given.vectors)[torch.from_numpy(order)] - place.origin()), len(order))
    offsets = [torch.full((int(n),), -float(np.log(n)) / given.gamma, dtype=torch.float64) for n in counts]
    place.then(
        Grouped([Soften(given.gamma, offset) for offset in offsets], [int(n) for n in counts]), len(counts)
    )
    own, other = _all_rivals(len(counts))
    _margins(place, own, other)

    def margins(x: Any) -> Any:
        d = given.soft_distances(x)
        return _pooled(place, d[:, other.numpy()] - d[:, own.numpy()])

    return Score("clusters", margins, tuple(range(len(counts))))


@estimator("GaussianMixture", "BayesianGaussianMixture")
def mixture(fitted: Any, place: Place) -> Score:
    """The log-odds of each component: −log Σ over k ≠ c of exp(−h_k), h_k = log π_c N_c − log π_k N_k."""
    _enough(fitted, fitted.n_components)
    own, other = _all_rivals(fitted.n_components)
    add_quadratics(fitted, place)
    place.options.setdefault("beta", 1.0)
    place.options.setdefault("soft", True)
    _margins(place, own, other)

    def odds(x: Any) -> Any:
        a = fitted._estimate_weighted_log_prob(rows(x))
        return _pooled(place, a[:, own.numpy()] - a[:, other.numpy()])

    return Score("clusters", odds, tuple(range(fitted.n_components)))
