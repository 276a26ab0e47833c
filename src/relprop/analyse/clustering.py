"""Spectral clustering: the labels of a class's maps for several numbers of clusters, and what the spectrum is worth."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relprop.analyse.fisher import fisher_discriminant
from relprop.analyse.graph import affinity, eigengap, eigenpairs, needed, neighbours

FITTED = 20_000
"""The centres of k-means are found on so many points, drawn at random; all points are then assigned."""

CAP = 1e6
"""The clusterability that is stated for clusters without any connection, whose τ is infinite."""

NULL = 400
"""The maps, drawn at random, on which a class is compared with shuffled ones; and how often."""
NULL_DRAWS = 5

Singles = NDArray[np.float32]
Integers = NDArray[np.int64]
Reals = NDArray[np.float64]


def spectral_labels(vectors: Reals, k: int, seed: int = 0) -> Integers:
    """(n,) labels 0 … k − 1: k-means on the first k eigenvectors with rows of unit length (Ng, Jordan and Weiss 2002).

    The largest cluster is 0, the next 1, and so on.
    """
    if k == 1:
        return np.zeros(len(vectors), dtype=np.int64)
    points = unit_rows(vectors[:, :k])
    chosen = _drawn(points, FITTED, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct points than clusters
        means = needed("sklearn.cluster").KMeans(k, n_init=10, random_state=seed).fit(chosen)
    labels = np.asarray(means.predict(points), dtype=np.int64)
    order = np.argsort(-np.bincount(labels, minlength=k), kind="stable")
    rank = np.empty(k, dtype=np.int64)
    rank[order] = np.arange(k)
    return np.asarray(rank[labels])


def unit_rows(vectors: Reals) -> Reals:
    """Rows of unit length; rows of zeros stay."""
    length = np.sqrt((vectors**2).sum(1, keepdims=True))
    return np.asarray(np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 1e-12))


def clusterability(vectors: Reals, labels: Integers, smallest: float = 0.02) -> float:
    """Fisher's τ of clusters in the spectral embedding they were found in, at most `CAP`.

    Clusters of fewer than three points, or of less than `smallest` of them, are left out.
    """
    k = max(2, int(labels.max()) + 1)
    least = max(3, int(np.ceil(smallest * len(labels))))
    return min(fisher_discriminant(unit_rows(vectors[:, :k]), labels, "max", least), CAP)


def against_chance(features: Singles, k: int, seed: int = 0) -> dict[str, float]:
    """How much better a class separates than maps whose cells were shuffled across its samples, as z-scores.

    Shuffling leaves each cell's values and destroys what they have to do with each other. Computed on `NULL` samples, with two
    clusters. A negative `eigenvalue_2_z` means better separated than chance.
    """
    points = _drawn(features, NULL, seed)
    random = np.random.default_rng(seed)
    real = _two(points, k, seed)
    drawn = np.array([_two(random.permuted(points, axis=0), k, seed) for _ in range(NULL_DRAWS)])
    spread = np.maximum(drawn.std(0, ddof=1), 1e-9)
    z = (real - drawn.mean(0)) / spread
    return {
        "eigenvalue_2": float(real[0]),
        "eigenvalue_2_null": float(drawn[:, 0].mean()),
        "eigenvalue_2_z": float(z[0]),
        "clusterability_z": float(z[1]),
    }


def _two(points: Singles, k: int, seed: int) -> Reals:
    values, vectors = eigenpairs(affinity(neighbours(points, min(k, len(points) - 1), seed)[0]), 2, seed)
    return np.array(
        [values[1], np.log(max(clusterability(vectors, spectral_labels(vectors, 2, seed)), 1e-9))]
    )


def best_number(eigenvalues: Reals, most: int) -> int:
    """The number of clusters by the eigengap, at most `most`."""
    return eigengap(np.maximum.accumulate(eigenvalues), most)


def _drawn(points: Any, most: int, seed: int) -> Any:
    if len(points) <= most:
        return points
    return points[np.sort(np.random.default_rng(seed).choice(len(points), most, replace=False))]
