"""Two coordinates a sample, for looking at: UMAP, t-SNE or the spectrum's own."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relprop.analyse.graph import needed, neighbours, torch_threads_kept
from relprop.errors import InvalidInput

EMBEDDINGS = ("umap", "tsne", "spectral", "none")
"""How samples are laid out in the plane; `"none"` leaves it out."""

PACKAGES = {"umap": ("umap",), "tsne": ("sklearn.manifold",)}
"""What a layout needs beside what the graph needs."""

LANDMARKS = {"umap": 50_000, "tsne": 10_000}
"""So many samples are laid out themselves; further ones go to the mean of their neighbours, again and again."""

SPREAD = 40
"""How often the positions of landmarks are passed on along the graph."""

Singles = NDArray[np.float32]


def embed(
    features: Singles,
    weights: Any,
    vectors: NDArray[np.float64],
    indices: NDArray[np.int32],
    distances: Singles,
    how: str = "umap",
    seed: int = 0,
) -> Singles:
    """The layout of a class.

    Args:
        features: (n, d), what the graph was made from.
        weights: (n, n) the sparse graph.
        vectors: (n, q) its eigenvectors, with which the layout begins.
        indices, distances: (n, k) the nearest neighbours.
        how: one of `EMBEDDINGS`. UMAP by McInnes et al. 2018 (15 neighbours, min_dist 0.1), t-SNE by van der Maaten and Hinton 2008
            (perplexity 30).

    Returns:
        (n, 2) float32, NaN for `"none"`.
    """
    if how not in EMBEDDINGS:
        raise InvalidInput(f"embedding: {how!r}\n  do: give one of {', '.join(EMBEDDINGS)}")
    n = len(features)
    if how == "none":
        return np.full((n, 2), np.nan, dtype=np.float32)
    start = _start(vectors, seed)
    if how == "spectral":
        return start
    chosen = np.arange(n)
    if n > LANDMARKS[how]:
        chosen = np.sort(np.random.default_rng(seed).choice(n, LANDMARKS[how], replace=False))
        indices, distances = neighbours(features[chosen], min(15, LANDMARKS[how] - 1), seed)
    laid = _umap if how == "umap" else _tsne
    placed = laid(features[chosen], start[chosen], indices, distances, seed)
    return placed if len(chosen) == n else _passed_on(weights, chosen, placed, start)


def _start(vectors: NDArray[np.float64], seed: int) -> Singles:
    """The second and third eigenvector, scaled to ±10, with a little noise that parts equal points."""
    n, q = vectors.shape
    plane = np.zeros((n, 2))
    plane[:, : min(2, q - 1)] = vectors[:, 1:3]
    size = np.abs(plane).max(0)
    plane = 10 * np.divide(plane, size, out=np.zeros_like(plane), where=size > 0)
    noise = np.random.default_rng(seed).normal(scale=1e-3, size=plane.shape)
    return np.asarray(plane + noise, dtype=np.float32)


def _umap(features: Singles, start: Singles, indices: Any, distances: Any, seed: int) -> Singles:
    umap = needed("umap")
    n = len(features)
    own = np.arange(n, dtype=indices.dtype)[:, None]
    known = np.hstack([own, indices]), np.hstack([np.zeros((n, 1), np.float32), distances])
    with warnings.catch_warnings(), torch_threads_kept():
        warnings.simplefilter(
            "ignore"
        )  # that one thread is used with a seed, that the index for new points is missing
        reducer = umap.UMAP(
            n_neighbors=min(15, indices.shape[1] + 1), min_dist=0.1, init=start, random_state=seed, n_jobs=1,
            precomputed_knn=(*known, None), low_memory=True,
        )  # fmt: skip
        found: Singles = reducer.fit_transform(features)
    return found.astype(np.float32)


def _tsne(features: Singles, start: Singles, indices: Any, distances: Any, seed: int) -> Singles:
    manifold = needed("sklearn.manifold")
    perplexity = min(30.0, (len(features) - 1) / 3)
    begin = (start / max(float(start.std()), 1e-9) * 1e-4).astype(np.float32)
    found: Singles = manifold.TSNE(2, perplexity=perplexity, init=begin, random_state=seed).fit_transform(
        features
    )
    return found.astype(np.float32)


def _passed_on(weights: Any, chosen: NDArray[Any], placed: Singles, start: Singles) -> Singles:
    """All positions: landmarks stay, the others move to the mean of their neighbours that have a position, `SPREAD` times."""
    n = weights.shape[0]
    plane, known = np.zeros((n, 2)), np.zeros(n)
    for _ in range(SPREAD):
        plane[chosen], known[chosen] = placed, 1
        reach = weights @ known
        plane = np.divide(weights @ plane, reach[:, None], out=np.zeros_like(plane), where=reach[:, None] > 0)
        known = (reach > 0).astype(np.float64)
        plane *= known[:, None]
    plane[chosen] = placed
    lost = np.setdiff1d(np.flatnonzero(known == 0), chosen)
    plane[lost] = start[lost]  # a component without landmarks
    return plane.astype(np.float32)
